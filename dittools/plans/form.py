"""A plan as an entry of plain values and rows of tables, and the plan that these give again.

Masks are rows of bits, orders rows of tokens; both are kept head by head, so that heads with equal ones share them.
Clusters are kept as labels, a byte or two a token: their order is the stable sort of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from dittools.dense_rows import DenseRows
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.kernels.masks.cluster_mask import ClusterMask, ClusterPartition
from dittools.kernels.upload import upload
from dittools.keys import KeySegments, KeySubset
from dittools.methods.base import Plan
from dittools.plans.rows import Rows
from dittools.ranks import ALL, Heads
from dittools.selection.packed import pack_bits, unpack_bits

Entry = dict[str, Any]
"""A plan in plain values. "lanes" ``[B or 1, H or 1]`` hold numbers of rows in a "table"."""


def encode(plan: Plan, rows: Rows) -> Entry:
    """The entry of a plan; what is large goes into ``rows``. Waits for the device."""
    mask = plan.mask
    kind = "blocks" if isinstance(mask, BlockMask) else "clusters"
    keep = _lanes(rows, f"keep.{mask.query.count}x{mask.key.count}", pack_bits(mask.keep))
    entry: Entry = {"kind": kind, "keep": keep}
    if kind == "blocks":
        entry |= {"query": _blocks(mask.query), "key": _blocks(mask.key)}
        if plan.order is not None:
            entry["order"] = _lanes(rows, f"order.{plan.order.shape[-1]}", plan.order)
    else:
        key_order = plan.order if plan.key_order is None else plan.key_order
        entry |= {"query": _clusters(mask.query, plan.order, rows), "key": _clusters(mask.key, key_order, rows)}
    if plan.keys is not None:
        entry["keys"] = _keys(plan.keys, rows)
    if plan.rows is not None:
        dense = plan.rows
        entry["rows"] = {
            "queries": _whole(rows, dense.queries),
            "heads": dense.heads.tolist(),
            "length": dense.length,
            "block_size": dense.block_size,
        }
    return entry


def decode(
    entry: Entry, tables: Mapping[str, torch.Tensor], device: torch.device, heads: Heads = ALL, notes: tuple = ()
) -> Plan:
    """The plan of an entry, for the heads of this rank."""

    def lanes(found: Mapping[str, Any]) -> torch.Tensor:
        numbers = heads.of(torch.tensor(found["lanes"]), 1)
        distinct, places = numbers.unique(return_inverse=True)
        return upload(tables[found["table"]][distinct], device)[upload(places, device)]

    def whole(found: Mapping[str, Any]) -> torch.Tensor:
        return upload(tables[found["table"]][found["row"]], device)

    order = key_order = None
    if entry["kind"] == "blocks":
        query, key = Partition(*entry["query"]), Partition(*entry["key"])
        mask = BlockMask(unpack_bits(lanes(entry["keep"]), key.count), query, key)
        order = lanes(entry["order"]) if "order" in entry else None
    else:
        order, query = _clustered(entry["query"], lanes)
        key_order, key = _clustered(entry["key"], lanes)
        mask = ClusterMask(unpack_bits(lanes(entry["keep"]), key.count), query, key)
    keys = _keys_of(entry["keys"], whole) if "keys" in entry else None
    dense = None
    if "rows" in entry:
        found = entry["rows"]
        own = found["heads"] if heads.alone else [at for at, head in enumerate(heads.mine) if head in found["heads"]]
        at = upload(torch.tensor(own, dtype=torch.int64), device)
        dense = DenseRows(whole(found["queries"]), at, found["length"], found["block_size"]) if own else None
    return Plan(order, mask, notes=notes, keys=keys, key_order=key_order, rows=dense)


def used_rows(entry: Any) -> Iterator[tuple[str, int]]:
    """Every (table, row) that an entry names."""
    if isinstance(entry, dict):
        if "table" in entry:
            named = [entry["row"]] if "row" in entry else [number for lane in entry["lanes"] for number in lane]
            yield from ((entry["table"], number) for number in named)
        for value in entry.values():
            yield from used_rows(value)


def renumbered(entry: Any, numbers: Mapping[str, Mapping[int, int]]) -> Any:
    """The entry with other numbers of rows."""
    if not isinstance(entry, dict):
        return entry
    found = {name: renumbered(value, numbers) for name, value in entry.items()}
    if "row" in found:
        found["row"] = numbers[found["table"]][found["row"]]
    elif "table" in found:
        found["lanes"] = [[numbers[found["table"]][number] for number in lane] for lane in found["lanes"]]
    return found


def _lanes(rows: Rows, table: str, x: torch.Tensor) -> Entry:
    """Rows of ``[B or 1, H or 1, ...]`` by lane."""
    numbers = rows.add(table, x.flatten(0, 1))
    return {"table": table, "lanes": torch.tensor(numbers).view(x.shape[:2]).tolist()}


def _whole(rows: Rows, x: torch.Tensor) -> Entry:
    """A tensor that is one row of a table of its own shape."""
    table = f"{str(x.dtype).removeprefix('torch.')}.{'x'.join(map(str, x.shape))}"
    return {"table": table, "row": rows.add(table, x[None])[0]}


def _blocks(partition: Partition) -> list[int]:
    return [partition.length, partition.size]


def _clusters(partition: ClusterPartition, order: torch.Tensor, rows: Rows) -> Entry:
    """Clusters of one side as labels by token; where the order is no stable sort of these, it is kept with sizes."""
    lanes = torch.broadcast_shapes(order.shape[:2], partition.run_sizes.shape[:2])
    tokens = order.long().expand(*lanes, -1)
    positions = partition.labels().expand(*lanes, -1)
    labels = torch.empty_like(positions).scatter_(-1, tokens, positions)
    count, length = partition.count, partition.length
    if torch.equal(labels.argsort(dim=-1, stable=True), tokens):
        small = torch.uint8 if count <= 256 else torch.int16 if count <= 1 << 15 else torch.int32
        name = str(small).removeprefix("torch.")
        return {"count": count, "labels": _lanes(rows, f"labels.{name}.{length}", labels.to(small))}
    return {
        "count": count,
        "order": _lanes(rows, f"order.{length}", order),
        "sizes": _lanes(rows, f"sizes.{count}", partition.run_sizes),
    }


def _clustered(side: Entry, lanes: Callable[[Entry], torch.Tensor]) -> tuple[torch.Tensor, ClusterPartition]:
    """Order and partition of one side."""
    if "labels" not in side:
        order, sizes = lanes(side["order"]), lanes(side["sizes"])
        return order, ClusterPartition(order.shape[-1], sizes)
    labels = lanes(side["labels"]).long()
    sizes = labels.new_zeros(*labels.shape[:2], side["count"]).scatter_add_(-1, labels, torch.ones_like(labels))
    order = labels.argsort(dim=-1, stable=True).int()
    return order, ClusterPartition(labels.shape[-1], sizes.int())


def _keys(keys: KeySubset, rows: Rows) -> Entry:
    named = {"tokens": keys.tokens, "bias": keys.bias}
    if keys.runs is not None:
        named |= {"order": keys.runs.order, "offsets": keys.runs.offsets}
    found = {name: _whole(rows, x) for name, x in named.items() if x is not None}
    return found | {"queries": [keys.queries.start, keys.queries.stop], "length": keys.length}


def _keys_of(found: Entry, whole: Callable[[Entry], torch.Tensor]) -> KeySubset:
    bias = whole(found["bias"]) if "bias" in found else None
    runs = KeySegments(whole(found["order"]), whole(found["offsets"])) if "order" in found else None
    return KeySubset(whole(found["tokens"]), bias, slice(*found["queries"]), found["length"], runs)
