"""Check the types of the public API with mypy, over the package as a wheel lays it out.

python -m dittools.tools.type_check
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from dittools.tools.site_rooms import ROOT, linked

PUBLIC = (
    "__init__", "acceleration", "config", "methods/base", "caches/base", "corrections/base", "kernels/__init__",
    "kernels/block_sparse/dispatch", "kernels/dense", "kernels/choice", "kernels/attn_merge",
)  # fmt: skip


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        package = linked(Path(folder))
        files = [str(package / f"{name}.py") for name in PUBLIC]
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *files]
        return subprocess.run(command, cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main())
