"""True errors of sparse calls beside what runs tell of them, and attention that is made sharper."""

import json
from types import SimpleNamespace

import pytest
import torch

from dittools.benchmarks import errors
from dittools.benchmarks.errors import BestBlocks, Sharp, TrueErrors, main, sharpen
from dittools.observer import AttentionEvent


def runtime_of(kernels, outs):
    """A runtime whose calls give these, and count a kernel; None for a dense one."""
    run = SimpleNamespace(calls=[])
    answers = iter(zip(kernels, outs, strict=True))

    def attend(call, dense, why_dense=None):
        kernel, out = next(answers)
        run.calls.append(SimpleNamespace(kernel=kernel, step=len(run.calls) // 2, layer=3))
        return dense() if kernel is None else out

    return SimpleNamespace(run=run, attend_inputs=attend)


def test_the_true_error_is_of_all_calls_of_a_step_and_layer_that_ran_sparse():
    exact, wrong = torch.full((1, 4, 2, 2), 2.0), torch.full((1, 4, 2, 2), 2.5)
    runtime = runtime_of(["triton", "triton", None, "triton"], [wrong, exact, None, wrong])
    watch = TrueErrors(runtime)
    for _ in range(4):
        assert runtime.attend_inputs(None, lambda: exact).shape == exact.shape
    found = watch.errors()
    assert found == {(0, 3): pytest.approx((0.25 / 4 / 2) ** 0.5), (1, 3): pytest.approx(0.25)}
    assert TrueErrors(runtime_of([], [])).errors() == {}


def test_the_best_block_of_a_row_is_found_by_head():
    k = torch.zeros(1, 64, 2, 4)
    k[:, 16:32, 1] = 10.0  # one block of the second head's keys; the first sees all alike
    event = AttentionEvent(0, torch.ones(1, 64, 2, 4), k, k, 1.0, None, None)
    watch = BestBlocks(block=16)
    watch(event)
    torch.testing.assert_close(watch.by_head(), torch.tensor([0.25, 1.0]))


class Embedded:
    """A model of two layers whose best block holds more of a row the larger its logits are."""

    def __init__(self, most=1.0):
        norm = [SimpleNamespace(attn1=SimpleNamespace(norm_q=torch.nn.RMSNorm(6))) for _ in range(2)]
        self.blocks, self.most = norm, most
        self.sharp = Sharp(SimpleNamespace(blocks=norm, config=SimpleNamespace(num_attention_heads=3)))

    def best_blocks(self, prompt):
        factors = self.blocks[1].attn1.norm_q.weight.detach().view(3, 2)[:, 0]
        return (0.1 * factors).clamp(max=self.most)


def test_logits_are_scaled_for_all_heads_or_the_first_and_always_from_the_model_as_it_was():
    model = Embedded()
    weight = model.blocks[0].attn1.norm_q.weight
    model.sharp.scale(4.0)
    model.sharp.scale(2.0, 1)
    assert weight.tolist() == [2.0, 2.0, 1.0, 1.0, 1.0, 1.0]
    assert sharpen(model, "3", "")["best_block"] == pytest.approx([0.3, 0.3, 0.3])
    found = sharpen(model, "60%:2", "")
    assert (found["factor"], found["heads"]) == (8.0, 2) and weight.tolist() == [8.0] * 4 + [1.0] * 2


def test_a_sharpness_that_no_factor_reaches_is_an_error():
    with pytest.raises(ValueError, match="the best block holds 50% of a row with logits 512 times as large"):
        sharpen(Embedded(most=0.5), "95%", "")


def test_a_run_is_written_with_true_errors_beside_told_ones(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(errors, "LOOK_AT", 1)
    path = tmp_path / "errors.json"
    asked = ["--size", "17", "128", "128", "--steps", "1", "--dense-steps", "0", "--method", "draft"]
    main(["--json", str(path), *asked, "--correction", "none", "fit", "--sparsity", "0.5", "--error-rows", "4000"])
    rows = json.loads(path.read_text())["rows"]
    assert [row["setting"]["correction"] for row in rows] == ["none", "fit"]
    cells = rows[0]["runs"][0]["cells"]
    assert cells and all(told == pytest.approx(true, abs=2e-5) for _, _, true, told, _ in cells)  # all rows were taken
    assert 0 < rows[0]["skipped_of_all"] <= rows[0]["skipped"] < 0.6
    assert "correction=fit" in capsys.readouterr().out
