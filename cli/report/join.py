"""Parts of a report, drawn apart (``--share``), become one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from dittools import files
from dittools.pipelines import saving
from dittools.pipelines.errors import BadInput
from dittools.report.folder import FAILURES, MANIFEST, Folder
from dittools.report.plan import Plan

GROUND = ("dittools", "commit", "versions", "device")


def check(folder: Folder, parts: Sequence[str]) -> tuple[list[Folder], dict]:
    """The parts, and the manifest that all of them are of, before anything is written.

    Raises BadInput where a part holds no report or another one.
    """
    found = [Folder(Path(part).expanduser()) for part in parts]
    manifests = [_manifest(part) for part in found]
    first = folder.manifest() or manifests[0]
    for part, manifest in zip(found, manifests, strict=True):
        _fits(part.path, first, manifest)
    return found, first


def join(folder: Folder, parts: Sequence[str]) -> None:
    """Take the finished cases of the parts into the folder; what it has already stays.

    Cases are linked where the disk can do that. Raises as `check`.
    """
    found, first = check(folder, parts)
    with saving.told(folder.path):
        if folder.manifest() is None:  # first: without one a folder is not known as a report
            rest = {key: value for key, value in first.items() if key != "report"}
            folder.write_manifest({**rest, "command": whole_command(first["command"], folder.path)})
        for part in found:
            for case in sorted(part.cases.iterdir()) if part.cases.is_dir() else ():
                if part.record(case.name) is not None and not case.name.startswith("."):
                    _take(folder, case)
        _settle(folder, found)
        failures = folder.failures()
        failures += [entry for part in found for entry in part.failures() if entry not in failures]
        if failures or not (folder.path / FAILURES).exists():
            folder.write_failures(failures)


def _settle(folder: Folder, parts: Sequence[Folder]) -> None:
    """Keep what the first part decided; say so where another decided otherwise, whose baselines are not shown."""
    known = [found for found in (folder.baselines(), *(part.baselines() for part in parts)) if found]
    if not known:
        return
    kept = known[0]
    for name, what in (("other_kernel", "the noise floor's kernel"), ("fewer_steps", "the equal-time steps")):
        values = list(dict.fromkeys(str(found.get(name)) for found in known))
        note = f"parts decided on {what} apart ({', '.join(values)}): shown are those with {values[0]}"
        if len(values) > 1 and note not in kept.get("notes", ()):
            kept = {**kept, "notes": [*kept.get("notes", ()), note]}
    folder.write_baselines(kept)


def whole_command(command: list[str], out: Path) -> list[str]:
    """The command of a part as it would be for the whole report in ``out``."""
    found = list(command)
    own = ("--share", "--phase", "--output", "--out", "-o")  # --out: of an older version
    for flag in own:
        while flag in found:
            at = found.index(flag)
            del found[at : at + 2]
    kept = [word for word in found if not word.startswith(tuple(f"{flag}=" for flag in own))]
    return [*kept, "--output", str(out)]


def _manifest(part: Folder) -> dict:
    manifest = part.manifest()
    if manifest is None:
        raise BadInput(f"--join {part.path} holds no report ({MANIFEST} is missing): give folders of finished parts")
    return manifest


def _fits(path: Path, first: dict, manifest: dict) -> None:
    """Refuse a part of another report."""
    changed = Plan.from_dict(manifest["plan"]).difference(Plan.from_dict(first["plan"]))
    changed += [name for name in GROUND if manifest[name] != first[name]]
    if changed:
        raise BadInput(
            f"--join {path} is a part of another report (other {', '.join(changed)}): parts differ in --share alone"
        )


def _take(folder: Folder, case: Path) -> None:
    """Copy a case whole; measures that only one of two copies has are kept as well."""
    mine = folder.case(case.name)
    if not folder.done(case.name):
        with folder.new_case(case.name) as place:
            shutil.copytree(case, place, copy_function=_link, dirs_exist_ok=True)
        return
    for file in case.iterdir():
        there = mine / file.name
        if not there.exists() or not there.stat().st_size:
            with files.whole(there) as place:
                _link(file, place)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)
