"""The figures in the docs are those of the committed measurements."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_performance_page_agrees_with_its_json():
    done = subprocess.run([sys.executable, ROOT / "docs" / "figures.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
