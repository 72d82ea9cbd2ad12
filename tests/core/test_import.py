"""What importing the package costs, and from where its rooms are imported: a checkout, an installed package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
ROOMS = ("kernels", "pipelines", "profiles", "cli")
BESIDE = ("benchmarks", "training")  # in a checkout alone
WHERE = f"""
import dittools, importlib, os, sys
for room in {ROOMS}:
    print(os.path.dirname(importlib.import_module("dittools." + room).__file__))
from dittools.pipelines.embedded import captions
from dittools.methods import paro
"""


def child(*arguments, cwd, before=()):
    """A child process without this environment's own install: only folders on its path."""
    path = os.pathsep.join([*map(str, before), *filter(os.path.isdir, sys.path[1:])])
    env = {**os.environ, "PYTHONPATH": path}
    started = [sys.executable, "-S", *arguments]  # without site, what an editable install puts into place is not there
    return subprocess.run(started, cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds the package as a wheel lays it out: rooms inside."""
    site = tmp_path_factory.mktemp("site")
    package = site / "dittools"
    package.mkdir()
    for path in (*(CHECKOUT / "dittools").iterdir(), *(CHECKOUT / room for room in ROOMS)):
        (package / path.name).symlink_to(path)
    return site


def test_a_checkout_works_as_it_stands(installed):
    for before in ((), (installed,)):  # nothing installed, and a package that is not editable
        done = child("-c", WHERE, cwd=CHECKOUT, before=before)
        assert done.stderr == "" and done.returncode == 0
        assert done.stdout.split() == [str(CHECKOUT / room) for room in ROOMS]
    code = f"import importlib; print([importlib.import_module(f'dittools.{{room}}').__file__ for room in {BESIDE}])"
    done = child("-c", code, cwd=CHECKOUT)
    assert done.stdout.strip() == str([str(CHECKOUT / room / "__init__.py") for room in BESIDE])


def test_what_is_not_in_the_package_is_said_to_be_missing(installed, tmp_path):
    done = child("-m", "dittools", "bench", "kernel", cwd=tmp_path, before=(installed,))
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "not in the installed package: clone the repository" in line
    assert child("-m", "dittools", "bench", "--help", cwd=tmp_path, before=(installed,)).returncode == 0


def test_an_installed_package_has_its_rooms_inside(installed, tmp_path):
    done = child("-c", WHERE + "print(dittools._RoomsBeside in sys.meta_path)", cwd=tmp_path, before=(installed,))
    assert done.stderr == "" and done.returncode == 0
    assert done.stdout.split() == [*(str(installed / "dittools" / room) for room in ROOMS), "False"]


def test_a_package_of_a_rooms_name_stays_what_it_is(installed, tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("def get_kernel(): ...")
    code = "import dittools.kernels, kernels; kernels.get_kernel(); print(kernels.__file__)"
    for cwd, before in ((CHECKOUT, (tmp_path,)), (CHECKOUT, (CHECKOUT, tmp_path)), ("/", (tmp_path, installed))):
        done = child("-c", code, cwd=cwd, before=before)
        assert done.stderr == "" and done.stdout.strip() == str(tmp_path / "kernels" / "__init__.py")


def test_the_module_is_the_command():
    import dittools

    done = child("-m", "dittools", "--version", cwd=CHECKOUT)
    assert (done.stdout, done.stderr, done.returncode) == (f"{dittools.__version__}\n", "", 0)


def test_import_leaves_diffusers_transformers_and_triton_alone():
    heavy = ("diffusers", "transformers", "triton")
    code = f"import sys, dittools; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version_is_that_of_the_distribution():
    import importlib.metadata

    import dittools

    assert dittools.__version__ == importlib.metadata.version("dittools")


@pytest.mark.parametrize("first", ["torch.distributed", "torch.nn.functional", "torch.utils._pytree"])
def test_a_submodule_of_late_torch_that_is_imported_first_runs_once(first):
    code = f"""
from dittools.cli.late import import_late
import_late("torch")
import {first} as found
import torch
assert found is torch.{first.removeprefix("torch.")}, "run twice"
assert found.__spec__.loader.path.endswith(".py"), found.__spec__
torch.ones(2).sum()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
