"""The quality phase of a report: measure every drawn case against its reference, and let the judge look."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

from dittools.cli.output import Output
from dittools.cli.report.run import Failures
from dittools.json_numbers import number
from dittools.pipelines import reading, saving, weights
from dittools.pipelines.errors import BadInput
from dittools.report.coverage import unmeasured
from dittools.report.folder import Folder
from dittools.report.plan import Plan, Row, rows, settings
from dittools.report.results import decided, gather
from dittools.report.schedule import spoken
from dittools.report.tables import quality_csv, summary_csv

_MOTION_FRAMES = 17
_MOST_AT_ONCE = 4
"""Cases measured at the same time: each holds a video or two, and reading and judging wait on one core."""
_DIGITS = 6


def measure_all(folder: Folder, plan: Plan, output: Output) -> None:
    """Measure what is not measured yet, and write the tables."""
    failures, references = Failures(folder), _References(folder, plan)
    work = sorted(
        (row for row in rows(plan, settings(plan, decided(folder))) if folder.done(row.case.id)),
        key=lambda row: (row.prompt, plan.seeds.index(row.seed)),  # each reference is read once
    )
    work = [row for row in work if _wanted(folder, row)]
    begun = time.perf_counter()
    at_once = min(_MOST_AT_ONCE, (os.cpu_count() or 1) // 2)
    pool = ThreadPoolExecutor(max(1, at_once))
    try:
        attempts = pool.map if at_once > 1 else map
        found = attempts(lambda row: _attempt(folder, plan, row, references), work)
        for number_, (row, error) in enumerate(zip(work, found, strict=True), 1):
            what = f"[{number_}/{len(work)}] measuring {row.setting.name}; prompt {row.prompt + 1}, seed {row.seed}"
            if error is not None:
                where = {"setting": row.setting.name, "prompt": row.prompt + 1, "seed": row.seed}
                failures.add("quality", row.case.id, 0, str(error), **where)
                output.line(f"{what}: failed: {error}")
                continue
            failures.clear("quality", row.case.id)
            left = (time.perf_counter() - begun) / number_ * (len(work) - number_)
            output.line(what + (f"; about {spoken(left)} of measuring left" if left else ""))
    finally:
        pool.shutdown(cancel_futures=True)
    results = gather(folder)
    for name, text in (("quality.csv", quality_csv(results)), ("summary.csv", summary_csv(results))):
        with saving.told(folder.path / name):
            folder.write(name, text)


def _attempt(folder: Folder, plan: Plan, row: Row, references: Callable[[str], Any]) -> BadInput | None:
    """Judge and measure a row; what was wrong with its files, if anything."""
    try:
        if row.case.id == row.reference.id:  # others will want them too
            frames = partial(references, row.case.id)
        else:
            frames = lru_cache(maxsize=1)(lambda: read_frames(folder, plan, row.case.id))
        _judge(folder, plan, row, frames)
        _measure(folder, row, frames, references)
    except BadInput as error:
        return error
    return None


class _References:
    """Frames of the references read last: each serves many rows."""

    def __init__(self, folder: Folder, plan: Plan):
        self._read = lru_cache(maxsize=2)(lambda case_id: read_frames(folder, plan, case_id))
        self._lock = threading.Lock()

    def __call__(self, case_id: str) -> Any:
        with self._lock:  # those who wait for it read it once
            return self._read(case_id)


def _compared(folder: Folder, row: Row) -> bool:
    return row.case.id != row.reference.id and folder.done(row.reference.id)


def _wanted(folder: Folder, row: Row) -> bool:
    judged = folder.judged(row.case.id) is not None
    return not judged or (_compared(folder, row) and unmeasured(folder, row))


def _measure(folder: Folder, row: Row, frames: Callable[[], Any], references: Callable[[str], Any]) -> None:
    if not _compared(folder, row) or not unmeasured(folder, row):
        return
    from dittools.quality import measure

    found = measure(frames(), references(row.reference.id))
    scores = {
        name: {"mean": _rounded(score.mean), "per_frame": [_rounded(value) for value in score.per_frame]}
        for name, score in found.scores.items()
    }
    with saving.told(folder.case(row.case.id)):
        folder.write_scores(row.case.id, row.reference.id, {"scores": scores, "left_out": found.left_out})


def _judge(folder: Folder, plan: Plan, row: Row, frames: Callable[[], Any]) -> None:
    """Is the right thing drawn? Only the embedded model's world has a judge."""
    if folder.judged(row.case.id) is None:
        verdict = _verdict(plan, row, frames)
        with saving.told(folder.case(row.case.id)):
            folder.write_judged(row.case.id, verdict)


def _verdict(plan: Plan, row: Row, frames: Callable[[], Any]) -> dict[str, Any]:
    if plan.weights != weights.EMBEDDED:
        return {"why_not": "the judge knows only the embedded model's world"}
    if importlib.util.find_spec("dittools.training") is None:
        return {"why_not": "the judge is not in the installed package, but in the repository (training/)"}
    if plan.task is not None and plan.task["inputs"]:
        return {"why_not": "the judge knows no pictures that are given beside a prompt"}
    if (plan.frames or 1) < _MOTION_FRAMES:
        return {"why_not": f"{plan.frames} frames are too few to see every motion (at least {_MOTION_FRAMES})"}
    from dittools.pipelines.embedded import captions
    from dittools.training import judge

    things = captions.parse(plan.prompts[row.prompt])
    if things is None:
        return {"why_not": "it is no caption of the embedded world"}
    found = judge.score(frames(), things)
    right = [value for verdict in found["objects"] for value in verdict.values()]
    return {"right": sum(right) / len(right), "objects": found["objects"], "extra": found["extra"]}


def _rounded(value: float) -> float | str | None:
    value = number(value)
    return round(value, _DIGITS) if isinstance(value, float) else value


def read_frames(folder: Folder, plan: Plan, case_id: str) -> Any:
    """All frames of a case. Raises BadInput, with the folder to remove, where they are not all there."""
    path = folder.frames(case_id)
    try:
        frames = reading.read(path).frames
        why = f"{path} holds {len(frames)} of {plan.frames} frames"
        if len(frames) >= (plan.frames or 1):
            return frames
    except BadInput as error:
        why = str(error).rpartition(": ")[0]
    raise BadInput(f"{why}: remove {folder.case(case_id)}, and the report's own command makes it again")
