"""Radial attention: the farther two frames are apart, the narrower the band between them.

Source: Li et al., "Radial Attention", arXiv 2506.19852, and its code: frames at most one apart see each other whole,
farther ones a band whose width halves as their distance doubles, and beyond some distance only every few frames are
kept (`dittools.selection.radial_bands` has the rule). Without text in the sequence everyone sees the first frame.

No decay keeps less than its floor, every band one block wide. A budget below that has no published mask: ours takes
frames nearest first, the own one, then the next ones and the first one, then bands of one block, nearest frames first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dittools.methods.options import AUTO, option
from dittools.methods.static import Static
from dittools.orders.raster import raster
from dittools.selection.boxes import boxes_of
from dittools.selection.geometric import Pattern, picture_share
from dittools.selection.levels import mask_at, mask_to_density
from dittools.selection.radial_bands import FLOOR, kept, levels, what_is_kept


@dataclass(frozen=True)
class Radial(Static):
    """Order: raster. Selector: bands whose width halves as frame distance doubles. Budget: the decay."""

    name: ClassVar[str] = "radial"
    knows_heads: ClassVar[bool] = True
    video_only: ClassVar[bool] = True
    summary: ClassVar[str] = "a band whose width halves as the distance of frames doubles (Radial Attention)"
    decides: ClassVar[tuple[str, ...]] = ("decay",)

    decay: float | str = option(
        AUTO, "width of the bands, 1 as in the paper; auto: what the sparsity allows", kind="number", min=0
    )
    sink: bool | str = option(
        AUTO, "keep the first frame for every query; auto: where the sequence has no text", kind="switch"
    )

    def pattern(self, grid, sparsity: float, block_size: int) -> Pattern:
        order = raster(grid)
        boxes = boxes_of(grid, order, block_size, flat=True)
        sink = grid.text == 0 if self.sink == AUTO else self.sink
        if self.decay != AUTO:
            out = boxes.least(lambda rows: ~kept(boxes, rows, grid.frame, block_size, self.decay, sink))
            pattern, said = mask_at(grid, order, out, 0, block_size), f"decay {self.decay:g}"
        else:
            level = boxes.least(lambda rows: levels(boxes, rows, grid.frame, block_size, sink))
            grown = mask_to_density(grid, order, level, sparsity, block_size)
            pattern, said = grown.pattern, what_is_kept(grown.level if grown.beyond is None else grown.beyond)
            least = mask_at(grid, order, level, FLOOR, block_size).mask.keep[0, 0].numpy()
            floor = 1 - picture_share(least, grid, block_size)
            if sparsity > floor:
                said += f"; beyond {floor:.2f} skipped there is no published mask: nearest frames first is our own rule"
        return pattern.noting(f"{said}; {pattern.mask.density().item():.1%} of all pairs by blocks of {block_size}")
