"""Runs `hopper_on_a_card.py`, each test in a process that is killed when it hangs: no timeout inside can do that."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hopper_on_a_card import VARIANTS

from dittools.kernels.hopper import why_not_hopper

HERE = Path(__file__).parent
FILE = HERE / "hopper_on_a_card.py"
SECONDS = 120  # of one process: builds included, a healthy card takes a quarter of it
# Every variant is built anew: each gets a process.
SPLIT = {"test_every_variant_matches_the_oracle": tuple(VARIANTS)}
MOST_HANGS = 2

WHY_NOT = why_not_hopper(torch.device("cuda"), torch.bfloat16, 128)
on_a_card = [pytest.mark.gpu, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]
hung = []


def names(path=FILE):
    """Tests of a file, without importing it."""
    found = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return [name for name in found if name.startswith("test_")]


def run(path, name, seconds, only=None):
    """(exit code or None for a hang, output) of one test, or of some of its parameters, in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", f"{path}::{name}"]
    command += ["-k", only] if only else []
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    process = subprocess.Popen(
        command, cwd=HERE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=seconds)
        return process.returncode, said
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate(timeout=30)[0]


def cases():
    assert set(SPLIT) <= set(names())
    return [(name, only) for name in names() for only in SPLIT.get(name, (None,))]


@pytest.mark.parametrize(("name", "only"), [pytest.param(*case, marks=on_a_card) for case in cases()])
@pytest.mark.timeout(SECONDS + 60)
def test_on_a_card(name, only):
    if len(hung) >= MOST_HANGS:
        pytest.fail(f"not run: {' and '.join(hung)} hung before")
    code, said = run(FILE, name, SECONDS, only)
    if code is None:
        hung.append(name)
        pytest.fail(f"killed after {SECONDS} s\n{said[-4000:]}")
    assert code == 0, said[-8000:]


def test_a_hang_is_killed_and_a_failure_is_one(tmp_path):
    (tmp_path / "some.py").write_text(
        "import time\ndef test_hangs():\n    time.sleep(100)\ndef test_fails():\n    assert 0\n"
        "def test_is_fine():\n    pass\n"
    )
    assert names(tmp_path / "some.py") == ["test_hangs", "test_fails", "test_is_fine"]
    assert run(tmp_path / "some.py", "test_hangs", 4)[0] is None
    assert run(tmp_path / "some.py", "test_fails", 60)[0] == 1
    assert run(tmp_path / "some.py", "test_is_fine", 60)[0] == 0
