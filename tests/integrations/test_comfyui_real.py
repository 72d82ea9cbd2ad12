"""The nodes in ComfyUI itself, where COMFYUI names a checkout of it: its classes, its MODEL, its sampling."""

import asyncio
import inspect
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.integrations.comfy_pack import PACK, part, patched, record, told

WHERE = os.environ.get("COMFYUI")
if not WHERE:
    pytest.skip("COMFYUI names no checkout of ComfyUI to run in", allow_module_level=True)
if not (Path(WHERE) / "comfy" / "patcher_extension.py").is_file():
    raise FileNotFoundError(f"COMFYUI={WHERE} is no checkout of ComfyUI: it has no comfy/patcher_extension.py")
sys.path.insert(0, WHERE)

from tests.integrations.comfy_models import MODELS, draw, latents_of, make, prompts_of, streams  # noqa: E402


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


@pytest.fixture
def seen(tiny, monkeypatch):
    """Gives the queries of the first call of a draw ``[S, H * D]`` of the last sample, and the parts they are of."""
    kind, model, _ = tiny

    def look(**how):
        found = []

        def read(args, kwargs):
            call = real(args, kwargs)
            layout = clone_patch.under_way.runtime.layout
            found.append((call.q[-1].flatten(1), layout.parts_of(call.q.shape[1])))
            return call

        clone = patched(model)
        clone_patch, real = part("patch").patch_of(clone), part("calls").read_call
        with monkeypatch.context() as watched:
            watched.setattr(part("patch"), "read_call", read)
            draw(clone, kind, steps=1, **how)
        return found[0]

    return look


def rows(parts, *kinds):
    """Which tokens are of parts of these kinds."""
    return torch.cat([torch.full((one.tokens,), one.kind in kinds) for one in parts])


def test_every_token_is_where_the_layout_says(tiny, seen):
    """What changes in the queries, where the prompt, a reference, the noise or one pixel of it is another."""
    import comfy.sample

    kind, _, _ = tiny
    queries, parts = seen()

    def moved(**how):
        return (seen(**how)[0] - queries).abs().amax(1)

    def changed(**how):
        return moved(**how) > 0

    picture = next(one for one in parts if one.kind == "picture")
    noise = comfy.sample.prepare_noise(latents_of(kind), 1)
    other = changed(noise=noise)
    if kind.refined:  # and so have the tokens that fill the picture up
        other &= rows(parts, "picture")
    assert torch.equal(other, rows(parts, "picture", "sound"))
    other = changed(prompts=prompts_of(kind, 5))
    assert not (other & ~rows(parts, "text")).any() and bool(other.any()) == bool(kind.text)
    if any(name == "reference" for name, _ in kind.parts):
        larger = prompts_of(kind)
        for ((_, extra),) in larger:
            for name in {"reference_latents", "time_dim_concat", "context_latents"} & set(extra):
                given = extra[name]
                extra[name] = 2 * given if isinstance(given, torch.Tensor) else [2 * one for one in given]
        assert torch.equal(changed(prompts=larger), rows(parts, "reference"))

    noise = comfy.sample.prepare_noise(latents_of(kind), 0)
    pixels = streams(noise)[0]
    frames, height, width = (1, *pixels.shape[2:])[-3:]
    frame, row, column = frames - 1, height // 2 + 3, width // 2 - 3
    (pixels[:, :, frame] if pixels.ndim == 5 else pixels)[..., row, column] += 1
    sizes = zip(picture.shape, (frames, height, width), strict=True)
    at = [place * tokens // size for place, (tokens, size) in zip((frame, row, column), sizes, strict=True)]
    index = (at[0] * picture.shape[1] + at[1]) * picture.shape[2] + at[2]
    start = int(rows(parts, "picture").nonzero()[0])
    distance = moved(noise=noise)
    assert int(distance.argmax()) == start + index and (kind.refined or int((distance > 0).sum()) == 1)


def test_a_step_cache_reuses_forwards(tiny):
    kind, model, _ = tiny
    clone = patched(model, method="dense", cache="easycache", settings='{"cache_options": {"threshold": 99}}')
    out = draw(clone, kind, steps=5)
    lanes = record(clone)["cache"]["branches"]
    assert len(lanes) == kind.forwards and all(lane["reused_steps"] == [2, 3] for lane in lanes.values())
    assert out.isfinite().all()
    assert part("patch").patch_of(clone).latest.runtime.run.reuse.held_bytes() == 0


# What samplers and other nodes do, on Wan


@pytest.fixture(scope="module")
def wan():
    return make(MODELS["Wan 2.1"])


def drawn(model, steps=4, **how):
    return draw(model, MODELS["Wan 2.1"], steps, **how)


@pytest.mark.parametrize("sampler", ["heun", "dpm_2_ancestral", "dpmpp_sde", "uni_pc", "res_multistep"])
def test_every_sampler_keeps_the_schedule(wan, sampler):
    clone = patched(wan, dense_steps=0.5)
    assert drawn(clone, sampler_name=sampler).isfinite().all()
    found = record(clone)
    dense, sparse = (found["sparsity"]["per_step"][at] for at in (slice(0, 2), slice(2, 4)))
    assert found["steps"] == 4 and dense == [0, 0] and sparse == pytest.approx([0.5, 0.5])
    assert not found["notes"] and not found["fallbacks"]


def test_a_run_that_begins_late_or_ends_early_has_the_steps_that_it_runs(wan):
    clone = patched(wan, dense_steps=0.5)
    drawn(clone, 8, start_step=2, last_step=6)
    assert record(clone)["steps"] == 4 and record(clone)["sparsity"]["per_step"] == pytest.approx([0, 0, 0.5, 0.5])
    drawn(clone, 4, denoise=0.5)
    assert record(clone)["steps"] == 4


def test_areas_and_several_conditionings_are_told_apart(wan):
    kind = MODELS["Wan 2.1"]
    one, two = prompts_of(kind)
    half = [
        [tokens, {**extra, "area": (4, 32, 16, 0, 0, at), "strength": 1.0}]
        for (tokens, extra), at in zip((one[0], two[0]), (0, 16), strict=True)
    ]
    clone = patched(wan, cache="easycache", settings='{"cache_options": {"threshold": 0}}')
    dense = drawn(wan, prompts=[[*half, one[0]], two])
    assert drawn(clone, prompts=[[*half, one[0]], two]).isfinite().all() and dense.isfinite().all()
    found = record(clone)
    assert found["calls"]["dense"] == 0 and found["calls"]["sparse"] == found["calls"]["expected"] == 2 * 4 * 3
    assert part("patch").patch_of(clone).latest.runtime.run.plans_shared == 0
    names = {name for branch in found["cache"]["branches"] for name in branch.split("_")}
    assert names >= {"cond", "cond 2", "cond 3", "uncond"}


def test_windows_of_frames_are_branches(wan):
    context = pytest.importorskip("comfy.context_windows")
    clone = patched(wan, cache="easycache", settings='{"cache_options": {"threshold": 0}}')
    clone.model_options["context_handler"] = context.IndexListContextHandler(
        context_schedule=context.get_matching_context_schedule(context.ContextSchedules.STATIC_STANDARD),
        fuse_method=context.get_matching_fuse_method(context.ContextFuseMethods.PYRAMID),
        context_length=3,
        context_overlap=1,
        dim=2,
    )
    assert drawn(clone).isfinite().all()
    found = record(clone)
    assert len(found["cache"]["branches"]) == 2 and all("frames" in name for name in found["cache"]["branches"])
    assert found["grid"]["frames"] in (2, 3, 4) and found["calls"]["dense"] == 0


def test_the_patch_goes_along_with_later_clones_and_another_nodes_attention(wan):
    from comfy.ldm.modules.attention import attention_pytorch

    calls = []

    def theirs(func, *args, **kwargs):
        calls.append(func)
        return attention_pytorch(*args, **kwargs)

    clone = patched(wan, dense_layers=1).clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = theirs
    drawn(clone)
    assert len(calls) == 4 + 4 * 3 and record(clone)["calls"]["sparse"] == 4 * 2
    assert "dense calls run through another node's attention override" in told(clone)


def test_an_interrupted_run_leaves_nothing_behind(wan):
    import comfy.model_management

    clone = patched(wan, settings='{"refresh": 4}', cache="easycache")
    stop = comfy.model_management.InterruptProcessingException

    def interrupt(step, *_):
        if step == 1:
            raise stop

    with pytest.raises(stop):
        drawn(clone, callback=interrupt)
    run = part("patch").patch_of(clone).latest.runtime.run
    assert untouched(wan) and not run.plans and run.reuse.held_bytes() == 0
    drawn(clone)
    assert record(clone)["calls"]["sparse"] > 0


def test_a_compiled_model_draws_the_same_with_its_blocks_still_compiled(wan):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    inner, clone = wan.model.diffusion_model, patched(wan)
    eager = drawn(clone, 2)
    torch._dynamo.reset()
    try:
        inner.forward = torch.compile(type(inner).forward.__get__(inner), backend=backend)
        assert near(drawn(clone, 2), eager) and record(clone)["calls"]["sparse"] == 6
        assert sum("linear" in graph.code for graph in compiled) >= 3
    finally:
        del inner.forward


# ComfyUI's own executor


def test_a_workflow_runs_in_comfyuis_executor_with_the_pack_as_a_custom_node(monkeypatch):
    nodes = pytest.importorskip("nodes")
    execution = pytest.importorskip("execution")
    kind = MODELS["Wan 2.1"]

    class Loads:
        RETURN_TYPES, FUNCTION = ("MODEL", "CONDITIONING", "CONDITIONING", "LATENT"), "load"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {}}

        def load(self):
            return make(kind), *prompts_of(kind), {"samples": latents_of(kind)}

    monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", {**nodes.NODE_CLASS_MAPPINGS, "Loads": Loads})
    assert asyncio.run(nodes.load_custom_node(str(PACK)))
    asked = {"method": "draft", "sparsity": 0.5, "dense_steps": 0.25, "dense_last_steps": 0.0, "dense_layers": 0}
    asked |= {"correction": "none", "cache": "none", "settings": ""}
    sampler = {"seed": 0, "steps": 4, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    sampler |= {"positive": ["1", 1], "negative": ["1", 2], "latent_image": ["1", 3], "model": ["2", 0]}
    prompt = {
        "1": {"class_type": "Loads", "inputs": {}},
        "2": {"class_type": "DittoolsSparseAttention", "inputs": {"model": ["1", 0], **asked}},
        "3": {"class_type": "KSampler", "inputs": sampler},
        "4": {"class_type": "DittoolsSummary", "inputs": {"model": ["2", 0], "samples": ["3", 0]}},
    }

    def run():
        valid, error, outputs, problems = asyncio.run(execution.validate_prompt("0", prompt, None))
        assert valid, (error, problems)
        sent = []
        server = SimpleNamespace(
            client_id="me", last_node_id=None, last_prompt_id=None, send_sync=lambda *event: sent.append(event)
        )
        executor.server = server
        executor.execute(prompt, "0", {"client_id": "me"}, outputs)
        if not executor.success:
            raise RuntimeError(executor.status_messages[-1][1]["exception_message"])
        (text,) = [data["output"]["text"][0] for name, data, *_ in sent if name == "executed" and data["node"] == "4"]
        return text

    takes = inspect.signature(execution.PromptExecutor).parameters
    caches = {"cache_args": {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}} if "cache_args" in takes else {}
    executor = execution.PromptExecutor(SimpleNamespace(client_id=None), **caches)
    first = run()
    assert "calls     3 dense, 9 sparse, 0 reused, 12 expected" in first
    prompt["3"]["inputs"]["seed"] = 1  # the patched MODEL is cached; a second run with it
    assert "calls     3 dense, 9 sparse, 0 reused, 12 expected" in run()
    prompt["2"]["inputs"]["settings"] = '{"sparsty": 1}'
    with pytest.raises(RuntimeError, match="did you mean sparsity"):
        run()
