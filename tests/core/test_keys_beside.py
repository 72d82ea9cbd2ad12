"""Keys without queries through the runtime: every method plans for the picture alone, and its queries see them all."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dittools.call_info import CallInfo, Reusable, Timing
from dittools.config import Config
from dittools.corrections import CORRECTIONS
from dittools.methods import METHODS
from dittools.runtime import Layer, Runtime
from dittools.summary import record
from dittools.tokens import Layout, Part
from tests.methods.scenes import kept_tokens, scene

TEXT, PAST, BEFORE = 9, (1, 12, 16), 192
LAYOUT = Layout(7, 12, 16, before=(Part("text", None, queries=False), Part.of("history", *PAST)))
GRID = LAYOUT.grid(TEXT)
ONLINE = [name for name, kind in METHODS.items() if kind.profile_use != "needed" and name not in ("dense", "trained")]
SCALE = 0.4  # not that of the head dim
CPU = torch.device("cpu")
STEPS = torch.tensor([900.0, 500.0, 100.0])


def tensors(batch=2):
    """q of what has queries; k and v of the text too, in front."""
    q, k, v = (x.roll(BEFORE, 1) for x in scene(GRID, batch))  # history in front of the picture
    made = torch.Generator().manual_seed(1)
    more = [torch.randn(batch, TEXT, 4, k.shape[-1], generator=made) for _ in range(2)]
    return q, torch.cat((more[0], k), 1), torch.cat((more[1], v), 1)


def dense(q, k, v, mask=None):
    swapped = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*swapped, attn_mask=mask, scale=SCALE).transpose(1, 2)


def attended(method, sparsity, *qkv, mask=None, layout=LAYOUT, steps=1, **settings):
    """Output of the last step of a run, and the runtime."""
    config = Config(method, sparsity, dense_steps=0, dense_layers=0, block_size=64, **settings)
    runtime = Runtime(config, [Layer("blocks.0", 0)])
    plans = []
    runtime.plan_watchers.append(lambda event, plan: plans.append((event, plan)))
    for t in STEPS[:steps]:
        about = {"layout": layout, "reusable": Reusable([torch.zeros(1)])}
        runtime.begin_call(CallInfo(Timing(t, STEPS, "cond"), layout.grid(TEXT), CPU, torch.float32, **about))
        out = runtime.attend(0, *qkv, dense=lambda: dense(*qkv, mask), scale=SCALE, mask=mask)
        assert not runtime.end_call()
        if runtime.run.reuse is not None:
            runtime.run.reuse.update([torch.zeros(1)], [torch.zeros(1)])
    return out, runtime, plans


def padding(batch=2):
    """The second sample's text is shorter: bool ``[B, 1, 1, keys]``."""
    mask = torch.ones(batch, 1, 1, TEXT + GRID.tokens, dtype=torch.bool)
    mask[1, ..., :4] = False
    return mask


@pytest.mark.parametrize("method", ONLINE)
def test_every_method_takes_them_and_keeps_its_budget_of_the_picture(method):
    q, k, v = tensors()
    out, runtime, plans = attended(method, 0.0, q, k, v, mask=padding())
    torch.testing.assert_close(out, dense(q, k, v, padding()), rtol=1e-4, atol=1e-5)
    assert [event.grid for event, _ in plans] == [GRID]  # one sparse call, whatever the lengths of the texts
    _, runtime, _ = attended(method, 0.5, q, k, v, mask=padding())
    found = record(runtime)
    kept, of = found["sparsity"]["by_parts"], found["sparsity"]["pairs_by_parts"]
    assert found["fallbacks"] == [] and kept["picture-picture"] == pytest.approx(0.5, abs=0.05)
    assert kept["picture-text"] == kept["history-text"] == 1
    pairs = 2 * GRID.tokens**2 + GRID.tokens * (9 + 5)
    assert of["picture-text"] == pytest.approx(GRID.video * (9 + 5) / pairs)
    assert sum(kept[kind] * of[kind] for kind in kept) == pytest.approx(1 - found["sparsity"]["sparse_calls"])


@pytest.mark.parametrize("method", ["draft", "adaspa", "gna"])
def test_the_output_is_the_softmax_over_what_is_kept_and_these_keys(method):
    q, k, v = tensors()
    out, _, plans = attended(method, 0.6, q, k, v, mask=padding())
    _, plan = plans[0]
    order = torch.cat(
        (torch.arange(BEFORE, GRID.tokens), torch.arange(BEFORE))
    )  # of the grid, in the sequence of queries
    mask = padding().expand(-1, 4, GRID.tokens, -1).clone()
    for batch in range(2):
        for head in range(4):
            kept = kept_tokens(plan, batch, head)
            mask[batch, head, order[:, None], TEXT + order] = kept
    assert 0.3 < mask.float().mean() < 0.8
    torch.testing.assert_close(out, dense(q, k, v, mask), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("correction", [name for name in CORRECTIONS if name != "none"])
def test_a_correction_weighs_what_was_skipped_against_them_too(correction):
    q, k, v = tensors()
    k[:, :TEXT] *= 4  # much of the softmax is theirs

    def error(name, q, k, v, **of) -> float:
        out, _, _ = attended("draft", 0.7, q, k, v, correction=name, steps=2, **of)
        return float((out - dense(q, k, v)).norm() / dense(q, k, v).norm())

    # One that samples may be worse than none for a few keys that matter, and is better with these than without.
    without = error(correction, q, k[:, TEXT:], v[:, TEXT:], layout=replace(LAYOUT, before=LAYOUT.before[1:]))
    assert error(correction, q, k, v) < max(error("none", q, k, v), 0.95 * without)


def test_a_kept_plan_and_a_cache_of_attention_serve_calls_with_such_keys():
    q, k, v = tensors()
    first, runtime, plans = attended("draft", 0.6, q, k, v, steps=3, refresh=3)
    assert runtime.run.plans_reused == 2 and len({id(plan.mask.keep) for _, plan in plans}) <= 3
    assert torch.equal(first, attended("draft", 0.6, q, k, v)[0])
    kept = {
        "cache": "pab",
        "cache_options": {"interval": 3, "low": 0, "high": 999, "warmup_steps": 0, "cooldown_steps": 0},
    }
    out, runtime, _ = attended("draft", 0.6, q, k, v, steps=3, **kept)
    assert runtime.run.reused_calls == 1 and torch.equal(out, first)


def test_watchers_see_the_keys_of_the_queries_alone():
    q, k, v = tensors()
    layout = Layout(*LAYOUT.grid().shape, before=(Part("text", None, queries=False),))
    q, k, v = q[:, BEFORE:], *(torch.cat((x[:, :TEXT], x[:, TEXT + BEFORE :]), 1) for x in (k, v))
    seen = []
    runtime = Runtime(Config("dense"), [Layer("blocks.0", 0)])
    runtime.watchers.append(seen.append)
    runtime.begin_call(CallInfo(Timing(STEPS[0], STEPS), layout.grid(TEXT), CPU, torch.float32, layout=layout))
    runtime.attend(0, q, k, v, dense=lambda: dense(q, k, v))
    (event,) = seen
    assert torch.equal(event.k, k[:, TEXT:]) and torch.equal(event.v, v[:, TEXT:]) and event.grid.tokens == q.shape[1]


def test_their_own_attention_is_no_call_of_the_layer_and_keys_of_other_tokens_are_counted_dense():
    q, k, v = tensors()
    layout = Layout(7, 12, 16, before=(Part("text", TEXT, queries=False), Part.of("history", *PAST)))
    runtime = Runtime(Config("draft", dense_steps=0, dense_layers=0, block_size=64), [Layer("blocks.0", 0)])
    runtime.begin_call(CallInfo(Timing(STEPS[0], STEPS), layout.grid(), CPU, torch.float32, layout=layout))
    own = [x[:, :TEXT] for x in (k, k, v)]
    assert runtime.attend(0, *own, dense=lambda: "its own", why_dense="it is causal") == "its own"
    assert runtime.run.calls == [] and not runtime.run.fallbacks
    runtime.attend(0, q, k, v, dense=lambda: dense(q, k, v))
    assert [call.density is None for call in runtime.run.calls] == [False]
    assert not runtime.end_call()
    runtime.begin_call(CallInfo(Timing(STEPS[1], STEPS), layout.grid(), CPU, torch.float32, layout=layout))
    other = (q, k[:, :-1], v[:, :-1])
    assert torch.equal(runtime.attend(0, *other, dense=lambda: dense(*other)), dense(*other))
    assert [reason for reason in runtime.run.fallbacks if "differ in [tokens, heads]" in reason]
