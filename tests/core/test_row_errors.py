"""What a run tells of its own error: held against the true one, call by call."""

import json
import math
from functools import partial

import pytest
import torch

from dittools import Config
from dittools.call_info import CallInfo, Timing
from dittools.row_errors import Estimate, estimate, exact_rows, sums_of_rows, together
from dittools.runtime import Layer, Runtime
from dittools.summary import record, summary
from dittools.tokens import Layout, TokenGrid
from tests.methods.test_corrections import neighbourly

GRID, SCALE, STEPS = TokenGrid(6, 8, 9), 0.125, 4


def exact(q, k, v, mask=None):
    x = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), scale=SCALE, attn_mask=mask
    )
    return x.transpose(1, 2)


def play(grid=GRID, layers=2, branches=("cond",), mask=None, layout=None, **settings):
    """A run, and the true squared errors and sizes of its sparse calls by step and layer."""
    given = {"method": "sparge", "sparsity": 0.7, "dense_steps": 1, "dense_layers": 0, "block_size": 64}
    runtime = Runtime(Config(**given | settings), [Layer(str(i), i) for i in range(layers)])
    schedule, true = torch.linspace(1000, 0, STEPS), {}
    for step in range(STEPS):
        for branch in branches:
            timing = Timing(schedule[step], schedule, branch, step_index=step, steps=STEPS)
            runtime.begin_call(CallInfo(timing, grid, torch.device("cpu"), torch.float32, layout=layout))
            for layer in range(layers):
                q, k, v = neighbourly(grid, seed=10 * step + layer + 100 * (branch == "uncond"))
                q = q * (1 + layer)  # sharper with depth: errors that differ
                out = runtime.attend(layer, q, k, v, dense=lambda q=q, k=k, v=v: exact(q, k, v, mask), mask=mask)
                want = exact(q, k, v, mask)
                wrong, whole = true.get((step, layer), (0.0, 0.0))
                sizes = (out - want).square().sum(), want.square().sum()
                true[step, layer] = wrong + float(sizes[0]), whole + float(sizes[1])
            assert not runtime.end_call()
    return runtime, {place: math.sqrt(a / b) for place, (a, b) in true.items() if place[0]}


def test_with_every_row_the_estimate_is_the_error_itself():
    runtime, true = play(error_rows=GRID.tokens, branches=("cond", "uncond"), sparsity=0.8)
    cells = record(runtime)["attention_error"]["cells"]
    assert [(step, layer) for step, layer, *_ in cells] == sorted(true)
    for step, layer, error, _ in cells:
        assert error == pytest.approx(true[step, layer], rel=1e-4)


@pytest.mark.parametrize("correction", ["none", "sampled", "centroids"])
def test_a_few_rows_tell_it_within_their_uncertainty(correction):
    off = []
    for seed in range(2):
        runtime, true = play(error_rows=48, correction=correction, seed=seed)
        found = record(runtime)["attention_error"]
        assert found["rows"] == 48
        off += [(error - true[step, layer]) / spread for step, layer, error, spread in found["cells"]]
        for step, layer, error, _ in found["cells"]:
            assert error == pytest.approx(true[step, layer], rel=0.25)
        whole = math.sqrt(sum(x**2 for x in true.values()) / len(true))
        assert abs(found["overall"] - whole) < 4 * found["uncertainty"] < 0.4 * whole
    score = torch.tensor(off)
    assert score.abs().max() < 5 and 0.3 < score.square().mean().sqrt() < 2


def test_rows_beside_text_that_is_weighed_are_exact_too():
    grid = TokenGrid(1, 24, 24, 40, "last")
    mask = torch.zeros(1, 1, 1, grid.tokens)
    mask[..., -20:] = -0.5
    layout = Layout(1, 24, 24, 0, None)
    runtime, true = play(grid, error_rows=10_000, mask=mask, layout=layout, layers=1)
    cells = record(runtime)["attention_error"]["cells"]
    assert len(cells) == STEPS - 1
    for step, layer, error, _ in cells:
        # Of the text's own rows, which are dense, nothing is estimated: the picture's error is a little larger.
        assert true[step, layer] <= error * 1.0001 and error == pytest.approx(true[step, layer], rel=0.2)


def test_nothing_is_told_where_nothing_was_asked_and_results_are_the_same():
    plain, with_rows = (play(error_rows=rows, method="random")[0] for rows in (0, 16))
    assert record(plain)["attention_error"] is None and "error  " not in summary(plain)
    found = record(with_rows)
    assert [c.density for c in plain.run.calls if c.density is not None] == [
        c.density for c in with_rows.run.calls if c.density is not None
    ]
    json.dumps(found["attention_error"], allow_nan=False)
    text = summary(with_rows)
    assert f"error     {found['attention_error']['overall']:.4f} ±" in text and "16 exact rows" in text
    head = text[text.index("step   skipped") :].splitlines()
    assert head[0].endswith("error") and head[1].split()[-1] == "-"
    assert head[2].split()[-1] == f"{found['attention_error']['per_step'][1]:.4f}"


def test_dense_refreshes_are_in_no_estimate():
    runtime, _ = play(error_rows=16, correction="rettention", correction_options={"every": 2}, layers=1)
    assert [cell[0] for cell in record(runtime)["attention_error"]["cells"]] == [2]


def test_sums_become_a_ratio_and_what_it_leaves_open():
    assert estimate([0] * 6) is None and together([]) is None
    assert estimate([4, 0, 8, 0, 0, 16]) == Estimate(0.0, 0.0)
    made = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 200, 2, 64, generator=made)
    want = exact(q, k, v)
    out = want + 0.1 * torch.randn(want.shape, generator=made) * torch.rand(1, 200, 1, 1, generator=made) * want.std()
    true = float((out - want).norm() / want.norm())
    told = partial(exact_rows, q, k, v, scale=SCALE, block_size=64)
    found = []
    for _ in range(120):
        rows = torch.randperm(200, generator=made)[:40]
        found.append(estimate(sums_of_rows(out[:, rows], told(rows)).tolist()))
    errors, spreads = (torch.tensor(x) for x in zip(*found, strict=True))
    assert float(errors.mean()) == pytest.approx(true, rel=0.02)
    # Rows are drawn without putting back: a fifth of all leaves 0.89 of what the formula says.
    assert float(errors.std()) == pytest.approx(0.89 * float(spreads.mean()), rel=0.2)
    one = estimate(sums_of_rows(out[:, rows[:1]], told(rows[:1])).tolist())
    assert one.uncertainty == math.inf
