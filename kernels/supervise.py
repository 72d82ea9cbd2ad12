"""Work in a child process that may hang or crash, one job after the other; what it said so far is not lost.

The child reads its jobs from stdin and prints one JSON line for each result. Before it tries something that may bring
it down (a kernel, somebody else's package), it says so with `at`: when it then falls silent or dies, the parent knows
what did it, starts a new child, and hands it the same job without that. What does it twice is left out of all that
follows.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

Job = dict[str, Any]
At = Callable[..., None]
Handle = Callable[[Job, At], dict[str, Any]]

START = 90.0  # seconds a child has until its first word: imports, and waking the card
MOST_TRIALS = 6  # of one job, before it is given up
MOST_FAULTS = 2  # of one thing, before it is left out of all jobs to come


class Broken(RuntimeError):
    """What the device computes can no longer be trusted in this process: raised by a handler, ends the child."""


def serve(handle: Handle) -> None:
    """The child: do the jobs from stdin, a JSON list, and print what comes of each.

    Args:
        handle: called with each job and `at`. An exception that is no `Broken`, and no error
            of the device, is the job's result.
    """
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    jobs = json.loads(sys.stdin.read())
    talk = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no message

    def say(**message: Any) -> None:
        print(json.dumps(message), file=talk, flush=True)

    def at(what: str, patience: float | None = None) -> None:
        say(at=what, patience=patience)

    for job in jobs:
        at("")
        try:
            result = handle(job, at)
        except Exception as error:
            # After a device error all that this process may do there would fail with it.
            broke_device = type(error).__name__ == "AcceleratorError" or "CUDA error:" in str(error)
            if isinstance(error, Broken) or broke_device:
                say(broken=_line(error))
                talk.flush()
                os._exit(1)  # tearing down a broken context may hang
            result = {"error": _line(error)}
        say(result=result)


def _leave_with(parent: int) -> None:
    """End this process when its parent is gone: nobody listens, and a card may be busy for nothing."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def supervise(
    command: Sequence[str],
    jobs: Sequence[Job],
    done: Callable[[Job, dict[str, Any]], None],
    *,
    patience: float,
    deadline: float,
    most_hangs: int = 6,
) -> list[Job]:
    """The parent: have the jobs done by children, and pass on every result as it comes.

    Args:
        command: starts a child that runs `serve`.
        jobs: JSON objects. A job that is tried again has the key "without": {what: why} of all that failed in it.
        done: called with each job and its result; {"error": why} when the job was given up.
        patience: seconds of silence that mean a hang, unless the child asked for more.
        deadline: of `time.monotonic`; nothing goes on after it.
        most_hangs: after so many hangs nothing more is tried.

    Returns:
        The jobs left over at the deadline or after the last hang allowed.
    """
    todo, hangs = [dict(job) for job in jobs], 0
    faults: Counter[str] = Counter()
    while todo and hangs < most_hangs and time.monotonic() < deadline:
        child = _Child(command, todo)
        try:
            where, why, hung = _listen_to(child, todo, done, patience, deadline)
        finally:
            child.end()
        if why is None:
            continue
        hangs += hung
        _blame(todo, where, why, done)
        faults[where or ""] += 1
        if where and faults[where] >= MOST_FAULTS:
            for job in todo:
                job["without"] = {where: f"{why}, {MOST_FAULTS} times before", **job.get("without", {})}
    return todo


def _listen_to(
    child: _Child, todo: list[Job], done: Callable[[Job, dict[str, Any]], None], patience: float, deadline: float
) -> tuple[str | None, str | None, bool]:
    """Take results off the jobs until all are done, the deadline is there or the child failed: what it was at then,
    why it failed (None when it did not), and whether it hung.
    """
    where, wait = None, START
    while todo:
        message = child.hear(min(wait, deadline - time.monotonic()))
        if message is None:
            late = time.monotonic() >= deadline
            return where, None if late else f"hung: silent for {wait:g} s", not late
        if "at" in message:
            where, wait = message["at"], message["patience"] or patience
        elif "result" in message:
            done(todo.pop(0), message["result"])
            where, wait = None, patience
        else:
            return where, message.get("broken") or message["ended"], False
    return None, None, False


def _blame(todo: list[Job], where: str | None, why: str, done: Callable[[Job, dict[str, Any]], None]) -> None:
    """Take what failed out of the first job, or the job off the list when nothing in it is to blame."""
    without = todo[0].get("without", {})
    if where and where not in without and len(without) < MOST_TRIALS:
        todo[0]["without"] = {**without, where: why}
        return
    done(todo.pop(0), {"error": f"{where}: {why}" if where else why})


class _Child:
    """One child process and what it says."""

    def __init__(self, command: Sequence[str], jobs: list[Job]):
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._said: queue.Queue = queue.Queue()
        threading.Thread(target=self._listen, args=(json.dumps(jobs),), daemon=True).start()

    def hear(self, seconds: float) -> dict[str, Any] | None:
        """The next message, {"ended": how} after the last; None when there is none for so long."""
        try:
            return self._said.get(timeout=max(seconds, 0.01))
        except queue.Empty:
            return None

    def end(self) -> None:
        """Kill the child and what it started. One that a driver holds on to is left behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            print(f"process {self._process.pid} does not end: left behind", file=sys.stderr, flush=True)

    def _listen(self, jobs: str) -> None:
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(jobs)
        for text in self._process.stdout:
            if text.startswith("{"):
                self._said.put(json.loads(text))
        self._said.put({"ended": f"the process ended with code {self._process.wait()}"})


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]
