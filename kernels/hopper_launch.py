"""What the launches of the Hopper kernels share."""

from __future__ import annotations

import torch

SLOT = 128  # keys in a slot of the rings, unless a variant says otherwise
UNIT = 8  # elements in the 16 bytes that everything is read by
# 384 threads at 168 registers; the kernel deals them out again as 240 to each consumer and 24 to the producer.
REGISTERS = 168


def tma_readable(x: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """``x`` ``[B, S, H, D]``, copied only where TMA cannot read it, and its strides over (B, H, S, D)."""

    def fits(x):
        steps = [step for size, step in zip(x.shape[:3], x.stride()[:3], strict=True) if size > 1]
        return x.stride(3) == 1 and x.data_ptr() % 16 == 0 and all(step > 0 and step % UNIT == 0 for step in steps)

    if not fits(x):
        x = x.clone(memory_format=torch.contiguous_format)
    # The stride of a dimension of size 1 may be anything, and is checked all the same.
    b, s, h = (step if size > 1 else x.shape[3] for size, step in zip(x.shape[:3], x.stride()[:3], strict=True))
    return x, [b, h, s, 1]
