"""The rows of `dittools bench model`: what each is, and how those that are missing are measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dittools.benchmarks import model as bench
from dittools.benchmarks import speed_only
from dittools.benchmarks.model_table import MEASURED, line_of
from dittools.benchmarks.profiled import profile_of
from dittools.benchmarks.speed_only.backend import fastest_dense
from dittools.naming import name_and_options
from dittools.pipelines import loading
from dittools.pipelines.errors import RunFailed, first_line


def accelerated_by(setting: dict[str, Any]) -> dict[str, Any]:
    """Settings as `dittools.accelerate` takes them: options beside the method's name."""
    name, options = name_and_options(setting["method"], "method")
    return {**setting, "method": name, **options}


def jobs_of(job: dict[str, Any], settings: list[dict[str, Any]], compiled: bool) -> list[dict[str, Any]]:
    """One job a row: dense calls, then those of each method."""
    ways = ("", " compiled") if compiled else ("",)
    frames, height, width = job["shape"]
    what = f"{job['model']} {job['size']} {job['layers']} layers {job['heads']} heads"
    where = f"{what}, {frames} x {height} x {width} {job['dtype']}"
    jobs = [{**job, "kind": f"dense{way}", "id": f"dense{way}, {where}"} for way in ways]
    for one in settings:
        how = f"{one['method']} {one['sparsity']:g}" + (f", {one['correction']}" if "correction" in one else "")
        how += f", {job['dense_layers']} dense" if job["dense_layers"] else ""
        jobs += [{**job, **one, "kind": f"sparse{way}", "id": f"sparse{way} {how}, {where}"} for way in ways]
    return jobs


def measure_missing(jobs, missing, settings, results: Any, out: Any, make: Any) -> None:
    """Time what no file has: dense calls in turn with those of the first method, then each other method's.

    Args:
        jobs, missing: of all rows, and of those to measure.
        settings: of the methods.
        out: has `note` and `line`.
        make: gives what `made` does.
    """
    pipe, forward, facts = make()
    if facts["dense_attention"] is not None:
        out.note(f"dense attention by {facts['dense_attention']}")
    by_id = {one["id"]: one for one in jobs}
    wanted = {one["id"] for one in missing}
    repeats, device = jobs[0]["repeats"], next(pipe.transformer.parameters()).device
    dense = {one["kind"]: results.rows[one["id"]]["median"]
             for one in jobs if "method" not in one and one["id"] not in wanted}  # fmt: skip

    def told(name: str, values: dict[str, Any]) -> None:
        job = by_id[name]
        label = " ".join((job["kind"], *(job[name] for name in ("method", "correction") if name in job)))
        out.line(line_of(label, results.add(job, values if "method" in job else {**values, **facts})))

    blocks = bench.Blocks(pipe.transformer)
    first = True
    for setting in settings:
        group = [one for one in jobs if setting.items() <= one.items() or (first and "method" not in one)]
        group = [one for one in group if one["id"] in wanted]
        if group:
            if setting.get("profile") == MEASURED:
                out.note(f"{setting['method']} needs a profile and got none: it is {MEASURED}")
            with _with_profile(setting, pipe, forward) as given:
                cases = [bench.Case(one["kind"], given if "method" in one else None, one["id"]) for one in group]
                dense = bench.measure(
                    pipe, forward, cases, device=device, repeats=repeats, told=told, dense=dense, blocks=blocks
                )
        first = False


@contextmanager
def _with_profile(setting: dict[str, Any], pipe: Any, forward: Any) -> Iterator[dict[str, Any]]:
    """What `dittools.accelerate` takes: with a profile of these weights where one is needed."""
    given = accelerated_by(setting)
    if given.get("profile") != MEASURED:
        yield given
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        profile_of(pipe, forward, given["method"]).save(path)
        yield {**given, "profile": str(path)}


def made(size: Any, shape: tuple[int, int, int], tokens: int, device: Any, dtype: Any) -> tuple[Any, Any, dict]:
    """The pipeline, what makes one call of it, and what its dense attention is.

    Raises:
        RunFailed: when there is no memory for it.
    """
    frames, height, width = shape
    try:
        pipe = speed_only.build(size, device, dtype)
        call = speed_only.call_of(pipe, height, width, frames, device, dtype)
        best, ms = fastest_dense(pipe, tokens, device, dtype)
    except Exception as error:
        if loading.out_of_memory(error):
            raise RunFailed(
                f"no memory for {size.layers} layers of {size.family}: give fewer with --layers ({first_line(error)})"
            ) from None
        raise
    return pipe, speed_only.forward_of(pipe, call), {"dense_attention": best, "dense_attention_ms": ms}
