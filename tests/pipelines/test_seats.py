"""A processor that is led elsewhere stays what it is: class, attributes, weights, identity; and copies are plain."""

import copy
import io

import pytest
import torch
from diffusers import WanPipeline
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

import dittools
from dittools import summary
from dittools.config import Config
from dittools.pipelines.attach import attach
from dittools.pipelines.errors import BadInput
from tests.families_tiny import TINY
from tests.pipelines.test_families import Holder, grid_of
from tests.pipelines_tiny import SIZES, pipeline
from tests.tiny import draw, tiny_pipeline

SPARSE = {"method": "draft", "sparsity": 0.6, "block_size": 64, "dense_steps": 0, "dense_layers": 0}
FULL = SPARSE | {"sparsity": 0.0}
ALL = {"dense": 0, "sparse": 2, "reused": 0}


class Wan(Holder):
    """A tiny Wan of two layers, and one forward of it, which is a run of its own."""

    def __init__(self):
        super().__init__("wan")
        self.arguments = TINY["wan"].arguments(grid_of("wan"), 1)

    def forward(self):
        self.scheduler.timesteps = self.scheduler.timesteps.clone()
        return self.draw(self.arguments)


@pytest.fixture
def wan():
    return Wan()


def modules(holder):
    return [block.attn1 for block in holder.transformer.blocks]


def calls(fast):
    """Calls counted, without those of steps that have not run."""
    return {kind: count for kind, count in fast.record()["calls"].items() if kind != "expected"}


def test_a_led_processor_is_the_same_object_of_the_same_class_with_the_same_attributes(wan):
    attention = modules(wan)[1]
    mine, kind, own = attention.processor, type(attention.processor), dict(vars(attention.processor))
    fast = dittools.accelerate(wan, **SPARSE)
    assert attention.processor is mine and isinstance(mine, kind) and mine.__class__ is kind
    assert type(mine.__class__()) is kind and type(type(mine)()) is kind
    assert vars(mine) == own
    mine.note = "set meanwhile"
    wan.transformer.set_attention_backend("_native_math")
    wan.forward()
    assert calls(fast) == ALL and mine._attention_backend == AttentionBackendName._NATIVE_MATH
    fast.restore()
    assert attention.processor is mine and type(mine) is kind and mine.note == "set meanwhile"


@pytest.mark.parametrize("returned", ["to their layers", "to each other's"])
def test_processors_taken_off_run_plainly_and_sparsely_again_when_they_are_back(wan, returned):
    dense = wan.forward()
    fast = dittools.accelerate(wan, **SPARSE)
    sparse = wan.forward()
    ours = [module.processor for module in modules(wan)]
    for module in modules(wan):
        module.set_processor(WanAttnProcessor())
    assert torch.equal(wan.forward(), sparse) and calls(fast) == ALL
    other = Wan()
    for module, processor in zip(modules(other), ours, strict=True):
        module.set_processor(processor)  # where nothing is accelerated
    assert torch.equal(other.forward(), dense)
    back = ours if returned == "to their layers" else ours[::-1]
    for module, processor in zip(modules(wan), back, strict=True):
        module.set_processor(processor)
    assert torch.equal(wan.forward(), sparse) and calls(fast) == ALL and not torch.equal(sparse, dense)
    fast.restore()
    assert torch.equal(wan.forward(), dense)
    assert {type(processor) for processor in ours} == {WanAttnProcessor}


class Slotted(WanAttnProcessor):
    __slots__ = ("factor",)

    def __call__(self, *args, **kwargs):
        return self.factor * super().__call__(*args, **kwargs)


def test_a_processor_with_attributes_outside_its_dict_is_refused_or_left_alone(wan):
    attention = modules(wan)[1]
    mine, attention.processor = attention.processor, Slotted()
    attention.processor.factor = 2
    with pytest.raises(BadInput, match=r"blocks\.1\.attn1 runs Slotted, .* __slots__"):
        dittools.accelerate(wan, **SPARSE)
    dense = wan.forward()
    slotted, attention.processor = attention.processor, mine
    fast = dittools.accelerate(wan, **FULL)
    attention.processor = slotted
    torch.testing.assert_close(wan.forward(), dense, atol=1e-5, rtol=1e-4)
    assert calls(fast) == {"dense": 1, "sparse": 1, "reused": 0}


def test_a_layer_with_a_processor_that_cannot_be_led_is_counted_dense_with_its_reason(wan):
    attention = modules(wan)[1]
    mine, plain = attention.processor, WanAttnProcessor()
    fast = dittools.accelerate(wan, **SPARSE)

    def foreign(attn, *args, **kwargs):
        return plain(attn, *args, **kwargs)

    attention.processor = foreign
    wan.forward()
    assert calls(fast) == {"dense": 1, "sparse": 1, "reused": 0}
    reason = "attention runs function, into which there is no way"
    assert fast.record()["fallbacks"] == [{"reason": reason, "count": 1}]
    attention.processor = lambda *args, **kwargs: mine(*args, **kwargs)  # passes on to one that is led
    wan.forward()
    assert calls(fast) == ALL and fast.record()["fallbacks"] == []


def test_one_processor_for_the_layers_of_two_accelerated_pipelines_serves_each_its_own(wan):
    other, shared = Wan(), WanAttnProcessor()
    pairs = list(zip((wan, other), (SPARSE, SPARSE | {"sparsity": 0.3}), strict=True))
    for one, _ in pairs:
        one.transformer.set_attn_processor(shared)
    alone = []
    for one, asked in pairs:
        with dittools.accelerate(one, **asked):
            alone.append(one.forward())
    first, second = (dittools.accelerate(one, **asked) for one, asked in pairs)
    assert torch.equal(wan.forward(), alone[0]) and torch.equal(other.forward(), alone[1])
    assert not torch.equal(*alone)
    first.restore()
    assert torch.equal(other.forward(), alone[1]) and calls(second) == ALL
    second.restore()
    assert type(shared) is WanAttnProcessor


@pytest.mark.parametrize("name", ["cogvideox", "auraflow"])
def test_projections_fused_and_unfused_while_attached(name):
    holder, arguments = Holder(name), TINY[name].arguments(grid_of(name), 1)
    dense = holder.draw(arguments)
    attachment = attach(holder, Config(**SPARSE))

    def sparse():
        out = holder.draw(arguments)
        assert summary.record(attachment.runtime)["calls"]["dense"] == 0
        return out

    first = sparse()
    holder.transformer.fuse_qkv_projections()
    torch.testing.assert_close(sparse(), first, rtol=1e-4, atol=1e-5)
    holder.transformer.unfuse_qkv_projections()
    torch.testing.assert_close(sparse(), first, rtol=1e-4, atol=1e-5)
    attachment.detach()
    assert not torch.allclose(first, dense, atol=1e-3)
    torch.testing.assert_close(holder.draw(arguments), dense, rtol=1e-4, atol=1e-5)


def adapter(model):
    """An IP-Adapter's weights for a tiny FLUX, as a file of them has."""
    generator, inner, cross = torch.Generator().manual_seed(5), model.inner_dim, model.config.joint_attention_dim
    layers = {}
    for index in range(len(model.transformer_blocks)):
        for name in ("to_k_ip", "to_v_ip"):
            layers[f"{index}.{name}.weight"] = torch.randn(inner, cross, generator=generator) * 0.3
            layers[f"{index}.{name}.bias"] = torch.zeros(inner)
    project = {"proj.weight": torch.randn(4 * cross, 16, generator=generator), "proj.bias": torch.zeros(4 * cross)}
    project |= {"norm.weight": torch.ones(cross), "norm.bias": torch.zeros(cross)}
    return {"image_proj": project, "ip_adapter": layers}


def draw_flux(pipe, image=True, dtype=torch.float32):
    embeds = [torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(9)).to(dtype)]
    given = {"ip_adapter_image_embeds": embeds, "negative_ip_adapter_image_embeds": embeds} if image else {}
    generator = torch.Generator().manual_seed(0)
    run = {"prompt": "a red circle", "num_inference_steps": 2, "output_type": "latent", "generator": generator}
    return pipe(**run, **SIZES["flux"], **given).images


def close(a, b):
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_an_ip_adapter_is_loaded_scaled_cast_and_unloaded_while_attached():
    pipe = pipeline("flux")
    model, plain = pipe.transformer, draw_flux(pipe, image=False)
    model._load_ip_adapter_weights([adapter(model)])
    weights, dense = sum(p.numel() for p in model.parameters()), {}
    for scale in (1.0, 0.4):
        pipe.set_ip_adapter_scale(scale)
        dense[scale] = draw_flux(pipe)
    pipe.unload_ip_adapter()
    with dittools.accelerate(pipe, **FULL) as fast:
        model._load_ip_adapter_weights([adapter(model)])
        assert sum(p.numel() for p in model.parameters()) == weights
        led = [p for p in model.attn_processors.values() if isinstance(p, FluxIPAdapterAttnProcessor)]
        assert led and "transformer_blocks.0.attn.processor.to_k_ip.0.weight" in model.state_dict()
        for scale in (1.0, 0.4):
            pipe.set_ip_adapter_scale(scale)
            assert close(draw_flux(pipe), dense[scale])
            assert calls(fast)["sparse"] == 4
        pipe.to(torch.bfloat16)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert draw_flux(pipe, dtype=torch.bfloat16).isfinite().all()
        pipe.unload_ip_adapter()
        pipe.to(torch.float32)
        assert calls(fast)["sparse"] == 4
    assert not close(dense[1.0], plain) and not close(dense[1.0], dense[0.4])
    assert {type(p).__name__ for p in model.attn_processors.values()} == {"FluxAttnProcessor"}


def test_an_ip_adapter_loaded_before_is_unloaded_while_attached():
    pipe = pipeline("flux")
    plain = draw_flux(pipe, image=False)
    pipe.transformer._load_ip_adapter_weights([adapter(pipe.transformer)])
    with dittools.accelerate(pipe, **FULL) as fast:
        pipe.unload_ip_adapter()
        assert close(draw_flux(pipe, image=False), plain) and calls(fast)["sparse"] == 4
    assert torch.equal(draw_flux(pipe, image=False), plain)


def pickled(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deep copy": copy.deepcopy,
    "pickle": pickled,
    "shallow copy": copy.copy,
}


@pytest.mark.parametrize("cache", ["none", "first_block:threshold=0.1"])
def test_copies_of_an_accelerated_transformer_are_plain_and_can_be_accelerated(wan, cache):
    dense, other = wan.forward(), Wan()
    with dittools.accelerate(wan, **SPARSE, cache=cache) as fast:
        sparse = wan.forward()
        for what, make in COPIES.items():
            other.transformer = make(wan.transformer)
            shares = what == "shallow copy"  # hooks and blocks, and so how they run
            assert torch.equal(other.forward(), sparse if shares else dense), what
            if not shares:
                with dittools.accelerate(other, **SPARSE, cache=cache):
                    assert torch.equal(other.forward(), sparse), what
                assert torch.equal(other.forward(), dense), what
                assert {type(p) for p in other.transformer.attn_processors.values()} == {WanAttnProcessor}, what
            assert torch.equal(wan.forward(), sparse) and calls(fast) == ALL, what
    assert torch.equal(wan.forward(), dense)


def test_a_copy_names_its_own_branches_and_runs_in_the_middle_of_the_original(wan):
    dense, seen = wan.forward(), []
    with dittools.accelerate(wan, **SPARSE) as fast:
        sparse, other = wan.forward(), Wan()
        other.transformer = copy.deepcopy(wan.transformer)

        def beside(*_):
            with other.transformer.cache_context("beside"):
                seen.append(other.forward())

        hook = wan.transformer.blocks[1].register_forward_hook(beside)
        with wan.transformer.cache_context("cond"):
            assert torch.equal(wan.forward(), sparse)
        hook.remove()
        assert calls(fast) == ALL and fast.runtime.latest.branch == "cond"
    assert len(seen) == 1 and torch.equal(seen[0], dense)


def test_an_accelerated_pipeline_is_copied_saved_and_its_components_used(tmp_path):
    short, pipe = {"steps": 1, "frames": 9}, tiny_pipeline(layers=1)
    dense, names = draw(pipe, **short), list(pipe.transformer.state_dict())
    with dittools.accelerate(pipe, **SPARSE) as fast:
        sparse = draw(pipe, **short)
        assert torch.equal(draw(copy.deepcopy(pipe), **short), dense)
        assert list(pipe.transformer.state_dict()) == names
        pipe.transformer.save_pretrained(tmp_path)
        again = WanPipeline(**pipe.components)
        again.set_progress_bar_config(disable=True)
        assert torch.equal(draw(again, **short), sparse) and calls(fast)["sparse"] == 2
    saved = type(pipe.transformer).from_pretrained(tmp_path)
    assert torch.equal(draw(again, **short), dense)
    again.transformer = saved
    assert close(draw(again, **short), dense) and not close(sparse, dense)
