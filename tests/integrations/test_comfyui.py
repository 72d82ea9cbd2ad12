"""The ComfyUI nodes, against a stand-in that keeps to the ways in that ComfyUI publishes; see `test_comfyui_real`."""

import json
import math
import re
import tomllib
from types import SimpleNamespace

import pytest
import torch

from dittools.tokens import Part
from tests.integrations import comfy_stand_in as comfy
from tests.integrations.comfy_pack import PACK, node, pack, part, patched, record, told


def filled(model):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.15)
    return comfy.Patcher(model)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def wan():
    return filled(comfy.WanModel())


@pytest.fixture
def flux():
    return filled(comfy.Flux())


VIDEO = randn(1, 4, 4, 16, 16)  # 4 x 8 x 8 tokens: four blocks
TEXTS = {name: {"context": randn(1, 8, comfy.WIDTH, seed=seed)} for seed, name in enumerate(("cond", "uncond"), 1)}
PICTURE = randn(1, 4, 32, 32)


def draw(model, noise=VIDEO, steps=4, conds=TEXTS, **how):
    return comfy.Guider(model, conds, **how).draw(noise, steps)


def near(one, other):
    return torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def hooks(model):
    inner = model.model.diffusion_model
    return [each for one in inner.modules() for each in (*one._forward_pre_hooks, *one._forward_hooks)]


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "apart"])
def test_a_full_budget_is_dense_and_the_model_that_was_patched_stays_as_it_was(wan, together):
    dense = draw(wan, together=together)
    clone = patched(wan, sparsity=0.0)
    assert near(draw(clone, together=together), dense)
    calls = record(clone)["calls"]
    assert calls["sparse"] == calls["expected"] == 12 * (1 if together else 2) and calls["dense"] == 0
    assert hooks(wan) == [] and wan.model_options == {"transformer_options": {}} and wan.wrappers == {}
    assert torch.equal(draw(wan, together=together), dense)


def test_sparse_as_asked_with_dense_steps_and_layers(wan):
    dense = draw(wan)
    clone = patched(wan, dense_steps=0.5, dense_layers=1)
    out = draw(clone)
    found = record(clone)
    assert out.isfinite().all() and not near(out, dense)
    assert found["sparsity"]["sparse_calls"] == pytest.approx(0.5)
    assert found["sparsity"]["per_step"][:2] == [0, 0] and found["sparsity"]["per_step"][2] == pytest.approx(1 / 3)
    assert found["sparsity"]["per_layer"][0] == 0 and found["calls"] | {"reused": 0} == {
        **found["calls"],
        "sparse": 4,
        "dense": 8,
    }
    assert found["grid"] == {"frames": 4, "height": 8, "width": 8, "text": 0, "tokens": 256}


def test_the_summary_counts_cross_attention_and_passes_samples_on(wan):
    clone = patched(wan)
    assert "no run yet" in told(clone)
    draw(clone)
    assert "beside    12 x cross-attention: keys are of other tokens" in told(clone)
    found = node("DittoolsSummary")(model=clone.clone(), samples=VIDEO)
    assert found["result"] == (found["ui"]["text"][0], VIDEO) and "draft" in found["result"][0]
    draw(clone)
    assert "beside    12 x" in told(clone)  # of the latest run alone
    with pytest.raises(ValueError, match="has no sparse attention of dittools on it"):
        told(wan)


def test_text_and_references_are_parts_with_budgets_of_their_own(flux):
    conds = {name: {**given, "ref_latents": [randn(1, 4, 16, 32, seed=5)]} for name, given in TEXTS.items()}
    dense = draw(flux, PICTURE, conds=conds)
    clone = patched(flux, sparsity=0.0)
    assert near(draw(clone, PICTURE, conds=conds), dense)
    clone = patched(flux)
    draw(clone, PICTURE, conds=conds)
    found = record(clone)
    assert found["grid"]["text"] == 8 and found["grid"]["tokens"] == 8 + 256 + 128
    assert found["grid"]["parts"] == [{"kind": "reference", "tokens": 128, "shape": (1, 8, 16)}]
    assert found["sparsity"]["by_parts"]["picture-picture"] == pytest.approx(0.5, abs=0.07)
    assert found["sparsity"]["by_parts"]["picture-text"] == found["sparsity"]["by_parts"]["text-picture"] == 1
    assert found["calls"]["sparse"] == found["calls"]["expected"] == 12
    assert "beside" not in told(clone)


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "apart"])
def test_a_mask_that_pads_text_is_kept_to(flux, together):
    masks = (torch.arange(8)[None] < 8, torch.arange(8)[None] < 3)
    conds = {name: {**given, "attention_mask": mask} for (name, given), mask in zip(TEXTS.items(), masks, strict=True)}
    dense = draw(flux, PICTURE, conds=conds, together=together)
    assert not near(dense, draw(flux, PICTURE, together=together))
    clone = patched(flux, sparsity=0.0)
    assert near(draw(clone, PICTURE, conds=conds, together=together), dense)
    assert record(clone)["calls"]["dense"] == 0


def test_a_method_that_cannot_take_a_grid_runs_dense_and_says_so(wan):
    small = VIDEO[:, :, :1, :6, :6]
    clone = patched(wan, method="auto")
    assert torch.equal(draw(clone, small), draw(wan, small))
    assert record(clone)["fallbacks"][0]["count"] == 12 and "dense" in told(clone)


def test_a_model_that_nothing_is_known_of_stays_as_it_is_and_says_so():
    model = filled(comfy.UNetModel())
    clone = patched(model)
    assert "UNetModel is no model whose token grid is known: it runs as it is" in told(clone)
    assert torch.equal(draw(clone), draw(model))
    assert "4 x a whole forward: UNetModel is no model whose token grid is known" in told(clone)
    assert "attention outside of the model's forward" in told(clone)


def test_tokens_that_another_node_adds_run_dense_with_both_numbers(flux, monkeypatch):
    layouts = part("layouts")
    without_text = layouts.Known(("double_blocks", "single_blocks"), lambda model, given: layouts.Layout(1, 16, 16))
    monkeypatch.setitem(layouts.MODELS, "Flux", without_text)
    clone = patched(flux)
    assert torch.equal(draw(clone, PICTURE), draw(flux, PICTURE))
    assert "12 calls dense: attention over 264 tokens, where the grid has 256" in told(clone)


@pytest.mark.parametrize("after", [False, True], ids=["before this node", "after it"])
def test_another_nodes_attention_runs_what_is_dense(wan, after):
    calls = []

    def theirs(func, *args, **kwargs):
        calls.append(args[0].shape)
        return func(*args, **kwargs)

    def put(model):
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = theirs
        return model

    clone = put(patched(wan, dense_layers=1)) if after else patched(put(wan), dense_layers=1)
    draw(clone)
    assert len(calls) == 4 + 12  # one dense layer, and cross-attention
    assert record(clone)["calls"]["sparse"] == 8
    assert "dense calls run through another node's attention override" in told(clone)


def test_a_second_patch_takes_the_place_of_the_first(wan):
    first = patched(wan)
    second = patched(first, sparsity=0.0)
    assert near(draw(second), draw(wan))
    assert "no run yet" in told(first) and record(second)["sparsity"]["asked"] == 0
    draw(first)
    assert record(first)["sparsity"]["sparse_calls"] == pytest.approx(0.5)
    third = patched(second, sparsity=0.0)
    draw(third)
    assert "another node" not in told(third) and "another node" not in told(second)


def test_a_run_that_is_stopped_between_steps_holds_nothing(wan):
    clone = patched(wan, settings='{"refresh": 9}', cache="easycache")
    guider, seen = comfy.Guider(clone, TEXTS), []

    class Stops(list):
        def append(self, direction):
            seen.append(part("patch").patch_of(clone).latest.runtime.run)
            if len(seen) == 2:
                assert seen[-1].plans and seen[-1].reuse.held_bytes()
                raise KeyboardInterrupt

    guider.directions = Stops()
    with pytest.raises(KeyboardInterrupt):
        guider.draw(VIDEO)
    assert not seen[-1].plans and seen[-1].reuse.held_bytes() == 0


def test_an_error_in_a_forward_leaves_nothing_behind(wan, monkeypatch):
    clone, block = patched(wan), wan.model.diffusion_model.blocks[1]
    dense = draw(wan)
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(block, "forward", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
        draw(clone)
    assert hooks(wan) == [] and torch.equal(draw(wan), dense)
    run = part("patch").patch_of(clone).latest.runtime.run
    assert list(run.tally.failed.values()) == [1] and not run.plans
    draw(clone)
    assert record(clone)["calls"]["sparse"] == 12


def test_a_result_that_is_not_finite_runs_again_dense(wan, monkeypatch):
    from dittools import sparse

    def broken(q, *args, **kwargs):
        out, lse = real(q, *args, **kwargs)
        return out.fill_(math.nan), lse

    dense, real = draw(wan), sparse.attend
    monkeypatch.setattr(sparse, "attend", broken)
    clone = patched(wan)
    assert torch.equal(draw(clone), dense)
    assert "non-finite result in blocks.0" in told(clone)


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "apart"])
def test_a_step_cache_reuses_forwards_and_nothing_at_threshold_0(wan, together):
    dense = draw(wan, steps=6, together=together)
    never = patched(wan, method="dense", cache="easycache", settings='{"cache_options": {"threshold": 0}}')
    assert torch.equal(draw(never, steps=6, together=together), dense)
    clone = patched(wan, method="dense", cache="easycache", settings='{"cache_options": {"threshold": 9}}')
    wan.model.diffusion_model.seen.clear()
    guider = comfy.Guider(clone, TEXTS, together)
    out = guider.draw(VIDEO, 6)
    lanes = {"uncond_cond"} if together else {"cond", "uncond"}
    branches = record(clone)["cache"]["branches"]
    assert set(branches) == lanes and out.isfinite().all() and not torch.equal(out, dense)
    for lane in branches.values():
        assert lane["computed_steps"] == [0, 1, 5] and lane["reused_steps"] == [2, 3, 4]
    assert len(wan.model.diffusion_model.seen) == 3 * len(lanes)
    assert [torch.equal(one, guider.directions[1]) for one in guider.directions] == [False, *[True] * 4, False]
    assert part("patch").patch_of(clone).latest.runtime.run.reuse.held_bytes() == 0


def test_attention_is_reused_with_pab(wan):
    given = '{"cache_options": {"interval": 2, "low": 100, "high": 900}}'
    clone = patched(wan, method="dense", cache="pab", settings=given)
    draw(clone, steps=8)
    assert record(clone)["calls"]["reused"] > 0 and record(clone)["cache"]["attention_reused_steps"]


def test_a_sampler_that_calls_between_steps_keeps_the_schedule(wan):
    clone = patched(wan, dense_steps=0.5)
    draw(clone, between=True)
    found = record(clone)
    assert found["steps"] == 4 and found["calls"]["dense"] == found["calls"]["sparse"] == 12
    assert found["sparsity"]["per_step"] == pytest.approx([0, 0, 0.5, 0.5])


def test_windows_of_frames_make_plans_of_their_own(wan):
    clone = patched(wan, method="svg2", cache="easycache", settings='{"cache_options": {"threshold": 9}}')
    noise = torch.cat([VIDEO, randn(*VIDEO.shape, seed=7)], 2)
    draw(clone, noise, steps=6, windows=2, together=False)
    branches = record(clone)["cache"]["branches"]
    assert set(branches) == {f"{name} frames {at}" for name in ("cond", "uncond") for at in ("0-3", "4-7")}
    assert part("patch").patch_of(clone).latest.runtime.run.plans_shared == 0
    draw(clone, steps=6, together=False)
    assert part("patch").patch_of(clone).latest.runtime.run.plans_shared > 0


def test_several_conditionings_of_a_branch_are_told_apart(wan):
    clone = patched(wan, cache="easycache", settings='{"cache_options": {"threshold": 9}}')
    conds = {"cond": [TEXTS["cond"], {"context": randn(1, 8, comfy.WIDTH, seed=8)}], "uncond": TEXTS["uncond"]}
    draw(clone, steps=5, conds=conds, together=False)
    assert set(record(clone)["cache"]["branches"]) == {"cond", "cond 2", "uncond"}
    assert part("patch").patch_of(clone).latest.runtime.run.plans_shared == 0


def test_a_run_ends_with_its_sampling_and_the_next_begins_anew(wan):
    clone = patched(wan, dense_steps=0.25, settings='{"refresh": 9}')
    draw(clone, steps=1)
    draw(clone, steps=1)
    first = part("patch").patch_of(clone).latest
    assert not first.runtime.run.plans
    draw(clone, steps=4)
    assert part("patch").patch_of(clone).latest is not first and record(clone)["steps"] == 4


def test_gradients_and_several_gpus_are_left_alone(wan):
    clone = patched(wan)
    inner, given = wan.model.diffusion_model, {"context": TEXTS["cond"]["context"]}
    options = {**clone.model_options["transformer_options"], "wrappers": clone.wrappers}
    dense = inner(VIDEO, torch.ones(1), **given)
    assert torch.equal(inner(VIDEO, torch.ones(1), transformer_options=options, **given), dense)
    with torch.no_grad():
        told_more = {**options, "multigpu_thread_device": torch.device("cpu")}
        assert torch.equal(inner(VIDEO, torch.ones(1), transformer_options=told_more, **given), dense)
        assert "1 x a whole forward: ComfyUI runs conditionings on several GPUs at once" in told(clone)
        assert "1 x a whole forward: gradients are enabled" in told(clone)
        inner(VIDEO, torch.ones(1), transformer_options=options, **given)  # no schedule, no sampling run
    assert record(clone)["calls"]["sparse"] == 3


# Which step a sigma is of


@pytest.mark.parametrize(
    ("schedule", "sigmas", "steps"),
    [
        ([1.0, 0.6, 0.3, 0.0], [1.0, 0.6, 0.3], [0, 1, 2]),
        ([1.0, 0.6, 0.3, 0.0], [1.0, 0.8, 0.6, 0.45, 0.3, 0.15], [0, 0, 1, 1, 2, 2]),  # in the middle of steps
        ([1.0, 0.6, 0.3, 0.0], [1.0, 0.6, 0.6, 0.3, 0.3], [0, 1, 1, 2, 2]),  # at both ends of steps
        ([1.0, 0.6, 0.3, 0.0], [1.0, 0.6, 0.75, 0.3, 0.4], [0, 1, 1, 2, 2]),  # with noise put in on the way
        ([14.6, 6.0, 3.0, 0.0], [14.6, 8.5, 6.0, 4.2, 3.0], [0, 0, 1, 1, 2]),  # noise put in before a step
        ([1.0, 0.6, 0.3], [0.99999, 0.60002], [0, 1]),  # rounded; the last sigma is no step
        ([0.0, 0.3, 0.6, 1.0], [0.0, 0.3, 0.45, 0.6], [0, 1, 1, 2]),  # backwards
        ([1.0], [1.0], [0]),
    ],
)
def test_the_step_of_a_sigma(schedule, sigmas, steps):
    told = part("steps").Steps(schedule, share=True)
    assert [told.step_of(sigma) for sigma in sigmas] == steps and told.count == max(len(schedule) - 1, 1)


def test_shares_of_noise_are_what_windows_of_caches_are_given_in():
    assert part("steps").Steps([1.0, 0.5, 0.0], share=True).timesteps() == [1000, 500]
    assert part("steps").Steps([9.0, 1.0, 0.0], share=False).timesteps() == [900, 500]


# One call of attention


@pytest.mark.parametrize("apart", [False, True], ids=["as one", "heads apart"])
@pytest.mark.parametrize("back", [False, True], ids=["given as one", "given apart"])
def test_every_form_of_an_attention_call_is_read_and_given_back(apart, back):
    q, k, v = (randn(2, 6, 4, 8, seed=seed) for seed in range(3))
    forms = [x.transpose(1, 2) if apart else x.flatten(2) for x in (q, k, v)]
    call = part("calls").read_call((*forms, 4), {"skip_reshape": apart, "skip_output_reshape": back})
    assert all(torch.equal(one, other) for one, other in zip(call[:3], (q, k, v), strict=True))
    theirs = comfy.plain_attention(*forms, 4, skip_reshape=apart, skip_output_reshape=back)
    assert call.taken(theirs).shape == q.shape and torch.equal(call.given(call.taken(theirs)), theirs)


def test_grouped_heads_masks_and_unknown_arguments():
    read = part("calls").read_call
    q, k = randn(2, 6, 32), randn(2, 6, 16)
    call = read((q, k, k, 4), {"enable_gqa": True, "scale": 0.5, "low_precision_attention": False})
    assert call.k.shape == call.v.shape == (2, 6, 4, 8) and call.scale == 0.5
    assert torch.equal(call.k[:, :, 0], call.k[:, :, 1]) and not torch.equal(call.k[:, :, 1], call.k[:, :, 2])
    shapes = {(6, 6): (1, 1, 6, 6), (2, 1, 6): (2, 1, 1, 6), (2, 1, 6, 6): (2, 1, 6, 6)}
    for shape, wanted in shapes.items():
        assert read((q, q, q, 4, torch.ones(shape)), {}).mask.shape == wanted
    assert "called with causal, of which" in read((q, q, q, 4), {"causal": True})
    assert "a mask that is a dict" in read((q, q, q, 4), {"mask": {}})


# Where the picture is

TINY = {
    "WanModel": ({"patch_size": (1, 2, 2), "ref_conv": None}, {"x": (16, 3, 9, 16)}, [], (3, 5, 8), []),
    "WanModel, Phantom": (
        {"patch_size": (1, 2, 2)},
        {"x": (16, 3, 8, 16), "time_dim_concat": (16, 2, 8, 16), "context_latents": [(16, 1, 6, 6)]},
        [],
        (3, 4, 8),
        [Part.of("reference", 2, 4, 8), Part.of("reference", 1, 3, 3)],
    ),
    "WanModel, Fun": (
        {"patch_size": (1, 2, 2), "ref_conv": 1},
        {"x": (16, 3, 8, 16), "reference_latent": (16, 8, 16)},
        [Part.of("reference", 1, 4, 8)],
        (3, 4, 8),
        [],
    ),
    "HumoWanModel": (
        {"patch_size": (1, 2, 2)},
        {"x": (16, 3, 8, 16), "reference_latent": (16, 2, 8, 16)},
        [],
        (3, 4, 8),
        [Part.of("reference", 2, 4, 8)],
    ),
    "Flux": (
        {"patch_size": 2},
        {"x": (16, 9, 16), "context": (7,), "ref_latents": [(16, 8, 8), (16, 4, 5)]},
        [Part("text", 7)],
        (1, 5, 8),
        [Part.of("reference", 1, 4, 4), Part.of("reference", 1, 2, 3)],
    ),
    "HunyuanVideo": (
        {"patch_size": [1, 2, 2], "byt5_in": 1, "vision_in": None},
        {"x": (16, 3, 8, 16), "context": (7,), "txt_byt5": (4,), "clip_fea": (9,), "ref_latent": (16, 1, 8, 8)},
        [Part("text", 11), Part.of("reference", 1, 4, 4)],
        (3, 4, 8),
        [],
    ),
    "HunyuanVideo, of 2025": (
        {"patch_size": [1, 2, 2], "flipped": True},
        {"x": (16, 3, 8, 16), "context": (7,)},
        [],
        (3, 4, 8),
        [Part("text", 7)],
    ),
    "HunyuanVideo, image": (
        {"patch_size": [1, 1]},
        {"x": (64, 8, 16), "context": (7,)},
        [Part("text", 7)],
        (1, 8, 16),
        [],
    ),
    "QwenImageTransformer2DModel": (
        {"patch_size": 2},
        {"x": (16, 1, 8, 16), "context": (7,), "ref_latents": [(16, 1, 8, 8)]},
        [Part("text", 7)],
        (1, 4, 8),
        [Part.of("reference", 1, 4, 4)],
    ),
    "LTXVModel": ({}, {"x": (128, 5, 4, 6)}, [], (5, 4, 6), []),
    "LTXVModel, guides": (
        {},
        {"x": (128, 5, 4, 6), "keyframe_idxs": (48, 2)},
        [],
        (3, 4, 6),
        [Part.of("reference", 2, 4, 6)],
    ),
    "LTXAVModel": ({}, {"x": [(128, 5, 4, 6), (8, 9, 16)]}, [], (5, 4, 6), []),
    "CogVideoXTransformer3DModel": (
        {"patch_size": 2, "patch_size_t": 2},
        {"x": (16, 5, 8, 16), "context": (7,)},
        [Part("text", 7)],
        (3, 4, 8),
        [],
    ),
    "MiniTrainDIT": ({"patch_temporal": 1, "patch_spatial": 2}, {"x": (16, 5, 8, 16)}, [], (5, 4, 8), []),
    "Kandinsky5": ({"patch_size": (1, 2, 2)}, {"x": (16, 8, 16)}, [], (1, 4, 8), []),
    "NextDiT": ({"patch_size": 2}, {"x": (16, 8, 16), "context": (7,)}, [Part("text", 7)], (1, 4, 8), []),
    "NextDiT, Z-Image": (
        {"patch_size": 2, "pad_tokens_multiple": 32},
        {"x": (16, 8, 18), "context": (40,)},
        [Part("text", 64)],
        (1, 4, 9),
        [Part("text", 28)],
    ),
    "HiDreamImageTransformer2DModel": (
        {"patch_size": 2},
        {"x": (16, 8, 16), "image_cond": (16, 8, 16)},
        [],
        (1, 4, 16),
        [Part("text", None)],
    ),
    "MiniMaxH3Model": (
        {"patch_size": (1, 2, 2)},
        {"x": [(24, 3, 8, 16), (32, 2, 6)], "context": (7,)},
        [Part("text", 7), Part("sound", 12)],
        (3, 4, 8),
        [],
    ),
}


def tensors(shapes, name):
    """Of each shape behind the batch; text has a width behind its tokens."""
    if isinstance(shapes, list):
        return [tensors(one, name) for one in shapes]
    text = name in ("context", "txt_byt5", "clip_fea")
    return torch.zeros(1, 3, *shapes) if name == "keyframe_idxs" else torch.zeros(1, *shapes, *[4] * text)


@pytest.mark.parametrize("name", TINY)
def test_where_the_picture_is(name):
    attributes, shapes, before, picture, after = TINY[name]
    model = SimpleNamespace(double_blocks=[SimpleNamespace(flipped_img_txt=attributes.get("flipped"))], **attributes)
    given = {key: tensors(value, key) for key, value in shapes.items()}
    layout = part("layouts").MODELS[name.partition(",")[0]].read(model, given.get)
    assert layout.parts == [*before, Part.of("picture", *picture), *after]


def test_every_part_of_minimax_has_its_place():
    kinds = [("text", 7), ("cond", 32), ("ref_audio", 6), ("ref_img", 18), ("ref_img", 8), ("audio", 12), ("video", 96)]
    segments, at = [], 0
    for kind, count in kinds:
        segments.append((at, at + count, kind))
        at += count
    refs = [
        {"kind": "audio"},
        {"kind": "video_audio", "latent_t": 2, "latent_h": 6, "latent_w": 6},
        {"kind": "image", "latent_h": 4, "latent_w": 8},
    ]
    given = {
        "x": [torch.zeros(1, 24, 3, 8, 16), torch.zeros(1, 32, 2, 6)],
        "minimax_payload": {"layout": SimpleNamespace(segments=segments), "refs": refs},
    }
    layout = part("layouts").minimax(SimpleNamespace(patch_size=(1, 2, 2)), given.get)
    assert layout.parts == [
        Part("text", 7),
        Part.of("reference", 1, 4, 8),
        Part("sound", 6),
        Part.of("reference", 2, 3, 3),
        Part.of("reference", 1, 2, 4),
        Part("sound", 12),
        Part.of("picture", 3, 4, 8),
    ]


# What a user types


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"settings": "{"}, "settings are a JSON object"),
        ({"settings": "[1]"}, "got list"),
        ({"settings": '{"sparsty": 0.5}'}, "sparsity"),
        ({"settings": '{"options": {"probe": 1}}', "method": "svg"}, "probe_rows"),
        ({"settings": '{"cache": "first_block"}'}, "looks into the first block"),
        ({"settings": '{"cache": "teacache"}'}, "teacache"),
        ({"cache": "easycache", "settings": '{"cache_options": {"reuse": "stack"}}'}, "use reuse=output"),
        ({"sparsity": 1.0}, "sparsity"),
    ],
)
def test_a_wrong_setting_is_one_line_before_anything_is_drawn(wan, asked, said):
    with pytest.raises(ValueError, match=said) as error:
        patched(wan, **asked)
    assert "\n" not in str(error.value)


def test_a_whole_share_of_steps_is_all_of_them_and_a_count_is_a_setting(wan):
    assert patch_config(patched(wan, dense_steps=1)).dense_steps == 1.0
    assert isinstance(patch_config(patched(wan, dense_steps=1)).dense_steps, float)
    assert patch_config(patched(wan, settings='{"dense_steps": 3}')).dense_steps == 3


def patch_config(model):
    return part("patch").patch_of(model).config


# What the pack's files say


TYPES = {"STRING": str, "INT": int, "FLOAT": float | int}


def test_nodes_name_what_dittools_has():
    from dittools import methods

    given = pack().NODE_CLASS_MAPPINGS["DittoolsSparseAttention"].INPUT_TYPES()
    offered = given["required"]["method"][0]
    assert set(offered) == {*methods.names(), "auto"} and offered[0] == "auto"
    assert set(pack().NODE_CLASS_MAPPINGS) == set(pack().NODE_DISPLAY_NAME_MAPPINGS)
    for kind in pack().NODE_CLASS_MAPPINGS.values():
        assert kind.CATEGORY and kind.DESCRIPTION and callable(getattr(kind, kind.FUNCTION))


def test_every_cache_of_the_node_can_be_had(wan):
    for cache in part("nodes").CACHES:
        patched(wan, cache=cache)


def test_the_example_workflow_has_the_widgets_that_the_nodes_have():
    (path,) = (PACK / "example_workflows").glob("*.json")
    flow = json.loads(path.read_text(encoding="utf-8"))
    nodes = {one["id"]: one for one in flow["nodes"]}
    kinds = pack().NODE_CLASS_MAPPINGS
    own = [one for one in nodes.values() if one["type"] in kinds]
    assert {one["type"] for one in own} == set(kinds)
    for one in own:
        given = kinds[one["type"]].INPUT_TYPES()
        inputs = {**given["required"], **given.get("optional", {})}
        widgets = [name for name, (kind, *_) in inputs.items() if kind not in ("MODEL", "LATENT")]
        assert len(one.get("widgets_values", [])) == len(widgets)
        assert [each["name"] for each in one["inputs"]] == [name for name in inputs if name not in widgets]
        for name, value in zip(widgets, one.get("widgets_values", []), strict=True):
            kind = inputs[name][0]
            assert value in kind if isinstance(kind, list) else isinstance(value, TYPES[kind])
        outputs = kinds[one["type"]].RETURN_TYPES
        assert [each["type"] for each in one["outputs"]] == list(outputs)
    for _, source, slot, target, place, kind in flow["links"]:
        assert nodes[source]["outputs"][slot]["type"] == kind
        assert nodes[target]["inputs"][place]["type"] in (kind, "*")


def test_the_page_lists_every_model_and_which_are_drawn_in_comfyui():
    from tests.integrations.comfy_models import MODELS

    page = (PACK.parents[1] / "docs" / "comfyui.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|[^|]*\| `(\w+)` \|[^|]*\| (yes|no) \|$", page, re.M)
    assert [name for name, _ in rows] == list(part("layouts").MODELS)
    assert {name for name, drawn in rows if drawn == "yes"} == {tiny.kind for tiny in MODELS.values()}


def test_the_pack_asks_for_the_dittools_it_is_in():
    found = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))
    root = tomllib.loads((PACK.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert found["project"]["requires-python"] == root["project"]["requires-python"]
    assert any(one.startswith("dittools") for one in found["project"]["dependencies"])
    assert found["tool"]["comfy"]["DisplayName"]
