"""The matrix of models: records, results of their tests, README and command line say the same."""

import subprocess
import sys
from pathlib import Path

import diffusers

from dittools.pipelines import matrix
from tests.pipelines import test_families, test_kinds, test_pairs

ROOT = Path(__file__).parents[2]


def test_results_kept_are_those_of_the_tests_there_are():
    kept = matrix.tested()
    assert set(test_families.CHECKS) <= set(vars(test_families))
    checks = list(dict.fromkeys(test_families.CHECKS.values()))
    of = {"text": test_families.JOINT, "keys": test_families.KEYS_ALONE}
    assert kept["families"] == {
        name: [check for check in checks if name in of.get(check, test_families.ABLE)]
        for name in sorted(test_families.ABLE)
    }
    pairs = {name.removeprefix("test_").replace("_", " ") for name in vars(test_pairs) if name.startswith("test_")}
    assert set(kept["pairs"]) == pairs
    assert set(kept["kinds"]) == {name.replace("_", " ") for name in test_kinds.KINDS}
    assert kept["versions"]["diffusers"] == diffusers.__version__, "run python -m dittools.tools.models_matrix --test"


def test_the_readme_has_the_matrix_of_the_records():
    done = subprocess.run(
        [sys.executable, "-m", "dittools.tools.models_matrix", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_every_family_has_a_row_with_what_was_tested_or_why_not():
    rows = matrix.rows()
    assert len({row["name"] for row in rows}) == len(rows)
    assert all(bool(row["tested"]) == (row["why_not"] is None) for row in rows)
