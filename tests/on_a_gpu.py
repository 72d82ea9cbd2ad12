"""Run the tests that need a GPU and keep what came of them.

    python tests/on_a_gpu.py --json docs/measured/gpu_tests_<card>.json [--sanitizer] [PYTEST ARGUMENTS]

Each file of tests: how many passed, failed and were skipped, what the failures said first, and what tests noted, such
as the memory of a plan. The file is rewritten every few seconds, and failures are told at once: a run that is cut off
leaves what it found, and says that it was not finished. With --sanitizer, compute-sanitizer's memcheck also watches
every kernel on small ragged inputs (`kernels/small_cases.py`).
The exit code is 1 when anything failed.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
CASES = HERE / "kernels" / "small_cases.py"
FOLDERS = (
    "benchmarks",
    "calibrate",
    "kernels",
    "methods",
)  # those with tests marked gpu; others need not be importable there
OUTCOMES = ("failed", "skipped", "passed")
SANITIZER_SECONDS = 240
CASES_AT_ONCE = 5
SECONDS_BETWEEN = 5
Keep = Callable[..., None]  # takes outcomes by file, and `finished`


class Outcomes:
    """A pytest plugin that counts outcomes by file as they come.

    Args:
        keep: called with them every few seconds.
    """

    def __init__(self, keep: Keep):
        self.files: dict[str, dict] = {}
        self._keep, self._kept = keep, time.monotonic()

    def pytest_runtest_logreport(self, report) -> None:
        """Called by pytest for every phase of every test, whichever process ran it."""
        name, _, test = report.nodeid.partition("::")
        entry = self.files.setdefault(name, {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0, "failures": {}})
        entry["seconds"] = round(entry["seconds"] + report.duration, 2)
        if report.failed or report.when == "call" or (report.when == "setup" and report.skipped):
            entry[report.outcome] += 1
        if report.when == "call" and report.user_properties:
            entry.setdefault("noted", {})[test] = {key: str(value) for key, value in report.user_properties}
        if report.failed:
            said = getattr(getattr(report.longrepr, "reprcrash", None), "message", None) or str(report.longrepr)
            entry["failures"][test] = said.splitlines()[:1]
            print(f"\n{report.nodeid}: {said.splitlines()[0] if said else 'failed'}", flush=True)
        if time.monotonic() - self._kept > SECONDS_BETWEEN:
            self._keep(self.files)
            self._kept = time.monotonic()


def run_tests(arguments: list[str], keep: Keep) -> int:
    """Run them, and have their outcomes kept, the last time as finished. Returns pytest's exit code."""
    import pytest

    named = any((HERE.parent / argument.split("::")[0]).exists() for argument in arguments)
    chosen = arguments if named else [*arguments, *(str(HERE / folder) for folder in FOLDERS)]
    outcomes = Outcomes(keep)
    code = pytest.main(["-m", "gpu", "-q", *chosen], plugins=[outcomes])
    keep(outcomes.files, finished=True)
    return int(code)


def case_names() -> list[str]:
    """The keys of `CASES` in small_cases.py, without importing what needs a GPU."""
    for node in ast.parse(CASES.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "CASES":
            return [key.value for key in node.value.keys]
    raise LookupError(f"{CASES.name} has no CASES")


def sanitize(name: str) -> dict:
    """One kernel under compute-sanitizer: its errors, and whether the result was right."""
    command = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", sys.executable, str(CASES), name]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # so that every tensor has bounds of its own
    begun = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=HERE / "kernels", env=environment, capture_output=True, text=True, timeout=SANITIZER_SECONDS
        )
    except subprocess.TimeoutExpired:
        return {"clean": False, "said": f"stopped after {SANITIZER_SECONDS} s"}
    errors = re.search(r"ERROR SUMMARY: (\d+) error", done.stdout)
    found = {
        "errors": int(errors.group(1)) if errors else None,
        "right": "right" in done.stdout.split(),
        "seconds": round(time.monotonic() - begun, 1),
    }
    found["clean"] = found["errors"] == 0 and found["right"] and done.returncode == 0
    if not found["clean"]:
        found["said"] = (done.stdout + done.stderr)[-1500:]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, required=True, help="where the result goes")
    parser.add_argument("--sanitizer", action="store_true", help="compute-sanitizer on small cases too")
    options, others = parser.parse_known_args()
    import torch

    from dittools import files, provenance

    if not torch.cuda.is_available():
        sys.exit("no CUDA device was found: these tests need one")
    result = {
        "command": ["python", "tests/on_a_gpu.py", *sys.argv[1:]],
        "dittools": provenance.dittools_version(),
        "versions": provenance.versions(),
        "device": provenance.device_facts(torch.device("cuda")),
        "commit": provenance.commit(),
    }
    options.json = options.json.resolve()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    os.chdir(HERE.parent)
    sys.path[0] = str(HERE.parent)  # as `python -m pytest` has it there

    def keep(found: dict[str, dict], finished: bool = False) -> None:
        result["files"] = dict(sorted(found.items()))
        result["total"] = {name: sum(entry[name] for entry in found.values()) for name in OUTCOMES}
        result["finished"] = finished
        files.write_json(options.json, result)

    code = run_tests(others, keep)
    if options.sanitizer:
        result["memcheck"] = {}
        with ThreadPoolExecutor(CASES_AT_ONCE) as pool:
            for name, found in pool.map(lambda name: (name, sanitize(name)), case_names()):
                result["memcheck"][name] = found
                print(f"compute-sanitizer, {name}: {'clean' if found['clean'] else found}", flush=True)
                files.write_json(options.json, result)
        code = code or not all(found["clean"] for found in result["memcheck"].values())
    print(", ".join(f"{count} {name}" for name, count in result["total"].items()))
    sys.exit(1 if code else 0)


if __name__ == "__main__":
    main()
