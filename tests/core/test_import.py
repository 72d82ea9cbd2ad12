"""What importing the package costs."""

import subprocess
import sys


def test_import_leaves_diffusers_transformers_and_triton_alone():
    heavy = ("diffusers", "transformers", "triton")
    code = f"import sys, dittools; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version_is_that_of_the_distribution():
    import importlib.metadata

    import dittools

    assert dittools.__version__ == importlib.metadata.version("dittools")
