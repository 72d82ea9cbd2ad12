"""ToDo: all queries, and of the keys and values only every so many rows and columns.

Source: Smith et al., "ToDo: Token Downsampling", arXiv 2402.13573, which picks keys by nearest-exact resizing of each
picture. Picked here after RoPE, so that a key keeps its place. Not in the paper: every picked key counts for the keys
it stands for (the log of their number is added to its logits), so that text keys keep their share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

import torch

from dittools.methods.base import AttentionCall, Method, Plan
from dittools.methods.options import axes, switch
from dittools.selectors.strided import fit_sizes, picked_keys
from dittools.tokens import TokenGrid

AUTO = "auto"


@dataclass(frozen=True)
class ToDo(Method):
    """Order: none. Selector: strided keys and values, and all text. Budget: how many rows and columns are picked."""

    name: ClassVar[str] = "todo"
    summary: ClassVar[str] = "all queries see the same few keys, picked evenly from every frame (ToDo)"
    takes_corrections: ClassVar[bool] = False

    stride: int | tuple[int, int, int] | str = field(
        default=AUTO,
        metadata={"help": "one key of so many rows and columns, or of frames, rows, columns; auto: by the sparsity"},
    )
    bias: bool = field(default=True, metadata={"help": "count a key for all that it stands for"})

    def __post_init__(self):
        per_frame = (1, self.stride, self.stride) if type(self.stride) is int else self.stride
        object.__setattr__(self, "stride", axes("stride", per_frame, auto=True))
        switch("bias", self.bias)

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        return call.remember((self, call.sparsity, q.device), lambda: self._plan(call, q.device))

    def _plan(self, call: AttentionCall, device: torch.device) -> Plan:
        grid = call.grid
        sizes = [self._sizes(TokenGrid(*part.shape), call.density) for part, _ in grid.grids]
        keys, mask = picked_keys(grid, sizes, call.block_size, bias=self.bias)
        plan = Plan(None, mask.to(device), keys=keys.to(device))
        said = f"todo: keys of {'x'.join(map(str, sizes[0]))} places of {'x'.join(map(str, grid.shape))}"
        kept = prod(sizes[0]) / grid.video
        notes = [f"{said}; {plan.density().item():.1%} of all pairs"]
        if self.stride == AUTO and abs(kept - call.density) > 0.02:
            notes.append(f"todo: no choice of rows and columns skips {call.sparsity:g} of the pairs: {1 - kept:.2f}")
        return Plan(None, plan.mask, notes=tuple(notes), keys=plan.keys)

    def _sizes(self, grid: TokenGrid, density: float) -> tuple[int, int, int]:
        """Frames, rows and columns to pick of a grid."""
        if self.stride == AUTO:
            return fit_sizes(grid, density)
        return tuple(max(1, x // f) for x, f in zip(grid.shape, self.stride, strict=True))
