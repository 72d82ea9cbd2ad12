"""Every method that ships, and what `auto` makes of them."""

import pytest
import torch

from dittools import methods
from dittools.methods import auto
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


def test_auto_runs_svg_on_a_grid_that_is_large_enough_for_the_device():
    assert auto.why_dense(TokenGrid(9, 16, 16), 0.8, 64, CPU) is None
    assert auto.why_dense(TokenGrid(21, 30, 52), 0.8, 128, CUDA) is None


@pytest.mark.parametrize(
    "grid, sparsity, device, says",
    [
        (TokenGrid(5, 16, 16), 0.8, CPU, "1280 video tokens are too few"),
        (TokenGrid(9, 16, 16), 0.8, CUDA, "2304 video tokens are too few"),
        (TokenGrid(9, 16, 16), 0.1, CPU, "sparsity 0.1 is too low"),
        (TokenGrid(1, 64, 64), 0.8, CPU, "1 frame"),
    ],
)
def test_auto_stays_dense_and_says_why(grid, sparsity, device, says):
    assert says in auto.why_dense(grid, sparsity, 64, device)
