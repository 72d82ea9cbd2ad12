"""Rows of `dittools bench kernel` as lines and tables."""

from __future__ import annotations

from typing import Any

COLUMNS = (
    "row", "heads x tokens", "kept", "what", "burst ms", "sustained ms", "value", "sustained", "of cuDNN", "of FA",
    "note",
)  # fmt: skip
EMPTY = (None,) * 6


def cells_of(row: dict[str, Any]) -> list[list[Any]]:
    """A row of results as lines of the table: every contender, fastest first, then what was wrong and why."""
    job = row["job"]
    head = [job["name"], f"{job['heads']} x {job['tokens']}", f"{row['kept']:.3f}" if "kept" in row else None]
    if "error" in row:
        return [[*head, None, *EMPTY, f"error: {row['error']}"]]
    times = row["times"]
    names = sorted(times, key=lambda n: (times[n].get("burst") or times[n]["sustained"])["ms"])
    lines = []
    for name in names:
        burst, sustained = times[name].get("burst", {}), times[name].get("sustained", {})
        values = [figures.get("r", figures.get("value")) for figures in (burst, sustained)]
        best = burst or sustained
        lines.append([
            *head, name, _number(burst.get("ms")), _number(sustained.get("ms")),
            *(with_unit(value, job["unit"]) for value in values),
            _number(best.get("r_cudnn")), _number(best.get("r_flash")), "",
        ])  # fmt: skip
    reasons = dict(row["wrong"])
    if not any(name in times for name in row["ours"]):
        reasons |= row["not_run"]
    return lines + [[*head, name, *EMPTY, why] for name, why in reasons.items()]


def line_of(row: dict[str, Any]) -> str:
    """A row of results in one line, as it comes."""
    if "error" in row:
        return f"{row['id']}: error: {row['error']}"
    unit = row["job"]["unit"]
    said = []
    for name in row["ours"]:
        figures = row["times"].get(name, {})
        best = figures.get("burst") or figures.get("sustained") or {}
        value = best.get("r", best.get("value"))
        if value is not None:
            said.append(f"{name} {with_unit(value, unit)}")
    said += [f"{name}: {why}" for name, why in row["wrong"].items()]
    if not said:
        said = [f"{name}: {why}" for name, why in row["not_run"].items()]
    aim = ""
    if row["job"]["goal"] and row["job"]["device"] == "cuda":
        aim = f" (goal {row['job']['goal']:g}, floor {row['job']['floor']:g})"
    base = f"dense {row['dense']}, " if "dense" in row else ""
    return f"{row['id']}{aim}: {base}{'; '.join(said)}"


def with_unit(value: float | None, unit: str) -> str | None:
    if value is None:
        return None
    return f"r {value:.3f}" if unit == "r" else f"{value:.3g} {unit}"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
