"""The method that docs/architecture.md shows is a method like any other."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

import dittools
from dittools import methods
from dittools.methods import METHODS
from tests.methods import test_every_method as every
from tests.tiny import draw, tiny_pipeline

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
NAME = "diagonal"


def example(kind: str) -> str:
    """The Python after the mark of this kind, as the page has it."""
    return re.search(rf"<!-- example: {kind} -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)[1]


@pytest.fixture(autouse=True)
def registered(tmp_path, monkeypatch):
    """The page's one file imported and its one row entered, for one test."""
    path = tmp_path / f"{NAME}.py"
    path.write_text(example("method"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"dittools.methods.{NAME}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(METHODS, NAME, module.Diagonal)
    row = {"SET": {}, "WRONG": {}}
    exec(example("row"), row)
    monkeypatch.setitem(every.SET, NAME, row["SET"][NAME])
    monkeypatch.setitem(every.WRONG, NAME, row["WRONG"][NAME])


def test_it_is_listed_with_its_options():
    assert NAME in methods.names()
    assert methods.options(NAME)["order"][0] == "raster"


@pytest.mark.parametrize("grid", every.GRIDS)
def test_nothing_skipped_is_dense_attention(grid):
    every.test_nothing_skipped_is_dense_attention(NAME, grid)


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("grid", every.GRIDS)
def test_the_asked_sparsity_is_met_and_every_row_keeps_something(grid, sparsity):
    every.test_the_asked_sparsity_is_met_and_every_row_keeps_something(NAME, grid, sparsity)


@pytest.mark.parametrize("grid", ["text first", "text last"])
def test_text_sees_all_and_is_seen_by_all(grid):
    every.test_text_sees_all_and_is_seen_by_all(NAME, grid)


@pytest.mark.parametrize("options", ["auto", "set"])
@pytest.mark.parametrize("grid", every.GRIDS)
def test_the_output_is_the_softmax_over_what_is_kept(grid, options):
    every.test_the_output_is_the_softmax_over_what_is_kept(NAME, grid, options)


@pytest.mark.parametrize(
    "check",
    [
        every.test_the_same_call_twice_gives_the_same_pairs,
        every.test_options_survive_a_config_file_and_change_the_pairs,
        every.test_wrong_options_are_said_in_one_line,
        every.test_a_grid_that_is_too_small_is_refused,
        every.test_every_option_says_what_it_sets,
    ],
    ids=lambda check: check.__name__.removeprefix("test_"),
)
def test_it_passes_the_checks_of_every_method(check):
    check(NAME)


def test_a_whole_pipeline_runs_it():
    pipe = tiny_pipeline()
    plain = draw(pipe)
    with dittools.accelerate(pipe, method=NAME, sparsity=0.7, dense_steps=1) as run:
        sparse = draw(pipe)
        record = run.record()
    assert sparse.isfinite().all() and not torch.allclose(sparse, plain, atol=1e-3)
    assert record["sparsity"]["sparse_calls"] == pytest.approx(0.7, abs=0.02)
    with dittools.accelerate(pipe, method=NAME, sparsity=0.0, dense_steps=0):
        torch.testing.assert_close(draw(pipe), plain, rtol=1e-3, atol=1e-3)
    assert torch.equal(draw(pipe), plain)


def test_it_takes_one_short_file():
    code = [line for line in example("method").splitlines() if line.strip() and not line.lstrip().startswith('"""')]
    assert sum(not line.startswith(("import", "from")) for line in code) < 25
