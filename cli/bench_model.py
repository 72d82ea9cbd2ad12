"""`dittools bench model` from flags to calls, tables and an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dittools.cli.bench_kernel import check_file, open_results
from dittools.cli.bench_model_table import COLUMNS, COST_COLUMNS, cells_of, cost_cells_of, line_of
from dittools.cli.flag_checks import check_compile, check_place
from dittools.cli.output import Output, table
from dittools.naming import name_and_options, spelt
from dittools.pipelines import loading
from dittools.pipelines.compiler import why_not_compiled
from dittools.pipelines.errors import BadInput, RunFailed, first_line

if TYPE_CHECKING:
    from dittools.cli.bench import ModelFlags

NAMED = "speed only: random weights"
MEASURED = "measured on the random weights"
"""In place of the profile that a method needs and nobody gave."""


def check(flags: ModelFlags, path: Path | None) -> None:
    """Raise BadInput for flags that make no sense."""
    check_place(flags.device, flags.dtype)
    check_compile(flags.compile)
    if flags.repeats < 1:
        raise BadInput(f"--repeats must be at least 1, got {flags.repeats}")
    check_file(path)


def measure(flags: ModelFlags, path: Path | None, command: list[str], out: Output) -> bool:
    """Measure, print, and say whether all that ran was right."""
    from dittools.benchmarks import speed_only
    from dittools.benchmarks.results import failed

    check(flags, path)
    record = speed_only.record_of(flags.model)
    size_name = flags.size or record.default
    size = speed_only.size_of(flags.model, size_name, flags.layers, flags.heads)
    shape = (flags.frames or size.frames, flags.height or size.height, flags.width or size.width)
    grid = size.grid(*shape)
    if flags.dense_layers >= size.layers:
        raise BadInput(f"--dense-layers {flags.dense_layers} leaves none of {size.layers} layers sparse: give fewer")
    settings = [settings_of(flags, name) for name in dict.fromkeys(flags.method or [record.method])]
    check_profile(flags, settings)
    device = loading.pick_device(flags.device)
    dtype = loading.pick_dtype(flags.dtype, device)
    able = device.type == "cuda" and why_not_compiled() is None
    compiled = able if flags.compile is None else flags.compile
    for one in settings:
        check_grid(one, grid, device)
    results = open_results(path, command, "model", device)
    results.head["named"] = NAMED
    job = {
        "model": record.family, "size": size_name, "layers": size.layers, "heads": size.heads,
        "head_dim": size.head_dim, "shape": list(shape), "tokens": grid.tokens,
        "dtype": str(dtype).removeprefix("torch."), "device": device.type, "repeats": flags.repeats,
        "dense_steps": 0, "dense_layers": flags.dense_layers,
    }  # fmt: skip
    jobs = jobs_of(job, settings, compiled)
    missing = [one for one in jobs if not (results.holds(one) and results.rows[one["id"]]["complete"])]
    if not missing:
        out.note("every row is there already: nothing to measure")
    else:
        out.note(f"{NAMED}; making {size.layers} layers of {size.heads} heads; {grid.tokens} tokens")
        _measure_missing(jobs, missing, settings, results, out, lambda: _made(size, shape, grid.tokens, device, dtype))
    rows = [results.rows[one["id"]] for one in jobs if one["id"] in results.rows]
    out.data({"named": NAMED, "rows": rows}, lambda: _readable(rows))
    return len(rows) == len(jobs) and not any(failed(row) for row in rows)


def _readable(rows: list[dict[str, Any]]) -> str:
    text = f"{NAMED}\n{table(COLUMNS, [cells_of(row) for row in rows])}"
    told = [cost_cells_of(row) for row in rows if "costs" in row and "error" not in row]
    return f"{text}\n\n{table(COST_COLUMNS, told)}" if told else text


def settings_of(flags: ModelFlags, given: str) -> dict[str, Any]:
    """The settings of a method; `accelerated_by` makes of them what `dittools.accelerate` is given.

    Raises:
        BadInput: when the method does not exist, or has no such option.
    """
    from dittools import methods
    from dittools.config import Config

    try:
        name, options = name_and_options(given, "method")
    except ValueError as error:
        raise BadInput(str(error)) from None
    name = spelt(name, methods.names())
    use = methods.METHODS[name].profile_use if name in methods.METHODS else "none"
    settings = {"method": given, "sparsity": flags.sparsity, "dense_layers": flags.dense_layers, "dense_steps": 0}
    if flags.profile is not None and use != "none":
        settings["profile"] = flags.profile
    elif use == "needed":
        settings["profile"] = MEASURED
    try:
        Config(**{**settings, "method": name, "options": options})
    except ValueError as error:
        raise BadInput(str(error)) from None
    if name == "dense":
        raise BadInput("--method dense skips nothing: dense calls are timed beside those of any other method")
    return settings


def check_grid(setting: dict[str, Any], grid: Any, device: Any) -> None:
    """Raise BadInput for a method that cannot run on this grid, or that auto would not take."""
    from dittools import methods
    from dittools.benchmarks import speed_only
    from dittools.methods import auto

    name, options = name_and_options(setting["method"], "method")
    block = 128 if device.type == "cuda" else 64
    if name == "auto":
        why = auto.why_dense(grid, setting["sparsity"], block, device, speed_only.STEPS)
    else:
        why = methods.create(spelt(name, methods.names()), options).why_not(grid, block)
    if why is not None:
        raise BadInput(
            f"--method {setting['method']} cannot run here: {why}; use more frames, a larger size or another method"
        )


def accelerated_by(setting: dict[str, Any]) -> dict[str, Any]:
    """Settings as `dittools.accelerate` takes them: options beside the method's name."""
    name, options = name_and_options(setting["method"], "method")
    return {**setting, "method": name, **options}


def check_profile(flags: ModelFlags, settings: list[dict[str, Any]]) -> None:
    """Raise BadInput for a profile that cannot be read, or that none of the methods takes."""
    from dittools import attention_profile as profile

    if flags.profile is None:
        return
    if not any("profile" in one for one in settings):
        methods = ", ".join(one["method"] for one in settings)
        raise BadInput(f"--profile {flags.profile}: none of {methods} takes one: drop it")
    try:
        profile.named(flags.profile)
    except (OSError, ValueError) as error:
        raise BadInput(f"--profile: {error}") from None


def jobs_of(job: dict[str, Any], settings: list[dict[str, Any]], compiled: bool) -> list[dict[str, Any]]:
    """One job a row: dense calls, then those of each method."""
    ways = ("", " compiled") if compiled else ("",)
    frames, height, width = job["shape"]
    what = f"{job['model']} {job['size']} {job['layers']} layers {job['heads']} heads"
    where = f"{what}, {frames} x {height} x {width} {job['dtype']}"
    jobs = [{**job, "kind": f"dense{way}", "id": f"dense{way}, {where}"} for way in ways]
    for one in settings:
        how = f"{one['method']} {one['sparsity']:g}" + (f", {job['dense_layers']} dense" if job["dense_layers"] else "")
        jobs += [{**job, **one, "kind": f"sparse{way}", "id": f"sparse{way} {how}, {where}"} for way in ways]
    return jobs


def _measure_missing(jobs, missing, settings, results: Any, out: Output, make: Any) -> None:
    """Time what no file has: dense calls in turn with those of the first method, then each other method's."""
    from dittools.benchmarks import model as bench

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
        label = job["kind"] + (f" {job['method']}" if "method" in job else "")
        out.line(line_of(label, results.add(job, values if "method" in job else {**values, **facts})))

    blocks = bench.Blocks(pipe.transformer)
    first = True
    for setting in settings:
        group = [one for one in jobs if one.get("method") == setting["method"] or (first and "method" not in one)]
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
    from dittools.benchmarks.profiled import profile_of

    given = accelerated_by(setting)
    if given.get("profile") != MEASURED:
        yield given
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        profile_of(pipe, forward, given["method"]).save(path)
        yield {**given, "profile": str(path)}


def _made(size: Any, shape: tuple[int, int, int], tokens: int, device: Any, dtype: Any) -> tuple[Any, Any, dict]:
    """The pipeline, what makes one call of it, and what its dense attention is.

    Raises:
        RunFailed: when there is no memory for it.
    """
    from dittools.benchmarks import speed_only
    from dittools.benchmarks.speed_only.backend import fastest_dense

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
