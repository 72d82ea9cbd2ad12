"""Run the rows of the kernel table: on a card in a child process that may hang or crash, on a CPU in this one."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dittools.benchmarks.results import Results
from dittools.kernels.supervise import supervise

COMMAND = [sys.executable, "-m", "dittools.benchmarks.work"]
PATIENCE = 60.0
Told = Callable[[dict[str, Any]], None]


def run(
    jobs: list[dict[str, Any]], results: Results, told: Told, *, limit: float, command: list[str] = COMMAND
) -> list[dict[str, Any]]:
    """Measure what the results do not hold yet.

    Args:
        jobs: from `dittools.benchmarks.rows.jobs` or `dittools.kernels.proof.cases.jobs`.
        results: take every row as it comes.
        told: called with every row, those that were there already too.
        limit: seconds after which nothing new is begun, and what runs is stopped.
        command: starts the child process.

    Returns:
        The jobs that were left over.
    """
    deadline = time.monotonic() + limit
    todo = []
    for job in jobs:
        if results.holds(job):
            told(results.rows[job["id"]])
        else:
            todo.append(job)
    if not todo:
        return []
    if todo[0]["device"] == "cuda":
        return supervise(
            command, todo, lambda job, result: told(results.add(job, result)), patience=PATIENCE, deadline=deadline
        )
    return _here(todo, results, told, deadline)


def run_side_by_side(
    groups: list[list[dict[str, Any]]],
    results: Results,
    told: Told,
    *,
    limit: float,
    lanes: int,
    command: list[str] = COMMAND,
) -> list[dict[str, Any]]:
    """The same for jobs that time nothing: each group by child processes of its own, so that all cores compile.

    Args:
        groups: what hangs or crashes in one costs no other.
        lanes: child processes of a group.
    """
    parts = [group[lane::lanes] for group in groups for lane in range(lanes) if group[lane::lanes]]
    one = threading.Lock()

    class Apart:
        """The results, of which one lane at a time takes hold."""

        rows = results.rows
        holds = staticmethod(results.holds)

        @staticmethod
        def add(job: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
            with one:
                return results.add(job, result)

    def tell(row: dict[str, Any]) -> None:
        with one:
            told(row)

    with ThreadPoolExecutor(max(1, len(parts))) as pool:
        done = [pool.submit(run, part, Apart(), tell, limit=limit, command=command) for part in parts]
    return [job for each in done for job in each.result()]


def _here(todo: list[dict[str, Any]], results: Results, told: Told, deadline: float) -> list[dict[str, Any]]:
    from dittools.benchmarks.contest import line
    from dittools.benchmarks.work import Worker

    worker = Worker()
    for i, job in enumerate(todo):
        if time.monotonic() >= deadline:
            return todo[i:]
        try:
            result = worker.handle(job, lambda what, patience=None: None)
        except Exception as error:
            result = {"error": line(error)}
        told(results.add(job, result))
    return []
