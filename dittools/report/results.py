"""What a report's folder says: every row with its times and measures, and every setting over its rows."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dittools.json_numbers import read_number
from dittools.quality import METRICS, mean_psnr
from dittools.report import coverage
from dittools.report.folder import Folder, Unreadable
from dittools.report.plan import DENSE, STEPS, SWEEP, Decided, Plan, Row, Setting, rows, settings

RIVALS = (SWEEP, STEPS, DENSE)
"""Kinds of settings that can beat one in both speed and PSNR."""
WHOLE = ("text", "denoise", "decode")
"""Stages that a user waits for, loading and saving apart."""


@dataclass
class Outcome:
    """A row and what was found. Seconds are medians over the repeats; `speedup` is of denoising."""

    row: Row
    record: dict[str, Any] | None = None
    seconds: list[float] = field(default_factory=list)
    denoise: float | None = None
    whole: float | None = None
    speedup: float | None = None
    whole_speedup: float | None = None
    means: dict[str, float] = field(default_factory=dict)
    per_frame: dict[str, list[float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    judge: dict[str, Any] | None = None


@dataclass
class Spread:
    """Mean and standard deviation over the rows of a setting; `infinite` counts rows of infinite PSNR."""

    mean: float | None
    std: float | None
    count: int
    infinite: int = 0


@dataclass
class Line:
    """A setting over all prompts and seeds. `compared`: its figures are over the pairs that all compared settings have,
    else over those it was drawn on. `measured` counts pairs with a PSNR, None for dense; `timed` is the least number
    of times that one of its cases was.
    """

    setting: Setting
    outcomes: list[Outcome]
    asked: int
    drawn: int
    measured: int | None
    timed: int
    compared: bool
    denoise: float | None
    speedup: Spread
    whole_speedup: Spread
    metrics: dict[str, Spread]
    sparse_calls: float | None
    overall: float | None
    reused: float | None
    judge: Spread
    front: bool = False


@dataclass
class Results:
    """Everything a page shows. `pairs` of prompt and seed are those that settings are compared on."""

    manifest: dict[str, Any]
    plan: Plan
    decided: Decided
    lines: list[Line]
    failures: list[dict[str, Any]]
    pairs: frozenset[coverage.Pair]

    @property
    def asked(self) -> int:
        """How many pairs of prompt and seed were asked for."""
        return len(self.plan.prompts) * len(self.plan.seeds)

    @property
    def drawn(self) -> list[coverage.Pair]:
        """The pairs of which there is a case."""
        return coverage.drawn(self.lines)

    @property
    def whole(self) -> bool:
        """Whether every setting was drawn, and can be compared, on every pair."""
        return len(self.pairs) == self.asked and all(line.compared for line in self.lines)

    @property
    def outcomes(self) -> list[Outcome]:
        return [outcome for line in self.lines for outcome in line.outcomes]

    def left_out(self) -> list[str]:
        """What is not in the figures, and why, each said once."""
        found: dict[str, None] = dict.fromkeys([*coverage.notes(self), *self.manifest["notes"], *self.decided.notes])
        titles = {metric.name: metric.title for metric in METRICS}
        for outcome in self.outcomes:
            for name, why in outcome.left_out.items():
                found[f"{titles.get(name, name)} was not measured: {why}"] = None
            if outcome.judge and "why_not" in outcome.judge:
                found[f"prompt {outcome.row.prompt + 1} was not judged: {outcome.judge['why_not']}"] = None
        reasons: Counter[tuple[str, str]] = Counter()
        for outcome in self.outcomes:
            for entry in (outcome.record or {}).get("fallbacks", []):
                reasons[outcome.row.setting.name, entry["reason"]] += entry["count"]
        for (name, reason), count in reasons.items():
            found[f"{name}: {count} calls ran dense: {reason}"] = None
        return list(found)


def decided(folder: Folder) -> Decided:
    """What the folder's report has decided so far."""
    known = folder.baselines()
    found = {"dense_kernel": "", **{name: known[name] for name in Decided._fields if name in known}}
    return Decided(**{**found, "notes": tuple(found.get("notes", ()))})


def gather(folder: Folder) -> Results:
    """Read a folder. Raises Unreadable where there is no report in it."""
    manifest = folder.manifest()
    if manifest is None:
        raise Unreadable(f"there is no report in {folder.path}: run `dittools report --phase run --out ...` first")
    plan, known = Plan.from_dict(manifest["plan"]), decided(folder)
    dense: dict[str, Outcome] = {}
    outcomes: dict[str, list[Outcome]] = {}
    found = settings(plan, known)
    for row in rows(plan, found):
        outcome = _outcome(folder, row, plan)
        if row.setting.kind == DENSE:
            dense[row.case.id] = outcome
        base = dense.get(row.reference.id)
        if base is not None:
            outcome.speedup = _ratio(base.denoise, outcome.denoise)
            outcome.whole_speedup = _ratio(base.whole, outcome.whole)
        outcomes.setdefault(row.setting.key, []).append(outcome)
    comparable = _comparable(outcomes)
    pairs = coverage.common(comparable[setting.key] for setting in found if setting.kind != DENSE)
    lines = [
        _line(setting, outcomes[setting.key], pairs, bool(pairs) and pairs <= comparable[setting.key])
        for setting in found
    ]
    _mark_front(lines)
    return Results(manifest, plan, known, lines, folder.failures(), pairs)


def _comparable(outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, frozenset[coverage.Pair]]:
    """The pairs that each setting can be compared on. Before the first measure, those whose times can be."""
    every = [outcome for of_setting in outcomes.values() for outcome in of_setting]
    dense = {_pair(o) for o in every if o.row.setting.kind == DENSE and o.record is not None}
    measured = any("psnr" in o.means for o in every)

    def known(outcome: Outcome) -> bool:
        reference = outcome.row.setting.kind == DENSE
        return outcome.record is not None and (reference or not measured or "psnr" in outcome.means)

    return {key: frozenset(_pair(o) for o in found if known(o)) & dense for key, found in outcomes.items()}


def _pair(outcome: Outcome) -> coverage.Pair:
    return outcome.row.prompt, outcome.row.seed


def _outcome(folder: Folder, row: Row, plan: Plan) -> Outcome:
    record = folder.record(row.case.id)
    outcome = Outcome(row, record)
    if record is None:
        return outcome
    if plan.timed:
        records = [found for n in range(plan.repeats) if (found := folder.record(row.case.id, n)) is not None]
        outcome.seconds = [found["seconds"]["denoise"] for found in records]
        outcome.denoise = statistics.median(outcome.seconds)
        outcome.whole = outcome.denoise + sum(record["seconds"][name] for name in WHOLE if name != "denoise")
    outcome.judge = folder.judged(row.case.id)
    if row.case.id != row.reference.id:
        scores = folder.scores(row.case.id, row.reference.id) or {"scores": {}, "left_out": {}}
        for name, score in scores["scores"].items():
            outcome.means[name] = read_number(score["mean"])
            outcome.per_frame[name] = [read_number(value) for value in score["per_frame"]]
        outcome.left_out = scores["left_out"]
    return outcome


def _line(setting: Setting, outcomes: list[Outcome], pairs: frozenset[coverage.Pair], compared: bool) -> Line:
    known = [outcome for outcome in outcomes if outcome.record is not None]
    drawn = [outcome for outcome in known if _pair(outcome) in pairs] if compared else known
    times = [outcome.denoise for outcome in drawn if outcome.denoise is not None]
    return Line(
        setting=setting,
        outcomes=outcomes,
        asked=len(outcomes),
        drawn=len(known),
        measured=None if setting.kind == DENSE else sum("psnr" in outcome.means for outcome in known),
        timed=min((len(outcome.seconds) for outcome in known), default=0),
        compared=compared,
        denoise=statistics.median(times) if times else None,
        speedup=_geometric(outcome.speedup for outcome in drawn),
        whole_speedup=_geometric(outcome.whole_speedup for outcome in drawn),
        metrics={metric.name: spread(outcome.means.get(metric.name) for outcome in drawn) for metric in METRICS},
        sparse_calls=_mean(outcome.record["sparsity"]["sparse_calls"] for outcome in drawn),
        overall=_mean(outcome.record["sparsity"]["overall"] for outcome in drawn),
        reused=_mean(_reused(outcome.record) for outcome in drawn),
        judge=spread((outcome.judge or {}).get("right") for outcome in drawn),
    )


def _reused(record: Mapping[str, Any]) -> float | None:
    """Share of the attention calls that a cache saved; None where none was on."""
    calls = record.get("calls") or {}
    total = sum(calls.get(kind) or 0 for kind in ("dense", "sparse", "reused"))
    on = (record.get("cache") or {}).get("name", "none") != "none"
    return calls["reused"] / total if on and total else None


def spread(values: Iterable[float | None]) -> Spread:
    """Mean and sample deviation; infinite values are counted, and the mean is infinite only when all are."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    finite = [value for value in known if value != math.inf]
    mean = mean_psnr(known) if known else None
    return Spread(mean, statistics.stdev(finite) if len(finite) > 1 else None, len(known), len(known) - len(finite))


def _geometric(values: Iterable[float | None]) -> Spread:
    """As `spread`, with the geometric mean: the right one for ratios, which a slow spell would bias otherwise."""
    known = [value for value in values if value]
    found = spread(known)
    if known:
        found.mean = statistics.geometric_mean(known)
    return found


def _mark_front(lines: Sequence[Line]) -> None:
    """Mark the settings under test, and dense with fewer steps, that no rival beats on the same prompts and seeds."""
    for line in lines:
        if line.setting.kind in (SWEEP, STEPS) and place(line):
            line.front = not any(beats(other, line) for other in lines if other.setting.kind in RIVALS)


def place(line: Line) -> tuple[float, float] | None:
    """(speed-up, PSNR) of a line that is compared with others; dense has (1, inf). None where one is not known."""
    if line.setting.kind == DENSE:
        return 1.0, math.inf
    speed, near = line.speedup.mean, line.metrics["psnr"].mean
    return (speed, near) if line.compared and speed is not None and near is not None else None


def beats(one: Line, other: Line) -> bool:
    """Whether a line is at least as fast and as close as another, and better in one of the two."""
    mine, theirs = place(one), place(other)
    if mine is None or theirs is None or mine == theirs:
        return False
    return mine[0] >= theirs[0] and mine[1] >= theirs[1]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _ratio(base: float | None, value: float | None) -> float | None:
    return base / value if base and value else None
