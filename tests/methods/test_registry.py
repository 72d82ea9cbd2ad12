"""Every method that ships, and what `auto` makes of them."""

import pytest
import torch

from dittools import methods
from dittools.methods import auto
from dittools.methods.adaspa import AdaSpa
from dittools.tokens import TokenGrid

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", methods.names())
def test_each_method_is_described_in_one_line_with_its_options(name):
    described = {n: (line, options) for n, line, options in methods.describe()}
    line, options = described[name]
    assert line and "\n" not in line
    assert all(help for _, help in options.values())


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match="unknown method 'SVGG': did you mean svg"):
        methods.create("SVGG", {})


@pytest.mark.parametrize(("steps", "name"), [(50, "adaspa"), (12, "adaspa"), (11, "svg"), (4, "svg")])
def test_auto_searches_where_the_run_is_long_enough_to_pay_for_it(steps, name):
    assert auto.pick(steps, TokenGrid(21, 30, 52), "cuda").name == name
    assert auto.pick(steps, TokenGrid(9, 16, 16), "cpu") == AdaSpa(rows=8)  # where a search costs little
    assert auto.why_dense(TokenGrid(9, 16, 16), 0.8, 64, CPU, steps) is None
    assert auto.why_dense(TokenGrid(21, 30, 52), 0.8, 128, CUDA, steps) is None


def test_auto_runs_images_too():
    image = TokenGrid(1, 128, 128)
    assert auto.why_dense(image, 0.8, 128, CUDA, 28) is None and auto.why_dense(image, 0.8, 128, CUDA, 4) is None
    assert auto.pick(4, image, "cuda").name == "draft"


def test_auto_takes_cubes_for_long_videos_alone():
    for device, rows in (("cuda", 0), ("cpu", 8)):
        assert auto.pick(16, TokenGrid(21, 30, 52), device) == AdaSpa(rows=rows, order="cubes")
        assert auto.pick(16, TokenGrid(21, 24, 24, text=9_000, text_position="last"), device) == AdaSpa(rows=rows)
        assert auto.pick(16, TokenGrid(1, 256, 256), device) == AdaSpa(rows=rows)


def test_options_belong_to_a_method_that_is_named():
    with pytest.raises(ValueError, match="unknown option of method auto 'probe_rows'"):
        methods.create("auto", {"probe_rows": 8})


@pytest.mark.parametrize(
    "grid, sparsity, device, says",
    [
        (TokenGrid(5, 16, 16), 0.8, CPU, "1280 video tokens are too few"),
        (TokenGrid(9, 16, 16), 0.8, CUDA, "2304 video tokens are too few"),
        (TokenGrid(9, 16, 16), 0.1, CPU, "sparsity 0.1 is too low"),
    ],
)
def test_auto_stays_dense_and_says_why(grid, sparsity, device, says):
    assert says in auto.why_dense(grid, sparsity, 64, device, 8)
