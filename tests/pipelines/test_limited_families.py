"""Models whose queries see different keys, in whole forwards: budgets of what a mask shows, and nothing beyond it."""

from functools import cache

import pytest
import torch
from diffusers import AnyFlowFARPipeline, FlowMapEulerDiscreteScheduler
from torch.nn.attention.flex_attention import create_block_mask

import dittools
from dittools import methods, summary
from dittools.config import Config
from dittools.pipelines.attach import attach
from tests.families_tiny import TINY, noise, transformer
from tests.pipelines.test_families import Holder, Shown

FRAMES = (6, 12, 16)
IMAGE, SECOND = (1, 24, 32), (1, 32, 24)


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "shown", Shown)


def causal() -> tuple[Holder, dict]:
    """SkyReels-V2 with diffusion forcing in blocks of two frames, as its pipeline sets it."""
    holder = Holder("skyreels-v2")
    holder.transformer._set_ar_attention(2)
    arguments = TINY["skyreels-v2"].arguments(FRAMES, 1)
    return holder, arguments | {"timestep": torch.tensor([[100.0] * 2 + [500.0] * 4]), "enable_diffusion_forcing": True}


def packed() -> tuple[Holder, dict]:
    """Ideogram 4 with two pictures in one sequence, each with a text of its own."""
    holder, one, two = Holder("ideogram-4"), *(TINY["ideogram-4"].arguments(grid, 1) for grid in (IMAGE, SECOND))
    two["segment_ids"] = two["segment_ids"] + 1
    joined = {name: torch.cat((value, two[name]), 1) if value.ndim > 1 else value for name, value in one.items()}
    return holder, joined


def prompted() -> tuple[Holder, dict]:
    return Holder("omnigen"), TINY["omnigen"].arguments(IMAGE, 2)


def kept() -> tuple[Holder, dict]:
    """AnyFlow FAR with the keys of two chunks before."""
    return Holder("anyflow-far"), TINY["anyflow-far"].arguments((4, 12, 16), 1)


def animated() -> tuple[Holder, dict]:
    """Wan Animate 2 with the keys of a reference video."""
    return Holder("wan-animate-2"), TINY["wan-animate-2"].arguments((4, 12, 16), 1)


MODELS = {"causal": causal, "packed": packed, "prompted": prompted, "kept": kept, "animated": animated}


@cache
def model(name):
    return MODELS[name]()


def beyond(name: str, arguments: dict) -> tuple[dict, slice, int]:
    """Arguments in which what most queries must not see is another; whose output stays, along which axis."""
    latents = arguments["hidden_states"].clone()
    if name == "causal":
        latents[:, :, 4:] += 1
        return arguments | {"hidden_states": latents}, slice(0, 4), 2
    latents[:, -32 * 24 :] += 1
    return arguments | {"hidden_states": latents}, slice(0, latents.shape[1] - 32 * 24 - 7), 1


RUNS = [*(("causal", method) for method in ("draft", "svg", "gna", "svg2", "todo")), ("packed", "draft")]


RUNS += [("prompted", "draft"), ("kept", "draft"), ("kept", "gna"), ("animated", "draft")]


@pytest.mark.parametrize(("name", "method"), RUNS)
def test_full_budget_is_dense_and_every_kind_of_pair_keeps_what_is_asked_of_those_that_are_seen(name, method):
    holder, arguments = model(name)
    out, record = holder.run(method, arguments, 0.0, block_size=64)
    torch.testing.assert_close(out, holder.draw(arguments), rtol=1e-4, atol=1e-4)
    assert record["fallbacks"] == [] and record["calls"]["dense"] == 0
    _, record = holder.run(method, arguments, 0.8, block_size=64)
    assert record["fallbacks"] == []
    kept, of = record["sparsity"]["by_parts"], record["sparsity"]["pairs_by_parts"]
    assert kept["picture-picture"] == pytest.approx(0.2, abs=0.03)
    assert sum(of.values()) == pytest.approx(1)
    if name == "causal":
        assert set(kept) == {"picture-picture", "picture-history"}
        assert kept["picture-history"] == pytest.approx(0.2, abs=0.03)
        assert of["picture-history"] == pytest.approx(1 / 2)  # frames of before and own ones in three blocks of two
        assert record["sparsity"]["sparse_calls"] == pytest.approx(0.8, abs=0.03)
    if name == "kept":  # and 128 - 768 % 128 keys that fill them up, which are seen
        assert set(kept) == {"picture-picture", "picture-history"}
        assert kept["picture-history"] == pytest.approx(0.2, abs=0.08)
    if name == "animated":
        assert kept["picture-reference"] == 1 and of["picture-reference"] == pytest.approx(3 / (4 * 4 + 3))


@pytest.mark.parametrize("correction", ["none", "centroids", "rettention"])
@pytest.mark.parametrize("name", ["causal", "packed"])
def test_nothing_beyond_the_limit_has_an_influence(name, correction):
    holder, arguments = model(name)
    other, stays, axis = beyond(name, arguments)
    for method in ("draft", "svg2") if (correction, name) == ("none", "causal") else ("draft",):
        found = [
            holder.run(method, given, 0.7, block_size=64, correction=correction)[0] for given in (arguments, other)
        ]
        one, two = (x.movedim(axis, 0) for x in found)
        assert torch.equal(one[stays], two[stays]) and not torch.equal(one, two)


def test_a_block_mask_that_says_more_than_the_layout_is_left_to_flex_attention():
    holder, arguments = model("animated")
    dense = holder.draw(arguments)
    ((key, mask),) = holder.transformer.block_masks.items()
    every = create_block_mask(lambda b, h, q, k: (q < 4 * 192) & (k < 4 * 192), None, None, *mask.shape[2:], "cpu")
    holder.transformer.block_masks[key] = every
    try:
        out, record = holder.sparse("all", arguments)
        torch.testing.assert_close(out, holder.draw(arguments), rtol=1e-4, atol=1e-4)
    finally:
        holder.transformer.block_masks[key] = mask
    assert record["fallbacks"] == [{"reason": "the model brings a block mask of its own", "count": 2}]
    assert not torch.allclose(out, dense, atol=1e-3)
    attachment = attach(holder, Config("draft", 0.8, dense_steps=2, dense_layers=0))
    try:  # dense steps of a sparse run go frame by frame
        torch.testing.assert_close(holder.draw(arguments), dense, rtol=1e-4, atol=1e-5)
        assert summary.record(attachment.runtime)["calls"]["dense"] == 2
    finally:
        attachment.detach()


def test_chunks_are_drawn_one_after_the_other_beside_the_kept_keys_of_those_before():
    holder = Holder("anyflow-far")
    parts = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
    pipe = AnyFlowFARPipeline(transformer=holder.transformer, scheduler=FlowMapEulerDiscreteScheduler(), **parts)
    pipe.set_progress_bar_config(disable=True)
    call = {
        "prompt_embeds": noise(1, 7, 16),
        "height": 192,
        "width": 256,
        "num_frames": 21,
        "chunk_partition": [2, 2, 2],
    }

    def draw():
        given = {**call, "num_inference_steps": 2, "output_type": "latent"}
        return pipe(**given, generator=torch.Generator().manual_seed(0)).frames

    dense = draw()
    settings = {"method": "draft", "block_size": 64, "dense_steps": 0, "dense_layers": 0}
    with dittools.accelerate(pipe, sparsity=0.0, **settings):
        torch.testing.assert_close(draw(), dense, rtol=1e-4, atol=1e-4)
    fast = dittools.accelerate(pipe, sparsity=0.5, **settings)
    sparse, record = draw(), fast.record()
    assert not torch.allclose(sparse, dense, atol=1e-4)
    assert record["calls"]["sparse"] == 4 and record["fallbacks"] == []  # of the last chunk
    assert record["sparsity"]["by_parts"]["picture-history"] == pytest.approx(0.5, abs=0.1)
    fast.restore()
    assert torch.equal(draw(), dense)


def test_both_transformers_of_a_guided_picture_run_sparse():
    holder, arguments = model("packed")[0], TINY["ideogram-4"].arguments(IMAGE, 1)
    holder.unconditional_transformer = transformer("ideogram-4", "Ideogram4Transformer2DModel")
    alone = {name: value[:, 7:] if value.ndim > 1 else value for name, value in arguments.items()}
    attachment = attach(holder, Config("draft", 0.8, dense_steps=0, dense_layers=0, block_size=64))
    try:
        with torch.no_grad():
            for t in holder.scheduler.timesteps:
                given = {"timestep": 1 - t[None] / 1000, "return_dict": False}
                holder.transformer(**arguments | given)
                holder.unconditional_transformer(**alone | given)
        record = summary.record(attachment.runtime)
    finally:
        attachment.detach()
        del holder.unconditional_transformer
    assert record["calls"] == {"dense": 0, "sparse": 12, "reused": 0, "expected": 12} and record["fallbacks"] == []
    assert record["sparsity"]["by_parts"]["picture-picture"] == pytest.approx(0.2, abs=0.03)
