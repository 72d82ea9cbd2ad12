"""Blocks whose sizes are data: clusters of queries and of keys, each in an order of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from dittools.kernels.block_sparse.lists import from_keep
from dittools.kernels.counting_sort.dispatch import offsets_of
from dittools.kernels.masks.block_mask import check_keep


@dataclass(frozen=True, eq=False)
class ClusterPartition:
    """``length`` positions cut into runs of any size, other ones in every lane; a run may be empty.

    Args:
        length: positions, known to the host.
        run_sizes: int32 ``[B or 1, H or 1, M]``, at least 0, each lane summing to ``length``; on the device and
            not checked, which would wait for it.

    Raises:
        ValueError: when the sizes are not 3-D int32.
    """

    length: int
    run_sizes: torch.Tensor
    _cache: dict = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        if self.run_sizes.dtype != torch.int32 or self.run_sizes.ndim != 3:
            raise ValueError(
                "cluster sizes must be int32 [B or 1, H or 1, clusters], "
                f"got {self.run_sizes.dtype} {list(self.run_sizes.shape)}"
            )

    @property
    def count(self) -> int:
        """Number of clusters, empty ones included."""
        return self.run_sizes.shape[-1]

    def sizes(self, device: torch.device | str | None = None) -> torch.Tensor:
        """Positions in each cluster: int32 ``[B or 1, H or 1, M]``."""
        return self.run_sizes if device is None else self.run_sizes.to(device)

    def offsets(self) -> torch.Tensor:
        """Where clusters begin and end: int32 ``[B or 1, H or 1, M + 1]``."""
        if "offsets" not in self._cache:
            self._cache["offsets"] = offsets_of(self.run_sizes)
        return self._cache["offsets"]

    def labels(self) -> torch.Tensor:
        """The cluster of each position: int64 ``[B or 1, H or 1, length]``. Made without a host sync."""
        if "labels" not in self._cache:
            ends = self.offsets()[..., 1:].contiguous()
            positions = torch.arange(self.length, dtype=torch.int32, device=ends.device)
            positions = positions.expand(*ends.shape[:2], -1).contiguous()
            self._cache["labels"] = torch.searchsorted(ends, positions, right=True)
        return self._cache["labels"]


@dataclass(frozen=True, eq=False)
class ClusterMask:
    """Which key clusters each query cluster visits, over positions of two orders: one of queries, one of keys.

    The counterpart of `dittools.kernels.masks.block_mask.BlockMask` for clusters: the same words mean the same.

    Args:
        keep: bool ``[B or 1, H or 1, Mq, Nk]``. Treated as constant from here on.
        query, key: partitions with ``query.count == Mq`` and ``key.count == Nk``.

    Raises:
        ValueError: when ``keep`` is not 4-D bool, or its clusters do not match the partitions.
    """

    variable: ClassVar[bool] = True  # how kernels tell it from a mask of even blocks

    keep: torch.Tensor
    query: ClusterPartition
    key: ClusterPartition
    _cache: dict = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        check_keep(self, "clusters")

    @classmethod
    def full(cls, query: ClusterPartition, key: ClusterPartition) -> ClusterMask:
        """The mask that keeps every pair."""
        keep = torch.ones(1, 1, query.count, key.count, dtype=torch.bool, device=query.run_sizes.device)
        return cls(keep, query, key)

    def density(self) -> torch.Tensor:
        """Kept query-key pairs over all pairs: fp32 ``[B or 1, H or 1]``, clusters counted by what they hold."""
        keys = (self.keep * self.key.run_sizes[..., None, :]).sum(-1)  # int64 [.., Mq]
        pairs = (keys * self.query.run_sizes).sum(-1)
        return (pairs.double() / (self.query.length * self.key.length)).float()

    def kv_blocks(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(kv_num_blocks int32 ``[.., Mq]``, kv_indices int32 ``[.., Mq, Nk]``): kept key clusters, ascending."""
        if "lists" not in self._cache:
            self._cache["lists"] = from_keep(self.keep)
        return self._cache["lists"]

    def to_tokens(self, batch: int, head: int, rows: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """Rows of the position-level mask: bool ``[len(rows), key.length]``.

        ``rows`` are query positions, columns key positions, each in its own order. ``batch`` and ``head`` may exceed
        a dimension of size 1, which all batches or heads share.
        """
        rows = torch.as_tensor(rows, dtype=torch.long, device=self.keep.device)
        keep, query, key = (lane(x, batch, head) for x in (self.keep, self.query.labels(), self.key.labels()))
        return keep[query[rows]][:, key]

    def to(self, device: torch.device | str) -> ClusterMask:
        """The same mask on another device."""
        if self.keep.device == torch.device(device):
            return self
        query, key = (ClusterPartition(p.length, p.run_sizes.to(device)) for p in (self.query, self.key))
        return ClusterMask(self.keep.to(device), query, key)


def lane(x: torch.Tensor, batch: int, head: int) -> torch.Tensor:
    """The part of ``[B or 1, H or 1, ...]`` that belongs to one head of one batch."""
    return x[0 if x.shape[0] == 1 else batch, 0 if x.shape[1] == 1 else head]
