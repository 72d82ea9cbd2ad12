"""Muon for the matrices of the denoiser's blocks, AdamW for everything else."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn


def orthogonalise(update: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Nearest semi-orthogonal matrices of a stack ``[N, m, n]``, approximately, by Newton-Schulz.

    The quintic's coefficients are those of K. Jordan's Muon (2024): fast growth of small singular values at
    the price of ending anywhere between about 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; matrices of one shape go through together.

    The update's size is matched to AdamW's (0.2 RMS; Liu et al., "Muon is scalable", 2025), so that the same
    learning rates serve.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            stacks = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    stacks[p.shape].append(p)
            for shape, params in stacks.items():
                for p in params:
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                grads = [p.grad for p in params]
                moments = [self.state[p]["momentum"] for p in params]
                torch._foreach_lerp_(moments, grads, 1 - group["momentum"])
                nesterov = torch._foreach_lerp(grads, moments, group["momentum"])
                update = orthogonalise(torch.stack(nesterov)).to(params[0].dtype)
                size = 0.2 * max(shape) ** 0.5
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, list(update.unbind()), alpha=-group["lr"] * size)


def optimisers(transformer: nn.Module, text_encoder: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon on the blocks' matrices, AdamW on embeddings, norms, biases and the text encoder."""
    matrices, rest = [], []
    for name, p in transformer.named_parameters():
        in_block = name.startswith("blocks.") and p.ndim == 2
        (matrices if in_block else rest).append(p)
    rest += list(text_encoder.parameters())
    fused = next(transformer.parameters()).is_cuda
    return [
        Muon(matrices, lr=lr, weight_decay=0.02),
        torch.optim.AdamW(rest, lr=lr / 2, betas=(0.9, 0.98), weight_decay=0.0, fused=fused),
    ]


class Average:
    """Exponential moving average of modules' floating-point parameters."""

    def __init__(self, modules: list[nn.Module], decay: float = 0.9993):
        self.live = [p for m in modules for p in m.parameters()]
        self.mean = [p.detach().clone() for p in self.live]
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.mean, self.live, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the live weights and their average; call it again to swap back."""
        for live, mean in zip(self.live, self.mean, strict=True):
            kept = live.detach().clone()
            live.copy_(mean)
            mean.copy_(kept)
