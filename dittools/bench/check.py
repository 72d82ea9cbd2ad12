"""Whether a result is right, before anything is timed: sampled query blocks against attention in fp32.

The error may be at most twice that of plain attention in the dtype of the inputs, and 1e-5 more.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import torch

from dittools.blocks import BlockMask, Partition

SLACK = 1e-5
LSE_SLACK = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-3}


class Wrong(ValueError):
    """A result that is not what was asked for; no speed is told of it."""


class Oracle:
    """What some query blocks of some heads should come to.

    Args:
        q, k, v: ``[B, S, H, D]``.
        mask: which key blocks each query block keeps; None keeps all.
        scale: factor on the logits.
        order: int ``[B or 1, H or 1, S]``, position -> token.
    """

    def __init__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: BlockMask | None,
        scale: float,
        order: torch.Tensor | None = None,
    ):
        self._shape, self._dtype = q.shape, q.dtype
        if mask is None:
            mask = BlockMask.full(Partition(q.shape[1], 64), Partition(k.shape[1], k.shape[1]), q.device)
        batches, _, heads, _ = q.shape
        self.parts = []
        for h in sorted({0, heads // 2, heads - 1}):
            for m in sorted({0, mask.query.count // 3, mask.query.count - 1}):
                b = h % batches
                self.parts.append(_Part(q, k, v, mask, scale, order, b, h, m))

    def judge(self, out: torch.Tensor, lse: torch.Tensor | None = None) -> None:
        """Raise `Wrong` unless ``out`` ``[B, S, H, D]``, and ``lse`` ``[B, H, S]`` where there is one, are right."""
        if out.shape != self._shape:
            raise Wrong(f"output of shape {list(out.shape)}, wanted {list(self._shape)}")
        if not out.isfinite().all():
            raise Wrong("the output is not finite everywhere")
        for part in self.parts:
            part.judge(out, lse, LSE_SLACK[self._dtype])


class _Part:
    """One query block of one head: rows, and what they should come to."""

    def __init__(self, q, k, v, mask: BlockMask, scale: float, order, b: int, h: int, m: int):
        self.place = b, h, m
        positions = torch.arange(m * mask.query.size, min((m + 1) * mask.query.size, mask.query.length))
        kept = mask.to_tokens(b, h, positions[:1])[0].nonzero().flatten()  # [n]: rows of a block keep the same
        positions = positions.to(q.device)
        if order is not None:
            token = order.expand(q.shape[0], q.shape[2], -1)[b, h].long()
            positions, kept = token[positions], token[kept]
        self.rows = positions
        self.empty = len(kept) == 0
        parts = q[b, positions, h], k[b, kept, h], v[b, kept, h]
        self.exact, self.lse = _attention(*(x.float() for x in parts), scale)
        plain, _ = _attention(*parts, scale)
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


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention of rows, every step in their dtype: q ``[n, D]``, k and v ``[m, D]``; and its LSE in fp32."""
    logits = q @ k.T * scale
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
