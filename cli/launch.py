"""Several processes for one video on this machine: torch's own launcher, and what is said when one of them ends."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dittools
from dittools.cli import SAID
from dittools.cli.member import LAUNCHER, WORDS, told

FAILED = 1
_SECONDS = 10
"""That ranks which are asked to end have for it; 30 in older versions of torch."""
COMMAND = ("-P", "-m", "dittools")
"""What every rank gives to Python, before the arguments."""


def launch(arguments: Sequence[str], ranks: int, cpu: bool) -> int:
    """Run a command in every rank and wait for all; what ends one ends all.

    Args:
        arguments: the command, without its own name.
        ranks: how many processes.
        cpu: whether they share the cores of this machine, and talk by gloo.

    Returns:
        The exit code of the command. What a rank could not say itself, as when it was killed, was said.
    """
    with tempfile.TemporaryDirectory(prefix="dittools_", ignore_cleanup_errors=True) as folder:
        words = os.path.join(folder, "words")
        Path(words).touch()  # a store that is asked for a file that is not there waits for it
        with _environment(_for_ranks(words, ranks, cpu)), _quiet(), _no_child_left():
            code, line = _run([*COMMAND, *arguments], ranks, folder)
        said, first = told(words)
    if code == 0:
        return 0
    if said is not None:
        return said
    if first is not None and (line is None or first.names_a_cause):
        code, line = first.code, first.line()
    print(line or "error: a rank failed without a word", file=sys.stderr)
    return code


def _run(command: list[str], ranks: int, folder: str) -> tuple[int, str | None]:
    """The exit code, and what is to be said of it where no rank can have said it."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    options = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": ranks, "run_id": f"dittools{os.getpid()}"}
    options |= {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "127.0.0.1"}
    own = {"signals_to_handle": ",".join(_answered()), "shutdown_timeout": _SECONDS}
    known = {field.name for field in dataclasses.fields(LaunchConfig)}
    options |= {name: value for name, value in own.items() if name in known}  # of newer versions of torch
    config = LaunchConfig(**options, max_restarts=0, logs_specs=DefaultLogsSpecs(log_dir=folder))
    try:
        elastic_launch(config, sys.executable)(*command)
        return 0, None
    except SignalException as stopped:
        code = 128 + int(stopped.sigval)
        return code, SAID.get(code, f"ended by {stopped.sigval.name}: nothing half-written was left behind")
    except ChildFailedError as failed:
        rank = _killed({rank: found.exitcode for rank, found in failed.failures.items()})
        if rank is None:
            return FAILED, None
        found = failed.failures[rank]
        why = ", as the system does when memory runs out" if found.exitcode == -signal.SIGKILL else ""
        return FAILED, f"error: rank {rank} was killed ({found.signal_name()}{why}): nothing was written"


def _killed(codes: Mapping[int, int]) -> int | None:
    """The rank whose kill ended the others, by exit codes, which are minus a signal's number where one ended a rank.

    A launcher ends the others by SIGTERM once one has ended: a rank that this reaches before it listens (Python is
    still starting) dies of it, and is not what the run failed of.
    """
    own = [rank for rank, code in codes.items() if code not in (-signal.SIGTERM, 0)]
    for rank in own or codes:
        if codes[rank] < 0:
            return rank
    return None


def _answered() -> list[str]:
    """Signals that end the ranks: those that this process was not started to ignore."""
    both = (signal.SIGTERM, signal.SIGINT)
    return [number.name for number in both if signal.getsignal(number) is not signal.SIG_IGN] or ["SIGTERM"]


def _for_ranks(words: str, ranks: int, cpu: bool) -> dict[str, str]:
    """What ranks find in their environment beside what torch's launcher puts there."""
    here = str(Path(dittools.__file__).resolve().parents[1])  # the dittools that runs, wherever the command is given
    path = os.environ.get("PYTHONPATH")
    found = {
        WORDS: words,
        LAUNCHER: str(os.getpid()),
        "PYTHONPATH": here + (os.pathsep + path if path else ""),
    }
    usual = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
    if cpu:
        usual["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // ranks))
        if sys.platform == "linux":
            usual["GLOO_SOCKET_IFNAME"] = "lo"  # a host's own name need not lead to itself
    return found | {name: value for name, value in usual.items() if name not in os.environ}


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """These variables, and at the end all as it was."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The launcher's own words are many lines on what is said in one; handlers of signals are put back."""
    main = threading.current_thread() is threading.main_thread()
    known = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in known} if main else {}
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _no_child_left() -> Iterator[None]:
    """Whatever was started in the block and runs after it is killed: a second Ctrl-C breaks the launcher's own end."""
    import psutil

    here = psutil.Process()
    before = {child.pid for child in here.children()}
    try:
        yield
    finally:
        for child in here.children():
            if child.pid not in before:
                _kill(child)


def _kill(child: Any) -> None:
    import psutil

    with contextlib.suppress(psutil.Error):
        child.kill()
        child.wait(5)
