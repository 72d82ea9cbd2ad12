"""What dealing heads to ranks by cost would give: simulated from densities of heads that were measured.

    python -m dittools.benchmarks.deal --density docs/measured/head_density_cpu.json \\
        --windows wan=mask_strategy_wan.json hunyuan-video=mask_strategy_hunyuan.json \\
        --json docs/measured/deal_simulated.json

Two sources of densities. **Windows**: strategies of sliding tile attention (arXiv 2502.04507), which its authors
searched for each step, layer and head of the model itself; a window keeps a known share of the tiles. **Embedded**:
what adaptive methods computed on the embedded model, of which as many heads as a layer of the model has are drawn with
replacement, each with its densities of all steps. Heads are dealt as `dittools.deal` does, each layer by what its heads
cost in the step before; a layer waits for its slowest rank, so the seconds of a run are the sum of those.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dittools import files, provenance
from dittools.deal import WAYS, deal
from dittools.scaling import Layout

Layers = list[list[list[float]]]
"""Density by layer, step and head."""
DRAWN_LAYERS, SEED = 40, 0
VARIED = 0.02  # standard deviation over mean of the densities of a layer, below which heads count as equal


@dataclass(frozen=True)
class Model:
    """A model whose heads are dealt.

    Args:
        name: family.
        heads: of a layer.
        tiles: of its picture along frames, height and width, in the strategies of sliding tile attention.
        layouts: how 2, 4, 8 and 64 ranks may share a step; heads are dealt to the Ulysses ranks.
    """

    name: str
    heads: int
    tiles: tuple[int, int, int]
    layouts: tuple[Layout, ...]


_TO_EIGHT = (Layout(ulysses=2), Layout(ulysses=4), Layout(ulysses=8))
MODELS = (
    Model("wan", 40, (3, 6, 10), (*_TO_EIGHT, Layout(ulysses=8, ring=8), Layout(cfg=2, ulysses=32))),
    Model("hunyuan-video", 24, (5, 6, 10), (*_TO_EIGHT, Layout(ulysses=8, ring=8), Layout(ulysses=16, ring=4))),
)


def windows(path: Path, model: Model) -> Layers:
    """Densities by layer, step and head of a strategy ``{"step_layer_head": [tiles along 3 axes]}``.

    Steps whose heads are all dense are left out. A window of an odd number of tiles, or all, moves inside at the edges.

    Raises:
        ValueError: where it does not hold a window for every head of the model.
    """
    given = json.loads(path.read_text(encoding="utf-8"))
    steps, layers, heads = (1 + max(int(key.split("_")[axis]) for key in given) for axis in range(3))
    if heads != model.heads or len(given) != steps * layers * heads:
        raise ValueError(f"{path.name} has {len(given)} windows of {heads} heads: {model.name} has {model.heads} heads")

    def density(step: int, layer: int, head: int) -> float:
        window = given[f"{step}_{layer}_{head}"]
        return math.prod(min(w, n) / n for w, n in zip(window, model.tiles, strict=True))

    found = [[[density(s, layer, h) for h in range(heads)] for s in range(steps)] for layer in range(layers)]
    sparse = [s for s in range(steps) if any(layer[s][h] < 1 for layer in found for h in range(heads))]
    return [[layer[s] for s in sparse] for layer in found]


def drawn(row: Mapping[str, Any], heads: int) -> Layers:
    """Layers of so many heads, each one of those that were measured in all steps in which its layer was sparse."""
    measured = []
    for steps in row["density"].values():
        in_order = [steps[step] for step in sorted(steps, key=int)]
        measured += [list(one) for one in zip(*in_order, strict=True)]
    longest = max(len(one) for one in measured)
    measured = [one for one in measured if len(one) == longest]
    draw = random.Random(SEED)
    layers = []
    for _ in range(DRAWN_LAYERS):
        chosen = [draw.choice(measured) for _ in range(heads)]
        layers.append([[head[step] for head in chosen] for step in range(longest)])
    return layers


def simulate(layers: Layers, ranks: int, way: str) -> dict[str, float]:
    """Balance over a run: seconds of the slowest ranks over the mean of all; the worst of a layer and step; and the
    share of calls whose heads are permuted.

    Heads are dealt by what they cost in the step before. In the first step they stand as they are, which counts in the
    balance and not in the worst.
    """
    slowest, mean, worst, permuted, calls = 0.0, 0.0, 1.0, 0, 0
    for layer in layers:
        dealt = None
        for costs in layer:
            heads = (dealt or deal(costs, ranks, "natural")).heads
            loads = [math.fsum(costs[head] for head in some) for some in heads]
            slowest += max(loads)
            mean += math.fsum(loads) / ranks
            if dealt is not None:
                worst = max(worst, max(loads) * ranks / math.fsum(loads))
            permuted += dealt is not None and not dealt.natural
            calls += 1
            dealt = deal(costs, ranks, way)
    return {"balance": slowest / mean, "worst": worst, "permuted": permuted / calls}


def spread(layers: Layers) -> dict[str, float]:
    """Mean density of heads, least and most, and the mean over calls of standard deviation over mean."""
    calls = [costs for layer in layers for costs in layer]
    flat = [x for costs in calls for x in costs]
    return {
        "mean": math.fsum(flat) / len(flat), "least": min(flat), "most": max(flat),
        "varied": math.fsum(_varied(costs) for costs in calls) / len(calls),
    }  # fmt: skip


def _varied(costs: Sequence[float]) -> float:
    mean = math.fsum(costs) / len(costs)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in costs) / len(costs)) / mean


def rows_of(model: Model, source: str, layers: Layers, facts: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """A row for each layout: every way to deal."""
    about = {"model": model.name, "heads": model.heads, "source": source, **facts, "density": spread(layers)}
    for layout in model.layouts:
        ways = {way: simulate(layers, layout.ulysses, way) for way in WAYS}
        most = -(-model.heads // layout.ulysses)
        place = {"ranks": layout.gpus, "parallel": str(layout), "most_heads": most}
        yield {**about, **place, "ways": ways}


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate every source for every model and layout, and write the rows."""
    parser = argparse.ArgumentParser(prog="dittools.benchmarks.deal", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--density", type=Path, required=True, help="what dittools.benchmarks.head_density wrote")
    parser.add_argument("--windows", nargs="*", default=[], metavar="MODEL=FILE", help="searched window strategies")
    args = parser.parse_args(argv)
    models = {model.name: model for model in MODELS}
    measured = json.loads(args.density.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = []
    for text in args.windows:
        name, _, path = text.partition("=")
        file = Path(path)
        facts = {"file": file.name, "sha256": files.sha256(file)}
        rows += rows_of(models[name], "windows", windows(file, models[name]), facts)
    equal = []
    for row in measured["rows"]:
        for model in MODELS:
            layers = drawn(row, model.heads)
            if spread(layers)["varied"] < VARIED:
                equal.append(row["method"])
                break
            rows += rows_of(model, "embedded", layers, {"method": row["method"], "sparsity": row["sparsity"]})
    result = {
        "kind": "deal",
        "simulated": True,
        "dittools": provenance.dittools_version(),
        "versions": measured["versions"],
        "device": measured["device"],
        "command": ["python", "-m", "dittools.benchmarks.deal", *(argv or sys.argv[1:])],
        "measured_by": measured["command"],
        "equal": equal,
        "rows": rows,
    }
    files.write_json(args.json, result)
    for row in rows:
        ways = ", ".join(f"{way} {found['balance']:.3f}" for way, found in row["ways"].items())
        print(f"{row['model']}, {row.get('method', row['source'])}, {row['parallel']}: {ways}", flush=True)


if __name__ == "__main__":
    main()
