"""Runs the tests of operations with a Triton path in its interpreter: it is chosen when Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = (
    "test_antidiagonal.py",
    "test_block_mass.py",
    "test_clustered.py",
    "test_compensation.py",
    "test_counting_sort.py",
    "test_fill.py",
    "test_hopper_clusters_lists.py",
    "test_kmeans.py",
    "test_likeness.py",
    "test_lists.py",
    "test_permute.py",
    "test_probe.py",
    "test_segment_means.py",
    "test_skipped.py",
)


# In parts, so that processes that share the tests share these too.
PARTS = [FILES[i::4] for i in range(4)]


@pytest.mark.parametrize("files", PARTS, ids=lambda files: files[0].removesuffix(".py"))
def test_the_triton_paths_pass_the_same_tests_in_the_interpreter(files):
    pytest.importorskip("triton")
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", "-k", "interpreted", *files]
    done = subprocess.run(
        command,
        cwd=here,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
