"""Keys that stand for all keys of a call."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class KeySubset:
    """Which keys and values some queries attend to in place of all.

    Args:
        tokens: int64 ``[n]``, key tokens in the order in which key blocks cut them.
        bias: fp32 ``[1, 1, Nk]``, added to the logits of each key block; None is 0.
        queries: the query tokens that attend to them, a run; all others attend to every key there is.
        length: S, tokens of the sequence.
    """

    tokens: torch.Tensor
    bias: torch.Tensor | None
    queries: slice
    length: int

    @property
    def others(self) -> list[slice]:
        """The runs of queries that attend to every key, none of them empty."""
        runs = (slice(0, self.queries.start), slice(self.queries.stop, self.length))
        return [run for run in runs if run.start < run.stop]

    def density(self, kept: torch.Tensor) -> torch.Tensor:
        """Share of all S x S pairs that are computed, when ``kept`` is the share among these queries and keys."""
        few = self.queries.stop - self.queries.start
        return (kept * (few * len(self.tokens)) + (self.length - few) * self.length) / self.length**2

    def to(self, device: torch.device | str) -> KeySubset:
        """The same keys on another device."""
        bias = None if self.bias is None else self.bias.to(device)
        return KeySubset(self.tokens.to(device), bias, self.queries, self.length)
