"""Which frame counts and sizes a model can draw, and the nearest ones to what was asked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dittools.pipelines.errors import BadInput


@dataclass(frozen=True)
class SizeRule:
    """Frames are `frames` * n + 1; height and width are multiples of `height` and `width` pixels.

    The defaults are Wan 2.1's: the VAE packs 4 frames and 8 x 8 pixels into one latent (the first frame on
    its own), the transformer 2 x 2 latents into one token.
    """

    frames: int = 4
    height: int = 16
    width: int = 16

    @classmethod
    def from_folder(cls, folder: Path) -> SizeRule:
        """The rule of a pipeline folder, read from its configs; the default where they do not say."""
        vae, transformer = (_config(folder / part / "config.json") for part in ("vae", "transformer"))
        return cls._of(
            vae.get("scale_factor_temporal"),
            vae.get("scale_factor_spatial"),
            transformer.get("patch_size"),
        )

    @classmethod
    def from_pipeline(cls, pipe: Any) -> SizeRule:
        """The rule of a loaded pipeline."""
        transformer = pipe.transformer if pipe.transformer is not None else pipe.transformer_2
        return cls._of(
            pipe.vae_scale_factor_temporal,
            pipe.vae_scale_factor_spatial,
            transformer.config.patch_size,
        )

    @classmethod
    def _of(cls, temporal: int | None, spatial: int | None, patch: Any) -> SizeRule:
        rule = cls()
        if not spatial or not isinstance(patch, (list, tuple)) or len(patch) != 3:
            return cls(frames=temporal or rule.frames)
        # diffusers' Wan pipelines themselves ask for multiples of 16, also where the model could do less
        height, width = (max(rule.height, spatial * side) for side in patch[1:])
        return cls(frames=temporal or rule.frames, height=height, width=width)

    def check(self, frames: int | None, height: int | None, width: int | None) -> None:
        """Raise BadInput naming all that does not fit and the nearest values that do. None always fits."""
        wrong = [
            _complaint("--frames", frames, self.frames, 1, f"{self.frames}n + 1"),
            _complaint("--height", height, self.height, 0, f"a multiple of {self.height}"),
            _complaint("--width", width, self.width, 0, f"a multiple of {self.width}"),
        ]
        if any(wrong):
            raise BadInput("; ".join(text for text in wrong if text))


def nearest(value: int, step: int, rest: int) -> tuple[int | None, int]:
    """The largest valid value below `value` (None if there is none) and the smallest above it.

    Valid values are positive and leave `rest` when divided by `step`.
    """
    smallest = rest or step
    if value < smallest:
        return None, smallest
    below = (value - rest) // step * step + rest
    return below, below + step


def _complaint(flag: str, value: int | None, step: int, rest: int, rule: str) -> str | None:
    if value is None or (value > 0 and value % step == rest % step):
        return None
    below, above = nearest(value, step, rest)
    choice = f"{above}" if below is None else f"{below} or {above}"
    return f"{flag} {value} does not fit this model, which takes {rule}: use {choice}"


def _config(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
