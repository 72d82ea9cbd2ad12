"""What `on_versions.py` asks pip for, and what comes of its runs."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import on_versions


def test_the_oldest_are_the_lower_bounds_of_pyproject():
    bounds = on_versions.dependencies()
    for pin in on_versions.pins("oldest", bounds):
        name, version = pin.split("==")
        assert any(line.startswith(f"{name}>={version}") for line in bounds)
    assert [pin.split("==")[0] for pin in on_versions.pins("oldest", bounds)] == list(on_versions.PACKAGES)
    assert on_versions.pins("oldest", ["torch>=2.6,<3", "diffusers >= 0.40", "transformers>=5.0"])[0] == "torch==2.6"
    assert on_versions.pins("newest", bounds) == list(on_versions.PACKAGES)
    assert on_versions.pins("torch==2.9.1,diffusers==0.41.0", bounds) == ["torch==2.9.1", "diffusers==0.41.0"]
    with pytest.raises(ValueError, match="torch has no lower bound"):
        on_versions.pins("oldest", ["torch", "diffusers>=0.40", "transformers>=5.0"])


@pytest.mark.parametrize(("code", "said"), [(0, "oldest: passed"), (1, "oldest: pytest ended with code 1")])
def test_a_run_says_what_came_of_it(monkeypatch, tmp_path, code, said):
    ran = []

    def run(command, **how):
        ran.append([str(part) for part in command])
        return subprocess.CompletedProcess(command, code if "pytest" in command else 0, stdout="python 3")

    monkeypatch.setattr(on_versions.venv, "create", lambda *_, **__: None)
    monkeypatch.setattr(on_versions.subprocess, "run", run)
    assert on_versions.run("oldest", tmp_path, ["-x"]) == said
    install, uninstall, _, tests = ran
    assert "uninstall" in uninstall and "torchao" in uninstall
    assert {*on_versions.pins("oldest", on_versions.dependencies()), "install"} <= set(install)
    assert tests[1:] == ["-m", "pytest", "-x"]


def test_an_environment_that_cannot_be_made_is_said(monkeypatch, tmp_path):
    def run(command, **how):
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(on_versions.venv, "create", lambda *_, **__: None)
    monkeypatch.setattr(on_versions.subprocess, "run", run)
    assert on_versions.run("newest", tmp_path, []).startswith("newest: the environment could not be made")
