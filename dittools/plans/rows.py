"""Rows that plans are made of: masks and orders of single heads, each held once however many plans have it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch


class Rows:
    """Tables of rows on the CPU by name; the rows of a table are of one shape and dtype."""

    def __init__(self):
        self._known: dict[tuple[str, bytes], int] = {}
        self._rows: dict[str, list[torch.Tensor]] = {}

    def add(self, table: str, rows: torch.Tensor) -> list[int]:
        """The numbers of these rows ``[n, ...]`` in a table; those that it has not are put at its end."""
        numbers = []
        for row in rows.cpu().contiguous():
            listed = self._rows.setdefault(table, [])
            key = table, hashlib.blake2b(row.view(-1).view(torch.uint8).numpy(), digest_size=16).digest()
            if key not in self._known:
                self._known[key] = len(listed)
                listed.append(row.clone())
            numbers.append(self._known[key])
        return numbers

    def only(self, used: Mapping[str, Iterable[int]]) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, int]]]:
        """Tables ``[n, ...]`` with the rows that are used, and the new number of each."""
        tables, numbers = {}, {}
        for table, listed in used.items():
            kept = sorted(set(listed))
            tables[table] = torch.stack([self._rows[table][number] for number in kept])
            numbers[table] = {old: new for new, old in enumerate(kept)}
        return tables, numbers
