"""Blocks of positions, and which key blocks each query block visits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Integral

import torch

from dittools.kernels.block_sparse.lists import from_keep, to_bits, to_keep
from dittools.kernels.upload import upload


@dataclass(frozen=True)
class Partition:
    """``length`` positions cut into runs of ``size``; the last run is ragged when they do not divide.

    Raises:
        ValueError: when length or size is not an integer of at least 1.
    """

    length: int
    size: int

    def __post_init__(self):
        for name in ("length", "size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ValueError(f"Partition.{name} must be an integer of at least 1, got {value!r}")
            object.__setattr__(self, name, int(value))

    @property
    def count(self) -> int:
        """Number of blocks, the ragged one included."""
        return -(-self.length // self.size)

    @property
    def tail(self) -> int:
        """Positions in the last block, between 1 and ``size``."""
        return self.length - (self.count - 1) * self.size

    def sizes(self, device: torch.device | str | None = None) -> torch.Tensor:
        """Positions in each block: int64 ``[count]``. It is shared: do not write into it."""
        make = _sizes.__wrapped__ if torch.compiler.is_compiling() else _sizes  # a trace sees through caches
        return make(self, torch.device(device or "cpu"))


@lru_cache(maxsize=64)
def _sizes(blocks: Partition, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        sizes = torch.full((blocks.count,), blocks.size, device=device)
        sizes[-1:] = blocks.tail  # of a single element it would wait for the device
        return sizes


def check_keep(mask, runs: str) -> None:
    """Raise ValueError unless ``mask.keep`` is 4-D bool, of the runs (what they are called) of its partitions."""
    name, keep, want = type(mask).__name__, mask.keep, (mask.query.count, mask.key.count)
    if keep.dtype != torch.bool or keep.ndim != 4:
        what = f"bool [B or 1, H or 1, query {runs}, key {runs}]"
        raise ValueError(f"{name}.keep must be {what}, got {keep.dtype} {list(keep.shape)}")
    if tuple(keep.shape[-2:]) != want:
        found = f"{keep.shape[-2]} x {keep.shape[-1]} {runs}"
        raise ValueError(f"{name}.keep has {found}, but its partitions have {want[0]} x {want[1]}")


@dataclass(frozen=True, eq=False)
class BlockMask:
    """Which key blocks each query block visits, over *positions* of an order.

    Args:
        keep: bool ``[B or 1, H or 1, Mq, Nk]``. Treated as constant from here on: ``lists()`` is cached.
        query, key: partitions with ``query.count == Mq`` and ``key.count == Nk``.

    Raises:
        ValueError: when ``keep`` is not 4-D bool, or its blocks do not match the partitions.
    """

    keep: torch.Tensor
    query: Partition
    key: Partition
    _cache: dict = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        check_keep(self, "blocks")

    @classmethod
    def full(cls, query: Partition, key: Partition, device: torch.device | str | None = None) -> BlockMask:
        """The mask that keeps every block, shared by all batches and heads."""
        return cls(torch.ones(1, 1, query.count, key.count, dtype=torch.bool, device=device), query, key)

    @classmethod
    def from_kv_blocks(
        cls,
        kv_num_blocks: torch.Tensor,
        kv_indices: torch.Tensor,
        query: Partition,
        key: Partition,
        density: torch.Tensor | None = None,
        mean_keep: Callable[[], torch.Tensor] | None = None,
    ) -> BlockMask:
        """The mask of ready lists, for selectors that find lists and kernels that read nothing else.

        ``keep`` is drawn from the lists when somebody first asks for it.

        Args:
            kv_num_blocks: int32 ``[B or 1, H or 1, Mq]``.
            kv_indices: int32 ``[B or 1, H or 1, Mq, L]`` with L at most Nk. Each row ascends up to its count, and
                what stands after the count is a valid block; neither is checked, which would wait for the device.
            query, key: partitions with ``query.count == Mq`` and ``key.count == Nk``.
            density: what `density` gives, where it is known.
            mean_keep: makes what `mean_keep` gives, where that needs no lists.

        Raises:
            ValueError: when dtypes, shapes or devices do not fit together.
        """
        blocks = query.count, key.count
        if kv_num_blocks.dtype != torch.int32 or kv_indices.dtype != torch.int32:
            raise ValueError(
                f"lists must be torch.int32, got kv_num_blocks {kv_num_blocks.dtype} and kv_indices {kv_indices.dtype}"
            )
        if kv_num_blocks.ndim != 3 or kv_indices.ndim != 4 or kv_num_blocks.shape != kv_indices.shape[:3]:
            raise ValueError(
                "lists must be kv_num_blocks [B or 1, H or 1, Mq], and kv_indices of the same with a list each, "
                f"got {list(kv_num_blocks.shape)} and {list(kv_indices.shape)}"
            )
        if kv_num_blocks.shape[-1] != blocks[0] or kv_indices.shape[-1] > blocks[1]:
            raise ValueError(
                f"lists have {kv_num_blocks.shape[-1]} rows of {kv_indices.shape[-1]} blocks, "
                f"but their partitions have {blocks[0]} x {blocks[1]}"
            )
        if kv_num_blocks.device != kv_indices.device:
            raise ValueError(f"kv_num_blocks are on {kv_num_blocks.device}, but kv_indices on {kv_indices.device}")
        if kv_indices.shape[-1] < blocks[1]:  # kernels step from row to row by Nk
            kv_indices = torch.nn.functional.pad(kv_indices, (0, blocks[1] - kv_indices.shape[-1]))
        mask = cls.__new__(cls)
        known = {"lists": (kv_num_blocks.contiguous(), kv_indices.contiguous())}
        if density is not None:
            known["density"] = density
        if mean_keep is not None:
            known["make mean"] = mean_keep
        for name, value in (("query", query), ("key", key), ("_cache", known)):
            object.__setattr__(mask, name, value)
        return mask

    def __getattr__(self, name: str) -> torch.Tensor:
        if name != "keep" or "_cache" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        object.__setattr__(self, "keep", to_keep(*self.kv_blocks(), self.key.count))
        return self.keep

    def density(self) -> torch.Tensor:
        """Kept query-key pairs over all pairs: fp32 ``[B or 1, H or 1]``; ragged tails count as they are."""
        if "density" not in self._cache:
            self._cache["density"] = self._density()
        return self._cache["density"]

    def _density(self) -> torch.Tensor:
        # Whole numbers until the division, so that the result is exact for any sequence length.
        keys = self.keep.sum(-1) * self.key.size - self.keep[..., -1].long() * (self.key.size - self.key.tail)
        pairs = keys.sum(-1) * self.query.size - keys[..., -1] * (self.query.size - self.query.tail)
        return (pairs.double() / (self.query.length * self.key.length)).float()

    def mean_keep(self) -> torch.Tensor:
        """Share of batches and heads that keep each block pair: fp32 ``[Mq, Nk]``."""
        if "mean" not in self._cache:
            made = self._cache.pop("make mean", None)
            lanes = None if made else self.keep.shape[0] * self.keep.shape[1]
            self._cache["mean"] = made() if made else self.keep.sum((0, 1), dtype=torch.float32) / lanes
        return self._cache["mean"]

    def kv_blocks(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(kv_num_blocks int32 ``[.., Mq]``, kv_indices int32 ``[.., Mq, Nk]``): kept key blocks, ascending.

        Entries of ``kv_indices`` past the count are valid block indices without meaning. Made on the mask's
        device without a host sync, once.
        """
        if "lists" not in self._cache:
            self._cache["lists"] = from_keep(self.keep)
        return self._cache["lists"]

    def kept_bits(self) -> torch.Tensor:
        """Kept key blocks as bits: int32 ``[.., Mq, ceil(Nk / 32)]``, block n as bit ``n % 32`` of word ``n // 32``.

        Made on the mask's device without a host sync, once.
        """
        if "bits" not in self._cache:
            self._cache["bits"] = to_bits(*self.kv_blocks())
        return self._cache["bits"]

    def to_tokens(self, batch: int, head: int, rows: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """Rows of the position-level mask: bool ``[len(rows), key.length]``.

        ``rows`` are query positions in the order. ``batch`` and ``head`` may exceed a dimension of size 1,
        which all batches or heads share.
        """
        rows = torch.as_tensor(rows, dtype=torch.long, device=self.keep.device)
        shared_batch, shared_head = self.keep.shape[0] == 1, self.keep.shape[1] == 1
        blocks = self.keep[0 if shared_batch else batch, 0 if shared_head else head]
        columns = torch.arange(self.key.length, device=self.keep.device) // self.key.size
        return blocks[rows // self.query.size][:, columns]

    def to(self, device: torch.device | str) -> BlockMask:
        """The same mask on another device."""
        if self.keep.device == torch.device(device):
            return self
        return BlockMask(upload(self.keep, torch.device(device)), self.query, self.key)
