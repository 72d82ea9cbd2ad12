"""`dittools bench kernel` from flags to rows, a table and an exit code."""

from __future__ import annotations

import math
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dittools.cli.flag_checks import check_place
from dittools.cli.output import Output, table
from dittools.naming import unknown
from dittools.pipelines import loading, places
from dittools.pipelines.errors import BadInput
from dittools.report.schedule import spoken

if TYPE_CHECKING:
    from dittools.cli.bench import KernelFlags

IMPLEMENTATIONS = ("hopper", "triton", "portable")
MOST_LANES = 3  # child processes of each kernel that proves itself
SECONDS = {"cuda": 12.0, "cpu": 2.0}


def check(flags: KernelFlags, path: Path | None) -> None:
    """Raise BadInput for flags that make no sense."""
    check_place(flags.device, flags.dtype)
    if flags.implementation is not None and flags.implementation not in IMPLEMENTATIONS:
        raise BadInput(unknown("--implementation", flags.implementation, IMPLEMENTATIONS))
    if not (flags.burst or flags.sustained):
        raise BadInput("--no-burst and --no-sustained leave nothing to time: drop one of them")
    for flag, value in (("--seconds", flags.seconds), ("--limit", flags.limit), ("--head-dim", flags.head_dim)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise BadInput(f"{flag} must be a number above 0, got {value:g}")
    check_file(path)


def jobs_of(flags: KernelFlags, device: Any) -> list[dict[str, Any]]:
    """What to measure. Raises BadInput for an unknown row, or a shape or density that is none."""
    from dittools.benchmarks import rows

    try:
        chosen = rows.select(flags.rows)
    except ValueError as error:
        raise BadInput(f"--rows: {error}") from None
    dtype = loading.pick_dtype(flags.dtype, device)
    jobs = rows.jobs(
        chosen, device=device.type, dtype=str(dtype).removeprefix("torch."), shapes=shapes_of(flags.shape),
        head_dim=flags.head_dim, densities=densities_of(flags.density), implementation=flags.implementation,
        peers=flags.peers, burst=flags.burst, sustained=flags.sustained,
        seconds=flags.seconds or SECONDS[device.type],
    )  # fmt: skip
    _check_implementation(flags.implementation, device, dtype, {job["head_dim"] for job in jobs})
    return jobs


def _check_implementation(name: str | None, device: Any, dtype: Any, head_dims: set[int]) -> None:
    """Raise BadInput for a kernel that runs in none of the rows."""
    from dittools.kernels.capability import REASONS

    if name is None:
        return
    reasons = [REASONS[name](device, dtype, head_dim, None) for head_dim in sorted(head_dims)]
    if all(reasons):
        raise BadInput(f"--implementation {name} cannot run here: {reasons[0]}; use another, or drop it")


def check_file(path: Path | None) -> None:
    """Raise BadInput for a file that cannot be written where it is. `Results` refuses a file of somebody else."""
    if path is None:
        return
    with places.told("--output", places.shown(str(path))):
        if path.is_dir():
            raise BadInput(f"--output {path} is a folder: name a file")
    places.path_of("--output", str(path), "results.json")
    places.writable(path, "--output")


def shapes_of(given: list[str] | None) -> list[tuple[int, int]] | None:
    """``12x32768,40x75648`` as numbers."""
    if given is None:
        return None
    found = [re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", part) for part in given]
    if not all(found):
        raise BadInput(f"--shape takes heads x tokens as 12x32768, separated by commas, got {','.join(given)!r}")
    return [(int(match[1]), int(match[2])) for match in found]


def densities_of(given: list[str] | None) -> list[float] | None:
    """``0.1,0.2`` as numbers."""
    if given is None:
        return None
    try:
        found = [float(part) for part in given]
    except ValueError:
        found = [-1.0]
    if not all(0 < value <= 1 for value in found):
        raise BadInput(f"--density takes kept shares above 0 and up to 1, separated by commas, got {','.join(given)!r}")
    return found


def measure(flags: KernelFlags, path: Path | None, command: list[str], out: Output) -> bool:
    """Measure, print, and say whether all that is ours was right."""
    from dittools.benchmarks.kernel import run
    from dittools.benchmarks.results import failed

    check(flags, path)
    device = loading.pick_device(flags.device)
    jobs = jobs_of(flags, device)
    results = open_results(path, command, "kernels", device)
    if device.type == "cpu":
        out.note("on a CPU: small shapes, plain PyTorch kernels; this says little about cards")
    shown: list[dict[str, Any]] = []
    begun = time.monotonic()

    def told(row: dict[str, Any]) -> None:
        shown.append(row)
        left = (time.monotonic() - begun) / len(shown) * (len(jobs) - len(shown))
        out.line(f"[{len(shown)}/{len(jobs)}] {line_of(row)}" + (f"; about {spoken(left)} left" if left >= 10 else ""))

    left = run(jobs, results, told, limit=flags.limit)
    order = [job["id"] for job in jobs]
    shown.sort(key=lambda row: order.index(row["id"]))
    cells = [cells for row in shown for cells in cells_of(row)]
    out.data({"rows": shown}, lambda: table(COLUMNS, cells))
    if left:
        more = "give the same command again" if path else "give --output FILE and go on from it"
        out.note(f"{len(left)} rows are left, from {left[0]['id']}: {more}")
    return not any(failed(row) for row in shown)


def prove(flags: KernelFlags, path: Path | None, command: list[str], out: Output) -> bool:
    """Check the kernels that have to prove themselves here, and enter each that did into the table."""
    import torch

    from dittools.benchmarks.kernel import run, run_side_by_side
    from dittools.kernels.capability import why_not_hopper
    from dittools.kernels.proof import cases as proof
    from dittools.provenance import commit

    check(flags, path)
    device = loading.pick_device(flags.device)
    reason = why_not_hopper(device, torch.bfloat16, 128)
    if reason is not None:
        raise BadInput(f"nothing to check here: the kernel {proof.BLOCKS} {reason}")
    results = open_results(path, command, "check", device)
    done: dict[str, dict[str, Any]] = {}

    def told(row: dict[str, Any]) -> None:
        done[row["id"]] = row
        found = row.get("error") or (f"{row['speedup']:.2f}x as fast as triton" if "speedup" in row else "right")
        out.line(f"{row['id']}: {found}")

    begun = time.monotonic()
    whole = {kernel: proof.jobs(kernel) for kernel in proof.KERNELS}
    cases = [[job for job in jobs if "seconds" not in job] for jobs in whole.values()]
    lanes = max(1, min(MOST_LANES, (os.cpu_count() or 1) // len(cases)))
    run_side_by_side(cases, results, told, limit=flags.limit, lanes=lanes)
    timed = [job for jobs in whole.values() for job in jobs if "seconds" in job]
    run(timed, results, told, limit=max(1.0, flags.limit - (time.monotonic() - begun)))
    facts = results.head["device"]
    facts = {
        "capability": facts["capability"], "device": facts["name"], "versions": results.head["versions"],
        "commit": commit(), "command": " ".join(command),
    }  # fmt: skip
    # One that fails does not keep the others out.
    return all([_enter(kernel, done, facts) for kernel in proof.KERNELS])


def _enter(kernel: str, done: dict[str, dict[str, Any]], facts: dict[str, Any]) -> bool:
    """Enter a kernel that passed all it had to, and say what came of it. ``done``: results by id."""
    from dittools.kernels import checked
    from dittools.kernels.proof import cases as proof
    from dittools.kernels.proof.check import Wrong

    try:
        entry = proof.entry(done, facts, kernel)
    except Wrong as error:
        print(f"{kernel} is not chosen on this card type: {error}", flush=True)
        return False
    table = checked.TABLE
    try:
        checked.enter(entry)
    except OSError as error:
        print(f"{checked.TABLE.name} cannot be written: {error}", flush=True)
        table = _enter_for_user({**entry, "triton": checked.triton_version()})
        if table is None:
            return False
    gains = [f"{gain:.2f}x {checked.SAID[kind]}" for kind, gain in entry["speedup_over_triton"].items()]
    print(
        f"{kernel} is right in {entry['cases']} cases on compute capability {entry['capability']}; against "
        f"triton {', '.join(gains)}. "
        f"Entered into {table.name}; it is chosen where it is no slower.",
        flush=True,
    )
    return True


def _enter_for_user(entry: dict[str, Any]) -> Path | None:
    """Enter it into the user's own table, where the package's cannot be written; that table, or None."""
    from dittools.kernels import checked

    table = checked.user_table()
    try:
        if table is None:
            raise OSError("there is no home folder")
        table.parent.mkdir(parents=True, exist_ok=True)
        checked.enter(entry, table)
    except OSError as error:
        print(f"{entry['implementation']} is right, but cannot be entered for this user either: {error}", flush=True)
        return None
    return table


def open_results(path: Path | None, command: list[str], kind: str, device: Any) -> Any:
    """The results and their file. Raises BadInput for a file of something else."""
    from dittools.benchmarks.results import Results

    try:
        return Results(kind, device, command, path)
    except ValueError as error:
        raise BadInput(f"--output: {error}") from None


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
