"""What dealing heads would give, from densities: windows as shares of tiles, heads drawn, a run layer by layer."""

import json

import pytest

from dittools.benchmarks import deal as bench
from dittools.benchmarks.deal import MODELS, drawn, simulate, spread, windows

WAN, HUNYUAN = MODELS


def strategy(path, steps=3, layers=2, heads=40, window=lambda step, layer, head: [3, 3, 3]):
    windows = {
        f"{step}_{layer}_{head}": window(step, layer, head)
        for step in range(steps)
        for layer in range(layers)
        for head in range(heads)
    }
    path.write_text(json.dumps(windows))
    return path


def test_a_window_is_its_share_of_the_tiles_and_dense_steps_are_left_out(tmp_path):
    path = strategy(
        tmp_path / "w.json", window=lambda step, layer, head: [3, 6, 10] if step == 0 or head == 1 else [3, 3, 3]
    )
    found = windows(path, WAN)
    assert (len(found), len(found[0]), len(found[0][0])) == (2, 2, 40)
    assert found[0][0][:3] == [27 / 180, 1.0, 27 / 180]


def test_a_strategy_of_other_heads_is_refused(tmp_path):
    with pytest.raises(ValueError, match="hunyuan-video has 24 heads"):
        windows(strategy(tmp_path / "w.json"), HUNYUAN)


def test_drawn_heads_are_measured_ones_with_all_their_steps():
    row = {"density": {"cond 1": {"4": [0.1, 0.3], "5": [0.2, 0.4]}, "cond 2": {"5": [0.9, 0.9]}}}
    layers = drawn(row, 24)
    assert {(x, y) for one in layers for x, y in zip(*one, strict=True)} == {(0.1, 0.2), (0.3, 0.4)}
    assert all(len(costs) == 24 for one in layers for costs in one) and layers == drawn(row, 24)


def test_a_run_waits_for_its_slowest_ranks_and_is_dealt_by_the_step_before():
    skewed = [1.0, 1.0, 0.0, 0.0]
    assert simulate([[skewed]], 2, "greedy") == {"balance": 2.0, "worst": 1.0, "permuted": 0.0}
    later = simulate([[skewed, skewed, skewed]], 2, "greedy")
    assert later["balance"] == pytest.approx((2 + 1 + 1) / 3) and later["permuted"] == pytest.approx(2 / 3)
    assert simulate([[skewed] * 3], 2, "natural")["balance"] == 2.0
    changed = simulate([[skewed, [1.0, 0.0, 1.0, 0.0]]], 2, "greedy")
    assert changed["worst"] == 2.0  # what was true a step ago is not now


def test_equal_heads_are_not_permuted():
    assert simulate([[[0.2] * 8] * 4], 4, "greedy") == {"balance": 1.0, "worst": 1.0, "permuted": 0.0}
    assert spread([[[0.2] * 8]])["varied"] == pytest.approx(0)


def test_the_whole_of_it_writes_a_row_for_every_layout(tmp_path, capsys):
    density = {"cond 1": {"1": [0.1, 0.2, 0.5], "2": [0.1, 0.2, 0.5]}}
    row = {"method": "nabla", "sparsity": 0.8, "density": density}
    same = {"method": "draft", "sparsity": 0.8, "density": {"cond 1": {"1": [0.2] * 3}}}
    measured = {"versions": {}, "device": {"name": "a CPU", "type": "cpu"}, "command": ["x"], "rows": [row, same]}
    (tmp_path / "density.json").write_text(json.dumps(measured))
    path = strategy(tmp_path / "w.json", window=lambda step, layer, head: [3, 3, 3 if head % 2 else 1])
    out = tmp_path / "out.json"
    bench.main(["--json", str(out), "--density", str(tmp_path / "density.json"), "--windows", f"wan={path}"])
    found = json.loads(out.read_text())
    assert found["equal"] == ["draft"] and found["simulated"] is True
    assert len(found["rows"]) == 5 + 2 * 5
    for one in found["rows"]:
        assert one["ways"]["greedy"]["balance"] <= one["ways"]["natural"]["balance"]
    assert "ulysses:8,ring:8" in capsys.readouterr().out
