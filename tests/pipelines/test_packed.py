"""Families whose keys are not their queries, or that pack one sequence, in diffusers' own pipelines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import dittools
from dittools.pipelines import one_sequence
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import find_family
from dittools.pipelines.parallel.joint import places_of
from dittools.pipelines.step_reuse import picture_in
from dittools.tokens import Part
from tests.families_tiny import TEXT, TINY, cosmos_3, minimax_h3, minimax_h3_rows, noise, transformer
from tests.pipelines.test_families import Holder
from tests.tiny import tiny_pipeline, tiny_tokenizer

SPARSE = {"method": "draft", "block_size": 64, "dense_steps": 0, "dense_layers": 0}
SIZE = {"height": 256, "width": 272, "num_inference_steps": 2, "output_type": "latent"}


def prompts(*suffix: str) -> dict[str, torch.Tensor]:
    """Text features of both guidance branches, the negative prompt a shorter one, and masks whose names end so."""
    mask = torch.ones(1, 9, dtype=torch.bool)
    short = mask.clone()
    short[:, 4:] = False
    found = {"prompt_embeds": noise(1, 9, 16), "negative_prompt_embeds": noise(1, 9, 16) + 0.5}
    return found | {suffix[0]: mask, suffix[1]: short}


def nucleus():
    from diffusers import FlowMatchEulerDiscreteScheduler, NucleusMoEImagePipeline

    model = transformer("nucleus-image", find_family("nucleus-image").transformer)
    parts = dict.fromkeys(("vae", "text_encoder", "processor"))
    pipe = NucleusMoEImagePipeline(transformer=model, scheduler=FlowMatchEulerDiscreteScheduler(), **parts)
    return pipe, prompts("prompt_embeds_mask", "negative_prompt_embeds_mask") | {"guidance_scale": 4.0}


def prx():
    from diffusers import FlowMatchEulerDiscreteScheduler, PRXPipeline

    model = transformer("prx", find_family("prx").transformer)
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    pipe = PRXPipeline(transformer=model, scheduler=FlowMatchEulerDiscreteScheduler(), **parts)
    asked = {"guidance_scale": 4.0, "use_resolution_binning": False}
    return pipe, prompts("prompt_attention_mask", "negative_prompt_attention_mask") | asked


@pytest.mark.parametrize(("made", "branches"), [(nucleus, 2), (prx, 1)], ids=["nucleus-image", "prx"])
def test_a_picture_whose_text_is_keys_alone_is_drawn_sparse_in_both_branches_and_restored(made, branches):
    pipe, call = made()
    pipe.set_progress_bar_config(disable=True)

    def draw():
        given = {**call, **SIZE, "generator": torch.Generator().manual_seed(0)}
        return pipe(**given).images.numpy()

    dense = draw()
    with dittools.accelerate(pipe, method="dense"):
        assert np.array_equal(draw(), dense)
    with dittools.accelerate(pipe, sparsity=0.0, **SPARSE):
        np.testing.assert_allclose(draw(), dense, rtol=1e-4, atol=1e-4)
    fast = dittools.accelerate(pipe, sparsity=0.6, **SPARSE)
    sparse, record = draw(), fast.record()
    assert record["calls"] == {k: 4 * branches if k in ("sparse", "expected") else 0 for k in record["calls"]}
    assert record["fallbacks"] == [] and record["notes"] == [] and np.abs(sparse - dense).max() > 1e-3
    kept = record["sparsity"]["by_parts"]
    assert kept["picture-picture"] == pytest.approx(0.4, abs=0.05) and kept["picture-text"] == 1
    fast.restore()
    assert np.array_equal(draw(), dense)


# MiniMax-H3


def h3(keyframes: int):
    """A pipeline of diffusers' own blocks behind the encoders, and what these would give it."""
    from diffusers import MiniMaxH3Scheduler
    from diffusers.modular_pipelines import SequentialPipelineBlocks
    from diffusers.modular_pipelines.minimax_h3 import before_denoise, denoise

    steps = {
        "anchors": before_denoise.MiniMaxH3NoKeyframeAnchorsStep,
        "layout": before_denoise.MiniMaxH3PrepareLayoutStep,
        "given": before_denoise.MiniMaxH3PrepareConditionLatentsStep,
        "latents": before_denoise.MiniMaxH3PrepareLatentsStep,
        "all": before_denoise.MiniMaxH3FL2VAPrepareLatentsStep,
        "timesteps": before_denoise.MiniMaxH3SetTimestepsStep,
        "denoise": denoise.MiniMaxH3DenoiseStep,
    }
    for name in ("anchors",) if keyframes else ("given", "all"):
        del steps[name]

    class Blocks(SequentialPipelineBlocks):
        model_name = "minimax-h3"
        block_names, block_classes = list(steps), list(steps.values())

    pipe = Blocks().init_pipeline()
    model = transformer("minimax-h3", find_family("minimax-h3").transformer)
    clocks = {"scheduler": MiniMaxH3Scheduler(12.0), "audio_scheduler": MiniMaxH3Scheduler(3.0)}
    pipe.update_components(transformer=model, **clocks)
    call = {"prompt_embeds": noise(1, TEXT, 16), "text_token_tags": torch.ones(TEXT), "num_inference_steps": 5}
    call |= {"height": 96, "width": 128, "num_frames": 124, "output": "latents"}
    if keyframes:
        call["keyframe_anchors"] = ("first", "last")[:keyframes]
        call["condition_latents"] = [noise(1, 24, 1, 6, 8) for _ in range(keyframes)]
    return pipe, call


@pytest.mark.parametrize("keyframes", [0, 2])
def test_minimax_h3_is_drawn_sparse_by_its_own_blocks_and_restored(keyframes):
    pipe, call = h3(keyframes)

    def draw():
        return pipe(**call, generator=torch.Generator().manual_seed(0)).numpy()

    dense = draw()
    with dittools.accelerate(pipe, sparsity=0.0, **SPARSE):
        np.testing.assert_allclose(draw(), dense, rtol=1e-4, atol=1e-4)
    # Five levels of noise are four steps; the first quarter of them is dense, by the video's own schedule.
    fast = dittools.accelerate(pipe, sparsity=0.6, **SPARSE | {"dense_steps": 0.25})
    sparse, record = draw(), fast.record()
    assert record["calls"] == {"dense": 2, "sparse": 6, "reused": 0, "expected": 8} and record["fallbacks"] == []
    assert record["sparsity"]["per_step"][0] == 0 and min(record["sparsity"]["per_step"][1:]) > 0.05
    grid, given = record["grid"], [("reference", (keyframes, 3, 4))] if keyframes else []
    assert (grid["frames"], grid["height"], grid["width"], grid["text"]) == (37, 3, 4, TEXT)
    assert [(part["kind"], part["shape"]) for part in grid["parts"]] == [*given, ("sound", None)]
    kept = record["sparsity"]["by_parts"]
    assert kept["picture-picture"] == pytest.approx(0.4, abs=0.05) and kept["picture-sound"] == pytest.approx(1)
    assert np.isfinite(sparse).all() and np.abs(sparse - dense).max() > 1e-3
    fast.restore()
    assert np.array_equal(draw(), dense)


def h3_references(*kinds: str, sound: int = 4, grid=(7, 8, 9)):
    """Arguments of a call with references: an "image", a "video" with sound, or "audio"."""
    from types import SimpleNamespace

    from diffusers.modular_pipelines.minimax_h3.before_denoise import MiniMaxH3Ref2VAPrepareLayoutStep as Step

    frames, height, width = grid
    shapes = {"image": (1, 10, 12), "video": (3, 8, 12)}
    packed = Step.build_ref2va_packed_sequence(
        torch.tensor([1.0] * 5 + [0.0] * 2),  # text of a reference's vision block is tagged as video
        [SimpleNamespace(kind=kind, has_audio=kind == "video") for kind in kinds],
        [noise(1, 24, *shapes[kind]) for kind in kinds if kind in shapes],
        [noise(6, 32) for kind in kinds if kind != "image"],
        frames, 2 * height, 2 * width, sound, (1, 2, 2), 2, 2, 0,
    )  # fmt: skip
    return minimax_h3_rows(1, *packed)


TEXT_PART, SOUND = Part("text", 7), Part("sound", 6)
IMAGE, CLIP = Part.of("reference", 1, 5, 6), Part.of("reference", 3, 4, 6)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (lambda: minimax_h3((7, 8, 9), 1), [TEXT_PART, Part("sound", 10)]),
        (lambda: minimax_h3((7, 8, 9), 1, ("last",)), [TEXT_PART, Part.of("reference", 1, 8, 9), Part("sound", 10)]),
        (lambda: h3_references("image", "audio"), [TEXT_PART, IMAGE, Part("sound", 14)]),
        (lambda: h3_references("video", "image"), [TEXT_PART, SOUND, CLIP, IMAGE, Part("sound", 8)]),
        (lambda: h3_references("image", "video", sound=0), [TEXT_PART, IMAGE, SOUND, CLIP]),
    ],
    ids=["text alone", "a keyframe", "an image and a sound", "a video with sound", "no sound is drawn"],
)
def test_the_parts_of_a_minimax_h3_document_are_those_that_its_blocks_packed(arguments, parts):
    found = arguments()
    for dtype in (torch.float64, torch.bfloat16):
        given = found | {"position_ids": found["position_ids"].to(dtype)}
        layout = find_family("minimax-h3").layout(None, given.get)
        assert (layout.frames, layout.height, layout.width) == (7, 8, 9) and list(layout.before) == parts
        assert layout.after == () and layout.in_order(len(found["position_ids"])) is False
    rows = found["hidden_states"].shape[1]
    assert picture_in(layout, rows) == slice(rows - 504, rows)  # among latents, which have no text and no sound
    tokens = len(found["position_ids"])
    assert picture_in(layout, tokens) == slice(tokens - 504, tokens)
    holder = Holder("minimax-h3")
    out, record = holder.run("draft", found, 0.0, block_size=64)
    torch.testing.assert_close(out, holder.draw(found), rtol=1e-4, atol=1e-5)
    assert record["fallbacks"] == [] and record["cache"]["computed_steps"] == [1]  # the video's step, of four


def broken(arguments: dict, name: str, change) -> dict:
    value = arguments[name].clone()
    return arguments | {name: change(value)}


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("position_ids", lambda x: x.index_fill_(0, torch.tensor([len(x) - 3]), 1e3), "not those of frames, rows"),
        ("video_indices", lambda x: x[:-1], "each row has to be of one kind"),
        ("video_indices", lambda x: x.flip(0), "in the order of the packed sequence"),
        ("audio_indices", lambda x: x - x, "each row has to be of one kind"),
        ("text_indices", lambda x: x + 10_000, "are not those of minimax-h3"),
        ("position_ids", lambda x: None, "a packed sequence needs position_ids, a tensor, and the call gives NoneType"),
    ],
)
def test_a_document_that_cannot_be_read_is_said_in_one_line(name, change, says):
    given = broken(minimax_h3((3, 4, 5), 1), name, change)
    with pytest.raises(BadInput, match=says) as error:
        find_family("minimax-h3").layout(None, given.get)
    assert "\n" not in str(error.value)


def test_a_packed_sequence_is_read_once_while_its_tensors_are_the_same(monkeypatch):
    read, family = [], find_family("minimax-h3")
    make = one_sequence._document
    monkeypatch.setattr(one_sequence, "_document", lambda *given: read.append(1) or make(*given))
    found, other = minimax_h3((3, 4, 5), 1), minimax_h3((4, 4, 5), 1)
    for _ in range(3):
        assert family.layout(None, found.get).frames == 3 and family.layout(None, other.get).frames == 4
    assert len(read) == 2
    found["position_ids"][-1] = 99.0  # written to: another document, which cannot be read
    with pytest.raises(BadInput):
        family.layout(None, found.get)
    del found, other
    assert all(ref() is None for kept, _, _ in one_sequence._found for ref, _ in kept)


def test_ranks_have_a_document_in_its_own_order_though_text_is_in_front_of_it():
    found = minimax_h3((2, 4, 5), 1)
    layout = find_family("minimax-h3").layout(None, found.get)
    assert places_of([30, 27], layout) == [[(0, 30)], [(30, 27)]]
    apart = replace(layout, one_sequence=False)  # as FLUX has it: each rank some text and some of all else
    assert places_of([30, 27], apart) == [[(0, 5), (7, 25)], [(5, 2), (32, 25)]]


# Cosmos 3


@pytest.mark.parametrize("beside", [(), ((1, 6, 7),), ((4, 12, 16), (2, 4, 4))], ids=["alone", "one", "two"])
def test_pictures_given_to_cosmos_3_are_references_whatever_their_size(beside):
    found = cosmos_3((3, 12, 16), 1, beside)
    layout = find_family("cosmos-3").layout(None, found.get)
    text = Part("text", TEXT, queries=False)
    assert layout.before == (text, *(Part.of("reference", *shape) for shape in beside))
    assert layout.after == (Part("sound", 5), Part("sound", 3)) and layout.keys_alone == TEXT
    drawn = sum(part.tokens for part in layout.parts[1:])
    assert picture_in(layout, drawn) == slice(drawn - 8 - 576, drawn - 8)  # in a block of what is generated
    holder = Holder("cosmos-3")
    with torch.no_grad():
        dense = holder.transformer(**found, return_dict=False)[0][-1]
    for sparsity in (0.0, 0.6):
        fast = dittools.accelerate(holder, sparsity=sparsity, **SPARSE)
        with torch.no_grad():
            out = holder.transformer(**found, return_dict=False)[0][-1]
        record = fast.record()
        fast.restore()
        assert torch.allclose(out, dense, rtol=1e-4, atol=1e-5) == (sparsity == 0) and record["fallbacks"] == []
        assert record["calls"]["sparse"] == 2 and record["calls"]["dense"] == 0  # text's own attention is not counted
        kept = record["sparsity"]["by_parts"]
        assert kept["picture-picture"] == pytest.approx(1 - sparsity, abs=0.05)
        assert kept["picture-text"] == 1 and kept["picture-sound"] == pytest.approx(1)


def test_cosmos_3_draws_from_an_image_sparse_in_both_branches_and_is_restored():
    from diffusers import Cosmos3OmniPipeline, Cosmos3OmniTransformer, UniPCMultistepScheduler

    config = TINY["cosmos-3"].config | {"latent_channel": 16, "patch_latent_dim": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Cosmos3OmniTransformer(**config).eval().requires_grad_(False)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 1.0}
    parts = {"vae": tiny_pipeline().vae, "scheduler": UniPCMultistepScheduler(**flow), "enable_safety_checker": False}
    pipe = Cosmos3OmniPipeline(transformer=model, text_tokenizer=tokenizer, **parts)
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt": "a red circle moves left", "negative_prompt": "grey", "image": noise(1, 3, 128, 144).sigmoid()}
    call |= {"num_frames": 9, "height": 128, "width": 144, "num_inference_steps": 2, "output_type": "latent"}

    def draw():
        return pipe(**call, generator=torch.Generator().manual_seed(0)).video.numpy()

    dense = draw()
    with dittools.accelerate(pipe, sparsity=0.0, **SPARSE):
        np.testing.assert_allclose(draw(), dense, rtol=1e-3, atol=1e-3)
    fast = dittools.accelerate(pipe, sparsity=0.6, **SPARSE)
    sparse, record = draw(), fast.record()
    assert record["calls"] == {"dense": 0, "sparse": 8, "reused": 0, "expected": 8}
    assert record["fallbacks"] == []
    assert [record["grid"][axis] for axis in ("frames", "height", "width", "text")] == [3, 8, 9, 0]
    kept = record["sparsity"]["by_parts"]
    assert kept["picture-picture"] == pytest.approx(0.4, abs=0.1) and kept["picture-text"] == 1
    assert np.isfinite(sparse).all() and np.abs(sparse - dense).max() > 1e-3
    fast.restore()
    assert np.array_equal(draw(), dense)


def test_places_of_cosmos_3_that_leave_a_gap_are_said_in_one_line():
    family, found = find_family("cosmos-3"), cosmos_3((2, 4, 4), 1)
    for name, change in {"sequence_length": lambda n: n + 1, "sound_sequence_indexes": lambda x: x.flip(0)}.items():
        with pytest.raises(BadInput, match="packed sequence") as error:
            family.layout(None, (found | {name: change(found[name])}).get)
        assert "\n" not in str(error.value)
    assert TINY["cosmos-3"].arguments is cosmos_3
