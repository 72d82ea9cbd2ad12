"""Fill the matrix of models in README.md from the records and from what their tests gave.

python -m dittools.tools.models_matrix           write the matrix
python -m dittools.tools.models_matrix --test    run the tests of the families, and keep their results, which
                                                 `dittools models` shows too
python -m dittools.tools.models_matrix --check   exit with 1 where README.md and records or results disagree
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dittools.tools.pages import write_or_check

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "pipelines" / "tested.json"
BEGIN, END = "<!-- models -->", "<!-- /models -->"


class Results:
    """A pytest plugin that keeps which check of which family passed, and which pairs did."""

    def __init__(self):
        self.families: dict[str, list[str]] = {}
        self.pairs: dict[str, bool] = {}
        self.kinds: list[str] = []

    def pytest_runtest_logreport(self, report) -> None:
        """Called by pytest for every phase of every test."""
        if report.when != "call":
            return
        function, _, case = report.nodeid.rsplit("::", 1)[-1].partition("[")
        if "test_pairs" in report.nodeid:
            name = function.removeprefix("test_").replace("_", " ")
            self.pairs[name] = self.pairs.get(name, True) and report.passed
        elif "test_kinds" in report.nodeid:
            self.kinds += [case.removesuffix("]").replace("_", " ")] if report.passed else []
        elif function in checks() and report.passed:
            self.families.setdefault(case.removesuffix("]"), []).append(checks()[function])


def checks() -> dict[str, str]:
    """Test function -> what it shows."""
    from tests.pipelines.test_families import CHECKS

    return CHECKS


def run_tests() -> int:
    """Run the tests and keep their results. Returns pytest's exit code; keeps nothing when it is not 0."""
    import pytest

    from dittools.provenance import versions

    results = Results()
    tests = [str(ROOT / "tests" / "pipelines" / f"test_{name}.py") for name in ("families", "pairs", "kinds")]
    code = pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[results])
    if code == 0:
        found = {
            "device": "cpu",
            "versions": {name: versions()[name] for name in ("torch", "diffusers")},
            "families": dict(sorted(results.families.items())),
            "pairs": sorted(name for name, passed in results.pairs.items() if passed),
            "kinds": sorted(results.kinds),
        }
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(code)


def matrix() -> str:
    """The matrix as Markdown."""
    from dittools.pipelines.matrix import rows, tested

    results = tested()
    head = ["model", "draws", "sparse attention", "text", "`generate`", "tested", "mind"]
    lines = [head, ["---"] * len(head)]
    for row in rows():
        able = row["why_not"] is None
        lines.append([
            f"`{row['name']}`: {row['title']}",
            row["draws"],
            "yes" if able else "no",
            row["text"] if able else "",
            "yes" if row["generate"] else "",
            ", ".join(row["tested"]),
            row["notes"] if able else row["why_not"],
        ])  # fmt: skip
    versions = ", ".join(f"{name} {value}" for name, value in results["versions"].items())
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    beside = {name: ", ".join(results[name]) for name in ("pairs", "kinds")}
    return f"{table}\n\n{MEANING.format(versions=versions, **beside)}"


MEANING = (
    "Tested on tiny random models of diffusers' own classes, on a CPU, with {versions}. *budget*: all pairs give the "
    "dense result, in a batch whose texts differ in length; *axes*: a mask along frames, rows or columns keeps a "
    "change there; *text*: text reaches the picture only from where it is thought to be; *keys*: text that gives keys "
    "alone is seen by every query and counted in no budget; *restore*: bit-identical. "
    "No checkpoint of these but the embedded one has been run. Beside dittools, before and after it: {pairs}. "
    "Pipelines of other kinds around the same transformers, sparse and restored: {kinds}."
)


def filled(text: str) -> str:
    """README with the present matrix between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{matrix()}\n\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    if asked.test:
        return run_tests()
    differs = "README.md has not the matrix of the records: run python -m dittools.tools.models_matrix"
    return write_or_check(README, filled(README.read_text(encoding="utf-8")), asked.check, differs)


if __name__ == "__main__":
    sys.exit(main())
