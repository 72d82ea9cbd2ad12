"""`dittools plan --gpus N`: a measured call split over GPUs, from one to N, and where more stop paying."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from dittools import scaling
from dittools.pipelines.errors import BadInput

MOST = 64
_COLUMNS = (4, 23, 5, 6, 6, 6, 7, 6, 5)
_HEAD = ("GPUs", "parallel", "heads", "attn s", "exch s", "rest s", "step s", "faster", "GB")


def facts(family: Any, flags: Any, config: Any) -> dict:
    """What is printed, as JSON. Raises BadInput for what cannot be planned, in one line."""
    links = _links(flags)
    call = _call(family)
    size = _size(call, flags)
    tokens = _tokens(family, call, size)
    dense = config.method == "dense"
    work = scaling.work_of(call, tokens, None if dense else config.sparsity, config.dense_layers)
    rows = [scaling.fastest(work, gpus, links) for gpus in scaling.numbers_of_gpus(flags.gpus)]
    one = scaling.split(work, scaling.Layout(), links)
    return {
        "estimate": True,
        "model": call.model,
        "checkpoint": call.size,
        "card": call.card,
        "size": size,
        "tokens": tokens,
        "measured_tokens": call.tokens,
        "transformer": {"layers": call.layers, "heads": call.heads, "head_dim": call.head_dim},
        "branches": call.branches,
        "method": "dense" if dense else call.method,
        "sparsity": 0.0 if dense else config.sparsity,
        "dense_layers": call.layers if dense else min(config.dense_layers, call.layers),
        "asked_method": config.method,
        "call_seconds": work.attention + work.rest,
        "bandwidth_gb_s": {"inside": links.inside, "between": links.between},
        "gpus_a_machine": links.gpus,
        "rows": [_row(one, row) for row in rows],
        "pays_to": max((row.layout.gpus for row in rows if scaling.efficiency(one, row) >= scaling.PAYS), default=1),
        "pays_share": scaling.PAYS,
        "exchange_longer_from": next((row.layout.gpus for row in rows if row.exchange > row.attention), None),
    }


def _row(one: scaling.Split, row: scaling.Split) -> dict:
    layout = row.layout
    return {
        "gpus": layout.gpus,
        "parallel": {"cfg": layout.cfg, "ulysses": layout.ulysses, "ring": layout.ring},
        "heads": row.heads,
        "attention_seconds": row.attention,
        "exchange_seconds": row.exchange,
        "rest_seconds": row.rest,
        "exchanged_gb": {"ulysses": row.exchanged_gb[0], "ring": row.exchanged_gb[1]},
        "step_seconds": row.step,
        "speedup": one.step / row.step,
        "efficiency": scaling.efficiency(one, row),
        "memory_gb": row.memory_gb,
    }


def _links(flags: Any) -> scaling.Links:
    """Raises BadInput for numbers of GPUs or machines, or bandwidths, that cannot be."""
    gpus, nodes = flags.gpus, flags.nodes
    if not 1 <= gpus <= MOST:
        raise BadInput(f"--gpus must be from 1 to {MOST}, got {gpus}")
    if nodes is None:
        own = scaling.GPUS_A_MACHINE
    elif nodes < 1 or gpus % nodes:
        raise BadInput(f"--nodes must be machines that share --gpus {gpus} evenly, got {nodes}")
    else:
        own = gpus // nodes
    given = scaling.Links()
    inside, between = _bandwidth(flags.bandwidth) if flags.bandwidth is not None else (given.inside, given.between)
    return scaling.Links(inside, between, own)


def _bandwidth(text: str) -> tuple[float, float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) not in (1, 2) or not all(math.isfinite(x) and x > 0 for x in found):
        raise BadInput(f"--bandwidth must be GB/s in a machine, or in one and between two as 300,50, got {text!r}")
    return found[0], found[-1]


def check_alone(flags: Any) -> None:
    """Raises BadInput for flags that mean nothing without --gpus."""
    for name in ("nodes", "bandwidth"):
        if getattr(flags, name) is not None:
            raise BadInput(f"--{name} is for several GPUs: give --gpus too")


def _call(family: Any) -> Any:
    from dittools.profiles.calls import measured_calls

    known = {call.model: call for call in measured_calls()}
    if family.name not in known:
        raise BadInput(f"no call of {family.name} was measured to split over GPUs: known are {', '.join(known)}")
    return known[family.name]


def _size(call: Any, flags: Any) -> dict[str, int]:
    """The size asked for; what is not given is as it was measured."""
    given = {name: getattr(flags, name) for name in ("frames", "height", "width")}
    return {name: getattr(call, name) if value is None else value for name, value in given.items()}


def _tokens(family: Any, call: Any, size: dict[str, int]) -> int:
    from dittools.pipelines.sizes import grid_of

    measured = {name: getattr(call, name) for name in size}
    if size == measured:
        return call.tokens
    if grid_of(family, **measured).tokens != call.tokens:
        known = " x ".join(map(str, measured.values()))
        raise BadInput(f"{family.name} {call.size} is known at {known} alone: leave --frames, --height and --width out")
    return grid_of(family, **size).tokens


def readable(found: dict) -> str:
    """The table in 80 columns, and what it is worth."""
    shape, size = found["transformer"], " x ".join(str(value) for value in found["size"].values())
    bandwidth, branches = found["bandwidth_gb_s"], found["branches"]
    what = "dense" if found["method"] == "dense" else f"{found['method']} {found['sparsity']:g}"
    other = f"; figures of {what}, not of {found['asked_method']}"
    lines = [
        f"model      {found['model']} {found['checkpoint']}, {shape['layers']} layers of {shape['heads']} heads x "
        f"{shape['head_dim']}, {branches} guidance branch{'es' * (branches > 1)}",
        f"size       {size}, {found['tokens']:,} tokens",
        f"call       {what}: {found['call_seconds']:.2f} s on one {found['card']}"
        + (other if found["asked_method"] not in ("auto", found["method"]) else ""),
        f"links      {bandwidth['inside']:g} GB/s a GPU in a machine of {found['gpus_a_machine']}, "
        f"{bandwidth['between']:g} GB/s between machines",
        "",
        _line(_HEAD),
        *(_line(_cells(row)) for row in found["rows"]),
        "",
        *_told(found),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cells(row: dict) -> tuple[str, ...]:
    layout = scaling.Layout(**row["parallel"])
    seconds = (f"{row[name]:.3f}" for name in ("attention_seconds", "exchange_seconds", "rest_seconds"))
    return (
        str(row["gpus"]), str(layout), str(row["heads"]), *seconds,
        f"{row['step_seconds']:.3f}", f"{row['speedup']:.2f}x", f"{row['memory_gb']:.1f}",
    )  # fmt: skip


def _line(cells: tuple[str, ...]) -> str:
    return " ".join(
        cell.ljust(width) if i == 1 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, _COLUMNS, strict=True))
    )


def _told(found: dict) -> list[str]:
    most, pays, longer = found["rows"][-1]["gpus"], found["pays_to"], found["exchange_longer_from"]
    share = f"{found['pays_share']:.0%}"
    told = [
        f"It pays to {pays} GPU{'s' * (pays > 1)}: beyond, less than {share} of their time does what one GPU did."
        if pays < most
        else f"It pays to all {most}: {share} of their time or more does what one GPU did.",
    ]
    if longer is not None:
        told.append(f"From {longer} GPUs on the exchange takes longer than attention.")
    if any(row["heads"] * row["parallel"]["ulysses"] != found["transformer"]["heads"] for row in found["rows"]):
        told.append("Where heads do not divide, those of the GPU that has most are counted.")
    same = found["tokens"] == found["measured_tokens"]
    scaled = "" if same else f", scaled from {found['measured_tokens']:,} tokens"
    told.append(
        f"An estimate from one {found['card']}, not measured on several: a denoiser call of one branch timed with "
        f"random weights{scaled}, and volume over bandwidth. Left out: overlap, latency of messages, waiting for heads "
        "that cost more. The first steps of a run are dense. GB is the transformer's; text encoder and VAE come on top."
    )
    return [line for text in told for line in textwrap.wrap(text, 79)]
