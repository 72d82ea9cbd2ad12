"""Keys that stand for all keys of a call."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dittools.kernels.segment_mean.dispatch import segment_means


@dataclass(frozen=True, eq=False)
class KeySegments:
    """Runs of tokens, each of which one key and one value stand for: their means.

    Args:
        order: int32 ``[1, 1, S]``, position -> token.
        offsets: int32 ``[1, 1, n + 1]``, where each run of positions begins, and where the last ends.
    """

    order: torch.Tensor
    offsets: torch.Tensor


@dataclass(frozen=True, eq=False)
class KeySubset:
    """Which keys and values some queries attend to in place of all.

    Args:
        tokens: int64 ``[n]``, key tokens in the order in which key blocks cut them; with ``runs`` one out of each.
        bias: fp32 ``[1, 1, Nk]``, added to the logits of each key block; None is 0.
        queries: the query tokens that attend to them, a run; all others attend to every key there is.
        length: S, tokens of the sequence.
        runs: n of them, whose means are taken in place of the tokens; None takes these.
    """

    tokens: torch.Tensor
    bias: torch.Tensor | None
    queries: slice
    length: int
    runs: KeySegments | None = None

    @property
    def others(self) -> list[slice]:
        """The runs of queries that attend to every key, none of them empty."""
        runs = (slice(0, self.queries.start), slice(self.queries.stop, self.length))
        return [run for run in runs if run.start < run.stop]

    def take(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values that are attended to: ``[B, S, H, D]`` -> ``[B, n, H, D]``."""
        if self.runs is None:
            return k.index_select(1, self.tokens), v.index_select(1, self.tokens)
        means = segment_means([k, v], self.runs.order, self.runs.offsets)
        return tuple(mean.transpose(1, 2).to(x.dtype) for mean, x in zip(means, (k, v), strict=True))

    def density(self, kept: torch.Tensor) -> torch.Tensor:
        """Share of all S x S pairs that are computed, when ``kept`` is the share among these queries and keys."""
        few = self.queries.stop - self.queries.start
        return (kept * (few * len(self.tokens)) + (self.length - few) * self.length) / self.length**2

    def to(self, device: torch.device | str) -> KeySubset:
        """The same keys on another device."""
        bias = None if self.bias is None else self.bias.to(device)
        runs = self.runs and KeySegments(self.runs.order.to(device), self.runs.offsets.to(device))
        return KeySubset(self.tokens.to(device), bias, self.queries, self.length, runs)
