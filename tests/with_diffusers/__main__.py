"""diffusers' own tests of transformers and pipelines, without dittools and with it: none may fail that passed.

    python tests/with_diffusers FOLDER                 all files; FOLDER holds a checkout of diffusers, or its tests/
    python tests/with_diffusers FOLDER --only wan flux files with these words in their names
    python tests/with_diffusers FOLDER --json OUT      also keep what was found, and go on from there
    python tests/with_diffusers FOLDER --plain FILE    keep what passes without dittools, and find it kept next time

With dittools on, each transformer that a test makes is accelerated at once: a method that keeps all pairs, and a cache
that keeps every output and computes every step. Tests that need a network or a GPU fail or are skipped in both runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDERS = ("tests/models/transformers", "tests/pipelines")
LIMIT, SLOW = 1800, 240  # seconds a file, and a test


def test_files(folder: Path, words: list[str]) -> list[str]:
    """Test files of transformers that run sparse, and of pipelines around them, relative to the folder."""
    sys.path.insert(0, str(folder))
    from dittools.pipelines.families import FAMILIES

    able = [family.transformer for family in FAMILIES if family.why_not is None]
    found = []
    for path in sorted(p for part in FOLDERS for p in (folder / part).rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if any(name in text for name in able) and (not words or any(word in path.name for word in words)):
            found.append(str(path.relative_to(folder)))
    return found


def run(folder: Path, file: str, attach: bool, tests: list[str] | None = None) -> dict:
    """The outcome of each test of a file, or of those named, and the calls that dittools counted."""
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = Path(scratch) / "outcomes.json"
        environment = {
            **os.environ,
            "DITTOOLS_ATTACH": str(int(attach)),
            "DITTOOLS_OUTCOMES": str(outcomes),
            "PYTHONPATH": str(HERE),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "attach_dittools", "-p", "no:cacheprovider"]
        command += ["--timeout", "120", "--rootdir", str(folder), file]
        try:
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return {"tests": {}, "calls": {}, "error": f"no end within {LIMIT} s"}
        if not outcomes.exists():
            return {"tests": {}, "calls": {}, "error": (done.stdout + done.stderr)[-400:]}
        return json.loads(outcomes.read_text())


class Plain:
    """What passes without dittools, by file: found once, and kept in a file where one is named."""

    def __init__(self, folder: Path, path: Path | None):
        self._folder, self._path, self._lock = folder, path, threading.Lock()
        self._known = json.loads(path.read_text()) if path is not None and path.exists() else {}

    def passed(self, file: str) -> list[str]:
        """Tests of a file that pass."""
        if file not in self._known:
            found = run(self._folder, file, False)
            if "error" in found:
                raise RuntimeError(found["error"])
            with self._lock:
                self._known[file] = [name for name, outcome in found["tests"].items() if outcome == "passed"]
                if self._path is not None:
                    self._path.write_text(json.dumps(self._known, indent=1) + "\n", encoding="utf-8")
        return self._known[file]


def compare(folder: Path, file: str, plain: Plain) -> dict:
    """What passes without dittools, and what of that does not with it."""
    begun = time.perf_counter()
    try:
        passed = plain.passed(file)
        found = run(folder, file, True, passed) if passed else {"tests": {}, "calls": {}}
    except RuntimeError as error:
        passed, found = [], {"tests": {}, "calls": {}, "error": str(error)}
    lost = [name for name in passed if found["tests"].get(name) != "passed"]
    seconds = round(time.perf_counter() - begun, 1)
    print(
        f"{file}: {len(passed)} pass, {len(lost)} of them not with dittools, {found['calls']}, {seconds} s", flush=True
    )
    for name in lost:
        print(f"  LOST {name}", flush=True)
    row = {"file": file, "passed": len(passed), "lost": lost, "calls": found["calls"], "seconds": seconds}
    if "error" in found:
        row["error"] = found["error"]
        print(f"  {found['error']}", flush=True)
    return row


def kept(path: Path | None) -> list[dict]:
    """Rows of a file of results, as far as they were found with the versions of this environment."""
    from dittools.provenance import versions

    if path is None or not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    return [row for row in found["files"] if "error" not in row] if found["versions"] == versions() else []


def totals(rows: list[dict]) -> dict[str, int]:
    """Tests that pass without dittools, and how many of them do not with it."""
    return {"passed": sum(row["passed"] for row in rows), "lost": sum(len(row["lost"]) for row in rows)}


def keep(path: Path | None, rows: list[dict]) -> None:
    """Write what is known so far."""
    from dittools.provenance import versions

    if path is not None:
        rows = sorted(rows, key=lambda row: row["file"])
        found = {"versions": versions(), **totals(rows), "files": rows}
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plain", type=Path)
    parser.add_argument("--workers", type=int, default=1, help="files at a time")
    asked = parser.parse_args()
    files = test_files(asked.folder, asked.only)
    if not files:
        print(f"{asked.folder} has no test files of transformers that run sparse", file=sys.stderr)
        return 2
    rows = kept(asked.json)
    todo = [file for file in files if file not in {row["file"] for row in rows}]
    with ThreadPoolExecutor(asked.workers) as pool:
        plain = Plain(asked.folder, asked.plain)
        for row in pool.map(lambda file: compare(asked.folder, file, plain), todo):
            rows.append(row)
            keep(asked.json, rows)
    found = totals(rows)
    print(f"{len(rows)} files, {found['passed']} tests pass without dittools, {found['lost']} of them not with it")
    return int(found["lost"] > 0 or any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
