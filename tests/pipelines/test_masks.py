"""Masks, reference images and grouped heads in whole models: exact, and never a mask of pairs made by us."""

import pytest
import torch

import dittools
from dittools import methods
from dittools.runtime import Runtime
from tests.families_tiny import TINY, image_ids, noise
from tests.pipelines.test_families import Holder, Shown, grid_of
from tests.pipelines_tiny import pipeline


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "shown", Shown)


def test_hunyuan_15_gets_its_padding_as_a_row_of_keys(monkeypatch):
    seen = []
    attend = Runtime.attend

    def spy(self, *args, mask=None, **kwargs):
        seen.append(tuple(mask.shape))
        return attend(self, *args, mask=mask, **kwargs)

    monkeypatch.setattr(Runtime, "attend", spy)
    Holder("hunyuan-video-1.5").sparse("all", TINY["hunyuan-video-1.5"].arguments(grid_of("hunyuan-video-1.5"), 2))
    assert seen == [(2, 1, 1, 216 + 14)]


def with_references(name: str, grid=None, sizes=((3, 4), (4, 5))) -> dict:
    """Arguments with reference images of other sizes behind the picture."""
    arguments = TINY[name].arguments(grid or grid_of(name), 1)
    states = arguments["hidden_states"]
    more = noise(1, sum(height * width for height, width in sizes), states.shape[-1])
    found = arguments | {"hidden_states": torch.cat((states, more), 1)}
    if name == "qwen-image":
        return found | {"img_shapes": [[grid or grid_of(name), *((1, *size) for size in sizes)]]}
    references = [image_ids((1, *size), arguments["img_ids"].shape[1]) for size in sizes]
    for number, ids in enumerate(references):
        ids[:, 0] = number + 1
    return found | {"img_ids": torch.cat((arguments["img_ids"], *references))}


@pytest.mark.parametrize("name", ["flux", "flux-2", "qwen-image"])
def test_reference_images_are_parts_and_the_picture_is_where_it_was(name):
    holder, arguments = Holder(name), with_references(name)
    dense = holder.draw(arguments)
    out, record = holder.sparse("all", arguments)
    torch.testing.assert_close(out, dense, rtol=1e-4, atol=1e-5)
    grid = record["grid"]
    assert [grid[axis] for axis in ("frames", "height", "width", "text", "tokens")] == [1, 14, 15, 7, 210 + 32 + 7]
    assert [(part["kind"], part["shape"]) for part in grid["parts"]] == [
        ("reference", (1, 3, 4)),
        ("reference", (1, 4, 5)),
    ]
    other = arguments | {"hidden_states": arguments["hidden_states"].clone()}
    other["hidden_states"][:, 210:] += 1.0
    apart = [holder.sparse("apart", given)[0][:, :210] for given in (arguments, other)]
    assert torch.equal(*apart)  # no reference reaches the picture
    assert not torch.equal(*(holder.sparse("all", given)[0][:, :210] for given in (arguments, other)))


def test_a_reference_that_is_no_grid_stays_dense_and_the_record_says_what_it_costs():
    holder, arguments = Holder("flux"), with_references("flux", sizes=((3, 4),))
    arguments["img_ids"][-1, 2] = 9
    out, record = holder.sparse("all", arguments)
    torch.testing.assert_close(out, holder.draw(arguments), rtol=1e-4, atol=1e-5)
    assert record["grid"]["parts"] == [{"kind": "reference", "tokens": 12, "shape": None}]
    assert "reference image of 12 tokens stays dense" in record["notes"][0]
    _, record = holder.run("draft", arguments, 0.5)
    assert record["sparsity"]["by_parts"]["picture-reference"] == pytest.approx(1)
    of = record["sparsity"]["pairs_by_parts"]
    assert of["picture-reference"] == pytest.approx(210 * 12 / 229**2) and sum(of.values()) == pytest.approx(1)


def test_padding_that_differs_within_a_batch_keeps_its_plans_apart():
    """With a plan kept for later steps, the second sample must not be given the first one's."""
    holder = Holder("hunyuan-video")
    arguments = TINY["hunyuan-video"].arguments(grid_of("hunyuan-video"), 2)
    from dittools.config import Config
    from dittools.pipelines.attach import attach

    attachment = attach(holder, Config(method="shown", dense_steps=0, dense_layers=0, refresh=9))
    try:
        for t in (900.0, 500.0):
            out = holder.draw(arguments | {"timestep": torch.full((2,), t)})
        lengths = sorted(kept.shape[0][1] for kept in attachment.runtime.run.plans.values())
        assert lengths == [220, 220, 223, 223] and attachment.runtime.run.plans_reused == 4
    finally:
        attachment.detach()
    torch.testing.assert_close(out, holder.draw(arguments), rtol=1e-4, atol=1e-5)


def test_chroma_draws_sparsely_from_prompts_of_other_lengths():
    """Its pipeline hands padding over as numbers, which favour the text that is there and hide nothing."""
    from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    beside = pipeline("flux").components
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ChromaTransformer2DModel(**{**TINY["chroma"].config, "in_channels": 16, "joint_attention_dim": 32})
    parts = {"text_encoder": beside["text_encoder_2"], "tokenizer": beside["tokenizer_2"], "vae": beside["vae"]}
    pipe = ChromaPipeline(scheduler=FlowMatchEulerDiscreteScheduler(), transformer=model.eval(), **parts)
    pipe.set_progress_bar_config(disable=True)

    def draw():
        prompts = {"prompt": ["a red circle moves left", "square"], "negative_prompt": ["grey", ""]}
        size = {"height": 256, "width": 272, "max_sequence_length": 24, "num_inference_steps": 2}
        return pipe(**prompts, **size, output_type="latent", generator=torch.Generator().manual_seed(0)).images

    dense = draw()
    asked = {"method": "draft", "block_size": 64, "dense_steps": 0, "dense_layers": 0}
    for sparsity in (0.0, 0.3):
        with dittools.accelerate(pipe, sparsity=sparsity, **asked) as fast:
            out = draw()
        calls = fast.record()["calls"]
        assert calls == {"dense": 0, "sparse": 8, "reused": 0, "expected": 8} and not fast.record()["fallbacks"]
        assert torch.allclose(out, dense, rtol=1e-3, atol=1e-4) == (sparsity == 0)


def test_padding_as_numbers_made_anew_in_each_layer_is_read_once(monkeypatch):
    from dittools import call_splitter

    read, key_bias = [], call_splitter.key_bias
    monkeypatch.setattr(call_splitter, "key_bias", lambda *given: read.append(given) or key_bias(*given))
    holder, arguments = Holder("cogview-4"), TINY["cogview-4"].arguments(grid_of("cogview-4"), 2)
    there = torch.ones(arguments["encoder_hidden_states"].shape[:2], dtype=torch.int32)
    there[1, -3:] = 0
    arguments |= {"attention_mask": there}
    dense = holder.draw(arguments)
    out, record = holder.sparse("all", arguments)
    torch.testing.assert_close(out, dense, rtol=1e-4, atol=1e-5)
    del record["calls"]["expected"]  # of steps that have not run as well
    assert record["calls"] == {"dense": 0, "sparse": 2, "reused": 0} and len(read) == 1


def test_images_whose_texts_shift_them_run_dense_and_are_counted():
    holder, arguments = Holder("lumina-2"), TINY["lumina-2"].arguments(grid_of("lumina-2"), 2)
    mask = arguments["encoder_attention_mask"].clone()
    mask[1, -3:] = False
    arguments |= {"encoder_attention_mask": mask}
    dense = holder.draw(arguments)
    out, record = holder.sparse("all", arguments)
    torch.testing.assert_close(out, dense, rtol=1e-4, atol=1e-5)
    assert [(f["count"], "hides tokens of the picture" in f["reason"]) for f in record["fallbacks"]] == [(2, True)]


def test_kandinskys_own_sparse_mask_is_left_to_flex_attention(monkeypatch):
    from dittools.pipelines import backend

    holder = Holder("kandinsky-5")
    arguments = TINY["kandinsky-5"].arguments(grid_of("kandinsky-5"), 1)
    called = []

    class BlockMask:
        """Flex attention's own kind of mask, in name only."""

    def flex(q, k, v, **call):
        called.append(call)
        return v

    monkeypatch.setattr(backend, "dispatch_attention_fn", flex)
    monkeypatch.setattr("diffusers.models.transformers.transformer_kandinsky.nablaT_v2", lambda *a, **k: BlockMask())
    arguments["sparse_params"] = {"to_fractal": False, "sta_mask": None, "P": 0.9}
    _, record = holder.sparse("all", arguments)
    assert len(called) == 2 and all(isinstance(call["attn_mask"], BlockMask) for call in called)
    assert record["fallbacks"] == [{"reason": "the model brings a block mask of its own", "count": 2}]
