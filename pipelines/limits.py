"""Which frame counts, sizes and steps a model can draw, and the nearest ones to what was asked."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING

from dittools.pipelines.components import config_of
from dittools.pipelines.errors import BadInput
from dittools.provenance import memory_bytes

if TYPE_CHECKING:
    from dittools.tokens import Layout

MOST_STEPS = 1000
"""Noise levels that models are trained on, where their scheduler does not say how many."""
_MOST = 10**6
"""Frames, or pixels along a side: more than anything draws."""
_PIXEL_BYTES = 12
"""Of a decoded pixel: three colours in fp32."""


@dataclass(frozen=True)
class SizeRule:
    """Frames are `frames` * n + `first`; height and width are multiples of `height` and `width` pixels.

    The defaults are Wan 2.1's: the VAE packs 4 frames and 8 x 8 pixels into one latent (the first frame on its own),
    the transformer 2 x 2 latents into one token.

    Args:
        frames, height, width: steps between sizes that fit.
        first: the smallest number of frames.
        stride: (frames, pixels along a side) that one latent stands for.
        patch: (frames, height, width) latents in one token.
        positions: most tokens along one axis that the model knows positions for; None: any number.
        groups: as `Family.groups`.
        longest: most frames that are drawn; None: any number.
    """

    frames: int = 4
    height: int = 16
    width: int = 16
    first: int = 1
    stride: tuple[int, int] = (4, 8)
    patch: tuple[int, int, int] = (1, 2, 2)
    positions: int | None = None
    groups: tuple[tuple[int, int], tuple[int, int]] | None = None
    longest: int | None = None

    @classmethod
    def _of(
        cls,
        temporal: int,
        spatial: int,
        patch: tuple[int, int, int],
        positions: int | None = None,
        multiple: int = 16,
        filled: bool = False,
    ) -> SizeRule:
        """The rule of a model.

        Args:
            temporal, spatial: frames, and pixels along a side, that one latent stands for.
            multiple: of pixels, that the pipeline itself asks for: 16 in diffusers' Wan, also where the model could do
                with less.
            filled: whether the pipeline fills up the last patch along the frames.
        """
        deep = 1 if filled else patch[0]
        height, width = (lcm(multiple, spatial * side) for side in patch[1:])
        first = (deep - 1) * temporal + 1
        return cls(temporal * deep, height, width, first, (temporal, spatial), tuple(patch), positions)

    def check(self, frames: int | None, height: int | None, width: int | None) -> None:
        """Raise BadInput naming all that does not fit and the nearest values that do. None always fits."""
        most = self.most()
        asked = (
            ("--frames", frames, self.frames, self.first, most[0], f"{self.frames}n + {self.first}"),
            ("--height", height, self.height, 0, most[1], f"a multiple of {self.height}"),
            ("--width", width, self.width, 0, most[2], f"a multiple of {self.width}"),
        )
        wrong = [_complaint(*one) for one in asked]
        if any(wrong):
            raise BadInput("; ".join(text for text in wrong if text))

    def most(self) -> tuple[int, int, int]:
        """Frames, height and width that no picture is beyond."""
        if self.positions is None:
            return self.longest or _MOST, _MOST, _MOST
        (time, side), (deep, high, wide) = self.stride, (self.positions * size for size in self.patch)
        return min(_MOST, (deep - 1) * time + 1), min(_MOST, high * side), min(_MOST, wide * side)

    def layout(self, frames: int, height: int, width: int) -> Layout:
        """Tokens of a picture that fits, along each axis. Where a token spans frames, the pipeline fills it up."""
        from dittools.tokens import Layout

        (time, side), (deep, high, wide) = self.stride, self.patch
        latents = (frames - 1) // time + 1
        if self.groups is not None:
            (together, each), (beside, more) = self.groups
            latents = (frames - beside) // together * each + more
        return Layout(-(-latents // deep), height // side // high, width // side // wide)


def nearest(value: int, step: int, rest: int, most: int = _MOST) -> tuple[int | None, int | None]:
    """The largest valid value below `value` and the smallest above it, None where there is none.

    Valid values are positive, leave `rest` when divided by `step`, and are at most `most`.
    """
    smallest = rest or step
    if value < smallest:
        return None, smallest
    if value > most:
        return (most - rest) // step * step + rest, None
    below = (value - rest) // step * step + rest
    above = below + step
    return below, above if above <= most else None


def _complaint(flag: str, value: int | None, step: int, rest: int, most: int, rule: str) -> str | None:
    if value is None or (0 < value <= most and value % step == rest % step):
        return None
    choice = " or ".join(str(near) for near in nearest(value, step, rest, most) if near is not None)
    at_most = f" up to {nearest(most + 1, step, rest, most)[0]}" if value > most else ""
    return f"{flag} {_told(value)} does not fit this model, which takes {rule}{at_most}: use {choice}"


def check_memory(frames: int, height: int, width: int) -> None:
    """Raise BadInput for a picture whose decoded frames alone are larger than the memory of this machine."""
    needed, has = frames * height * width * _PIXEL_BYTES, memory_bytes()
    if needed > has:
        raise BadInput(
            f"{frames} x {height} x {width} take {_gigabytes(needed)} as decoded frames alone, and this machine has "
            f"{_gigabytes(has)} of memory: lower --frames, or --height and --width"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.0f} GB" if size < 10**15 else "more than a million GB"


def check_steps(steps: int | None, folder: Path | None = None, flag: str = "--steps") -> None:
    """Raise BadInput for more steps than there are noise levels, or less than one. None always fits.

    Args:
        folder: of the pipeline, whose scheduler says how many levels it was trained on.
    """
    if steps is None:
        return
    told = config_of(folder / "scheduler").get("num_train_timesteps") if folder is not None else None
    most = told if type(told) is int and told > 0 else MOST_STEPS
    if steps < 1:
        raise BadInput(f"{flag} must be at least 1, got {_told(steps)}")
    if steps > most:
        raise BadInput(f"{flag} must be at most {most}, the noise levels of this model, got {_told(steps)}")


def _told(number: int) -> str:
    return str(number) if abs(number) < 10**24 else "a number of more than 24 digits"
