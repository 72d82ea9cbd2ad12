"""ToDo: all queries, and of the keys and values only every so many rows and columns.

Source: Smith et al., "ToDo: Token Downsampling", arXiv 2402.13573, which picks keys by nearest-exact resizing of each
picture (``pick="middle"``): always the same ones, so that whatever repeats between them is not seen at all. Here each
cell of the picture gives the mean of its keys and of its values, or one token drawn anew in each step ("random"), the
same in both guidance branches. Keys are taken after RoPE, so that they keep their places. Not in the paper: every one
counts for the keys it stands for (the log of their number is added to its logits), so that text keys keep their share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from dittools.methods.base import AttentionCall, Method, Plan
from dittools.methods.checks import one_of
from dittools.methods.options import axes, switch
from dittools.selectors.strided import PICKS, fit_sizes, picked_keys
from dittools.tokens import TokenGrid

AUTO = "auto"


@dataclass(frozen=True)
class ToDo(Method):
    """Order: none. Selector: a key and a value for each cell of the picture, and all text. Budget: how many rows and
    columns of cells.
    """

    name: ClassVar[str] = "todo"
    summary: ClassVar[str] = "all queries see the same few keys, one for each cell of every frame (ToDo)"
    decides: ClassVar[tuple[str, ...]] = ("stride",)
    takes_corrections: ClassVar[bool] = False

    stride: int | tuple[int, int, int] | str = field(
        default=AUTO,
        metadata={"help": "one key of so many rows and columns, or of frames, rows, columns; auto: by the sparsity"},
    )
    pick: str = field(
        default="mean",
        metadata={"help": "what stands for a cell: its mean, a random token by step, or the middle one as published"},
    )
    bias: bool = field(default=True, metadata={"help": "count a key for all that it stands for"})

    def __post_init__(self):
        per_frame = (1, self.stride, self.stride) if type(self.stride) is int else self.stride
        object.__setattr__(self, "stride", axes("stride", per_frame, auto=True))
        one_of("pick", self.pick, PICKS)
        switch("bias", self.bias)

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        if self.pick == "random":
            return self._plan(call, q.device)
        return call.remember((self, call.sparsity, q.device), lambda: self._plan(call, q.device))

    def _plan(self, call: AttentionCall, device: torch.device) -> Plan:
        grid = call.grid
        sizes = [self._sizes(TokenGrid(*part.shape), call.density) for part, _ in grid.grids]
        how = {"pick": self.pick, "bias": self.bias, "generator": call.generator}
        keys, mask = picked_keys(grid, sizes, call.block_size, **how)
        plan = Plan(None, mask.to(device), keys=keys.to(device))
        said = f"todo: {self.pick} keys of {'x'.join(map(str, sizes[0]))} cells of {'x'.join(map(str, grid.shape))}"
        return plan.noting(f"{said}; {plan.density().item():.1%} of all pairs")

    def _sizes(self, grid: TokenGrid, density: float) -> tuple[int, int, int]:
        """Frames, rows and columns to pick of a grid."""
        if self.stride == AUTO:
            return fit_sizes(grid, density)
        return tuple(max(1, x // f) for x, f in zip(grid.shape, self.stride, strict=True))
