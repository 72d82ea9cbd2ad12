"""ToDo: all queries, and of the keys and values only every so many rows and columns.

Source: Smith et al., "ToDo: Token Downsampling", arXiv 2402.13573, which picks keys by nearest-exact resizing of each
picture (``pick="middle"``): always the same ones, so that whatever repeats between them is not seen at all. Here each
cell of the picture gives the mean of its keys and of its values, or one token drawn anew in each step ("random"), the
same in both guidance branches. Keys are taken after RoPE, so that they keep their places. Not in the paper: every one
counts for the keys it stands for (the log of their number is added to its logits), so that text keys keep their share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.methods.base import AttentionCall, Method, Plan
from dittools.methods.options import AUTO, option
from dittools.selection.strided import PICKS, fit_sizes, picked_keys
from dittools.tokens import TokenGrid


@dataclass(frozen=True)
class ToDo(Method):
    """Order: none. Selector: a key and a value for each cell of the picture, and all text. Budget: how many rows and
    columns of cells.
    """

    name: ClassVar[str] = "todo"
    knows_heads: ClassVar[bool] = True
    summary: ClassVar[str] = "all queries see the same few keys, one for each cell of every frame (ToDo)"
    decides: ClassVar[tuple[str, ...]] = ("stride",)
    takes_corrections: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()

    stride: int | tuple[int, int, int] | str = option(
        AUTO, "one key of so many rows and columns, or of frames, rows, columns; auto: by the sparsity", kind="axes"
    )
    pick: str = option("mean", "what stands for a cell; random changes by step, middle is published", choices=PICKS)
    bias: bool = option(True, "count a key for all that it stands for")

    def __post_init__(self):
        if type(self.stride) is int:  # along rows and columns alone
            object.__setattr__(self, "stride", (1, self.stride, self.stride))
        super().__post_init__()

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        if self.pick == "random":
            return self._plan(call, q.device)
        return call.run_cache.get_or_make((self, call.sparsity, q.device), lambda: self._plan(call, q.device))

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
