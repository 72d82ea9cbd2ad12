"""cuDNN's attention for training on Hopper, where it is faster than the kernel that PyTorch takes by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from dittools.kernels.dense import cudnn_first, prefer_cudnn


@contextmanager
def fast_attention(device: torch.device) -> Iterator[str]:
    """Within the context, attention asks cuDNN first if its gradients are right on this card; yields who is asked."""
    if not cudnn_first(device, torch.bfloat16) or _gradient_error(device) > 0.02:
        yield "default"
        return
    with prefer_cudnn(device, torch.bfloat16):
        yield "cudnn"


def _gradient_error(device: torch.device, tokens: int = 2340) -> float:
    """Largest relative error of cuDNN's gradients against fp32, on a ragged length and the model's strides."""
    generator = torch.Generator(device).manual_seed(0)
    inputs = [torch.randn(2, tokens, 6, 64, device=device, generator=generator) for _ in range(4)]

    def gradients(dtype: torch.dtype, backend: SDPBackend) -> list[torch.Tensor]:
        q, k, v, seen = (x.to(dtype).requires_grad_() for x in inputs)
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
        return [x.float() for x in torch.autograd.grad(out, (q, k, v), seen.detach())]

    with torch.enable_grad():
        exact = gradients(torch.float32, SDPBackend.MATH)
        try:
            found = gradients(torch.bfloat16, SDPBackend.CUDNN_ATTENTION)
        except RuntimeError:  # this build has none
            return float("inf")
    return max((a - b).norm().item() / b.norm().item() for a, b in zip(found, exact, strict=True))
