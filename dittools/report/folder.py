"""A report's folder: who may write to it, what is finished, and files that appear whole or not at all.

manifest.json                 what was asked, on what it ran
baselines.json               what was decided on the way: kernels, steps of the equal-time baseline
cases/<id>/frames.mkv         the frames, lossless; video.mp4 to play; record.json, repeat-<n>.json. Drawn where there
                              is no ffmpeg: frames.npy, and nothing to play
cases/<id>/against-<id>.json  measures against a reference; judge.json where there is a judge
failures.json                 what did not work, and why
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dittools import files
from dittools.report import schema

VERSION = 1
MANIFEST, BASELINES, FAILURES, LOCK, WRITER = "manifest.json", "baselines.json", "failures.json", ".lock", ".writer"
OLD_BASELINES = "yardsticks.json"  # as dittools 0.1 wrote it; still read
CASES = "cases"
FRAMES, VIDEO, RECORD = ("frames.mkv", "frames.npy"), "video.mp4", "record.json"


class InUse(ValueError):
    """Another process writes to the folder."""


class Unreadable(ValueError):
    """The folder holds no report, or one that this version cannot read."""


class Folder:
    """Reads and writes a report's folder. OSErrors of the disk pass through."""

    def __init__(self, path: Path):
        self.path = path
        self.cases = path / CASES

    @contextlib.contextmanager
    def held(self) -> Iterator[int | None]:
        """Keep every other process out, and clear what a killed one left unfinished.

        Gives the process number of a run that ended without saying so, or None. The system itself frees the lock
        of a process that dies, so no lock is ever stale. A new folder into which nothing was written goes again.
        Raises InUse.
        """
        new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        lock, writer = FileLock(self.path / LOCK), self.path / WRITER
        try:
            lock.acquire(timeout=0)
        except Timeout:
            holder = _pid(writer)
            who = f"process {holder}" if holder else "another process"
            raise InUse(f"{self.path} is in use by {who}: wait for it, end it, or give another --output") from None
        try:
            before = _pid(writer)
            with contextlib.suppress(OSError):  # a full disk must not stop a report for a name
                writer.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            files.sweep(self.path)
            if self.cases.is_dir():
                files.sweep(self.cases)
                for case in self.cases.iterdir():
                    files.sweep(case)
            yield before
        finally:
            files.remove(writer)
            if new and [path.name for path in self.path.iterdir()] == [LOCK]:
                files.remove(self.path)
            lock.release()

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, or None in a folder without one. Raises Unreadable for one that is not ours."""
        path = self.path / MANIFEST
        found = read_json(path)
        if found is None:
            return None
        version = found.get("report", VERSION) if isinstance(found, dict) else VERSION
        if version != VERSION:
            raise Unreadable(f"{path} has version {version!r}, and this dittools reads {VERSION}: use another folder")
        _fits(path, found, schema.MANIFEST)
        try:
            _check_plan(found["plan"])
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise _damaged(path, f"its plan cannot be read: {error}") from None
        return found

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        files.write_json(self.path / MANIFEST, {"report": VERSION, **manifest})

    def baselines(self) -> dict[str, Any]:
        """What was decided so far, by name; nothing before the first decision."""
        found = (self._read(self.path / name, schema.BASELINES) for name in (BASELINES, OLD_BASELINES))
        return next(filter(None, found), {})

    def write_baselines(self, values: dict[str, Any]) -> None:
        files.write_json(self.path / BASELINES, values)

    def case(self, case_id: str) -> Path:
        return self.cases / case_id

    def frames(self, case_id: str) -> Path:
        """The file with a finished case's frames."""
        encoded, plain = (self.case(case_id) / name for name in FRAMES)
        return plain if plain.is_file() else encoded

    def has_frames(self, case_id: str) -> bool:
        """Whether a case has a file with frames, and something in it."""
        path = self.frames(case_id)
        return path.is_file() and path.stat().st_size > 0

    def video(self, case_id: str) -> Path | None:
        """The clip of a case, or None where none could be made."""
        path = self.case(case_id) / VIDEO
        return path if path.is_file() else None

    def done(self, case_id: str, repeat: int = 0) -> bool:
        """Whether this repeat of a case is finished."""
        return self._timed(case_id, repeat).is_file()

    def record(self, case_id: str, repeat: int = 0) -> dict[str, Any] | None:
        """The record of a case (repeat 0) or of timing it again, or None."""
        return self._read(self._timed(case_id, repeat), schema.REPEAT if repeat else schema.RECORD)

    def write_repeat(self, case_id: str, repeat: int, record: dict[str, Any]) -> None:
        files.write_json(self._timed(case_id, repeat), record)

    @contextlib.contextmanager
    def new_case(self, case_id: str) -> Iterator[Path]:
        """A folder to fill; it becomes the case when the block ends well, in place of one that was not finished."""
        self.cases.mkdir(exist_ok=True)
        with files.whole(self.case(case_id)) as part:
            part.mkdir()
            yield part
            files.remove(self.case(case_id))

    def scores(self, case_id: str, reference_id: str) -> dict[str, Any] | None:
        return self._read(self._against(case_id, reference_id), schema.SCORES)

    def write_scores(self, case_id: str, reference_id: str, values: dict[str, Any]) -> None:
        files.write_json(self._against(case_id, reference_id), values)

    def judged(self, case_id: str) -> dict[str, Any] | None:
        return self._read(self.case(case_id) / "judge.json", schema.JUDGED)

    def write_judged(self, case_id: str, values: dict[str, Any]) -> None:
        files.write_json(self.case(case_id) / "judge.json", values)

    def failures(self) -> list[dict[str, Any]]:
        return self._read(self.path / FAILURES, schema.FAILURES) or []

    def write_failures(self, failures: list[dict[str, Any]]) -> None:
        files.write_json(self.path / FAILURES, failures)

    def write(self, name: str, text: str) -> None:
        files.write_text(self.path / name, text)

    def _read(self, path: Path, shape: Any) -> Any:
        """The JSON in a file, or None where there is no file. Raises Unreadable where it is not of this shape."""
        found = read_json(path)
        if found is not None:
            _fits(path, found, shape)
        return found

    def _timed(self, case_id: str, repeat: int) -> Path:
        return self.case(case_id) / (f"repeat-{repeat}.json" if repeat else RECORD)

    def _against(self, case_id: str, reference_id: str) -> Path:
        return self.case(case_id) / f"against-{reference_id}.json"


def read_json(path: Path) -> Any:
    """The JSON in a file, or None where there is no file. Raises Unreadable, naming the file, for no JSON."""
    try:
        found = files.parse_json(files.read_text(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise _damaged(path, "it is no JSON") from None
    if found is None:
        raise _damaged(path, "it is null")
    return found


def is_report(path: Path) -> bool:
    """Whether a folder is a report's, also one whose manifest is lost or damaged. Other programs have manifests too."""
    if (path / CASES).is_dir() and any((path / name).is_file() for name in (BASELINES, OLD_BASELINES, FAILURES)):
        return True
    try:
        found = read_json(path / MANIFEST)
    except Unreadable:
        return False
    return isinstance(found, dict) and isinstance(found.get("plan"), dict)


def _fits(path: Path, found: Any, shape: Any) -> None:
    why = schema.misfit(found, shape)
    if why:
        raise _damaged(path, why)


def _check_plan(values: dict[str, Any]) -> None:
    """Raises what it may where a plan cannot be read, or its settings made."""
    from dittools.report.plan import Decided, Plan, rows, settings

    plan = Plan.from_dict(values)
    rows(plan, settings(plan, Decided("")))


def _damaged(path: Path, why: str) -> Unreadable:
    return Unreadable(f"{path} is damaged ({why}): remove it, and the report's own command makes it again")


def _pid(writer: Path) -> int | None:
    """The number of the process that a writer's file names, or None."""
    try:
        return int(json.loads(writer.read_text())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
