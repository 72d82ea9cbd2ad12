"""The run phase of a report: draw what is not there yet, and keep each case at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dittools.cli.output import Output, one_line
from dittools.cli.progress import Progress
from dittools.cli.report.baselines import Baselines
from dittools.cli.report.case import Cases, Model
from dittools.cli.report.profiles import check_files
from dittools.cli.report.side_by_side import SideBySide
from dittools.cli.request import Request
from dittools.pipelines import saving
from dittools.pipelines.errors import BadInput, DiskFull, RunFailed
from dittools.report import schedule
from dittools.report.coverage import lacking
from dittools.report.folder import FAILURES, RECORD, Folder
from dittools.report.plan import Plan, Setting
from dittools.report.schedule import Unit

Write = Callable[[list[str]], None]


class Failures:
    """What did not work, kept in the folder as it happens; an entry goes when its work succeeds later."""

    def __init__(self, folder: Folder):
        self._folder = folder
        self.entries = folder.failures()

    def begin(self) -> None:
        """Write the file, were it empty. The manifest comes first: without one a folder is not known as a report."""
        if not (self._folder.path / FAILURES).exists():
            self._keep()

    def add(self, phase: str, case_id: str, repeat: int, error: str, **facts: Any) -> None:
        self._without(phase, case_id, repeat)
        self.entries.append({"phase": phase, "case": case_id, "repeat": repeat, **facts, "error": one_line(error)})
        self._keep()

    def clear(self, phase: str, case_id: str, repeat: int = 0) -> None:
        if self._without(phase, case_id, repeat):
            self._keep()

    def _without(self, phase: str, case_id: str, repeat: int) -> bool:
        rest = [e for e in self.entries if (e["phase"], e["case"], e["repeat"]) != (phase, case_id, repeat)]
        found, self.entries = len(rest) < len(self.entries), rest
        return found

    def _keep(self) -> None:
        with saving.told(self._folder.path / FAILURES):
            self._folder.write_failures(self.entries)


class Drawer:
    """Draws the cases of a plan into a folder.

    Args:
        chosen: what the request came to. command: as it was typed.
        prompts: numbers of the prompts to draw; None draws all.
        gpus: how many cases are drawn at a time, each on a GPU of its own.
    """

    def __init__(
        self,
        request: Request,
        chosen: Any,
        plan: Plan,
        folder: Folder,
        command: list[str],
        output: Output,
        prompts: Collection[int] | None = None,
        gpus: int = 1,
    ):
        self.chosen, self.plan, self.folder = chosen, plan, folder
        self.output, self.prompts, self.gpus = output, prompts, gpus
        self.failures = Failures(folder)
        self.baselines = Baselines(plan, folder)
        self._cases = Cases(request, chosen, plan, folder, command, output)
        self._begun: dict[
            tuple[str, int], tuple[str, float]
        ] = {}  # units under way: what is said of them, and since when

    def run(self, begin: Write) -> None:
        """Draw everything that is not finished.

        Args:
            begin: is told once the model is loaded, before the first case, what of the prompts it will not read.

        Raises:
            DiskFull: when there is no room.
            RunFailed: when the model cannot be loaded.
        """
        left = list({u.case.setting.key: u.case.setting for u in self._units() if not self._done(u)}.values())
        if self.folder.manifest() is not None and self.baselines.known() and not left:
            return
        check_files(left, self.plan.steps)
        with Progress(self.output, terse=True) as progress:
            self.output.line(f"loading {self.chosen.weights.name} ...")
            with self._hands(progress, left) as hands:
                begin(hands.model.notes)
                self.failures.begin()
                self.baselines.choose_kernels(*hands.model[1:])
                self._all(hands)

    @contextmanager
    def _hands(self, progress: Progress, left: Sequence[Setting]) -> Iterator[Here | SideBySide]:
        """What draws: this process, or one for each GPU."""
        measured = not self.baselines.known()
        if self.gpus > 1:
            with SideBySide(self._cases, self.gpus, left, measured) as hands:
                yield hands
        else:
            self._cases.open(progress, left)
            yield Here(self._cases, progress, measured)

    def _all(self, hands: Here | SideBySide) -> None:
        """Every unit, and whatever becomes known to be one on the way."""
        total = schedule.count(self.plan, self.baselines.decided(), self.prompts)
        estimate = schedule.Estimate(total)
        seen: set[tuple[str, int]] = set()
        while True:
            fresh = False
            for unit in self._units():
                if (unit.case.id, unit.repeat) in seen:
                    continue
                seen.add((unit.case.id, unit.repeat))
                fresh = True
                total = max(total, len(seen))
                while any(case_id == unit.case.id for case_id, _ in self._begun):  # to be timed again
                    self._end(hands, estimate)
                never = unit.repeat and not self.folder.done(unit.case.id)  # it failed: there is nothing to time again
                if never or self._done(unit):
                    estimate.done(unit, None)
                    continue
                self._begin(unit, f"[{len(seen)}/{total}]", hands, estimate)
                while self._begun and not hands.free:
                    self._end(hands, estimate)
            if not self._begun and not fresh:
                return
            while self._begun:
                self._end(hands, estimate)

    def _units(self) -> Any:
        return schedule.units(self.plan, self.baselines.decided, self.prompts)

    def _done(self, unit: Unit) -> bool:
        """Whether a unit is drawn, and its frames are there as long as something is to be measured with them."""
        if not self.folder.done(unit.case.id, unit.repeat):
            return False
        return unit.repeat > 0 or not lacking(self.folder, self.plan, self.baselines.decided(), unit.case)

    def _begin(self, unit: Unit, place: str, hands: Here | SideBySide, estimate: schedule.Estimate) -> None:
        """Have a unit drawn."""
        case = unit.case
        what = f"{place} {case.setting.name}; prompt {case.prompt + 1}, seed {case.seed}"
        if not unit.repeat and self.folder.case(case.id).is_dir():
            missing = "its frames" if self.folder.done(case.id) else RECORD
            self.output.note(f"{self.folder.case(case.id)} is not whole ({missing} not there): made again")
        left = self._left(estimate)
        self._begun[case.id, unit.repeat] = what, time.perf_counter()
        title = f"{place} {case.setting.name}" + (f", {schedule.spoken(left)} left: " if left else ": ")
        hands.give(unit, self.baselines.decided().dense_kernel, title)

    def _end(self, hands: Here | SideBySide, estimate: schedule.Estimate) -> None:
        """Wait for a unit: it is kept and told; a failure is kept too."""
        unit, denoise = hands.take()
        for note in hands.notes():
            if note not in self.output.notes:
                self.output.note(note)
        case, (what, since) = unit.case, self._begun.pop((unit.case.id, unit.repeat))
        if isinstance(denoise, Exception):
            estimate.done(unit, None)
            where = {"setting": case.setting.name, "prompt": case.prompt + 1, "seed": case.seed}
            self.failures.add("run", case.id, unit.repeat, str(denoise), **where)
            self.output.line(f"{what}: failed: {one_line(str(denoise))}")
            return
        self.failures.clear("run", case.id, unit.repeat)
        estimate.done(unit, time.perf_counter() - since)
        left = self._left(estimate)
        later = f"; about {schedule.spoken(left)} of generating left" if left and estimate.left else ""
        again = f", time {unit.repeat + 1}" if unit.repeat else ""
        self.output.line(f"{what}{again}: denoised in {denoise:.1f} s{later}")

    def _left(self, estimate: schedule.Estimate) -> float | None:
        seconds = estimate.seconds()
        return None if seconds is None else seconds / self.gpus


class Here:
    """Draws in this process, one unit at a time.

    Attributes:
        model: what the loaded model tells.
        free: whether another unit may be given.
    """

    def __init__(self, cases: Cases, progress: Progress, measured: bool):
        self._cases, self._progress = cases, progress
        self._made: list[tuple[Unit, float | Exception]] = []
        self.model: Model = cases.model(measured)

    @property
    def free(self) -> bool:
        return not self._made

    def notes(self) -> list[str]:
        """What is worth knowing since this was asked last; said already."""
        return []

    def give(self, unit: Unit, kernel: str, title: str) -> None:
        """Draw a unit. Raises DiskFull."""
        self._progress.title = title
        try:
            self._made.append((unit, self._cases.draw(unit, kernel)))
        except DiskFull:
            raise
        except (BadInput, RunFailed) as error:
            self._made.append((unit, error))

    def take(self) -> tuple[Unit, float | Exception]:
        """A unit that is drawn, with its denoise seconds or why it could not be."""
        return self._made.pop()
