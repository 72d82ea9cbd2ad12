"""Whether a result is right, before anything is timed: sampled query blocks against attention in fp32.

The error may be at most twice that of plain attention in the dtype of the inputs, and 1e-5 more.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch

from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.kernels.masks.cluster_mask import lane

SLACK = 1e-5
LSE_SLACK = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-3}


class Wrong(ValueError):
    """A result that is not what was asked for; no speed is told of it."""


def stop_if_broken(job: dict[str, Any], *names: str) -> None:
    """A case whose kernel brought a process down is not tried again: raises `Wrong`."""
    for name, why in job.get("without", {}).items():
        if name in names:
            raise Wrong(f"{name}: {why}")


class Oracle:
    """What some query blocks of some heads should come to.

    Args:
        q, k, v: ``[B, S, H, D]``.
        mask: which key blocks each query block keeps, a mask of blocks or of clusters; None keeps all.
        scale: factor on the logits.
        order: int ``[B or 1, H or 1, S]``, position -> token.
        key_order: the same for keys where it is another.
        sample: keys that stand for skipped blocks, a `dittools.kernels.block_sparse.sample.Sample`.
    """

    def __init__(self, q, k, v, mask, scale: float, order=None, key_order=None, sample=None):
        self._shape, self._dtype = q.shape, q.dtype
        if mask is None:
            mask = BlockMask.full(Partition(q.shape[1], 64), Partition(k.shape[1], k.shape[1]), q.device)
        batches, _, heads, _ = q.shape
        self.parts = []
        for h in sorted({0, heads // 2, heads - 1}):
            for m in sorted({0, mask.query.count // 3, mask.query.count - 1}):
                b = h % batches
                positions = _positions(mask, b, h, m)
                if len(positions):
                    orders = [None if x is None else lane(x, b, h).long() for x in (order, key_order)]
                    self.parts.append(_Part((q, k, v), mask, scale, positions, orders, (b, h, m), sample))

    def judge(self, out: torch.Tensor, lse: torch.Tensor | None = None) -> None:
        """Raise `Wrong` unless ``out`` ``[B, S, H, D]``, and ``lse`` ``[B, H, S]`` where there is one, are right."""
        if out.shape != self._shape:
            raise Wrong(f"output of shape {list(out.shape)}, wanted {list(self._shape)}")
        if not out.isfinite().all():
            raise Wrong("the output is not finite everywhere")
        for part in self.parts:
            part.judge(out, lse, LSE_SLACK[self._dtype])


def _positions(mask: Any, b: int, h: int, m: int) -> torch.Tensor:
    """Positions of a query block, or of a query cluster."""
    if getattr(mask, "variable", False):
        first, stop = lane(mask.query.offsets(), b, h)[m : m + 2].tolist()
    else:
        first, stop = m * mask.query.size, min((m + 1) * mask.query.size, mask.query.length)
    return torch.arange(first, stop, device=mask.keep.device)


class _Part:
    """One query block of one head: rows, and what they should come to."""

    def __init__(self, tensors, mask, scale: float, positions: torch.Tensor, orders, place, sample=None):
        self.place = b, h, m = place
        (q, k, v), (order, key_order) = tensors, orders
        seen = mask.to_tokens(b, h, positions[:1])[0]  # [Sk]: rows of a block keep the same
        kept, bias = seen.nonzero().flatten(), None
        if sample is not None:
            drawn = sample.seen(m, b, h)
            drawn = drawn[~seen[drawn]]
            bias = torch.zeros(len(kept) + len(drawn), device=q.device)
            bias[len(kept) :] = sample.bias
            kept = torch.cat((kept, drawn))
        key_order = order if key_order is None else key_order
        positions = positions if order is None else order[positions]
        kept = kept if key_order is None else key_order[kept]
        self.rows = positions
        self.empty = len(kept) == 0
        parts = q[b, positions, h], k[b, kept, h], v[b, kept, h]
        self.exact, self.lse = _attention(*(x.float() for x in parts), scale, bias)
        plain, _ = _attention(*parts, scale, bias)
        self.size = self.exact.square().mean().sqrt().clamp_min(1e-12)
        full = q.dtype == torch.float32
        self.allowed = SLACK + (0.0 if full else 2 * (self._error(plain)))

    def _error(self, found: torch.Tensor) -> float:
        return ((found.float() - self.exact).square().mean().sqrt() / self.size).item()

    def judge(self, out: torch.Tensor, lse: torch.Tensor | None, lse_slack: float) -> None:
        b, h, m = self.place
        where = f"in query block {m} of head {h}"
        found = out[b, self.rows, h]
        if self.empty:
            if (found != 0).any() or (lse is not None and not lse[b, h, self.rows].isneginf().all()):
                raise Wrong(f"a row that keeps nothing is not zeros and -inf {where}")
            return
        error = self._error(found)
        if not error <= self.allowed:
            raise Wrong(f"RMS error {error:.1e} {where}, allowed {self.allowed:.1e}")
        if lse is not None and not ((lse[b, h, self.rows] - self.lse).abs() <= lse_slack).all():
            raise Wrong(f"the LSE is off {where}")


def _attention(q, k, v, scale: float, bias: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention of rows, every step in their dtype: q ``[n, D]``, k and v ``[m, D]``; and its LSE in fp32."""
    logits = q @ k.T * scale
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    return logits.softmax(-1) @ v, logits.float().logsumexp(-1)


def result_of(call: Callable[[], object]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run a contender once, with fresh memory full of NaN: (out, lse or None)."""
    with poisoned():
        result = call()
    return result if isinstance(result, tuple) else (result, None)


@contextmanager
def poisoned():
    """Uninitialised memory is filled with NaN, so that what nobody wrote shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
