"""SVG-EAR: compute the pairs of clusters that their means stand in for worst, and let the means do the rest.

Source: "SVG-EAR", arXiv 2603.08982. The means enter by the correction `centroids`, which this recipe brings along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.kernels.block_sparse.lists import keep_mass
from dittools.methods.options import option
from dittools.methods.svg2 import SVG2
from dittools.selection.clustered import centroid_mass, compensation_error, select_topk_clusters


@dataclass(frozen=True)
class SVGEAR(SVG2):
    """Order: as svg2. Selector: error of the means. Budget: as svg2. With ``top_p``, each query cluster spends what
    svg2 would.
    """

    name: ClassVar[str] = "svg_ear"
    knows_heads: ClassVar[bool] = True
    summary: ClassVar[str] = "svg2 where skipped clusters enter as their means, and errors decide (SVG-EAR)"
    correction: ClassVar[str] = "centroids"
    reads: ClassVar[tuple[str, ...]] = ("q", "k", "v")

    # One more than svg2: what is skipped leans on the means themselves.
    iterations: int = option(2, "k-means iterations in later steps, from the step before", min=1)

    def choose(self, query, key, k, v, call, force) -> torch.Tensor:
        sizes = query.partition.run_sizes, key.partition.run_sizes
        # An error is suffered by all queries of a cluster and saved at the price of all pairs: by key, that is.
        gain = compensation_error(query, key, k, v, call.scale) / sizes[1].clamp_min(1)[..., None, :]
        if self.top_p is None:
            return select_topk_clusters(gain, query, key, call.density, scope=self.scope, heads=call.heads)
        mass = centroid_mass(query, key, call.scale)
        room = keep_mass(mass, self.top_p, min_share=2 * self.min_share if self.min_share <= 0.5 else 1.0, force=force)
        sure = keep_mass(mass, 0.0, min_share=self.min_share, force=force)
        return refill(gain, room, sure, sizes[1])


def refill(gain: torch.Tensor, room: torch.Tensor, sure: torch.Tensor, key_sizes: torch.Tensor) -> torch.Tensor:
    """In each row, as many keys as ``room`` keeps: those of ``sure``, then the best by ``gain``."""
    sizes = key_sizes[..., None, :].expand(gain.shape).long()
    best = gain.masked_fill(sure, torch.inf).sort(dim=-1, descending=True, stable=True).indices
    in_order = sizes.gather(-1, best)
    before = in_order.cumsum(-1) - in_order
    chosen = before < (room * sizes).sum(-1, keepdim=True)
    return torch.zeros_like(sure).scatter_(-1, best, chosen) | sure
