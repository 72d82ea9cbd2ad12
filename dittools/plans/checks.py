"""Whether entries and tables of a file of plans can be: a number from a file may lead a kernel anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from dittools.kernels.masks.block_mask import Partition
from dittools.plans.form import used_rows

Tables = Mapping[str, torch.Tensor]


def problem(entry: Mapping[str, Any], tokens: int, tables: Tables) -> str | None:
    """What is wrong with a plan of a sequence of ``tokens``, in a few words; None where nothing is."""
    try:
        return next(_problems(entry, tokens, tables), None)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        return f"a plan is not whole: {error!r}"


def _problems(entry: Mapping[str, Any], tokens: int, tables: Tables) -> Iterator[str]:
    for table, row in used_rows(entry):
        if table not in tables or not 0 <= row < len(tables[table]):
            yield f"there is no row {row} of table {table}"
            return
    for side in ("query", "key"):
        yield from _side(entry, side, tokens, tables)
    counts = [_count(entry, side) for side in ("query", "key")]
    keep = tables[entry["keep"]["table"]]
    if keep.dtype != torch.uint8 or tuple(keep.shape[1:]) != (counts[0], -(-counts[1] // 8)):
        yield f"masks of {counts[0]} x {counts[1]} are {list(keep.shape)}"
    if "order" in entry:
        yield from _order(tables[entry["order"]["table"]], tokens)
    if "keys" in entry:
        yield from _keys(entry["keys"], tokens, tables)
    if "rows" in entry:
        rows = entry["rows"]
        at = tables[rows["queries"]["table"]][rows["queries"]["row"]]
        least, size = min(rows["heads"]), rows["block_size"]
        if rows["length"] != tokens or size < 1 or not _within(at, tokens) or least < 0:
            yield f"rows beside a mask are not of {tokens} tokens"


def _side(entry: Mapping[str, Any], side: str, tokens: int, tables: Tables) -> Iterator[str]:
    """Problems of the queries or keys of a mask."""
    found = entry[side]
    if entry["kind"] == "blocks":
        length = tokens
        if "keys" in entry:
            start, stop = entry["keys"]["queries"]
            length = stop - start if side == "query" else len(_row(entry["keys"]["tokens"], tables))
        if found[0] != length or found[1] < 1:
            yield f"blocks of {found} tokens, where the sequence has {length}"
    elif "labels" in found:
        labels = tables[found["labels"]["table"]]
        if labels.shape[1:] != (tokens,) or not _within(labels[_numbers(found["labels"])], found["count"]):
            yield f"labels of {tokens} tokens in {found['count']} clusters are {list(labels.shape)} and more than those"
    else:
        sizes = tables[found["sizes"]["table"]]
        if sizes.shape[1:] != (found["count"],) or (sizes < 0).any() or (sizes.sum(-1) != tokens).any():
            yield f"sizes of {found['count']} clusters do not add up to {tokens} tokens"
        yield from _order(tables[found["order"]["table"]], tokens)


def _count(entry: Mapping[str, Any], side: str) -> int:
    return Partition(*entry[side]).count if entry["kind"] == "blocks" else entry[side]["count"]


def _order(orders: torch.Tensor, tokens: int) -> Iterator[str]:
    whole = torch.arange(tokens, dtype=torch.int32)
    if orders.dtype != torch.int32 or orders.shape[1:] != (tokens,) or (orders.sort(dim=-1).values != whole).any():
        yield f"an order is no permutation of {tokens} tokens"


def _keys(keys: Mapping[str, Any], tokens: int, tables: Tables) -> Iterator[str]:
    start, stop = keys["queries"]
    picked = _row(keys["tokens"], tables)
    if keys["length"] != tokens or not 0 <= start < stop <= tokens or not _within(picked, tokens):
        yield f"picked keys are not of {tokens} tokens"
    if ("order" in keys) != ("offsets" in keys):
        yield "runs of keys need an order and offsets"
    elif "order" in keys:
        ends = _row(keys["offsets"], tables).flatten()
        yield from _order(_row(keys["order"], tables).flatten(0, 1), tokens)
        if len(ends) != len(picked) + 1 or (ends.diff() < 1).any() or not _within(ends, tokens + 1):
            yield f"runs of keys do not lie within {tokens} tokens"


def _row(found: Mapping[str, Any], tables: Tables) -> torch.Tensor:
    return tables[found["table"]][found["row"]]


def _numbers(found: Mapping[str, Any]) -> list[int]:
    return [number for lane in found["lanes"] for number in lane]


def _within(x: torch.Tensor, end: int) -> bool:
    return not x.is_floating_point() and bool(((x >= 0) & (x < end)).all())
