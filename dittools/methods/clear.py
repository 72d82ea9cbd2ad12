"""CLEAR: an image token sees what lies in a circle around it.

Source: Liu et al., "CLEAR: Conv-Like Linearization", arXiv 2412.16112. Circles end at the border, as there; the pooled
keys and the fine-tuning of the original are not part of it. In a video the circle is the same place in every frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from dittools.methods.options import AUTO, option
from dittools.methods.static import Static
from dittools.orders.tiles import fit_tile, tiles
from dittools.selection.boxes import boxes_of
from dittools.selection.geometric import Pattern
from dittools.selection.levels import mask_at, mask_to_density


@dataclass(frozen=True)
class Clear(Static):
    """Order: 2-D patches of a block's size. Selector: distance below the radius. Budget: the radius."""

    name: ClassVar[str] = "clear"
    knows_heads: ClassVar[bool] = True
    summary: ClassVar[str] = "a circle around every token of an image, of every frame in a video (CLEAR)"
    decides: ClassVar[tuple[str, ...]] = ("radius",)

    radius: float | str = option(
        AUTO, "tokens; pairs less far apart are kept; auto: what the sparsity allows", kind="number", min=1
    )

    def pattern(self, grid, sparsity: float, block_size: int) -> Pattern:
        # All frames are in reach, so a patch of one frame is as good as any and the nearest to the original.
        side = fit_tile(grid, block_size, (1 / grid.frames, 0.5, 0.5))
        order = tiles(grid, side)
        boxes = boxes_of(grid, order, block_size)
        level = boxes.least(lambda rows: boxes.gap(1, rows) ** 2 + boxes.gap(2, rows) ** 2)
        if self.radius != AUTO:
            pattern, said = mask_at(grid, order, level, math.ceil(self.radius**2) - 1, block_size), f"{self.radius:g}"
        else:
            grown = mask_to_density(grid, order, level, sparsity, block_size)
            pattern, said = grown.pattern, _radius(grown.level)
            if grown.beyond is not None:
                said += f", and the nearest {grown.share:.0%} of what {_radius(grown.beyond)} adds"
        return pattern.noting(f"radius {said}; {pattern.mask.density().item():.1%} of all pairs by blocks")


def _radius(level: float) -> str:
    """The smallest whole square above a kept squared distance, as a radius."""
    return "below 1" if level < 0 else f"{math.sqrt(level + 1):.1f}" if math.isfinite(level) else "without end"
