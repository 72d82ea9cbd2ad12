"""What kind of head it is, by where its attention lies: near in raster, at the same place, in the first frame."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dittools.kernels import gather_tokens, measure_block_mass
from dittools.kernels.masks.block_mask import Partition
from dittools.orders.raster import raster
from dittools.orders.token_major import token_major
from dittools.selection.geometric import band_pattern
from dittools.tokens import TokenGrid

BAND = 0.2
"""Share of all pairs in either band: bands of one size can be compared."""
MOST = 0.5
"""A head belongs to a class that holds more than this share of its mass."""


class Shares(NamedTuple):
    """Shares of one head's attention. Bands overlap, so they do not add up to 1."""

    spatial: float
    temporal: float
    first_frame: float
    text: float

    @property
    def name(self) -> str:
        """spatial, temporal, first frame, text, or spread when none holds most."""
        return (self._most() or ["spread"])[0]

    @property
    def also(self) -> tuple[str, ...]:
        """The other classes that hold most as well: bands overlap."""
        return tuple(self._most()[1:])

    @property
    def told(self) -> str:
        """For people: "first frame, also temporal"."""
        return self.name + (f", also {' and '.join(self.also)}" if self.also else "")

    def _most(self) -> list[str]:
        """Classes above MOST: text, then the first frame, then the larger of the two bands first."""
        found = self._asdict()
        bands = sorted(("spatial", "temporal"), key=found.__getitem__, reverse=True)
        return [name.replace("_", " ") for name in ("text", "first_frame", *bands) if found[name] > MOST]


def head_shares(q: torch.Tensor, k: torch.Tensor, grid: TokenGrid, scale: float, block_size: int) -> list[Shares]:
    """Shares of each head of q and k ``[B, S, H, D]``, mean over batches."""
    partition = Partition(grid.tokens, block_size)
    index = torch.arange(grid.video)
    held = []
    for order, coordinate in ((raster(grid), index), (token_major(grid), index % grid.frame)):
        band = band_pattern(grid, order, coordinate, sparsity=1 - BAND, block_size=block_size, sink=False)
        inside = gather_tokens((q, k), order.to(q.device)[None, None])
        mass = measure_block_mass(*inside, partition, partition, scale=scale)  # [B, H, M, M]
        held.append((mass * band.mask.keep.to(q.device)).sum((-1, -2)).mean(0) / grid.tokens)
    start = grid.video_start
    parts = [slice(start, start + grid.frame), grid.text_slice]
    held += [_share_of_keys(q, k, part, scale) for part in parts]
    return [Shares(*row) for row in torch.stack(held, -1).tolist()]


def _share_of_keys(q: torch.Tensor, k: torch.Tensor, keys: slice, scale: float) -> torch.Tensor:
    """Mean share of the softmax over all keys that some of them hold: ``[H]``. A few hundred queries are looked at."""
    rows = q[:, :: max(1, q.shape[1] // 256)].float().transpose(1, 2)  # [B, H, n, D]
    held = []
    for h in range(q.shape[2]):
        weights = (rows[:, h] @ k[:, :, h].float().transpose(-1, -2) * scale).softmax(-1)
        held.append(weights[..., keys].sum(-1).mean())
    return torch.stack(held)
