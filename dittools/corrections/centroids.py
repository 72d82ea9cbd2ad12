"""Centroids: every skipped block enters as one key, and is made to say what the block would say on average.

A skipped block with mean key c and mean value u is one more key with the bias log(size). That is the zeroth order
in the keys, and cheap: one attention of all queries over as many keys as there are blocks. It misses that the sum
of exp is more than exp of the mean. So blocks are also *anchored*: for the mean query of each query block, mass and
output of everything skipped are computed exactly, at the price of one query a block, and mass and output of the
means are set right there. What remains is of second order, in how far keys and queries are from their means at once.

Source of the plain form: SVG-EAR (arXiv 2603.08982). Anchors are ours: `kernels/residual/README.md` derives them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dittools.corrections.base import Corrected, Correction, SparseCall
from dittools.kernels.residual.dispatch import Blocks, calibrate_at_centroid, residual_attention, summarise
from dittools.options import option


@dataclass(frozen=True)
class Centroids(Correction):
    """Skipped blocks and clusters as their means, merged with the computed part by LSE."""

    name: ClassVar[str] = "centroids"
    summary: ClassVar[str] = "each skipped block enters as its mean key and value, set right at the mean query"

    anchored: bool = option(True, "set mass and output right at each block's mean query")

    def correct(self, done: SparseCall) -> Corrected:
        blocks = Blocks.of(done.plan, done.q)
        means = summarise(done.k, done.v, blocks)
        if self.anchored:
            means = calibrate_at_centroid(done.q, done.k, done.v, blocks, means, done.call.scale)
        out = residual_attention(done.q, done.out, done.lse, blocks, means, done.call.scale)
        tokens, count = done.k.shape[1], done.plan.mask.key.count
        notes = (f"centroids: each query also saw {count} means, {count / tokens:.1%} of {tokens} keys",)
        return Corrected(out, notes=notes)
