"""`dittools bench kernel` from flags to rows, a table and an exit code."""

from __future__ import annotations

import math
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
    from dittools.benchmarks.kernel_table import COLUMNS, cells_of, line_of
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

    from dittools.benchmarks import long_proof
    from dittools.kernels.capability import why_not_hopper

    check(flags, path)
    device = loading.pick_device(flags.device)
    reason = why_not_hopper(device, torch.bfloat16, 128)
    if reason is not None:
        raise BadInput(f"nothing to check here: the kernel {long_proof.BLOCKS} {reason}")
    results = open_results(path, command, "check", device)
    return long_proof.prove(results, lambda row: out.line(long_proof.line_of(row)), flags.limit, " ".join(command))


def open_results(path: Path | None, command: list[str], kind: str, device: Any) -> Any:
    """The results and their file. Raises BadInput for a file of something else."""
    from dittools.benchmarks.results import Results

    try:
        return Results(kind, device, command, path)
    except ValueError as error:
        raise BadInput(f"--output: {error}") from None
