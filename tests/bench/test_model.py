"""One denoiser call with random weights: built without a second copy, checked, timed dense and sparse."""

import pytest
import torch

import dittools
from dittools.bench import model as bench
from dittools.kernels import portable
from dittools.observer import PartTimes
from dittools.pipelines import speed_only
from dittools.pipelines.errors import BadInput

CPU = torch.device("cpu")
SETTINGS = {"method": "svg", "sparsity": 0.7, "dense_layers": 1, "dense_steps": 0}


@pytest.fixture(scope="module")
def pipe():
    return speed_only.build(speed_only.size_of("wan", "tiny", layers=3), CPU, torch.float32)


@pytest.fixture
def forward(pipe):
    call = speed_only.call_of(pipe, 128, 192, 33, CPU, torch.float32)
    return lambda: pipe.transformer(**call)[0]


def measure(pipe, forward, settings=SETTINGS, compiled=False, **options):
    found = {}

    def told(kind, row):
        found[kind] = row

    bench.measure(pipe, forward, settings, device=CPU, repeats=2, compiled=compiled, told=told, **options)
    return found


def test_a_model_has_its_shapes_dtypes_and_no_empty_weight():
    pipe = speed_only.build(speed_only.size_of("wan", "tiny", layers=1, heads=3), CPU, torch.bfloat16)
    model = pipe.transformer
    assert model.config.num_layers == 1 and model.blocks[0].attn1.heads == 3
    assert model.blocks[0].ffn.net[0].proj.weight.dtype == torch.bfloat16
    assert model.blocks[0].scale_shift_table.dtype == torch.float32
    for name, x in [*model.named_parameters(), *model.named_buffers()]:
        assert x.device == CPU and x.isfinite().all(), name
        assert name.endswith("bias") or x.abs().max() > 0, name
    with torch.no_grad():
        out = model(**speed_only.call_of(pipe, 64, 64, 5, CPU, torch.bfloat16))[0]
    assert out.isfinite().all() and out.std() > 0.01


def test_the_real_sizes_are_those_of_the_checkpoints():
    for name, parameters in (("1.3b", 1.42e9), ("14b", 14.3e9)):
        size = speed_only.size_of("wan", name)
        with torch.device("meta"):
            from diffusers import WanTransformer3DModel

            model = WanTransformer3DModel(
                num_attention_heads=size.heads, attention_head_dim=size.head_dim, num_layers=size.layers,
                ffn_dim=size.ffn, text_dim=size.text_dim, freq_dim=size.freq_dim,
            )  # fmt: skip
        assert sum(x.numel() for x in model.parameters()) == pytest.approx(parameters, rel=0.01)


def test_unknown_sizes_are_refused():
    with pytest.raises(BadInput, match=r"'15b'.*14b"):
        speed_only.size_of("wan", "15b")
    with pytest.raises(BadInput, match="--heads must be at least 1"):
        speed_only.size_of("wan", "tiny", heads=0)


def test_dense_and_sparse_calls_are_timed_with_what_ran(pipe, forward):
    found = measure(pipe, forward)
    assert list(found) == ["dense", "sparse"]
    sparse = found["sparse"]
    assert len(sparse["seconds"]) == 2 and sparse["complete"]
    assert sparse["speedup"] == {"dense": pytest.approx(found["dense"]["median"] / sparse["median"])}
    assert sparse["skipped_sparse_calls"] == pytest.approx(0.7, abs=0.02)
    assert sparse["skipped_all_calls"] == pytest.approx(0.7 * 2 / 3, abs=0.02)
    assert set(sparse["kernels"]) == {"portable"}
    assert set(sparse["parts"]) == {"select", "lists", "attention", "check"}
    assert 0 < sum(sparse["parts"].values()) < sparse["parts_of_seconds"]


@pytest.mark.parametrize("fault", ["wrong", "not finite", "stays dense"])
def test_no_speed_is_told_of_a_wrong_call(pipe, forward, monkeypatch, fault):
    right = portable.portable_block_sparse_attention

    def faulty(*args, **call):
        out, lse = right(*args, **call)
        return (out * 1.01 if fault == "wrong" else out * torch.nan), lse

    settings = SETTINGS
    if fault == "stays dense":
        settings = {**SETTINGS, "method": "auto"}
    else:
        monkeypatch.setattr(portable, "portable_block_sparse_attention", faulty)
    row = measure(pipe, forward, settings)["sparse"]
    reason = {"wrong": "RMS error", "not finite": "not finite", "stays dense": "too few to gain"}[fault]
    assert reason in row["error"] and row["seconds"] == [] and "median" not in row


def test_compiled_blocks_are_measured_beside_eager_ones_and_left_eager(pipe, forward):
    torch._dynamo.reset()
    found = measure(pipe, forward, compiled=True, backend="eager")
    assert list(found) == ["dense", "dense compiled", "sparse", "sparse compiled"]
    assert set(found["sparse compiled"]["speedup"]) == {"dense", "dense compiled"}
    assert not any("error" in row for row in found.values())
    assert all(module._compiled_call_impl is None for module in pipe.transformer.modules())
    torch._dynamo.reset()


def test_an_observer_sees_the_parts_and_changes_nothing(pipe, forward):
    with torch.no_grad(), dittools.accelerate(pipe, **SETTINGS) as fast:
        before = forward()
        fast.runtime.observer = PartTimes(CPU)
        after = forward()
        assert fast.record()["kernels"] == {"portable": 4}
        assert "kernels   portable 4" in fast.summary()
    assert torch.equal(before, after)
