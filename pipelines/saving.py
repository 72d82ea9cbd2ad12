"""Frames to a file: mp4, mkv, gif, webp, png, npy or a folder of PNG frames. Whole, or not at all."""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dittools import files, made
from dittools.pipelines import animations, places
from dittools.pipelines.errors import BadInput, DiskFull, RunFailed, first_line
from dittools.pipelines.sound import CODECS, Sound, beside, can_hold, write_wav

if TYPE_CHECKING:
    import numpy as np

# suffix: what it makes
FORMATS = {
    ".mp4": "H.264 video",
    ".gif": "animated GIF, 256 colours a frame",
    ".webp": "animated WebP",
    ".npy": "uint8 array [frames, height, width, 3]",
    ".png": "one image, with --frames 1",
    ".mkv": "lossless FFV1 video, for measuring",
}
FOLDER = "a folder name (one PNG a frame)"
NEEDS_FFMPEG = ("mp4", "mkv")
_FLAG = "--output"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Output:
    """Where a video goes and as what: `kind` is a key of FORMATS without its dot, or "folder"."""

    path: Path
    kind: str

    @property
    def record(self) -> Path:
        """The run record beside it: out.mp4 -> out.json, frames/ -> frames.json."""
        return self.path.with_suffix(".json") if self.kind != "folder" else Path(f"{self.path}.json")

    @property
    def sound(self) -> Path:
        """Where its sound lies, where the video cannot hold it."""
        return beside(self.path)

    def keep(self, reads: Sequence[places.Read], overwrite: bool, sounds: bool = False) -> None:
        """Raises BadInput where a file would be replaced that dittools did not write, or that is read in this run.

        reads: files of this run's flags; `overwrite`, which allows the others, does not allow these.
        sounds: whether the model makes sound as well.
        """
        places.apart((self.path, self.record), reads, _FLAG)
        if sounds and not holds_sound(self.kind):
            places.apart((self.sound,), reads, _FLAG)
            ours = functools.partial(made.sound, self.sound, self.record, self.path)
            places.keep(self.sound, _FLAG, ours, f"the sound of {self.path.name}", overwrite)
        video = f"the video that a record beside it ({self.record.name}) says dittools wrote"
        if self.kind != "folder":
            places.keep(self.path, _FLAG, lambda: made.video(self.path, self.record), video, overwrite)
        record = f"a record of {self.path.name}"
        places.keep(self.record, _FLAG, lambda: made.record(self.record, self.path) is not None, record, overwrite)


def plan(name: str, frames: int | None) -> Output:
    """Read an output name and make sure it can be written, before anything slow starts; what is there, `keep` judges.

    frames: how many there will be, None where that is left to the model (more than one).

    A name that ends in "/", has no suffix or is an existing folder means a folder of frames. Raises BadInput.
    """
    path = places.path_of(_FLAG, name, "out.mp4")
    if path.name.lower() in FORMATS:  # pathlib takes ".mp4" for a hidden file without an ending
        raise BadInput(f"{_FLAG} {name} is an ending without a name: use a name such as out{path.name}")
    told = places.shown(name)
    with places.told(_FLAG, told):
        folder = name.endswith(("/", os.sep)) or path.is_dir() or not path.suffix
        output = Output(path, "folder" if folder else path.suffix.lower()[1:])
        _check_kind(output, told, frames)
        if output.kind == "folder" and path.is_dir() and any(path.iterdir()):
            raise BadInput(f"{_FLAG} {told} is a folder with files in it: use a new or empty folder")
        for target in (path, output.record):
            if target.is_dir() and (output.kind != "folder" or target is not path):
                raise BadInput(f"{_FLAG} {told} would replace the folder {target}: use another name")
        for target in (path, output.record):
            places.writable(target, _FLAG)
        if output.kind == "folder" and path.is_file():
            raise BadInput(f"{_FLAG} {told} is a file: a folder of frames needs another name")
    return output


def _check_kind(output: Output, name: str, frames: int | None) -> None:
    """Raises BadInput for what a name's ending cannot be."""
    path = output.path
    if output.kind != "folder" and path.suffix.lower() not in FORMATS:
        near = difflib.get_close_matches(path.suffix.lower(), FORMATS, n=1)
        hint = f"did you mean {places.shown(str(path.with_suffix(near[0])))}? " if near else ""
        raise BadInput(
            f"{_FLAG} {name} ends in {places.shown(path.suffix)}, which is no known format: {hint}"
            f"use {', '.join(FORMATS)} or {FOLDER}"
        )
    if output.kind == "png" and frames != 1:
        raise BadInput(
            f"{_FLAG} {name} holds one image and --frames is {frames or 'not 1'}: use --frames 1, .mp4, or {FOLDER}"
        )
    if output.kind in NEEDS_FFMPEG:
        _encoder()


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """`dittools.files.whole`, with what the disk says no to as RunFailed; DiskFull where it is full."""
    with together(path) as (part,):
        yield part


@contextlib.contextmanager
def together(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """`dittools.files.together`, with errors as in `whole`."""
    with told(paths[-1]), files.together(*paths) as parts:
        yield parts


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turns an OSError while `path` is written into RunFailed, or DiskFull."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(
                f"the disk is full: {path} was not written and nothing was left behind; "
                "free some space or choose another folder"
            ) from error
        why = error.strerror or first_line(error)
        raise RunFailed(f"{path} could not be written ({why}); nothing was left behind") from error


def to_uint8(frames: np.ndarray) -> np.ndarray:
    """Float frames in [0, 1] -> uint8, rounded to the nearest of 256 levels."""
    return (frames.clip(0, 1) * 255).round().astype("uint8")


def write(frames: np.ndarray, path: Path, kind: str, fps: float, sound: Sound | None = None) -> None:
    """Write uint8 frames `[T, H, W, 3]` to `path` as an Output's `kind`. Stills and arrays ignore `fps`.

    sound: for a kind that `holds_sound`.
    """
    if sound is None:
        _WRITERS[kind](frames, path, fps)
        return
    waves = path.with_name(f"{path.name}.wav")
    try:
        write_wav(sound, waves)
        _WRITERS[kind](frames, path, fps, waves)
    finally:
        waves.unlink(missing_ok=True)


def holds_sound(kind: str) -> bool:
    """Whether a video of this kind can have sound in it here."""
    return can_hold(kind, ffmpeg())


def _npy(frames: np.ndarray, path: Path, fps: float) -> None:
    import numpy as np

    frames = np.ascontiguousarray(frames)
    with path.open("wb") as file:  # not np.save: its error on a full disk does not say that the disk is full
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(frames))
        file.write(memoryview(frames).cast("B"))


def _png(frames: np.ndarray, path: Path, fps: float) -> None:
    _images(frames[:1])[0].save(path, format="PNG")


def _folder(frames: np.ndarray, path: Path, fps: float) -> None:
    path.mkdir()
    for number, image in enumerate(_images(frames)):
        image.save(path / f"{number:05d}.png", format="PNG", compress_level=3)


def _gif(frames: np.ndarray, path: Path, fps: float) -> None:
    animations.gif(_images(frames), animations.durations(len(frames), fps, animations.GIF_UNIT), path)


def _webp(frames: np.ndarray, path: Path, fps: float) -> None:
    animations.webp(_images(frames), animations.durations(len(frames), fps, animations.WEBP_UNIT), path)


def _mp4(frames: np.ndarray, path: Path, fps: float, waves: Path | None = None) -> None:
    """libx264 in yuv420p, BT.709, crf 12 (visually lossless): every player shows it in the right colours."""
    import numpy as np

    _, height, width, _ = frames.shape
    if height % 2 or width % 2:  # yuv420p halves both sides
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    _encode(frames, path, fps, waves, [
        *("-c:v", "libx264", "-crf", "12", "-vf", "scale=out_color_matrix=bt709:out_range=tv"),
        *("-pix_fmt", "yuv420p", "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"),
        *("-movflags", "+faststart", "-f", "mp4"),
    ])  # fmt: skip


def _mkv(frames: np.ndarray, path: Path, fps: float, waves: Path | None = None) -> None:
    """FFV1 in RGB: every frame comes back as it was. The same frames give the same file."""
    _encode(frames, path, fps, waves, [
        *("-c:v", "ffv1", "-level", "3", "-g", "1", "-slices", "4", "-slicecrc", "1", "-pix_fmt", "gbrp"),
        *("-fflags", "+bitexact", "-flags:v", "+bitexact", "-f", "matroska"),
    ])  # fmt: skip


def _encode(frames: np.ndarray, path: Path, fps: float, waves: Path | None, codec: list[str]) -> None:
    """Hand uint8 frames, and the file of their sound, to ffmpeg.

    Raises OSError for a full disk, RunFailed for what else it says.
    """
    import numpy as np

    _, height, width, _ = frames.shape
    command = [_encoder(), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    heard = ["-an"]
    if waves is not None:
        heard = ["-i", str(waves), "-map", "0:v", "-map", "1:a", *CODECS["mp4" if "mp4" in codec else "mkv"][1]]
    command += ["-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-", *heard, *codec, str(path)]
    raw = memoryview(np.ascontiguousarray(frames)).cast("B")
    done = subprocess.run(command, input=raw, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        if "No space left" in said:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        last = said.splitlines()[-1] if said else f"exit code {done.returncode}"
        raise RunFailed(f"ffmpeg could not encode the video ({last}): try --output with .webp, .gif or .npy")


_WRITERS = {"mp4": _mp4, "gif": _gif, "webp": _webp, "npy": _npy, "png": _png, "mkv": _mkv, "folder": _folder}


def ffmpeg() -> str | None:
    """The ffmpeg that imageio-ffmpeg brings or finds, or None."""
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return None


def _encoder() -> str:
    path = ffmpeg()
    if path is None:
        others = ", ".join(suffix for suffix in FORMATS if suffix[1:] not in NEEDS_FFMPEG)
        raise BadInput(f"no ffmpeg found for .mp4 and .mkv: pip install imageio-ffmpeg, or use {others} or {FOLDER}")
    return path


def _images(frames: np.ndarray) -> list:
    from PIL import Image

    return [Image.fromarray(frame) for frame in frames]
