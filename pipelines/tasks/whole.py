"""One call of a whole pipeline: its steps and stages heard by its progress bar, its frames and sound taken out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dittools.pipelines.sound import Sound

if TYPE_CHECKING:
    import numpy as np

RESULTS = ("frames", "images", "videos", "video", "image")
"""Names that outputs of pipelines have for what was drawn."""
SOUNDS = ("audio", "sound")


@dataclass(frozen=True)
class Drawn:
    """What one call gave: frames ``[T, H, W, 3]``, float32, and sound where the model makes it."""

    frames: np.ndarray
    sound: Sound | None = None


class Listener:
    """What a call tells while it runs.

    Args:
        on_step: told (step, steps) after each step, counted from 1 over all loops of a call.
        on_loop: told the number of steps as the first loop begins, and None as a loop ends.
        only_steps: end the call after so many, by `Enough`.
    """

    def __init__(
        self,
        on_step: Callable[[int, int], None] = lambda step, steps: None,
        on_loop: Callable[[int | None], None] = lambda steps: None,
        only_steps: int | None = None,
    ):
        self._on_step, self._on_loop, self._only = on_step, on_loop, only_steps
        self._done = self._total = 0

    def begin(self, steps: int) -> None:
        self._total += steps
        self._on_loop(self._total)

    def step(self, count: int) -> None:
        for _ in range(count):
            self._done += 1
            self._on_step(self._done, max(self._total, self._done))
        if self._only is not None and self._done >= self._only:
            raise Enough

    def end(self) -> None:
        self._on_loop(None)


class Enough(Exception):
    """As many steps were drawn as were asked for."""


class _Bar:
    """In place of a pipeline's progress bar."""

    def __init__(self, listener: Listener, iterable: Any = None, total: int | None = None):
        self._listener, self._iterable = listener, iterable
        self._total = len(iterable) if total is None and hasattr(iterable, "__len__") else int(total or 0)

    def __enter__(self) -> _Bar:
        self._listener.begin(self._total)
        return self

    def __exit__(self, kind: Any, *exception: Any) -> None:
        if kind is None:
            self._listener.end()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for one in self._iterable:
                yield one
                self.update()

    def update(self, count: int = 1) -> None:
        self._listener.step(count)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *given, **named: None  # what else a bar can be told, such as a description


@contextmanager
def _heard(pipe: Any, listener: Listener) -> Iterator[None]:
    """Let a pipeline tell its steps in the block."""
    pipe.progress_bar = lambda iterable=None, total=None, **named: _Bar(listener, iterable, total)
    try:
        yield
    finally:
        del pipe.progress_bar


def draw(pipe: Any, arguments: dict[str, Any], seed: int, listener: Listener) -> Drawn | None:
    """Call a pipeline; None where the listener had enough. The noise comes from the CPU.

    Raises:
        FloatingPointError: when a frame holds anything but finite numbers.
    """
    import torch

    try:
        with _heard(pipe, listener):
            output = pipe(**arguments, generator=torch.Generator("cpu").manual_seed(seed), output_type="np")
    except Enough:
        pipe.maybe_free_model_hooks()
        return None
    return Drawn(_frames(_named(output, RESULTS)), _sound(pipe, _named(output, SOUNDS)))


def _named(output: Any, names: tuple[str, ...]) -> Any:
    return next((value for name in names if (value := getattr(output, name, None)) is not None), None)


def _frames(found: Any) -> np.ndarray:
    """Frames ``[T, H, W, 3]`` of the first video of a batch, or all its images."""
    import numpy as np
    import torch

    if isinstance(found, torch.Tensor):
        found = found.float().cpu().numpy()
    if isinstance(found, (list, tuple)) and len(found) == 1 and not hasattr(found[0], "convert"):
        found = found[0]
    if isinstance(found, (list, tuple)):
        found = np.stack([np.asarray(one) for one in found])
    frames = np.asarray(found)
    while frames.ndim > 4:
        frames = frames[0]
    if frames.ndim == 3:
        frames = frames[None]
    if frames.shape[-1] != 3 and frames.shape[1] == 3:
        frames = frames.transpose(0, 2, 3, 1)
    if frames.dtype == np.uint8:
        frames = frames.astype(np.float32) / 255
    frames = frames[..., :3].astype(np.float32, copy=False)
    if not np.isfinite(frames).all():
        raise FloatingPointError("frames are not finite numbers")
    return frames.clip(0, 1)


def _sound(pipe: Any, found: Any) -> Sound | None:
    """The waveform of the first video, where a pipeline made one."""
    import numpy as np
    import torch

    if found is None:
        return None
    samples = np.asarray(found.detach().float().cpu() if isinstance(found, torch.Tensor) else found, np.float32)
    while samples.ndim > 2:
        samples = samples[0]
    samples = np.atleast_2d(samples)  # channels first, as diffusers gives them
    if samples.shape[0] > samples.shape[1]:
        samples = samples.T
    return Sound(np.ascontiguousarray(np.nan_to_num(samples).clip(-1, 1).T), rate_of(pipe))


def rate_of(pipe: Any) -> int:
    """Samples in a second of what a pipeline makes."""
    for part, name in (
        ("vocoder", "output_sampling_rate"),
        ("sound_tokenizer", "sampling_rate"),
        ("audio_vae", "sample_rate"),
    ):
        rate = getattr(getattr(getattr(pipe, part, None), "config", None), name, None)
        if rate:
            return int(rate)
    return 24000
