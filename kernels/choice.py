"""Which implementation a call takes: the one asked for, else the fastest that can run and has proved itself."""

from __future__ import annotations

import warnings

import torch

from dittools.kernels.capability import (
    IMPLEMENTATIONS,
    REASONS,
    is_hopper,
    why_no_backward,
    why_not,
    why_not_hopper_mass,
    why_not_triton_at_all,
    why_not_triton_mass,
)
from dittools.kernels.checked import SLOWER, SOURCES
from dittools.kernels.first_use import why_unproven


def choose(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask,
    *,
    order: torch.Tensor | None = None,
    implementation: str | None = None,
) -> str:
    """Name of the implementation for this call: the one asked for, else the fastest that can run.

    Warns when a CUDA call goes to plain PyTorch, with the reason.

    Raises:
        ValueError: when the one asked for is unknown or cannot run, with the reason.
    """
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"unknown implementation {implementation!r}: use one of {', '.join(IMPLEMENTATIONS)}, or None")
    passed_over = ""
    for name in IMPLEMENTATIONS[:-1] if implementation is None else (implementation,):
        reason = why_not(name, q, k, v, mask)
        if reason is None and implementation is None:
            reason = _why_only_by_name(name, q.device, order is not None, _hopper_kernel(mask))
        if reason is None:
            if name == "portable" and q.device.type == "cuda" and implementation is None:
                warnings.warn(
                    f"plain PyTorch attends on {q.device}, because triton cannot: {passed_over}", stacklevel=3
                )
            return name
        passed_over = reason
    raise ValueError(f"implementation {name!r} cannot run this call: {reason}")


def why_slower(name: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask, *, order=None) -> str | None:
    """Why a call that went to the implementation ``name`` could not have the faster one of its card; None where it has
    the fastest, or where that was measured to be slower.
    """
    if name == "hopper" or q.device.type != "cuda" or not is_hopper(q.device):
        return None
    reason = why_not("hopper", q, k, v, mask) or why_unproven(_hopper_kernel(mask), q.device, order is not None)
    return None if reason is None or reason.startswith(SLOWER) else reason


def implementations(device: torch.device | str, dtype: torch.dtype, head_dim: int) -> list[tuple[str, str | None]]:
    """Every implementation of attention with None when it can run there by itself, or the reason why not, fastest
    first.

    Of calls with even blocks, 128 queries each: kernels for 64 and for clusters prove themselves apart, see
    `hopper_kernels`. Asking makes none of them prove itself.
    """
    device = torch.device(device)
    found = []
    for name in IMPLEMENTATIONS:
        reason = REASONS[name](device, dtype, head_dim, None)
        if reason is None and name == "hopper":
            reason = _why_only_by_name(name, device, None, prove=False)
        found.append((name, reason))
    return found


def hopper_kernels(device: torch.device | str, dtype: torch.dtype, head_dim: int) -> list[tuple[str, str | None]]:
    """Each Hopper kernel with None where it is taken by itself, or the reason why not; none on other cards."""
    device = torch.device(device)
    if device.type != "cuda" or not is_hopper(device):
        return []
    unable = REASONS["hopper"](device, dtype, head_dim, None)
    return [(name, unable or why_unproven(name, device, prove=False)) for name in SOURCES]


def _hopper_kernel(mask) -> str:
    """Which of the Hopper kernels, each of which proves itself apart, attends with this mask."""
    if getattr(mask, "variable", False):
        return "hopper-clusters"
    return "hopper-64" if mask.query.size == 64 else "hopper"


def _why_only_by_name(
    name: str, device: torch.device, ordered: bool | None, kernel: str = "hopper", prove: bool = True
) -> str | None:
    """Why an implementation that can run is taken only when a call names it; None where other calls take it too."""
    if name == "hopper":
        return why_unproven(kernel, device, ordered, prove=prove)
    if name == "triton" and device.type != "cuda":
        return "Triton's interpreter is for checking the kernel, never for speed"
    return None


def choose_mass(
    q: torch.Tensor, k: torch.Tensor, query, key, *, known: bool = False, implementation: str | None = None
) -> str:
    """The implementation that a call of `measure_block_mass` takes: "hopper", "triton" or "portable".

    Args:
        q, k, query, key, implementation: as there. known: whether the LSE is given.

    Raises:
        ValueError: when ``implementation`` cannot run, with the reason.
    """
    if picks_hopper_mass(implementation, q, k, "one pass" if known else "two passes", query.size, key.size):
        return "hopper"
    reason = why_not_triton_mass(q, query.size, key.size)
    return "triton" if picks_triton(implementation, q, k, reason=reason) else "portable"


def picks_hopper_mass(implementation: str | None, q: torch.Tensor, k: torch.Tensor, call: str, *blocks: int) -> bool:
    """Whether the Hopper kernel for block mass takes a call: when asked for, else where it proved itself and was no
    slower. ``call``: its kind, one of `checked.SAID`.
    """
    if implementation not in (None, "hopper") or (implementation is None and torch.compiler.is_compiling()):
        return False
    reason = why_not_hopper_mass(q, *blocks) or why_no_backward(q, k)
    if implementation == "hopper" and reason is not None:
        raise ValueError(f"implementation 'hopper' cannot run this call: {reason}")
    if implementation == "hopper" or reason is not None:
        return implementation == "hopper"
    return why_unproven("hopper-mass", q.device, call=call) is None


def picks_triton(implementation: str | None, *tensors: torch.Tensor, reason: str | None = None) -> bool:
    """Whether a call of an operation beside attention goes to its Triton kernel: as asked for, else on a CUDA device
    whenever it can.

    Args:
        implementation: "triton", "portable" (plain PyTorch), or None to choose; inside torch.compile the
            choice is plain PyTorch.
        tensors: the floating-point inputs; for an operation on integers, those.
        reason: why the Triton kernel does not take these shapes, where it does not: see `capability`.

    Raises:
        ValueError: when the implementation is unknown or cannot run, with the reason.
    """
    if implementation not in (None, "triton", "portable"):
        raise ValueError(f"unknown implementation {implementation!r}: use triton, portable, or None")
    # What torch.compile traces it may fuse.
    if implementation == "portable" or (implementation is None and torch.compiler.is_compiling()):
        return False
    reason = why_not_triton_at_all(*tensors) or reason or why_no_backward(*tensors)
    if implementation == "triton" and reason is not None:
        raise ValueError(f"implementation 'triton' cannot run this call: {reason}")
    # The interpreter is for checking the kernels, never for speed.
    return reason is None and (implementation == "triton" or tensors[0].device.type == "cuda")
