"""A report as one HTML file that holds all it shows (style, charts, pictures, small clips), and as Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from markupsafe import Markup

from dittools.quality.suite import by_name, shown
from dittools.report import charts, text
from dittools.report.pictures import AMPLIFIED, Shown
from dittools.report.plan import DENSE, KERNEL, KINDS, SEED, STEPS, SWEEP
from dittools.report.results import Line, Outcome, Results
from dittools.templates import render

Pictures = Mapping[tuple[str, int, int], Shown]
"""(setting's key, prompt, seed) -> what is shown of that case."""
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#!|~$@])")
_LONGEST = 300


def page(results: Results, pictures: Pictures) -> str:
    """The text of report.html."""
    columns = text.columns(results)
    return render(
        "report.html.jinja",
        results=results,
        text=text,
        columns=columns,
        chart=_chart(results),
        heads=text.heads(columns)[1:],  # the number stands beside the name
        rows=[_row(line, text.cells(line, number, columns)) for number, line in enumerate(results.lines, 1)],
        groups=_groups(results, pictures),
        amplified=AMPLIFIED,
        maps=_heat_maps(results),
        frames=_frames(results),
    )


def markdown(results: Results) -> str:
    """The text of report.md."""
    columns = text.columns(results)
    rows = [[cell for cell, _ in text.cells(line, n, columns)] for n, line in enumerate(results.lines, 1)]
    return render("report.md.jinja", results=results, text=text, plain=plain, table=[text.heads(columns), *rows])


def plain(said: str) -> str:
    """Any text as one line that Markdown takes literally; cut where it is very long."""
    said = "".join(c if c.isprintable() else " " for c in " ".join(said.split()))
    if len(said) > _LONGEST:
        said = said[:_LONGEST] + f" ... ({len(said)} characters)"
    return _SPECIAL.sub(r"\\\1", escape(said, quote=False))


def _chart(results: Results) -> Markup | None:
    """Speed against PSNR of all settings that are compared; None where none is."""
    points, levels = [], []
    for number, line in enumerate(results.lines, 1):
        near, speed, kind = line.metrics["psnr"], line.speedup, line.setting.kind
        if near.mean is None or speed.mean is None or not line.compared:
            continue
        if kind in (SWEEP, STEPS):
            name = f"{line.setting.name}: {speed.mean:.2f}x, {shown(by_name()['psnr'], near.mean)}"
            points.append(charts.Point(speed.mean, near.mean, speed.std, near.std, str(number), name, kind, line.front))
        elif kind in (KERNEL, SEED):
            levels.append(charts.Level(near.mean, {KERNEL: "noise floor", SEED: "another seed"}[kind]))
    return charts.speed_and_quality(points, levels) if points else None


def _row(line: Line, cells: list[tuple[str, float | None]]) -> dict[str, Any]:
    _, (name, _), *rest = cells
    kinds = [] if line.setting.kind in (SWEEP, DENSE) else ["baseline"]
    return {
        "kind": " ".join(kinds + (["best"] if line.front else [])),
        "title": KINDS[line.setting.kind],
        "name": name,
        "cells": [(cell, _sortable(value)) for cell, value in rest],
    }


def _sortable(value: float | None) -> str:
    return "" if value is None else "1e99" if value == math.inf else f"{value:.9g}"


def _groups(results: Results, pictures: Pictures) -> list[dict[str, Any]]:
    """The cases of each prompt and seed that have pictures."""
    found = []
    for prompt, seed in results.drawn:
        cases = []
        for outcome in _of_pair(results, prompt, seed):
            case = pictures.get((outcome.row.setting.key, prompt, seed))
            if case is not None:
                near = outcome.means.get("psnr")
                fact = "" if near is None else f": {shown(by_name()['psnr'], near)}"
                cases.append((outcome.row.setting.name + fact, case))
        if cases:
            kinds = {"cases": "strips", "clips": "clip", "links": "link"}
            shares = {kind: [case for case in cases if getattr(case[1], part)] for kind, part in kinds.items()}
            found.append({"prompt": prompt + 1, "seed": seed, "text": results.plan.prompts[prompt], **shares})
    return found


def _heat_maps(results: Results) -> list[dict[str, Any]]:
    """Mean over the cases of each setting, of those that ran sparse."""
    maps = []
    for line in results.lines:
        cases = [o.record["case"]["skipped"] for o in line.outcomes if o.record and o.record["case"]["skipped"]]
        drawn = charts.heat_map(_mean_cells(cases), f"Computed share: {line.setting.name}") if cases else ""
        if drawn:
            size = f"{len(cases[0])} steps, {len(cases[0][0])} layers"
            maps.append({"drawn": drawn, "name": line.setting.name, "size": size})
    return maps


def _mean_cells(cases: list[list[list[float | None]]]) -> list[list[float | None]]:
    def mean(step: int, layer: int) -> float | None:
        known = [c[step][layer] for c in cases if step < len(c) and layer < len(c[step]) and c[step][layer] is not None]
        return sum(known) / len(known) if known else None

    return [[mean(step, layer) for layer in range(len(row))] for step, row in enumerate(cases[0])]


def _frames(results: Results) -> list[dict[str, Any]]:
    """PSNR over the frames of each prompt and seed."""
    found = []
    for prompt, seed in results.drawn:
        # rounding lies so far above the rest that its line would flatten theirs
        pair = [o for o in _of_pair(results, prompt, seed) if o.row.setting.kind != KERNEL]
        series = [charts.Series(o.row.setting.name, o.per_frame["psnr"]) for o in pair if o.per_frame.get("psnr")]
        drawn = charts.over_frames(series, "PSNR against dense, dB")
        if drawn:
            found.append({"prompt": prompt + 1, "seed": seed, "drawn": drawn, "names": [line.name for line in series]})
    return found


def _of_pair(results: Results, prompt: int, seed: int) -> list[Outcome]:
    return [o for o in results.outcomes if (o.row.prompt, o.row.seed) == (prompt, seed)]
