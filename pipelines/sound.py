"""Sound that a model makes with its video: what it is, and as a file."""

from __future__ import annotations

import functools
import subprocess
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

CODECS = {"mp4": ("aac", ("-c:a", "aac", "-b:a", "192k")), "mkv": ("flac", ("-c:a", "flac"))}
"""Kinds of files that hold sound beside frames: the encoder of ffmpeg, and what it is told."""


@dataclass(frozen=True)
class Sound:
    """A waveform ``[samples, channels]``, float32 in [-1, 1], and its samples in a second."""

    samples: np.ndarray
    rate: int

    def facts(self) -> dict[str, Any]:
        """As a record has it."""
        count, channels = self.samples.shape
        return {"rate": self.rate, "channels": channels, "seconds": round(count / self.rate, 4)}


def write_wav(sound: Sound, path: Path) -> None:
    """Write 16 bits a sample."""
    levels = (sound.samples * 32767).round().astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(levels.shape[1])
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        file.writeframes(levels.tobytes())


def beside(path: Path) -> Path:
    """Where sound lies that a video of this name cannot hold: out.gif -> out.wav, frames/ -> frames.wav."""
    return path.with_suffix(".wav") if path.suffix else Path(f"{path}.wav")


@functools.cache
def can_hold(kind: str, ffmpeg: str | None) -> bool:
    """Whether a kind of file holds sound, and this ffmpeg has the encoder for it."""
    if kind not in CODECS or ffmpeg is None:
        return False
    done = subprocess.run([ffmpeg, "-hide_banner", "-encoders"], capture_output=True, text=True, check=False)
    return any(line.split()[1:2] == [CODECS[kind][0]] for line in done.stdout.splitlines())
