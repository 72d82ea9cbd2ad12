"""Run the tests that need a GPU and keep what came of them.

    python tests/on_a_gpu.py --json docs/measured/gpu_tests_<card>.json [--sanitizer] [PYTEST ARGUMENTS]

Each file of tests: how many passed, failed and were skipped, what the failures said first, and what tests noted, such
as the memory of a plan. With --sanitizer, compute-sanitizer's memcheck also watches every kernel on small ragged inputs
(`kernels/small_cases.py`).
The exit code is 1 when anything failed.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).parent
CASES = HERE / "kernels" / "small_cases.py"
FOLDERS = (
    "bench",
    "calibrate",
    "kernels",
    "methods",
)  # those with tests marked gpu; others need not be importable there
OUTCOMES = ("failed", "skipped", "passed")
SANITIZER_SECONDS = 240


def read(report: Path) -> dict[str, dict]:
    """Outcomes by file, from pytest's JUnit XML."""
    files: dict[str, dict] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("classname", "").replace(".", "/") + ".py"
        entry = files.setdefault(name, {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0, "failures": {}})
        bad = [x for tag in ("failure", "error") for x in case.findall(tag)]
        outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        entry[outcome] += 1
        entry["seconds"] = round(entry["seconds"] + float(case.get("time", 0)), 2)
        noted = {p.get("name"): p.get("value") for p in case.iter("property")}
        if noted:
            entry.setdefault("noted", {})[case.get("name")] = noted
        if bad:
            entry["failures"][case.get("name")] = (bad[0].get("message") or "").splitlines()[:1]
    return dict(sorted(files.items()))


def run_tests(arguments: list[str]) -> tuple[dict[str, dict], int]:
    """(outcomes by file, pytest's exit code)."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        named = any((HERE.parent / argument.split("::")[0]).exists() for argument in arguments)
        chosen = arguments if named else [*arguments, *(str(HERE / folder) for folder in FOLDERS)]
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", f"--junitxml={report}", *chosen]
        code = subprocess.run(command, cwd=HERE.parent).returncode
        return (read(report) if report.exists() else {}), code


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
    result["files"], code = run_tests(others)
    result["total"] = {name: sum(entry[name] for entry in result["files"].values()) for name in OUTCOMES}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(options.json, result)
    if options.sanitizer:
        result["memcheck"] = {}
        for name in case_names():
            result["memcheck"][name] = found = sanitize(name)
            print(f"compute-sanitizer, {name}: {'clean' if found['clean'] else found}", flush=True)
            files.write_json(options.json, result)
        code = code or not all(found["clean"] for found in result["memcheck"].values())
    print(", ".join(f"{count} {name}" for name, count in result["total"].items()))
    sys.exit(1 if code else 0)


if __name__ == "__main__":
    main()
