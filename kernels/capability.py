"""What can run where: for every operation and implementation, None where it can run a call, else the reason.

`choice` asks these; whether a kernel that can run is also taken by itself is decided there. Needs no Triton.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

IMPLEMENTATIONS = ("hopper", "triton", "portable", "naive")  # of attention, fastest first
FLOATS = ("float16", "bfloat16", "float32")
TRITON_HEAD_DIMS = (64, 96, 128)
TRITON_BLOCKS = (64, 128)
HOPPER_HEAD_DIMS = (64, 128)
HOPPER_BLOCKS = (64, 128)
OLDEST_GLUON = (3, 6)  # the Triton whose Gluon the Hopper kernels are written in

MAX_TENSORS = 3  # that one pass permutes or takes means of
MAX_LABELS = 4096  # of a sort: one histogram of all labels stands in registers
MAX_ROW_BLOCKS = 8192  # key blocks that lists and masks are made from: a row stands in the registers of one program
MAX_KMEANS_DIM = 128  # a tile of points and two of centroids share the fast memory of a multiprocessor
MAX_PROBE_DIM = 128
MAX_MASS_DIM = 256
MASS_BLOCKS = (16, 32, 64, 128)
MASS_TILE_BYTES = 32 << 10  # of a query block; the tiles of three stages fit beside it
MAX_ANTIDIAGONAL_DIM = 256
MAX_ANTIDIAGONAL_TILES = 64  # in a block


def why_not(name: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask) -> str | None:
    """None when this implementation of attention can run this call, else why it cannot."""
    blocks = None if getattr(mask, "variable", False) else (mask.query.size, mask.key.size)
    reason = REASONS[name](q.device, q.dtype, q.shape[-1], blocks)
    if reason is None and name in ("hopper", "triton"):
        reason = why_no_backward(q, k, v)
    return reason


def why_no_backward(*tensors: torch.Tensor) -> str | None:
    """None unless a gradient is asked for, which only plain PyTorch has."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return "it has no backward: call it under torch.no_grad()"
    return None


def why_not_hopper(
    device: torch.device, dtype: torch.dtype, head_dim: int, blocks: tuple[int, int] | None = None
) -> str | None:
    """None when a Hopper kernel can run, else why it cannot. ``blocks``: query and key block size."""
    if device.type != "cuda":
        return f"needs a CUDA device, got {device.type}"
    if torch.version.hip is not None:
        return "needs an NVIDIA GPU"
    if not torch.cuda.is_available():
        return "no CUDA device was found"
    major, minor = torch.cuda.get_device_capability(device)
    if major != 9:
        return f"needs compute capability 9.x (Hopper), got {major}.{minor}"
    reason = why_no_gluon()
    if reason is not None:
        return reason
    if dtype not in (torch.float16, torch.bfloat16):
        return f"needs fp16 or bf16, got {dtype}"
    return _other_sizes(head_dim, HOPPER_HEAD_DIMS, blocks, HOPPER_BLOCKS)


def is_hopper(device: torch.device) -> bool:
    """Whether a CUDA device is a card that the Hopper kernels are written for."""
    return torch.version.hip is None and torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] == 9


def why_no_gluon() -> str | None:
    """None when a Triton with the Gluon that the Hopper kernels are written in is installed, else what is missing."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        import triton

        version = triton.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_GLUON:
        return f"needs Triton {'.'.join(map(str, OLDEST_GLUON))} or newer, got {version}"
    return None


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def why_not_triton(
    device: torch.device, dtype: torch.dtype, head_dim: int, blocks: tuple[int, int] | None = None
) -> str | None:
    """None when the Triton kernel of attention can run, else why it cannot. ``blocks``: query and key block size."""
    if not _has_triton():
        return "Triton is not installed"
    if device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            return "on the CPU it runs only in Triton's interpreter (TRITON_INTERPRET=1)"
    elif device.type != "cuda":
        return f"needs a CUDA device, got {device.type}"
    elif torch.version.hip is not None:
        return "not tested on ROCm"
    elif not torch.cuda.is_initialized() and not torch.cuda.is_available():
        return "no CUDA device was found"
    elif torch.cuda.get_device_capability(device) < (8, 0):
        major, minor = torch.cuda.get_device_capability(device)
        return f"needs compute capability 8.0 or newer, got {major}.{minor}"
    if _name(dtype) not in FLOATS:
        return f"needs fp16, bf16 or fp32, got {dtype}"
    return _other_sizes(head_dim, TRITON_HEAD_DIMS, blocks, TRITON_BLOCKS)


def why_not_portable(device: torch.device, dtype: torch.dtype, *_sizes: Any) -> str | None:
    """None: plain PyTorch runs on every device, for every head dim and block size."""
    return None if _name(dtype) in FLOATS else f"needs fp16, bf16 or fp32, got {dtype}"


def why_not_naive(device: torch.device, dtype: torch.dtype, *_sizes: Any) -> str | None:
    """None: the oracle runs everywhere, and only when it is asked for by name."""
    return None if dtype.is_floating_point else f"needs a floating-point dtype, got {dtype}"


REASONS: dict[str, Callable[..., str | None]] = {
    "hopper": why_not_hopper,
    "triton": why_not_triton,
    "portable": why_not_portable,
    "naive": why_not_naive,
}


def why_not_triton_at_all(*tensors: torch.Tensor) -> str | None:
    """Why no Triton kernel of the operations beside attention runs on the device of these tensors, whatever their
    shapes; each operation has limits of its own, below.
    """
    x = tensors[0]
    dtype = x.dtype if x.dtype.is_floating_point else torch.float32
    # The head dim stands for one that fits.
    return why_not_triton(x.device, dtype, head_dim=TRITON_HEAD_DIMS[0])


def why_not_hopper_mass(q: torch.Tensor, query_block: int = 128, key_block: int = 128) -> str | None:
    """None when the Hopper kernel can measure block mass of q ``[B, S, H, D]`` in these blocks, else why it cannot."""
    reason = why_not_hopper(q.device, q.dtype, q.shape[-1])
    if reason is None and not {query_block, key_block} <= set(HOPPER_BLOCKS):
        reason = f"needs blocks of {_any_of(HOPPER_BLOCKS)}, got {query_block} and {key_block}"
    return reason


def why_not_triton_mass(q: torch.Tensor, query_block: int, key_block: int) -> str | None:
    """Block mass of q ``[B, S, H, D]`` in these blocks."""
    if not {query_block, key_block} <= set(MASS_BLOCKS):
        return f"needs blocks of {_any_of(MASS_BLOCKS)}, got {query_block} and {key_block}"
    if query_block * q.shape[-1] * q.element_size() > MASS_TILE_BYTES:
        found = f"{query_block} x {q.shape[-1]} of {q.dtype}"
        return f"needs query blocks of at most {MASS_TILE_BYTES >> 10} KiB, got {found}"
    return why_not_triton_lse(q)


def why_not_triton_lse(q: torch.Tensor) -> str | None:
    """The log-sum-exp of each row of q ``[B, S, H, D]``."""
    return _head_dim_above(MAX_MASS_DIM, q.shape[-1])


def why_not_triton_probe(q: torch.Tensor) -> str | None:
    """Errors of masks on rows q ``[B, n, H, D]``."""
    return _head_dim_above(MAX_PROBE_DIM, q.shape[-1])


def why_not_triton_residual(x: torch.Tensor) -> str | None:
    """Means that stand for skipped blocks, and the errors they leave; x ``[B, S, H, D]``."""
    if x.shape[-1] in TRITON_HEAD_DIMS:
        return None
    return f"needs a head dim in {TRITON_HEAD_DIMS}, got {x.shape[-1]}"


def why_not_triton_antidiagonals(head_dim: int, tiles: int) -> str | None:
    """Scores of antidiagonals, with so many tiles in a block."""
    if tiles & (tiles - 1) or tiles > MAX_ANTIDIAGONAL_TILES:
        wanted = f"needs blocks of 1, 2, 4, .. or {MAX_ANTIDIAGONAL_TILES} tiles, got {tiles}"
    else:
        wanted = None
    return _head_dim_above(MAX_ANTIDIAGONAL_DIM, head_dim) or wanted


def why_not_triton_kmeans(x: torch.Tensor, clusters: int) -> str | None:
    """K-means of points ``[..., D]``."""
    if x.shape[-1] > MAX_KMEANS_DIM:
        return f"it takes at most {MAX_KMEANS_DIM} dimensions, got {x.shape[-1]}"
    return f"it takes at most {MAX_LABELS} clusters, got {clusters}" if clusters > MAX_LABELS else None


def why_not_triton_sort(labels: int) -> str | None:
    """A stable sort by so many labels."""
    return f"it sorts by at most {MAX_LABELS} labels, got {labels}" if labels > MAX_LABELS else None


def why_not_triton_lists(key_blocks: int) -> str | None:
    """Lists of key blocks from rows of so many."""
    return f"it takes at most {MAX_ROW_BLOCKS} key blocks, got {key_blocks}" if key_blocks > MAX_ROW_BLOCKS else None


def why_not_triton_topk_mask(scores: torch.Tensor) -> str | None:
    """The best blocks of scores ``[B, H, Mq, Nk]`` while they fit into a share."""
    if max(scores.shape[-2:]) <= MAX_ROW_BLOCKS:
        return None
    return f"it takes at most {MAX_ROW_BLOCKS} query and key blocks, got {list(scores.shape[-2:])}"


def _other_sizes(head_dim: int, head_dims: tuple[int, ...], blocks, sizes: tuple[int, ...]) -> str | None:
    """Why a kernel for these head dims and block sizes does not take others."""
    if head_dim not in head_dims:
        return f"needs a head dim of {_any_of(head_dims)}, got {head_dim}"
    if blocks is not None and not set(blocks) <= set(sizes):
        return f"needs query and key blocks of {_any_of(sizes)}, got {blocks[0]} and {blocks[1]}"
    return None


def _head_dim_above(most: int, head_dim: int) -> str | None:
    return f"needs a head dim of at most {most}, got {head_dim}" if head_dim > most else None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _any_of(values: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, values[:-1]))} or {values[-1]}"
