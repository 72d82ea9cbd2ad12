"""Tests that may hang a card, each in a process that is killed when it does: no timeout inside can do that."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dittools.kernels.capability import why_not_hopper

HERE = Path(__file__).parent
SECONDS = 120  # of one process: builds included, a healthy card takes a quarter of it
MOST_HANGS = 2
WHY_NOT = why_not_hopper(torch.device("cuda"), torch.bfloat16, 128)
on_a_card = [pytest.mark.gpu, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]


def names(path):
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


def card_tests(file, split):
    """A test that runs each test of a file beside this one, on a card; those in ``split`` once for each of its words.

    After `MOST_HANGS` hangs the rest is not run.
    """
    path, hung = HERE / file, []
    assert set(split) <= set(names(path))
    cases = [(name, only) for name in names(path) for only in split.get(name, (None,))]

    @pytest.mark.parametrize(("name", "only"), [pytest.param(*case, marks=on_a_card) for case in cases])
    @pytest.mark.timeout(SECONDS + 60)
    def test_on_a_card(name, only):
        if len(hung) >= MOST_HANGS:
            pytest.fail(f"not run: {' and '.join(hung)} hung before")
        code, said = run(path, name, SECONDS, only)
        if code is None:
            hung.append(name)
            pytest.fail(f"killed after {SECONDS} s\n{said[-4000:]}")
        assert code == 0, said[-8000:]

    return test_on_a_card
