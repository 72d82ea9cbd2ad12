"""The sentences of a report, the same in Markdown and on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from dittools.naming import with_options
from dittools.quality import METRICS
from dittools.quality.suite import by_name, shown
from dittools.report.plan import DENSE, KERNEL, SEED, STEPS, SWEEP
from dittools.report.results import Line, Results, Spread, beats, place


class Columns(NamedTuple):
    """What the table has beside setting and skipped shares."""

    drawn: bool
    times: bool
    reuse: bool
    metrics: list[str]
    judge: bool


def columns(results: Results) -> Columns:
    reused = any(line.reused is not None for line in results.lines)
    return Columns(not results.whole, results.plan.timed, reused, metric_columns(results), judged(results))


def metric_columns(results: Results) -> list[str]:
    """Names of the measures that some row has."""
    return [m.name for m in METRICS if any(line.metrics[m.name].count for line in results.lines)]


def judged(results: Results) -> bool:
    return any(line.judge.count for line in results.lines)


def headline(results: Results) -> list[str]:
    """What came out, in a few sentences."""
    drawn = [line for line in results.lines if line.setting.kind == SWEEP and any(o.record for o in line.outcomes)]
    if not drawn:
        return ["No setting under test was drawn: see what failed below."]
    compared = [line for line in drawn if line.compared]
    if not compared:
        return ["No setting under test can be compared with dense: see what was left out or failed below."]
    if not results.plan.timed:
        return [*_nearest(compared), *_over(results)]
    sweep = [line for line in compared if line.speedup.mean is not None]
    if not sweep:
        return ["No setting under test can be compared with dense: see what was left out or failed below."]
    fastest = max(sweep, key=lambda line: line.speedup.mean)
    said = [
        f"The fastest setting, {fastest.setting.name}, denoises {fastest.speedup.mean:.2f} times as fast as dense"
        + _near(fastest)
        + "."
    ]
    if fastest.speedup.mean < 1:
        said.append("It is slower than dense: nothing here pays on this machine at this size.")
    for kind, text in (
        (
            STEPS,
            "In about that time dense makes {name}, {speed} times as fast{near}: what saving steps gives instead.",
        ),
        (SEED, "Another seed, as good a video, is{near}: below that, settings draw another video."),
        (KERNEL, "Another dense kernel is{near}: differences as small as that are rounding."),
    ):
        line = next((line for line in results.lines if line.setting.kind == kind), None)
        if line is not None and kind == STEPS and not line.compared:
            said.append(
                f"What saving steps gives instead is not known: {line.setting.name} was not drawn on all of the pairs."
            )
        elif line is not None and line.compared and line.metrics["psnr"].mean is not None:
            speed = "-" if line.speedup.mean is None else f"{line.speedup.mean:.2f}"
            near = _near(line) if kind == STEPS else _near(line).removeprefix(", ").join((" ", ""))
            said.append(text.format(name=f"{line.setting.steps} of {results.plan.steps} steps", speed=speed, near=near))
    return [*said, *_beaten(results, compared), *_over(results)]


def _beaten(results: Results, compared: list[Line]) -> list[str]:
    """How many settings gain nothing over dense with fewer steps."""
    fewer = _fewer(results)
    beaten = [line for line in compared if fewer is not None and beats(fewer, line)]
    if not beaten:
        return []
    many = "every setting" if len(beaten) == len(compared) else f"{len(beaten)} of {_many(len(compared), 'setting')}"
    return [f"Dense with {fewer.setting.steps} of {results.plan.steps} steps beats {many} in both speed and PSNR."]


def front(results: Results) -> str:
    """What an asterisk says: no more than was compared."""
    fewer = _fewer(results)
    if fewer is None or place(fewer) is None:
        return (
            "of the settings under test and dense, none is both faster and closer; how dense with fewer steps would do "
            "is not known."
        )
    return f'of the settings under test, dense and "{fewer.setting.name}", none is both faster and closer.'


def _fewer(results: Results) -> Line | None:
    """Dense with fewer steps, where there is such a baseline."""
    return next((line for line in results.lines if line.setting.kind == STEPS), None)


def _over(results: Results) -> list[str]:
    """Where not all was drawn: over what the settings are compared."""
    if len(results.pairs) == results.asked:
        return []
    return [
        f"All of this is over the same {_of_pairs(results)} of prompt and seed; the rest was not drawn or measured."
    ]


def _of_pairs(results: Results) -> str:
    return f"{len(results.pairs)} of {_many(results.asked, 'pair')}"


def _nearest(drawn: list[Line]) -> list[str]:
    """In place of the fastest setting, where times were left out."""
    known = [line for line in drawn if line.metrics["psnr"].mean is not None]
    if not known:
        return []
    nearest = max(known, key=lambda line: line.metrics["psnr"].mean)
    return [f"The setting nearest to dense is {nearest.setting.name}{_near(nearest)}."]


def _near(line: Line) -> str:
    mean = line.metrics["psnr"].mean
    if mean is None:
        return ""
    return ", identical to dense" if mean == math.inf else f", at {mean:.1f} dB PSNR from dense"


def cells(line: Line, number: int, columns: Columns) -> list[tuple[str, float | None]]:
    """A row of the table: each cell as text and as a number to sort by."""
    found: list[tuple[str, float | None]] = [
        (str(number), number),
        (line.setting.name + (" *" if line.front else ""), None),
        *([(f"{line.drawn} of {line.asked}", float(line.drawn))] if columns.drawn else []),
        *(_times(line) if columns.times else ()),
        _share(line.sparse_calls),
        _share(line.overall if line.setting.kind == SWEEP else None),
        *([_share(line.reused)] if columns.reuse else []),
    ]
    for name in columns.metrics:
        metric = by_name()[name]
        text, value = _spread(line.metrics[name], lambda value, m=metric: shown(m, value).removesuffix(" dB"))
        infinite = line.metrics[name].infinite
        if infinite and infinite < line.metrics[name].count:
            text += f" ({infinite} identical)"
        found.append((text, value))
    if columns.judge:
        found.append(_spread(line.judge, lambda value: f"{100 * value:.0f} %"))
    return found


def _times(line: Line) -> list[tuple[str, float | None]]:
    ups = (line.speedup, line.whole_speedup)
    dense = line.setting.kind == DENSE
    return [
        ("-" if line.denoise is None else f"{line.denoise:.2f}", line.denoise),
        *(("1", 1.0) if dense else _spread(found, lambda value: f"{value:.2f}x") for found in ups),
    ]


def heads(columns: Columns) -> list[str]:
    metrics = [by_name()[name] for name in columns.metrics]
    return [
        *("#", "setting"),
        *(["drawn"] if columns.drawn else []),
        *(("denoise s", "speed-up", "whole") if columns.times else ()),
        *("skipped, sparse calls", "skipped, all"),
        *(["calls reused"] if columns.reuse else []),
        *(metric.title + (f", {metric.unit}" if metric.unit else "") for metric in metrics),
        *(["judge"] if columns.judge else []),
    ]


def _spread(found: Spread, text: Any) -> tuple[str, float | None]:
    if found.mean is None:
        return "-", None
    deviation = f" ± {text(found.std).removesuffix('x').removesuffix(' %')}" if found.std is not None else ""
    return text(found.mean) + deviation, found.mean


def _share(value: float | None) -> tuple[str, float | None]:
    return ("-", None) if value is None else (f"{100 * value:.1f} %", value)


def subject(results: Results) -> str:
    """What was drawn, on what."""
    plan, device = results.plan, results.manifest["device"]
    limit = device.get("power_limit_watts")
    timed = _timed(results) if plan.timed else "not timed"
    pairs = f"{_many(len(plan.prompts), 'prompt')} x {_many(len(plan.seeds), 'seed')}"
    if not results.whole:
        pairs = f"asked for {pairs}, compared over {_of_pairs(results)}"
    return (
        f"{plan.model}, weights {plan.weights}; {_size(results)}, {plan.steps} steps, "
        + ("" if plan.guidance is None else f"guidance {plan.guidance:g}, ")
        + f"{plan.dtype}; {pairs}, {timed}; on {device['name']} ({device['type']}"
        + (f", {limit:g} W" if limit else "")
        + f"); dense kernel {results.decided.dense_kernel or 'not chosen yet'}"
    )


def _size(results: Results) -> str:
    """Frames x height x width; what the pipeline decided is taken from the first case."""
    sizes = [results.plan.frames, results.plan.height, results.plan.width]
    first = next((outcome.record for outcome in results.outcomes if outcome.record), None)
    if None in sizes and first is not None:
        sizes = [first["run"].get(name) for name in ("frames", "height", "width")]
    return " x ".join("?" if size is None else str(size) for size in sizes)


def given(results: Results) -> list[str]:
    """What every case was drawn from beside its prompt, one line for each; nothing where that is all."""
    task = results.plan.task
    if task is None:
        return []
    pipeline = task["pipeline"]
    drawn = pipeline if pipeline == task["weights_of"] else f"{pipeline} with the weights of {task['weights_of']}"
    said = [f"{flag}: {value}" for flag, value in inputs_by_flag(task).items() if flag not in ("pipeline", "weights")]
    return [f"Drawn by {drawn}.", *said]


def inputs_by_flag(task: Mapping[str, Any] | None) -> dict[str, str]:
    """What a task was given, for people, by the flag that gave it."""
    if task is None:
        return {}
    found = {"pipeline": task["pipeline"], "weights": task["weights_of"]}
    for name, value in task["inputs"].items():
        shown_as = ", ".join(map(_file, value)) if isinstance(value, list) else value
        found["--" + name.replace("_", "-")] = _file(value) if isinstance(value, dict) else str(shown_as)
    if task["set"]:
        found["--set"] = " ".join(f"{name}={value}" for name, value in task["set"].items())
    if task["lora"]:
        scaled = [(f"{one['file']}:{one['scale']:g}", one["sha256"][:12]) for one in task["lora"]]
        found["--lora"] = ", ".join(f"{name} (sha256 {digest})" for name, digest in scaled)
    if task["quantize"] != "none":
        found["--quantize"] = task["quantize"]
    if task["vae_tiling"]:
        found["--vae-tiling"] = "yes"
    if task["shift"] is not None:
        found["--shift"] = f"{task['shift']:g}"
    return found


def _file(one: Mapping[str, Any]) -> str:
    frames = "" if one["frames"] == 1 else f"{one['frames']} frames of "
    return f"{one['file']} ({frames}{one['height']} x {one['width']}, sha256 {one['sha256'][:12]})"


def _timed(results: Results) -> str:
    """How often cases were timed; an interrupted report may have fewer than were asked for."""
    asked = results.plan.repeats
    counts = {len(outcome.seconds) for outcome in results.outcomes if outcome.record} or {0}
    if counts == {asked}:
        return f"timed {_many(asked, 'time')}"
    return f"timed {' to '.join(str(n) for n in sorted({min(counts), max(counts)}))} of {_many(asked, 'time')}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def ground(results: Results) -> str:
    """Versions and command."""
    manifest = results.manifest
    versions = ", ".join(f"{name} {value}" for name, value in manifest["versions"].items() if value)
    commit = manifest.get("commit")
    return (
        f"dittools {manifest['dittools']}"
        + (f" ({commit[:12]}{'+' if commit.endswith('+') else ''})" if commit else "")
        + f"; {versions}"
    )


def explained(results: Results) -> list[str]:
    """What the figures say and what they do not."""
    plan = results.plan
    rows = len(results.pairs) or max((line.drawn for line in results.lines), default=0)
    apart = any(line.drawn and not line.compared for line in results.lines)
    times = [
        "Speed-up compares denoising of the same prompt and seed, median over repeats, then the geometric "
        "mean; cases took turns, and the first "
        'use of each kernel and method ran before the clock. "Whole" adds the text encoder and the decoder; loading '
        "and saving are in neither.",
        "Equal time is the fair rival: if dense with fewer steps is as close to dense and as fast, the setting gains "
        "nothing.",
        f"An asterisk: {front(results)}",
    ]
    said = [
        *(times if plan.timed else ["Times were left out: the device did other work as well."]),
        "PSNR and the other measures say how close a video is to the dense one of the same prompt and seed, on the "
        "8-bit frames that are kept. They do not say how good it is: another seed is just as good a video, and far "
        "from dense.",
        "Skipped shares are measured from the masks that ran.",
        f"± is the standard deviation over {rows} pairs of prompt and seed"
        + (", in rows that are not compared over those they were drawn on." if apart else ".")
        if rows > 1
        else "There is one pair of prompt and seed: nothing is said of how much these figures scatter.",
    ]
    if rows < 10 and rows > 1:
        said.append(f"{rows} pairs are few: differences smaller than ± mean nothing.")
    if plan.timed and plan.repeats == 1:
        said.append(
            "Each case was timed once: small differences in seconds may be the machine's own. --repeats 3 tells."
        )
    chosen = {
        with_options(outcome.record["method"], outcome.record.get("method_options", {}))
        for outcome in results.outcomes
        if outcome.record and (outcome.row.setting.config or {}).get("method") == "auto"
    }
    if chosen:
        said.append(f"Method auto stood for {' and '.join(sorted(chosen))} here.")
    if judged(results):
        said.append(
            "The judge reads shape, colour and motion of every object from the frames, without the model: the share "
            "of them that are as the prompt asked."
        )
    for name in metric_columns(results):
        metric = by_name()[name]
        better = "higher" if metric.higher_is_better else "lower"
        said.append(f"{metric.title}: {metric.meaning}; {better} is closer.")
    return said
