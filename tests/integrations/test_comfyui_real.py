"""The nodes in ComfyUI itself, where COMFYUI names a checkout of it: its classes, its MODEL, its sampling."""

import os
import sys
from pathlib import Path

import pytest
import torch

from tests.integrations.comfy_pack import part, patched, record, told

WHERE = os.environ.get("COMFYUI")
if not WHERE:
    pytest.skip("COMFYUI names no checkout of ComfyUI to run in", allow_module_level=True)
if not (Path(WHERE) / "comfy" / "patcher_extension.py").is_file():
    raise FileNotFoundError(f"COMFYUI={WHERE} is no checkout of ComfyUI: it has no comfy/patcher_extension.py")
sys.path.insert(0, WHERE)

from tests.integrations.comfy_models import MODELS, draw, make  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def comfy():
    """ComfyUI on the CPU."""
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    import comfy.samplers

    return comfy


@pytest.fixture(scope="module", params=MODELS)
def tiny(request):
    """(what it is, its MODEL, what that gives without a patch)"""
    kind = MODELS[request.param]
    model = make(kind)
    assert type(model.model.diffusion_model).__name__ == kind.kind
    return kind, model, draw(model, kind)


def near(one, other):
    return torch.allclose(one, other, rtol=1e-3, atol=2e-4 * float(other.abs().max()))


def calls_of(kind):
    """Self-attention calls of one step."""
    return kind.layers * kind.forwards


def untouched(model):
    inner = model.model.diffusion_model
    hooks = [each for one in inner.modules() for each in (*one._forward_pre_hooks, *one._forward_hooks)]
    return not hooks and "optimized_attention_override" not in model.model_options["transformer_options"]


def test_a_full_budget_is_dense_and_the_model_stays_as_it_was(tiny):
    kind, model, dense = tiny
    assert dense.isfinite().all()
    clone = patched(model, sparsity=0.0)
    assert near(draw(clone, kind), dense)
    found = record(clone)
    assert found["calls"]["dense"] == 0 and found["calls"]["sparse"] == found["calls"]["expected"] == 3 * calls_of(kind)
    assert untouched(model) and torch.equal(draw(model, kind), dense)


def test_sparse_as_asked_and_every_part_in_its_place(tiny):
    kind, model, dense = tiny
    clone = patched(model, dense_steps=0.3, dense_layers=1)
    out = draw(clone, kind)
    found = record(clone)
    assert out.isfinite().all() and not near(out, dense)
    sparse = 2 * (kind.layers - 1) * kind.forwards
    assert found["calls"]["sparse"] == sparse and found["calls"]["dense"] == 3 * calls_of(kind) - sparse
    assert found["sparsity"]["per_layer"][0] == 0 and found["sparsity"]["per_step"][0] == 0
    assert found["grid"]["text"] == kind.text
    assert [(one["kind"], one["tokens"]) for one in found["grid"].get("parts", [])] == list(kind.parts)
    if not kind.text and not kind.parts:
        assert found["sparsity"]["sparse_calls"] == pytest.approx(0.5, abs=0.02)
    else:
        assert found["sparsity"]["by_parts"]["picture-picture"] == pytest.approx(0.5, abs=0.12)
    assert ("cross-attention" in told(clone)) == (not kind.text)
    assert not found["fallbacks"]


def test_a_step_cache_reuses_forwards(tiny):
    kind, model, _ = tiny
    clone = patched(model, method="dense", cache="easycache", settings='{"cache_options": {"threshold": 99}}')
    out = draw(clone, kind, steps=5)
    lanes = record(clone)["cache"]["branches"]
    assert len(lanes) == kind.forwards and all(lane["reused_steps"] == [2, 3] for lane in lanes.values())
    assert out.isfinite().all()
    assert part("patch").patch_of(clone).latest.runtime.run.reuse.held_bytes() == 0
