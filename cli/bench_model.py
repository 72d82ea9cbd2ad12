"""`dittools bench model` from flags to calls, tables and an exit code."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dittools.cli.bench_kernel import check_file, open_results
from dittools.cli.flag_checks import check_compile, check_place
from dittools.cli.output import Output, table
from dittools.naming import name_and_options, spelt
from dittools.pipelines import loading
from dittools.pipelines.compiler import why_not_compiled
from dittools.pipelines.errors import BadInput

if TYPE_CHECKING:
    from dittools.cli.bench import ModelFlags


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
    from dittools.benchmarks.model_table import NAMED
    from dittools.benchmarks.results import failed

    check(flags, path)
    record = speed_only.record_of(flags.model)
    size_name = flags.size or record.default
    size = speed_only.size_of(flags.model, size_name, flags.layers, flags.heads)
    shape = (flags.frames or size.frames, flags.height or size.height, flags.width or size.width)
    grid = size.grid(*shape)
    if flags.dense_layers >= size.layers:
        raise BadInput(f"--dense-layers {flags.dense_layers} leaves none of {size.layers} layers sparse: give fewer")
    settings = [
        settings_of(flags, name, correction)
        for name in dict.fromkeys(flags.method or [record.method])
        for correction in dict.fromkeys(flags.correction or [None])
    ]
    check_profile(flags, settings)
    device = loading.pick_device(flags.device)
    dtype = loading.pick_dtype(flags.dtype, device)
    able = device.type == "cuda" and why_not_compiled() is None
    compiled = able if flags.compile is None else flags.compile
    for one in settings:
        check_grid(one, grid, device)
    from dittools.benchmarks import model_rows  # needs PyTorch, for which what flags rule out does not wait

    results = open_results(path, command, "model", device)
    results.head["named"] = NAMED
    job = {
        "model": record.family, "size": size_name, "layers": size.layers, "heads": size.heads,
        "head_dim": size.head_dim, "shape": list(shape), "tokens": grid.tokens,
        "dtype": str(dtype).removeprefix("torch."), "device": device.type, "repeats": flags.repeats,
        "dense_steps": 0, "dense_layers": flags.dense_layers,
    }  # fmt: skip
    jobs = model_rows.jobs_of(job, settings, compiled)
    missing = [one for one in jobs if not (results.holds(one) and results.rows[one["id"]]["complete"])]
    if not missing:
        out.note("every row is there already: nothing to measure")
    else:
        out.note(f"{NAMED}; making {size.layers} layers of {size.heads} heads; {grid.tokens} tokens")
        make = functools.partial(model_rows.made, size, shape, grid.tokens, device, dtype)
        model_rows.measure_missing(jobs, missing, settings, results, out, make)
    rows = [results.rows[one["id"]] for one in jobs if one["id"] in results.rows]
    out.data({"named": NAMED, "rows": rows}, lambda: _readable(rows))
    return len(rows) == len(jobs) and not any(failed(row) for row in rows)


def _readable(rows: list[dict[str, Any]]) -> str:
    from dittools.benchmarks.model_table import COLUMNS, COST_COLUMNS, NAMED, cells_of, cost_cells_of

    text = f"{NAMED}\n{table(COLUMNS, [cells_of(row) for row in rows])}"
    told = [cost_cells_of(row) for row in rows if "costs" in row and "error" not in row]
    return f"{text}\n\n{table(COST_COLUMNS, told)}" if told else text


def settings_of(flags: ModelFlags, given: str, correction: str | None = None) -> dict[str, Any]:
    """The settings of a method with a correction; `accelerated_by` makes of them what `dittools.accelerate` is given.

    Raises:
        BadInput: when method or correction do not exist, or have no such option.
    """
    from dittools import methods
    from dittools.benchmarks.model_table import MEASURED
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
    if correction is not None:
        settings["correction"] = correction
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
