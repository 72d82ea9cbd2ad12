"""What the scripts that time kernels by cases share: `time_clusters`, `time_kmeans`, `time_antidiagonals`."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from dittools.kernels.timing import RUN_UP_BYTES, once
from dittools.provenance import device_facts, dittools_version, versions


def timed(calls: dict[str, Callable], device: torch.device, repeats: int) -> dict[str, float]:
    """Median milliseconds of each call, taken in turn; on a GPU behind other work and so without their launches."""
    run_up = torch.zeros(RUN_UP_BYTES, dtype=torch.uint8, device=device) if device.type == "cuda" else None
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 2):  # the first two warm up
        for name, call in calls.items():
            ms = once(call, device, run_up)
            if turn > 1:
                found[name].append(ms)
    return {name: statistics.median(times) for name, times in found.items()}


def passing(
    calls: dict[str, Callable], check: Callable[[str, Any], float]
) -> tuple[dict[str, Callable], float, dict[str, str]]:
    """The calls whose results pass, the worst error among those, and why the others were left out.

    Args:
        check: gives the error of a call's result, by its name; raises where that is no rounding.
    """
    right, worst, left_out = {}, 0.0, {}
    for name, call in calls.items():
        try:
            worst = max(worst, check(name, call()))
        except Exception as why:  # one that does not fit the card, or is wrong, costs the others nothing
            left_out[name] = f"{type(why).__name__}: {why}"
        else:
            right[name] = call
    return right, worst, left_out


def parser_of(doc: str, repeats: int) -> argparse.ArgumentParser:
    """The flags of every such script; ``doc`` is its docstring."""
    parser = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    parser.add_argument("--json", type=Path, required=True, help="where the results go")
    parser.add_argument("--tokens", type=int, default=75_600)
    parser.add_argument("--heads", type=int, default=40)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=repeats)
    return parser


def here() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def keep_cases(path: Path, cases: Iterable[Callable[[], dict]], say: Callable[[dict], str], **facts: Any) -> None:
    """Run the cases, write the JSON after each, and say what came of it."""
    module = getattr(sys.modules["__main__"].__spec__, "name", "?")
    ground = {"dittools": dittools_version(), "versions": versions(), "device": device_facts(here())}
    report = {**ground, "command": ["python", "-m", module, *sys.argv[1:]], **facts, "cases": []}
    for case in cases:
        with torch.no_grad():
            found = case()
        report["cases"].append(found)
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(say(found), flush=True)


def in_lines(title: str, found: dict) -> str:
    """Milliseconds of each form, and what was left out."""
    lines = [title, *(f"{name}: {ms:.3f} ms" for name, ms in found["milliseconds"].items())]
    return "\n  ".join([*lines, *(f"left out: {name}: {why}" for name, why in found["left_out"].items())])
