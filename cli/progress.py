"""Where a run stands: its stages, timed, as a live bar on a terminal and as plain lines elsewhere. Always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from dittools.cli.output import Output
from dittools.pipelines.errors import BadInput, RunFailed, first_line

_PLAIN_SECONDS = 5.0
_FACTS = 56  # columns that step, pace, share and time take beside the stage's name and the bar
_WORTH_TELLING = 10.0
"""Seconds from which on a stage says how long it still takes."""
STAGES = {
    "load": "loading weights",
    "text": "encoding the prompt",
    "denoise": "denoising",
    "decode": "decoding frames",
    "save": "saving",
    "warm-up": "warming up",
    "dense": "denoising densely, to compare",
    "control": "timing dense steps again",
    "quality": "comparing with dense",
    "measure": "measuring",
    "listen": "listening to a dense run",
    "judge": "judging",
    "calibrate": "denoising densely, to calibrate",
    "render": "making the page",
}
"""What is shown of each stage."""


class Progress(AbstractContextManager):
    """Shows the stage a run is in and, while denoising, its step, pace, skipped share and time.

    Notes printed through `output` while it is open appear above the bar. With `terse`, plain lines tell no stages
    and only slow steps: for many short runs that have a line of their own each.

    Attributes:
        title: what is shown in front of the stage, for one run among many.
    """

    def __init__(self, output: Output, terse: bool = False):
        self.title = ""
        self._output = output
        self._terse = terse
        self._bar = _Bar() if sys.stderr.isatty() and not (output.quiet or output.verbose) else None
        self._started = self._spoken = time.perf_counter()
        self._stage = ""
        self._skipped: float | None = None
        self._left = ""

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.open()
            self._output.through(self._bar.say)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._output.through(None)
        if self._bar is not None:
            self._bar.close()

    def stage(self, name: str, steps: int | None = None) -> None:
        """A new stage begins; `steps` where it has countable ones."""
        again = self._stage == name
        self._stage, self._skipped = name, None
        self._started = self._spoken = time.perf_counter()
        if self._bar is not None:
            self._bar.start(f"{self.title}{name}", steps)
        elif not (self._terse or again):
            self._output.line(f"{name} ...")

    def skipped(self, share: float | None) -> None:
        """The share of attention skipped so far, shown with the next step."""
        self._skipped = share

    def left(self, text: str) -> None:
        """How long everything will take, in words, shown with the next steps: with the first one at once."""
        self._left = text

    @staticmethod
    def _left_of_stage(step: int, steps: int, elapsed: float) -> str:
        """How long the stage still takes at its pace so far, where that is worth telling."""
        from dittools.report.schedule import spoken

        left = elapsed / step * (steps - step)
        return f"{spoken(left)} left" if left and elapsed + left >= _WORTH_TELLING else ""

    def step(self, step: int, steps: int) -> None:
        """`step` of `steps` is done."""
        now = time.perf_counter()
        elapsed = now - self._started
        facts = f"{elapsed / step:.2f} s/step"
        if self._skipped is not None:
            facts += f", {self._skipped:.0%} skipped"
        left = self._left or self._left_of_stage(step, steps, elapsed)
        if left:
            facts += f", {left}"
        if self._bar is not None:
            self._bar.move(step, f"{step}/{steps}, {facts}")
        elif (
            self._output.verbose
            or now - self._spoken >= _PLAIN_SECONDS * (6 if self._terse else 1)
            or (step == steps and not self._terse)
            or (step == 1 and self._left)
        ):
            self._spoken = now
            self._output.line(f"{self._stage}: step {step}/{steps}, {facts}, {elapsed:.0f} s")


class _Bar:
    """rich's progress bar, one stage at a time."""

    def __init__(self):
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._console = Console(stderr=True, highlight=False)
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=self._spare(30)),
            TextColumn("{task.fields[facts]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._task: Any = None

    def _spare(self, most: int) -> int:
        """Columns for the bar itself."""
        return max(4, min(most, self._console.width - _FACTS - 30))

    def open(self) -> None:
        self._bar.start()

    def close(self) -> None:
        self._bar.stop()

    def start(self, name: str, steps: int | None) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        room = self._console.width - _FACTS - self._spare(30)
        name = name if len(name) <= room else f"{name[: room - 1]}…"
        self._task = self._bar.add_task(name, total=steps, facts="")

    def move(self, step: int, facts: str) -> None:
        self._bar.update(self._task, completed=step, facts=facts)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


class Stages:
    """Times named stages; on CUDA the device is waited for before and after each.

    Attributes:
        seconds: stage -> seconds, summed when a stage runs more than once.
        size: what is drawn, for the advice when memory runs out.
    """

    def __init__(self, progress: Progress):
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.size = ""
        self.cuda = False

    @contextmanager
    def __call__(self, name: str, steps: int | None = None) -> Iterator[None]:
        self.progress.stage(STAGES[name], steps)
        self.wait()
        begun = time.perf_counter()
        try:
            yield
            self.wait()
        except (BadInput, RunFailed):
            raise
        except Exception as error:
            raise self._explained(name, error) from error
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun

    @contextmanager
    def in_turn(self, first: str) -> Iterator[Callable[..., None]]:
        """Time one stage after the other: what is given is called with the name of the next, and its steps."""
        now = self(first)
        now.__enter__()

        def turn(name: str, steps: int | None = None) -> None:
            nonlocal now
            now.__exit__(None, None, None)
            now = self(name, steps)
            now.__enter__()

        try:
            yield turn
        except BaseException as error:
            now.__exit__(type(error), error, error.__traceback__)
            raise
        now.__exit__(None, None, None)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.cuda:
            import torch

            torch.cuda.synchronize()

    def _explained(self, name: str, error: Exception) -> Exception:
        from dittools.pipelines.loading import out_of_memory

        if out_of_memory(error):
            where = f"{STAGES[name]} at {self.size}" if self.size else STAGES[name]
            return RunFailed(
                f"out of memory while {where}: lower --frames or --height and --width, or use "
                "--offload model (on CUDA) or a smaller --dtype; nothing was written"
            )
        if isinstance(error, ValueError) and name in ("load", "warm-up", "denoise"):
            # a setting that could not be judged before the model was there
            return BadInput(first_line(error))
        return RunFailed(
            f"{STAGES[name]} failed ({type(error).__name__}: {first_line(error)}): --debug shows where; "
            "nothing was written"
        )
