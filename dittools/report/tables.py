"""The figures of a report as tables: for each row and each setting, as plain values and as CSV."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from dittools.json_numbers import number
from dittools.quality import METRICS
from dittools.report.results import Results, Spread


def quality_csv(results: Results) -> str:
    """One line a row: a setting's answer to one prompt and seed."""
    names = [metric.name for metric in METRICS]
    head = ["setting", "kind", "prompt", "seed", "case", "reference", "denoise_seconds", "speedup", *names, "judge"]
    lines = []
    for outcome in results.outcomes:
        row = outcome.row
        lines.append([
            *(row.setting.name, row.setting.kind, row.prompt + 1, row.seed, row.case.id),
            "" if row.case.id == row.reference.id else row.reference.id,
            *(_cell(outcome.denoise), _cell(outcome.speedup)),
            *(_cell(outcome.means.get(name)) for name in names),
            _cell((outcome.judge or {}).get("right")),
        ])  # fmt: skip
    return _csv(head, lines)


def summary(results: Results) -> list[dict[str, Any]]:
    """A setting a line, in plain values."""
    return [
        {
            "setting": line.setting.name,
            "kind": line.setting.kind,
            "steps": line.setting.steps,
            "cases": line.asked,
            "drawn": line.drawn,
            "compared": len(results.pairs) if line.compared else 0,
            "pareto": line.front,
            "denoise_seconds": number(line.denoise),
            **_plain("speedup", line.speedup),
            **_plain("whole_speedup", line.whole_speedup),
            "skipped_sparse_calls": line.sparse_calls,
            "skipped_overall": line.overall,
            "reused_calls": line.reused,
            **{key: value for name, spread in line.metrics.items() for key, value in _plain(name, spread).items()},
            "psnr_identical": line.metrics["psnr"].infinite,
            **_plain("judge", line.judge),
        }
        for line in results.lines
    ]


def by_case(results: Results) -> dict[str, list[float | None]]:
    """PSNR of every setting, a value for each prompt and seed in the same order: for paired comparisons.

    Infinite and missing values are None.
    """
    found: dict[str, list[float | None]] = {}
    for line in results.lines:
        values = (outcome.means.get("psnr") for outcome in line.outcomes)
        found[line.setting.name] = [
            None if value is None or math.isinf(value) else round(float(value), 3) for value in values
        ]
    return found


def summary_csv(results: Results) -> str:
    """`summary` as CSV."""
    lines = summary(results)
    return _csv(list(lines[0]), [[_cell(value) for value in line.values()] for line in lines])


def _plain(name: str, found: Spread) -> dict[str, Any]:
    return {name: number(found.mean), f"{name}_std": number(found.std)}


def _csv(head: list[str], lines: list[list]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *lines])
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "inf" if value == math.inf else f"{value:.6g}"
    return "" if value is None else value
