"""The long proof of kernels on a card: every case against fp32, then their speed, then the table of what is chosen."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from dittools.benchmarks.kernel import Told, run, run_side_by_side
from dittools.benchmarks.results import Results
from dittools.kernels import checked
from dittools.kernels.proof import cases as proof
from dittools.kernels.proof.cases import BLOCKS as BLOCKS
from dittools.kernels.proof.check import Wrong
from dittools.provenance import commit

MOST_LANES = 3  # child processes of each kernel that proves itself


def prove(results: Results, told: Told, limit: float, command: str) -> bool:
    """Prove the kernels that have to, enter each that is right into the table, and say whether all are.

    Those of which the package's table has an entry for this source, card type and Triton are left out, unless all have.

    Args:
        results: take every row as it comes.
        told: called with every row.
        limit: seconds.
        command: what is entered as the way to this proof.
    """
    done: dict[str, dict[str, Any]] = {}

    def heard(row: dict[str, Any]) -> None:
        done[row["id"]] = row
        told(row)

    begun = time.monotonic()
    capability = results.head["device"].get("capability")
    known = [kernel for kernel in proof.KERNELS if capability and checked.find(kernel, capability) is not None]
    if len(known) == len(proof.KERNELS):
        known = []
    if known:
        print(f"proven before, from the same source: {', '.join(known)}", flush=True)
    whole = {kernel: proof.jobs(kernel) for kernel in proof.KERNELS if kernel not in known}
    cases = [[job for job in jobs if "seconds" not in job] for jobs in whole.values()]
    lanes = max(1, min(MOST_LANES, (os.cpu_count() or 1) // len(cases)))
    run_side_by_side(cases, results, heard, limit=limit, lanes=lanes)
    timed = [job for jobs in whole.values() for job in jobs if "seconds" in job]
    run(timed, results, heard, limit=max(1.0, limit - (time.monotonic() - begun)))
    facts = results.head["device"]
    facts = {
        "capability": facts["capability"], "device": facts["name"], "versions": results.head["versions"],
        "commit": commit(), "command": command,
    }  # fmt: skip
    # One that fails does not keep the others out.
    return all([_enter(kernel, done, facts) for kernel in whole])


def line_of(row: dict[str, Any]) -> str:
    """A case in one line."""
    found = row.get("error") or (f"{row['speedup']:.2f}x as fast as triton" if "speedup" in row else "right")
    return f"{row['id']}: {found}"


def _enter(kernel: str, done: dict[str, dict[str, Any]], facts: dict[str, Any]) -> bool:
    """Enter a kernel that passed all it had to, and say what came of it. ``done``: results by id."""
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
