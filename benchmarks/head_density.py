"""How much of its map each head computes, by step and layer: what a rank pays for it under Ulysses.

    python -m dittools.benchmarks.head_density --json docs/measured/head_density_cpu.json

The embedded model draws one prompt with each method whose heads share a budget or go by a threshold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import dittools
from dittools import files, provenance
from dittools.methods.base import Plan
from dittools.naming import name_and_options
from dittools.observer import AttentionEvent
from dittools.pipelines import embedded, loading, stages
from dittools.pipelines.embedded import vocabulary as voc

METHODS = ("xattention", "nabla", "adaspa", "paro", "sparse_vdit", "svg2:top_p=0.9", "vmoba:tau=0.25", "sparge:tau=0.9")


class Densities:
    """Density of every head of every sparse call: put it among the plan watchers.

    Attributes:
        found: by branch and layer, then by step, of each head; a call that ran dense is not in it.
    """

    def __init__(self):
        self.found: dict[str, dict[int, list[float]]] = {}

    def __call__(self, event: AttentionEvent, plan: Plan) -> None:
        heads = event.q.shape[2]
        density = plan.density().expand(-1, heads).mean(0)
        place = f"{event.step_info.branch} {event.layer}"
        self.found.setdefault(place, {})[event.step_info.step] = [round(x, 5) for x in density.tolist()]


def measure(pipe: Any, embeds: dict, shot: stages.Shot, method: str, sparsity: float) -> dict[str, Any]:
    """One run: densities by step, of each branch and layer by head, and what the run notes."""
    name, options = name_and_options(method, "method")
    watch = Densities()
    with dittools.accelerate(pipe, method=name, sparsity=sparsity, **options) as fast:
        fast.runtime.plan_watchers.append(watch)
        stages.denoise(pipe, embeds, shot)
        record = fast.record()
    return {
        "method": method,
        "sparsity": sparsity,
        "skipped_sparse_calls": record["sparsity"]["sparse_calls"],
        "notes": record["notes"],
        "density": {place: {str(step): heads for step, heads in steps.items()} for place, steps in watch.found.items()},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Draw with each method and write what its heads kept, after each."""
    parser = argparse.ArgumentParser(prog="dittools.benchmarks.head_density", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--size", type=int, nargs=3, metavar=("FRAMES", "HEIGHT", "WIDTH"),
                        default=[embedded.DEFAULTS[name] for name in ("frames", "height", "width")])  # fmt: skip
    parser.add_argument("--steps", type=int, default=embedded.DEFAULTS["steps"])
    parser.add_argument("--method", nargs="+", default=METHODS)
    parser.add_argument("--sparsity", type=float, default=0.8)
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = loading.pick_dtype("auto", device)
    pipe = loading.load(embedded.weights_path(), device=device, dtype=dtype, offload="none")
    pipe.set_progress_bar_config(disable=True)
    prompt, guidance = embedded.DEFAULTS["prompt"], embedded.DEFAULTS["guidance"]
    embeds = stages.encode(pipe, prompt, "", guidance, voc.MAX_TOKENS)
    shot = stages.Shot(*args.size, args.steps, guidance, seed=0)
    result: dict[str, Any] = {
        "kind": "head_density",
        "dittools": provenance.dittools_version(),
        "versions": provenance.versions(),
        "device": provenance.device_facts(device),
        "command": ["python", "-m", "dittools.benchmarks.head_density", *(argv or sys.argv[1:])],
        "model": "embedded",
        "size": args.size,
        "steps": args.steps,
        "prompt": prompt,
        "rows": [],
    }
    for method in args.method:
        row = measure(pipe, embeds, shot, method, args.sparsity)
        result["rows"].append(row)
        files.write_json(args.json, result)
        print(f"{method}: {1 - row['skipped_sparse_calls']:.3f} computed in sparse calls", flush=True)


if __name__ == "__main__":
    main()
