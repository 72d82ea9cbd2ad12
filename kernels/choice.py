"""The choice between plain PyTorch and Triton, for the operations beside attention."""

from __future__ import annotations

import torch

from dittools.kernels.dispatch import why_not_triton


def picks_triton(implementation: str | None, *tensors: torch.Tensor, reason: str | None = None) -> bool:
    """Whether a call goes to its Triton kernel: as asked for, else on a CUDA device whenever it can.

    Args:
        implementation: "triton", "portable" (plain PyTorch), or None to choose; inside torch.compile the
            choice is plain PyTorch.
        tensors: the floating-point inputs; for an operation on integers, those.
        reason: why the Triton kernel does not take these shapes, where it does not.

    Raises:
        ValueError: when the implementation is unknown or cannot run, with the reason.
    """
    if implementation not in (None, "triton", "portable"):
        raise ValueError(f"unknown implementation {implementation!r}: use triton, portable, or None")
    # What torch.compile traces it may fuse.
    if implementation == "portable" or (implementation is None and torch.compiler.is_compiling()):
        return False
    x = tensors[0]
    dtype = x.dtype if x.dtype.is_floating_point else torch.float32
    # The head dim stands for one that fits: each operation has limits of its own, which it gives as a reason.
    reason = why_not_triton(x.device, dtype, head_dim=64) or reason
    if reason is None and torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        reason = "it has no backward: call it under torch.no_grad()"
    if implementation == "triton" and reason is not None:
        raise ValueError(f"implementation 'triton' cannot run this call: {reason}")
    # The interpreter is for checking the kernels, never for speed.
    return reason is None and (implementation == "triton" or x.device.type == "cuda")
