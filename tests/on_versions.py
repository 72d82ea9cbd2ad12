"""Run the tests over the oldest and the newest versions that pyproject.toml allows, in fresh environments.

    python tests/on_versions.py [--only oldest|newest|NAME==VERSION,...] [--keep FOLDER] [--dry] [PYTEST ARGUMENTS]

Before a release: without arguments of pytest it is the whole suite, twice. `oldest` takes the lower bounds of torch,
diffusers and transformers in pyproject.toml, `newest` whatever the package index has; pins of one's own come as
`torch==2.9.1,diffusers==0.41.0`. An environment is made with pip in a folder of its own, kept with --keep and then
found again. What was installed is said first, and a line for each environment last; the exit code is 1 when a test
failed or an environment could not be made.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "diffusers", "transformers")
ENDS = ("oldest", "newest")
# Of the tests' own needs, what breaks an older torch by being there: peft imports it, and diffusers imports peft.
LEFT_OUT = ("torchao",)
SHOWN = (*PACKAGES, "triton", "accelerate", "huggingface_hub", "numpy")


def pins(end: str, dependencies: list[str]) -> list[str]:
    """What pip is asked for besides dittools, by ``end``: "oldest", "newest" or pins of one's own.

    Args:
        dependencies: of pyproject.toml.

    Raises:
        ValueError: when a package has no lower bound there.
    """
    if end not in ENDS:
        return end.split(",")
    if end == "newest":
        return list(PACKAGES)
    found = []
    for name in PACKAGES:
        bounds = [re.fullmatch(rf"{name}\s*>=\s*([\d.]+)(,.*)?", line) for line in dependencies]
        bound = next((match[1] for match in bounds if match), None)
        if bound is None:
            raise ValueError(f"{name} has no lower bound in pyproject.toml: give it one")
        found.append(f"{name}=={bound}")
    return found


def dependencies() -> list[str]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def make(folder: Path, asked: list[str]) -> Path:
    """An environment with dittools and what was asked for; its python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    # Newest of all where nothing is pinned: pip keeps what is there unless it is told to look.
    command = [python, "-m", "pip", "install", "-q", "--upgrade", "-e", f"{ROOT}[dev]", *asked]
    subprocess.run(command, check=True)
    if any(pin.startswith("torch==") for pin in asked):
        subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *LEFT_OUT], check=True)
    return python


def versions(python: Path) -> str:
    """Python and the packages that matter, as they are there."""
    asked = "import importlib.metadata as m, platform, sys\nprint('python', platform.python_version(), end='')\n"
    asked += "for name in sys.argv[1:]:\n    print(',', name, m.version(name), end='')"
    done = subprocess.run([python, "-c", asked, *SHOWN], capture_output=True, text=True, check=True)
    return done.stdout


def run(end: str, folder: Path, arguments: list[str]) -> str:
    """What came of one environment, in a line that ends in "passed" when all did."""
    try:
        python = make(folder, pins(end, dependencies()))
    except (subprocess.CalledProcessError, OSError) as error:
        return f"{end}: the environment could not be made: {error}"
    print(f"{end}: {versions(python)}", flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = subprocess.run([python, "-m", "pytest", *arguments], cwd=ROOT, env=environment, check=False).returncode
    return f"{end}: {'passed' if code == 0 else f'pytest ended with code {code}'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", help="oldest, newest, or pins as torch==2.9.1,diffusers==0.41.0")
    parser.add_argument("--keep", type=Path, help="a folder for the environments, which stay there")
    parser.add_argument("--dry", action="store_true", help="say what would be installed, and stop")
    options, arguments = parser.parse_known_args()
    ends = [options.only] if options.only else list(ENDS)
    if options.dry:
        for end in ends:
            print(f"{end}: {', '.join(pins(end, dependencies()))}")
        return
    with tempfile.TemporaryDirectory() as scratch:
        home = options.keep or Path(scratch)
        said = [run(end, home / re.sub(r"[^\w.]+", "-", end), arguments) for end in ends]
    print("\n".join(said))
    sys.exit(0 if all(line.endswith(": passed") for line in said) else 1)


if __name__ == "__main__":
    main()
