"""A tiny random pipeline on disk, and the command run in this process."""

import json
from typing import NamedTuple

import pytest

from dittools.cli.main import main
from tests.tiny import tiny_pipeline

SMALL = ("--frames", 17, "--height", 96, "--width", 112, "--steps", 2, "--fewer-steps", 1)
PROMPT = "a red circle moves left"


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """A whole diffusers pipeline folder with random weights."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Run `dittools` with these arguments in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def generate(cli, tiny_weights):
    """`dittools generate` on the tiny weights, as small as they go unless told otherwise."""

    def run(*arguments):
        small = {"--frames": 5, "--height": 48, "--width": 64, "--steps": 2, "--weights": tiny_weights}
        defaults = [part for flag, value in small.items() if flag not in arguments for part in (flag, value)]
        return cli("generate", *defaults, *arguments)

    return run


@pytest.fixture
def report(cli, tiny_weights, tmp_path):
    """`dittools report` on the tiny weights, as small as it goes, with a method that runs sparse."""
    (tmp_path / "prompts.txt").write_text(PROMPT)

    def run(*arguments):
        flags = ["--weights", tiny_weights, "--output", "report", *SMALL, "--prompts", "prompts.txt"]
        return cli("report", *flags, "--sweep", "sparsity=0.5", "--method", "svg", *arguments)

    return run


@pytest.fixture
def embedded_model(tiny_weights, monkeypatch):
    """The tiny weights in place of the embedded model."""
    from dittools.pipelines import embedded

    defaults = {
        "height": 48,
        "width": 64,
        "frames": 5,
        "steps": 2,
        "guidance": 4.0,
        "fps": 16,
        "prompt": "a red circle moves left",
        "negative_prompt": "",
        "max_sequence_length": 16,
    }
    words = {"a", "red", "green", "blue", "circle", "square", "moves", "left", "right"}
    monkeypatch.setattr(embedded, "weights_path", lambda: tiny_weights, raising=False)
    monkeypatch.setattr(embedded, "DEFAULTS", defaults, raising=False)
    monkeypatch.setattr(
        embedded, "unknown_words", lambda prompt: [w for w in prompt.split() if w not in words], raising=False
    )


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """The folder that pipelines are saved in."""
    return tmp_path_factory.mktemp("shelf")
