"""Runs `triton_interpreted.py` in a process of its own: Triton decides at import whether it interprets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_triton_kernel_keeps_the_contract_in_the_interpreter():
    pytest.importorskip("triton")
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", "triton_interpreted.py"]
    done = subprocess.run(
        command,
        cwd=here,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
