"""Cases of a report side by side: a process for each GPU, which draws what it is given and keeps it itself."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from multiprocessing import connection
from typing import Any, NamedTuple

from dittools import files
from dittools.cli.output import Output
from dittools.cli.progress import Progress
from dittools.cli.report.case import Cases, Model
from dittools.pipelines.errors import BadInput, DiskFull, RunFailed, first_line
from dittools.report.folder import Folder
from dittools.report.plan import Setting
from dittools.report.schedule import Unit

_READY = "ready"
_SECONDS = 10.0
"""That a process has to end by itself."""


class Order(NamedTuple):
    """What a process is to draw with.

    Args:
        cases: with the device of its own.
        checked: settings whose profiles it compares with the model.
        measured: whether it times its dense kernels; None: it is not asked for its model.
        threads: of a process on the CPU.
    """

    cases: tuple
    checked: list[Setting]
    measured: bool | None
    threads: int | None


class Hand:
    """One process, and the unit that it draws."""

    def __init__(self, context: Any, order: Order, name: str):
        self.name, self.unit = name, None
        self.end, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, order), daemon=True, name=f"dittools {name}")
        self.process.start()
        theirs.close()


class SideBySide(AbstractContextManager):
    """Draws as many units at a time as there are GPUs.

    Args:
        cases: what to draw with; its device says of what kind the GPUs are.
        count: how many processes; on a CPU they share its cores.
        checked: settings whose profiles are compared with the model.
        measured: whether dense kernels are timed.

    Raises:
        BadInput, RunFailed: when the model cannot be loaded.

    Attributes:
        model: what the loaded model tells.
    """

    model: Model

    def __init__(self, cases: Cases, count: int, checked: Sequence[Setting], measured: bool):
        self._folder = cases.folder
        self._notes: list[str] = []
        self._hands: list[Hand] = []
        context = multiprocessing.get_context("spawn")
        try:
            with _ctrl_c_ignored():  # by the processes too: it comes to all of a terminal, and one answers
                for number in range(count):
                    first = number == 0
                    order = Order(
                        _own(cases, number), list(checked) if first else [], measured if first else None, None
                    )
                    if cases.chosen.device.type == "cpu":
                        order = order._replace(threads=max(1, (os.cpu_count() or 1) // count))
                    self._hands.append(Hand(context, order, _device(cases, number)))
            for hand in self._hands:
                found = self._heard(hand)
                if found is None:
                    raise RunFailed(f"the process on {hand.name} {_ended(hand)} while it loaded the model")
                if isinstance(found, Exception):
                    raise found
                if isinstance(found, Model):
                    self.model = found
        except BaseException:
            self._stop()
            raise

    @property
    def free(self) -> bool:
        """Whether another unit may be given."""
        return any(hand.unit is None for hand in self._hands)

    def notes(self) -> list[str]:
        """What is worth knowing since this was asked last."""
        found, self._notes = self._notes, []
        return found

    def give(self, unit: Unit, kernel: str, title: str) -> None:
        """Have a unit drawn by a process that draws none."""
        hand = next(hand for hand in self._hands if hand.unit is None)
        hand.unit = unit
        with contextlib.suppress(OSError):  # it is gone: `take` says so
            hand.end.send((unit, kernel))

    def take(self) -> tuple[Unit, float | Exception]:
        """Wait for a unit; with its denoise seconds, or why it could not be drawn.

        Raises:
            DiskFull: when there is no room.
            RunFailed: for an error that nobody foresaw, and when no process is left.
        """
        busy = {hand.end: hand for hand in self._hands if hand.unit is not None}
        hand = busy[connection.wait(list(busy))[0]]
        found, unit, hand.unit = self._heard(hand), hand.unit, None
        if found is None:
            self._hands.remove(hand)
            found = RunFailed(f"the process on {hand.name} {_ended(hand)}")
            if not self._hands:
                raise found
        elif isinstance(found, DiskFull) or (isinstance(found, Exception) and not _foreseen(found)):
            raise found
        return unit, found

    def __exit__(self, *exception: Any) -> None:
        self._stop()

    def _heard(self, hand: Hand) -> Any:
        """What a process says next; None where it has ended."""
        try:
            notes, found = hand.end.recv()
        except (EOFError, OSError):
            return None
        self._notes += notes
        return found

    def _stop(self) -> None:
        """End all processes, and remove what those that drew left unfinished."""
        for hand in self._hands:
            hand.end.close()
            if hand.unit is not None:
                hand.process.terminate()
        for hand in self._hands:
            hand.process.join(_SECONDS)
            if hand.process.exitcode is None:
                hand.process.kill()
                hand.process.join()
        if self._folder.cases.is_dir():
            files.sweep(self._folder.cases)
            for case in self._folder.cases.iterdir():
                files.sweep(case)


def work(end: Any, order: Order) -> None:
    """A process: load the model, and draw what comes until nobody sends more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request, chosen, plan, path, command = order.cases
    output = Output(quiet=True)
    cases = Cases(request, chosen, plan, Folder(path), command, output)
    said = 0

    def answer(found: Any) -> None:
        nonlocal said
        end.send((output.notes[said:], found))
        said = len(output.notes)

    with contextlib.suppress(EOFError, OSError), Progress(output, terse=True) as progress:
        try:
            _settle(chosen.device, order.threads)
            cases.open(progress, order.checked)
            answer(_READY if order.measured is None else cases.model(order.measured))
        except Exception as error:
            return answer(_told(error))
        while True:
            unit, kernel = end.recv()
            try:
                answer(cases.draw(unit, kernel))
            except Exception as error:
                answer(_told(error))


def _settle(device: Any, threads: int | None) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif threads is not None:
        torch.set_num_threads(threads)


class Unforeseen(RunFailed):
    """An error that is none of a case, but of dittools."""


def _told(error: Exception) -> Exception:
    """An error as another process can have it."""
    for kind in (DiskFull, RunFailed, BadInput):
        if isinstance(error, kind):
            return kind(str(error))
    return Unforeseen(f"{type(error).__name__}: {first_line(error)}")


def _foreseen(error: Exception) -> bool:
    return isinstance(error, (BadInput, RunFailed)) and not isinstance(error, Unforeseen)


def _ended(hand: Hand) -> str:
    """How a process ended."""
    hand.process.join(_SECONDS)
    code = hand.process.exitcode
    if code is None or code >= 0:
        return f"ended (exit code {code})"
    return f"was killed ({signal.Signals(-code).name})"


def _own(cases: Cases, number: int) -> tuple:
    """What a process draws with, on the device that is its own."""
    import torch

    chosen = cases.chosen
    if chosen.device.type == "cuda":
        chosen = dataclasses.replace(chosen, device=torch.device("cuda", number))
    return cases.request, chosen, cases.plan, cases.folder.path, cases.command


def _device(cases: Cases, number: int) -> str:
    kind = cases.chosen.device.type
    return f"{kind}:{number}" if kind == "cuda" else f"the CPU, number {number + 1}"


@contextlib.contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
