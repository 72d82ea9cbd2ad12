"""Video files to frames: what `saving` writes and what else ffmpeg and Pillow can read."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dittools.pipelines import animations, places
from dittools.pipelines.errors import BadInput, RunFailed, first_line
from dittools.pipelines.saving import ffmpeg, to_uint8

if TYPE_CHECKING:
    import numpy as np

_STILLS = (".png", ".jpg", ".jpeg", ".bmp")
_PILLOW = (".webp", ".gif", *_STILLS)
_ROUNDING = 0.5 / 255
"""Values that far out of [0, 1] are those of rounding: they are nearest to black or white."""


@dataclass(frozen=True)
class Video:
    """Frames `[T, H, W, 3]`, uint8, RGB; `fps` is None where the file does not say."""

    frames: np.ndarray
    fps: float | None

    @property
    def size(self) -> str:
        """For people: "33 frames of 256 x 256"."""
        count, height, width, _ = self.frames.shape
        return f"{count} frame{'s' if count > 1 else ''} of {height} x {width}"


def read(name: str | Path) -> Video:
    """Every frame of a video file, image, .npy array or folder of images.

    Raises BadInput, one line, for what is not there or cannot be read.
    """
    if not str(name):
        raise BadInput("the name of a video is empty: give a video file, or a folder of PNG frames")
    path = Path(name).expanduser()
    try:
        if not path.exists():
            raise BadInput(f"there is no {places.shown(str(path))}: give a video file, or a folder of PNG frames")
        video = _reader(path)(path)
    except BadInput:
        raise
    except Exception as error:  # decoders raise what they like
        raise BadInput(f"{path} cannot be read as a video ({_cause(error)}): give a whole video file") from error
    if video.frames.size == 0:
        raise BadInput(f"{path} holds no frames: give a whole video file")
    return video


def _reader(path: Path) -> Any:
    if path.is_dir():
        return _folder
    suffix = path.suffix.lower()
    return _npy if suffix == ".npy" else _pillow if suffix in _PILLOW else _ffmpeg


def _ffmpeg(path: Path) -> Video:
    import imageio_ffmpeg
    import numpy as np

    if ffmpeg() is None:
        raise RunFailed("no ffmpeg found: pip install imageio-ffmpeg")
    # a playlist may name other files, also on the network
    reader = imageio_ffmpeg.read_frames(
        str(path.absolute()),
        pix_fmt="rgb24",
        input_params=["-protocol_whitelist", "file"],
        output_params=["-fps_mode", "passthrough"],
    )
    try:
        facts = next(reader)
        width, height = facts["size"]
        frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    finally:
        reader.close()
    return Video(np.stack(frames) if frames else np.empty((0, height, width, 3), np.uint8), facts.get("fps"))


def _pillow(path: Path) -> Video:
    import numpy as np
    from PIL import Image, ImageSequence

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            frames, milliseconds = [], []
            for frame in ImageSequence.Iterator(image):
                frames.append(np.asarray(frame.convert("RGB")))
                milliseconds.append(frame.info.get("duration", 0))
    if len(frames) == 1:
        return Video(np.stack(frames), 1000 / milliseconds[0] if milliseconds[0] else None)
    if not any(milliseconds):
        return Video(np.stack(frames), None)
    counts = animations.at_one_rate(milliseconds)
    if counts is None:
        raise BadInput(
            f"{path} shows its frames for {min(milliseconds):g} to {max(milliseconds):g} ms each, which is no video of "
            "one rate: give an .mp4, or a folder of PNG frames"
        )
    frames = np.repeat(np.stack(frames), counts, 0) if max(counts) > 1 else np.stack(frames)
    return Video(frames, 1000 * len(frames) / sum(milliseconds))


def _npy(path: Path) -> Video:
    import numpy as np

    frames = np.load(path, allow_pickle=False)
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise BadInput(f"{path} has shape {list(frames.shape)}: a video is [frames, height, width, 3]")
    if np.issubdtype(frames.dtype, np.floating):
        _check_floats(frames, path)
        frames = to_uint8(frames)
    elif frames.dtype != np.uint8:
        raise BadInput(f"{path} holds {frames.dtype}: a video is uint8, or floats in [0, 1]")
    return Video(frames.astype(np.uint8, copy=False), None)


def _check_floats(frames: np.ndarray, path: Path) -> None:
    """Raises BadInput for what is no video in [0, 1]."""
    import numpy as np

    for number, frame in enumerate(frames):
        wrong = int((~np.isfinite(frame)).sum())
        if wrong:
            raise BadInput(
                f"{path} holds {wrong} values in frame {number + 1} that are not finite (NaN or infinity): "
                "a video is uint8, or floats in [0, 1]"
            )
    low, high = (float(frames.min()), float(frames.max())) if frames.size else (0.0, 0.0)
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        levels = low >= 0 and high <= 255
        hint = ": these look like levels 0 to 255, so divide them by 255" if levels and high > 2 else ""
        raise BadInput(f"{path} holds floats from {low:g} to {high:g}, and a video is uint8, or floats in [0, 1]{hint}")


def _folder(path: Path) -> Video:
    import numpy as np

    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _STILLS)
    if not files:
        raise BadInput(f"{path} has no images in it: give a video file, or a folder of PNG frames")
    frames = [_pillow(file).frames[0] for file in files]
    odd = next((n for n, frame in enumerate(frames) if frame.shape != frames[0].shape), None)
    if odd is not None:
        raise BadInput(f"{files[odd]} has another size than {files[0]}: frames of one video have one size")
    return Video(np.stack(frames), None)


def _cause(error: BaseException) -> str:
    """What a decoder said: its last line that says something of the file, not the log around it."""
    lines = [line.strip(" =") for line in str(error).splitlines() if line.strip(" =")]
    telling = [line for line in lines if any(w in line.lower() for w in ("invalid", "error", "not found", "moov"))]
    return (telling or [first_line(error)])[-1][:200]
