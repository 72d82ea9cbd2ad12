"""Runs the stages of a generation: shows them, times them, and says in one line what stopped one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from dittools.cli.progress import Progress
from dittools.pipelines.errors import BadInput, RunFailed, first_line

NAMES = {
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
        self.progress.stage(NAMES[name], steps)
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

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.cuda:
            import torch

            torch.cuda.synchronize()

    def _explained(self, name: str, error: Exception) -> Exception:
        from dittools.pipelines.loading import out_of_memory

        if out_of_memory(error):
            where = f"{NAMES[name]} at {self.size}" if self.size else NAMES[name]
            return RunFailed(
                f"out of memory while {where}: lower --frames or --height and --width, or use "
                "--offload model (on CUDA) or a smaller --dtype; nothing was written"
            )
        if isinstance(error, ValueError) and name in ("load", "warm-up", "denoise"):
            # a setting that could not be judged before the model was there
            return BadInput(first_line(error))
        return RunFailed(
            f"{NAMES[name]} failed ({type(error).__name__}: {first_line(error)}): --debug shows where; "
            "nothing was written"
        )
