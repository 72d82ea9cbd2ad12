"""Families whose keys are not their queries, or that pack one sequence, in diffusers' own pipelines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    NucleusMoEImagePipeline,
    PRXPipeline,
)

import dittools
from dittools.pipelines.families import find_family
from tests.families_tiny import noise, transformer

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
    model = transformer("nucleus-image", find_family("nucleus-image").transformer)
    parts = dict.fromkeys(("vae", "text_encoder", "processor"))
    pipe = NucleusMoEImagePipeline(transformer=model, scheduler=FlowMatchEulerDiscreteScheduler(), **parts)
    return pipe, prompts("prompt_embeds_mask", "negative_prompt_embeds_mask") | {"guidance_scale": 4.0}


def prx():
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
