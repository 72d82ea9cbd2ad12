"""dittools beside the rest of diffusers, each before and after the other, on tiny models.

Each pair runs on a model that is entered through the dispatcher (Wan) and on one whose processor is rebound
(CogVideoX), and gives what dittools gives alone, or the other gives with the same pairs of tokens.
"""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from torch._dynamo.utils import counters

from dittools import summary
from dittools.config import Config
from dittools.pipelines.attach import attach
from tests.families_tiny import TINY
from tests.pipelines.test_families import Holder, Shown, grid_of
from tests.tiny import draw, svg, tiny_pipeline

CPU = torch.device("cpu")
ORDERS = pytest.mark.parametrize("first", ["dittools first", "dittools last"])
WAYS = pytest.mark.parametrize("name", ["wan", "cogvideox"])


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    from dittools import methods

    monkeypatch.setitem(methods.METHODS, "shown", Shown)


class Pair:
    """A tiny model, what dittools alone makes of it, and a run with both."""

    def __init__(self, name: str):
        self.holder = Holder(name)
        self.arguments = TINY[name].arguments(grid_of(name), 1)
        self.layers = TINY[name].config["num_layers"]
        self.dense = self.holder.draw(self.arguments)
        self.alone, _ = self.holder.sparse("frame", self.arguments)

    @property
    def model(self):
        return self.holder.transformer

    def run(self, first: str, other) -> torch.Tensor:
        """Output with `other` applied before or after dittools, every layer sparse."""
        if first == "dittools last":
            other()
        attachment = attach(
            self.holder, Config(method="shown", options={"rule": "frame"}, dense_steps=0, dense_layers=0)
        )
        try:
            if first == "dittools first":
                other()
            out = self.holder.draw(self.arguments)
        finally:
            attachment.detach()
        record = summary.record(attachment.runtime)
        del record["calls"]["expected"]  # of steps that have not run as well
        assert record["calls"] == {"dense": 0, "sparse": self.layers, "reused": 0} and record["fallbacks"] == []
        assert not torch.equal(self.alone, self.dense)
        return out


@ORDERS
@WAYS
@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offload(name, first, kind):
    pair = Pair(name)

    def offload():
        blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        pair.model.enable_group_offload(onload_device=CPU, offload_type=kind, **blocks)

    assert torch.equal(pair.run(first, offload), pair.alone)
    assert torch.equal(pair.holder.draw(pair.arguments), pair.dense)


@ORDERS
@WAYS
def test_sequential_offload(name, first):
    pair = Pair(name)
    assert torch.equal(pair.run(first, lambda: cpu_offload(pair.model, execution_device=CPU)), pair.alone)
    assert any(hasattr(module, "_hf_hook") for module in pair.model.modules())
    remove_hook_from_submodules(pair.model)
    assert torch.equal(pair.holder.draw(pair.arguments), pair.dense)


@ORDERS
def test_model_offload_of_a_pipeline(first):
    pipe = tiny_pipeline(layers=2)
    with svg(pipe):
        alone = draw(pipe, steps=2)
    if first == "dittools last":
        pipe.enable_model_cpu_offload(device=CPU)
    with svg(pipe) as fast:
        if first == "dittools first":
            pipe.enable_model_cpu_offload(device=CPU)
        assert torch.equal(draw(pipe, steps=2), alone)
        assert fast.record()["calls"]["sparse"] > 0


@ORDERS
@WAYS
def test_layerwise_casting(name, first):
    pair = Pair(name)

    def cast():
        pair.model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)

    out = pair.run(first, cast)
    expected, _ = pair.holder.sparse("frame", pair.arguments)
    assert torch.equal(out, expected) and not torch.equal(out, pair.alone)  # weights lost bits on the way


@ORDERS
@WAYS
def test_fused_projections(name, first):
    """CogVideoX gets other processors when its projections are fused: ours has to come back around them."""
    pair = Pair(name)
    torch.testing.assert_close(pair.run(first, pair.model.fuse_qkv_projections), pair.alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pair.holder.draw(pair.arguments), pair.dense, rtol=1e-4, atol=1e-5)
    pair.model.unfuse_qkv_projections()
    torch.testing.assert_close(pair.holder.draw(pair.arguments), pair.dense, rtol=1e-4, atol=1e-5)


def lora(peft, rank: int = 2, seed: int = 0):
    """(adapter config, what fills it with noise)."""
    config = peft.LoraConfig(r=rank, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)

    def fill(model):
        generator = torch.Generator().manual_seed(seed)
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        return model.requires_grad_(False)

    return config, fill


@ORDERS
@WAYS
@pytest.mark.parametrize("kind", ["loaded", "fused", "swapped"])
def test_lora(name, first, kind):
    peft = pytest.importorskip("peft")
    pair = Pair(name)

    def load():
        for number, adapter in enumerate(("one", "two")):
            pair.model.add_adapter(lora(peft, seed=number)[0], adapter_name=adapter)
        lora(peft)[1](pair.model)
        pair.model.set_adapters("one")

    def other():
        load()
        if kind == "fused":
            pair.model.fuse_lora()
        elif kind == "swapped":
            pair.model.set_adapters("two")

    out = pair.run(first, other)
    expected, _ = pair.holder.sparse("frame", pair.arguments)
    assert torch.equal(out, expected) and not torch.allclose(out, pair.alone)
    if kind == "fused":
        pair.model.unfuse_lora()
    pair.model.disable_adapters()
    torch.testing.assert_close(pair.holder.draw(pair.arguments), pair.dense, rtol=1e-4, atol=1e-5)


@ORDERS
@WAYS
def test_torchao_weights(name, first):
    quantization = pytest.importorskip("torchao.quantization", reason="needs torchao")
    pair = Pair(name)

    def quantize():
        quantization.quantize_(pair.model, quantization.Int8WeightOnlyConfig())

    out = pair.run(first, quantize)
    expected, _ = pair.holder.sparse("frame", pair.arguments)
    assert torch.equal(out, expected) and not torch.equal(out, pair.alone)


@ORDERS
@WAYS
@pytest.mark.parametrize("kind", ["Linear8bitLt", "Linear4bit"])
def test_bitsandbytes_weights(name, first, kind):
    nn = pytest.importorskip("bitsandbytes.nn", reason="needs bitsandbytes")
    pair = Pair(name)

    def quantize():
        """As loading with BitsAndBytesConfig leaves the model, which diffusers itself does only where a GPU is."""
        options = {"Linear8bitLt": {"has_fp16_weights": False}, "Linear4bit": {"quant_type": "nf4"}}[kind]
        for path, module in list(pair.model.named_modules()):
            if isinstance(module, torch.nn.Linear) and module.in_features % 32 == 0:
                packed = getattr(nn, kind)(module.in_features, module.out_features, module.bias is not None, **options)
                packed.load_state_dict(module.state_dict())
                pair.model.set_submodule(path, packed.to("cpu"))

    out = pair.run(first, quantize)
    expected, _ = pair.holder.sparse("frame", pair.arguments)
    assert torch.equal(out, expected) and not torch.equal(out, pair.alone)


@ORDERS
@WAYS
def test_gguf_weights(name, first):
    gguf = pytest.importorskip("gguf", reason="needs gguf")
    from diffusers.quantizers.gguf.utils import GGUFParameter, _replace_with_gguf_linear

    pair = Pair(name)

    def quantize():
        """As loading a GGUF file leaves the model: linear layers whose weights are packed."""
        weights = {
            path: module.weight
            for path, module in pair.model.named_modules()
            if isinstance(module, torch.nn.Linear) and module.in_features % 32 == 0
        }
        packed = {
            f"{path}.weight": GGUFParameter(
                torch.from_numpy(gguf.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q8_0)),
                quant_type=gguf.GGMLQuantizationType.Q8_0,
            )
            for path, weight in weights.items()
        }
        biases = {path: pair.model.get_submodule(path).bias for path in weights}
        _replace_with_gguf_linear(pair.model, torch.float32, packed)
        for path in weights:
            module = pair.model.get_submodule(path)
            module.weight, module.bias = packed[f"{path}.weight"], biases[path]

    out = pair.run(first, quantize)
    expected, _ = pair.holder.sparse("frame", pair.arguments)
    assert torch.equal(out, expected) and not torch.equal(out, pair.alone)


@ORDERS
def test_vae_tiling(first):
    pipe = tiny_pipeline(layers=1)
    if first == "dittools last":
        pipe.vae.enable_tiling()
    with svg(pipe, dense_steps=0, dense_layers=0) as fast:
        if first == "dittools first":
            pipe.vae.enable_tiling()
        frames = draw(pipe, steps=1, frames=5, output_type="pt")
        assert fast.record()["calls"]["sparse"] > 0 and frames.isfinite().all()


@ORDERS
def test_blocks_of_rebound_processors_compile_to_one_graph(first):
    pair = Pair("cogview-4")
    torch._dynamo.reset()
    counters.clear()

    def compile_blocks():
        for block in pair.model.transformer_blocks:
            block.compile(fullgraph=True, backend="eager")

    try:
        torch.testing.assert_close(pair.run(first, compile_blocks), pair.alone, rtol=1e-4, atol=1e-5)
        assert counters["stats"]["unique_graphs"] == 1
    finally:
        torch._dynamo.reset()


@ORDERS
def test_a_transformer_compiled_whole_is_one_graph(first):
    pair = Pair("cogview-4")
    torch._dynamo.reset()
    counters.clear()
    try:
        out = pair.run(first, lambda: pair.model.compile(fullgraph=True, backend="eager"))
        torch.testing.assert_close(out, pair.alone, rtol=1e-4, atol=1e-5)
        assert counters["stats"]["unique_graphs"] == 1
    finally:
        torch._dynamo.reset()
