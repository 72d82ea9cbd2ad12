"""The file of a bench: written whole after every row, and gone on with when the same command is given again."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from dittools import files, provenance

FORMAT = 1


class Results:
    """Rows by id, and the file they go to.

    Args:
        kind: "kernels" or "model".
        device: the torch device they are measured on.
        command: as it was given.
        path: the file; rows there that still hold are kept. None keeps nothing.

    Raises:
        ValueError: when the file holds something else, or figures of another card.
    """

    def __init__(self, kind: str, device: Any, command: list[str], path: Path | None):
        self.path = path
        self.head = {
            "format": FORMAT,
            "kind": kind,
            "dittools": provenance.dittools_version(),
            "versions": provenance.versions(),
            "device": facts(device),
            "command": command,
        }
        self.rows: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self._read(path)

    def holds(self, job: dict[str, Any]) -> bool:
        """Whether this very job was done well by this code."""
        row = self.rows.get(job["id"])
        return (
            row is not None
            and not failed(row)
            and row["source"] == source(self.head["kind"])
            and row["job"] == as_json(job)
        )

    def add(self, job: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
        """Put a result in, and write the file."""
        row = {
            "id": job["id"],
            "job": as_json({name: value for name, value in job.items() if name != "without"}),
            "source": source(self.head["kind"]),
            "commit": provenance.commit(),
            **result,
        }
        self.rows[job["id"]] = row
        self.write()
        return row

    def write(self) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(self.path, self.whole())

    def whole(self) -> dict[str, Any]:
        """The file's content."""
        return {**self.head, "rows": list(self.rows.values())}

    def _read(self, path: Path) -> None:
        try:
            found = files.parse_json(files.read_text(path))
            same = found["kind"] == self.head["kind"] and found["format"] == FORMAT
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise ValueError(f"{path} is not a file of {self.head['kind']} that this dittools wrote: give another")
        if found["device"]["name"] != self.head["device"]["name"]:
            raise ValueError(
                f"{path} holds figures of {found['device']['name']}, and this is {self.head['device']['name']}: "
                "give another file"
            )
        self.rows = {row["id"]: row for row in found["rows"]}


def failed(row: dict[str, Any]) -> bool:
    """Whether one of our own gave a wrong result, failed or hung in this row."""
    return "error" in row or any(name in row.get("wrong", {}) for name in row.get("ours", ()))


def facts(device: Any) -> dict[str, Any]:
    """What a figure has to name of its device."""
    found = provenance.device_facts(device)
    if device.type == "cuda":
        import torch

        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
        found["power_limit_watts"] = provenance.power_limit_watts(device)
        found["cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def as_json(job: dict[str, Any]) -> dict[str, Any]:
    """A job as it reads back from a file."""
    return json.loads(json.dumps(job))


@cache
def source(kind: str) -> str:
    """A hash of the code that decides figures: of kernels and the bench, or for whole models of all but commands."""
    import dittools
    import dittools.benchmarks
    import dittools.kernels
    import dittools.pipelines

    root, *rooms = (Path(p.__path__[0]) for p in (dittools, dittools.benchmarks, dittools.kernels, dittools.pipelines))
    paths = [path for room in rooms[:2] for path in room.rglob("*.py")]
    if kind == "model":
        paths += [*root.glob("*.py"), *rooms[2].glob("*.py")]
        for part in ("methods", "selection", "orders", "corrections", "caches"):
            paths += (root / part).glob("*.py")
    found = hashlib.sha256()
    for path in sorted(paths):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]
