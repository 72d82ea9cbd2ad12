"""Pictures, videos and masks from files, as pipelines take them: each is read whole before weights are loaded."""

from __future__ import annotations

import mimetypes
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dittools import files
from dittools.pipelines import places, reading
from dittools.pipelines.errors import BadInput, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

_STILLS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".avif")


@dataclass(frozen=True)
class Clip:
    """Frames of a video, RGB, or of a mask, grey with white where it changes; `fps` is None where no file says."""

    frames: tuple[Image, ...]
    fps: float | None = None
    digest: str | None = None
    name: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its frames."""
        return self.frames[0].height, self.frames[0].width

    def facts(self) -> dict[str, Any]:
        """As a record has it."""
        height, width = self.size
        return {"file": self.name, "sha256": self.digest, "frames": len(self.frames), "height": height, "width": width}


def picture(flag: str, name: str) -> Clip:
    """One picture, as it is to be seen. Raises BadInput."""
    found = clip(flag, name)
    if len(found.frames) != 1:
        raise BadInput(f"{flag} {places.shown(name)} holds {len(found.frames)} frames, and one picture is wanted")
    return found


def clip(flag: str, name: str, mode: str = "RGB") -> Clip:
    """All frames of a video, picture, array or folder of pictures. Raises BadInput, one line.

    Args:
        mode: "RGB", or "L" for masks.
    """
    if not name:
        raise BadInput(f"{flag} is empty: give the name of a file")
    path = Path(name).expanduser()
    try:
        if not path.exists():
            raise BadInput(f"there is no {places.shown(str(path))}: give the name of a file")
        frames, fps = _read(path)
    except OSError as error:
        raise BadInput(f"{flag} {places.shown(name)} cannot be read ({error.strerror})") from None
    except BadInput as error:
        raise BadInput(f"{flag}: {error}") from None
    digest = files.sha256(path) if path.is_file() else _digest(frames)
    return Clip(tuple(frame.convert(mode) for frame in frames), fps, digest, str(name))


def _read(path: Path) -> tuple[list[Image], float | None]:
    from PIL import Image, ImageOps

    if path.is_file() and path.suffix.lower() in _STILLS:
        try:
            with Image.open(path) as image:
                if getattr(image, "n_frames", 1) == 1:
                    return [ImageOps.exif_transpose(image).convert("RGB")], None
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadInput(f"{path} cannot be read as a picture ({first_line(error)}): give a whole file") from None
    try:
        video = reading.read(path)
    except BadInput as error:
        kind = mimetypes.guess_type(path.name)[0] or ""
        if path.is_dir() or path.suffix.lower() == ".npy" or kind.startswith(("image/", "video/")):
            raise
        raise BadInput(f"{path} can be read neither as a picture nor as a video: give a .png, .jpg or .mp4") from error
    return [Image.fromarray(frame) for frame in video.frames], video.fps


def _digest(frames: list[Image]) -> str:
    """Of a folder: of its pixels."""
    import hashlib

    whole = hashlib.sha256()
    for frame in frames:
        whole.update(frame.tobytes())
    return whole.hexdigest()
