"""Calls that cannot run sparse, and results that go wrong: named, counted, and right in the end."""

import pytest
import torch

from dittools import call_splitter
from dittools import sparse as sparse_module
from tests.tiny import draw, svg, tiny_pipeline


@pytest.fixture(scope="module")
def shared():
    """One pipeline for tests that restore it."""
    return tiny_pipeline()


def poison(monkeypatch, times, layers_hit):
    """Make sparse attention return a NaN for the layers in ``layers_hit``, ``times`` times each."""
    attend = sparse_module.attend
    place = {}
    plan = sparse_module.Sparse._plan

    def note_layer(self, q, k, v, call, *args):
        place.update(layer=call.layer, step=call.step, branch=call.branch)
        return plan(self, q, k, v, call, *args)

    def poisoned(*args, **kwargs):
        out, lse = attend(*args, **kwargs)
        key = (place["step"], place["layer"], place["branch"])
        if layers_hit.get(key, 0) < times and key in layers_hit:
            layers_hit[key] += 1
            out = out.clone()
            out[0, 3, 0, 5] = float("nan")
        return out, lse

    monkeypatch.setattr(sparse_module.Sparse, "_plan", note_layer)
    monkeypatch.setattr(sparse_module, "attend", poisoned)


def test_a_non_finite_result_is_named_and_that_layer_redone_dense(shared, monkeypatch):
    with monkeypatch.context() as expected, svg(shared):
        why = call_splitter.CallSplitter._why_dense

        def layer_1_dense_in_step_2(self, call, run, step):
            return "asked" if (call.layer, step) == (1, 2) else why(self, call, run, step)

        expected.setattr(call_splitter.CallSplitter, "_why_dense", layer_1_dense_in_step_2)
        right = draw(shared)
    poison(monkeypatch, 99, {(2, 1, "cond"): 0})
    with svg(shared) as fast:
        out = draw(shared)
        record = fast.record()
        assert "transformer.blocks.1.attn1 at step 2 in float32" in fast.summary()
    assert torch.equal(out, right)
    # Both branches of that step ran that layer dense, and what the first try counted is forgotten.
    assert record["fallbacks"] == [{"reason": "non-finite result", "count": 2}]
    assert record["calls"] == {"dense": 14, "sparse": 10, "reused": 0, "expected": 24}
    assert len(record["notes"]) == 1 + sum("first frame" in note or "was asked" in note for note in record["notes"])


def test_two_layers_that_go_wrong_are_both_redone(shared, monkeypatch):
    poison(monkeypatch, 99, {(2, 1, "cond"): 0, (2, 2, "cond"): 0})
    with svg(shared) as fast:
        assert draw(shared).isfinite().all()
        assert sum("non-finite" in note for note in fast.record()["notes"]) == 2
        assert fast.record()["fallbacks"] == [{"reason": "non-finite result", "count": 4}]


def test_strict_raises_naming_layer_step_and_dtype_and_the_next_run_is_clean(shared, monkeypatch):
    with svg(shared, strict=True) as fast:
        right = draw(shared)
        with monkeypatch.context() as bad:
            poison(bad, 1, {(1, 2, "uncond"): 0})
            with pytest.raises(RuntimeError, match=r"blocks\.2\.attn1 at step 1 in float32"):
                draw(shared)
        assert torch.equal(draw(shared), right)
        assert fast.record()["fallbacks"] == []


def test_gradients_run_dense_and_are_counted(shared):
    latents, text = torch.randn(1, 16, 5, 20, 22), torch.randn(1, 16, 32)
    call = (latents.requires_grad_(), torch.tensor([500]), text)
    shared.scheduler.set_timesteps(4)
    right = torch.autograd.grad(shared.transformer(*call).sample.sum(), latents)[0]
    with svg(shared, dense_steps=0) as fast:
        found = torch.autograd.grad(shared.transformer(*call).sample.sum(), latents)[0]
        assert torch.equal(found, right)
        assert [(f["count"], "gradients" in f["reason"]) for f in fast.record()["fallbacks"]] == [(3, True)]


def test_a_mask_in_the_call_is_honoured_by_running_dense(shared):
    shared.scheduler.set_timesteps(4)
    attention = shared.transformer.blocks[1].attn1
    hidden, mask = torch.randn(1, 550, 128), torch.rand(1, 1, 550, 550) < 0.5
    latents, text = torch.randn(1, 16, 5, 20, 22), torch.randn(1, 16, 32)
    with torch.no_grad():
        right = attention(hidden, None, mask)
        with svg(shared, dense_steps=0) as fast:
            seen = []
            block = shared.transformer.blocks[2]
            hook = block.register_forward_hook(lambda *_: seen.append(attention(hidden, None, mask)))
            shared.transformer(latents, torch.tensor([500]), text)
            hook.remove()
    assert torch.equal(seen[0], right)
    (told,) = (f for f in fast.record()["fallbacks"] if "attention mask that" in f["reason"])
    assert told["count"] == 1


def test_attention_over_other_tokens_than_the_grid_runs_dense_with_a_reason_and_a_note(shared):
    shared.scheduler.set_timesteps(4)
    attention, seen, fewer = shared.transformer.blocks[1].attn1, [], torch.randn(1, 400, 128)
    latents, text = torch.randn(1, 16, 5, 20, 22), torch.randn(1, 16, 32)
    block = shared.transformer.blocks[0]
    hook = block.register_forward_hook(lambda *_: seen.append(attention(fewer)))
    try:
        with svg(shared, dense_steps=0, dense_layers=0) as fast, torch.no_grad():
            shared.transformer(latents, torch.tensor([500]), text)
            record = fast.record()
    finally:
        hook.remove()
    with torch.no_grad():
        assert torch.equal(seen[0], attention(fewer))
    reason = "attention over 400 tokens, where the grid has 550"
    assert record["fallbacks"] == [{"reason": reason, "count": 1}] and record["calls"]["sparse"] == 3
    assert any(f"method svg cannot take some calls, which ran dense: {reason}" in note for note in record["notes"])
