"""Block masks that a model was trained with run on our kernels as they are: Kandinsky 5 with NABLA."""

import pytest
import torch
from diffusers import Kandinsky5Transformer3DModel
from diffusers.models.transformers import transformer_kandinsky
from diffusers.pipelines.kandinsky5.pipeline_kandinsky import Kandinsky5T2VPipeline
from torch.nn.attention import flex_attention

import dittools
from dittools.pipelines.own_masks import blocks_of
from tests.families_tiny import TINY
from tests.pipelines.test_families import Holder

GRID = (3, 16, 16)
WINDOW = (3, 1, 1)
ROUNDED = 3e-3  # the model rounds queries and keys to bf16, which turns a last bit into a step of that
NABLA = {"attention_type": "nabla", "attention_P": 0.5, "attention_add_sta": True, "attention_method": "topcdf"}
NABLA |= {f"attention_w{axis}": size for axis, size in zip("THW", WINDOW, strict=True)}


@pytest.fixture
def holder():
    """A tiny Kandinsky 5 that was trained with NABLA, as diffusers runs it: by flex attention."""
    found = Holder("kandinsky-5")
    config = {name: value for name, value in found.transformer.config.items() if not name.startswith("_")}
    trained = Kandinsky5Transformer3DModel.from_config({**config, **NABLA}).eval()
    trained.load_state_dict(found.transformer.state_dict())
    found.transformer = trained
    for block in found.transformer.visual_transformer_blocks:  # so that the mask shows
        block.self_attention.query_norm.weight.data.fill_(3.0)
    found.transformer.set_attention_backend("flex")
    return found


@pytest.fixture
def arguments():
    """Of a call, with the parameters that its pipeline gives."""
    found = TINY["kandinsky-5"].arguments(GRID, 1)
    window = Kandinsky5T2VPipeline.fast_sta_nabla(GRID[0], GRID[1] // 8, GRID[2] // 8, *WINDOW, device="cpu")
    return found | {"sparse_params": {"sta_mask": window[None, None], "to_fractal": True, "P": 0.5}}


def oracle(holder, arguments):
    """The model's output with PyTorch's own attention under the masks that diffusers makes; and these masks.

    Flex attention computes every pair where it is not compiled: it reads rules, and lists of blocks it does not.
    """
    masks = []

    def attend(q, k, v, attn_mask, **call):
        if attn_mask is not None:
            masks.append(attn_mask.to_dense().bool())
            attn_mask = masks[-1].repeat_interleave(64, -1).repeat_interleave(64, -2)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask).transpose(1, 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer_kandinsky, "dispatch_attention_fn", attend)
        return holder.draw(arguments), masks


def test_its_own_choice_runs_on_our_kernels_and_is_diffusers_mask_to_the_block(holder, arguments):
    alone, theirs = oracle(holder, arguments)
    plans = []
    with dittools.accelerate(holder, method="trained") as fast:
        fast.runtime.plan_watchers.append(lambda event, plan: plans.append(plan.mask.keep))
        out = holder.draw(arguments)
        record = fast.record()
    torch.testing.assert_close(out, alone, rtol=0, atol=ROUNDED)
    assert len(plans) == len(theirs) == 2
    assert all(torch.equal(ours, mask) for ours, mask in zip(plans, theirs, strict=True))
    assert record["calls"]["sparse"] == 2 and record["calls"]["dense"] == 0 and record["fallbacks"] == []
    assert 0.2 < record["sparsity"]["sparse_calls"] < 0.7 and set(record["kernels"]) == {"portable"}
    dense = holder.draw(arguments | {"sparse_params": None})
    assert (dense - alone).abs().max() > 100 * (out - alone).abs().max(), "the mask changes nothing here"


def test_each_call_has_its_own_mask_whatever_the_schedule_and_the_branches_share(holder, arguments):
    changed = arguments | {"hidden_states": arguments["hidden_states"].flip(1)}
    alone = [oracle(holder, given)[0] for given in (arguments, changed)]
    settings = {"dense_steps": 1.0, "dense_layers": 2, "refresh": 5, "share_branches": True}
    with dittools.accelerate(holder, method="trained", **settings) as fast:
        out = [holder.draw(given) for given in (arguments, changed)]
        assert fast.record()["calls"]["dense"] == 0
    for ours, theirs in zip(out, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=ROUNDED)


def test_other_methods_leave_it_to_flex_attention_and_a_model_without_one_stays_dense(holder, arguments):
    alone = holder.draw(arguments)
    with dittools.accelerate(holder, method="draft", sparsity=0.5, dense_steps=0, dense_layers=0) as fast:
        assert torch.equal(holder.draw(arguments), alone)
        assert fast.record()["fallbacks"] == [{"reason": "the model brings a block mask of its own", "count": 2}]
    plain = Holder("kandinsky-5")
    given = arguments | {"sparse_params": None}
    alone = plain.draw(given)
    with dittools.accelerate(plain, method="trained", dense_steps=0, dense_layers=0) as fast:
        assert torch.equal(plain.draw(given), alone)
        assert fast.record()["fallbacks"] == [{"reason": "the model brings no block mask of its own", "count": 2}]


def test_what_no_kernel_takes_is_said():
    q = torch.zeros(2, 200, 3, 16)
    keep = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.5
    counts, indices = keep.sum(-1).int(), keep.int().argsort(-1, descending=True).int()
    made = flex_attention.BlockMask.from_kv_blocks
    whole = made(torch.zeros_like(counts), indices, counts, indices, BLOCK_SIZE=64)
    assert torch.equal(blocks_of(whole, q, q).keep, keep)
    partial = made(counts, indices, BLOCK_SIZE=64)
    assert torch.equal(blocks_of(partial, q, q).keep, keep), "without a rule a partial block is whole"
    ruled = made(counts, indices, BLOCK_SIZE=64, mask_mod=lambda b, h, i, j: i >= j)
    assert "cuts blocks by a rule" in blocks_of(ruled, q, q)
    assert "blocks of 96 x 96, which no sparse kernel takes" in blocks_of(made(counts, indices, BLOCK_SIZE=96), q, q)
    assert "blocks of 64 x 64" in blocks_of(whole, torch.zeros(2, 300, 3, 16), q)
    assert "blocks of 64 x 64" in blocks_of(whole, torch.zeros(3, 200, 3, 16), q)
