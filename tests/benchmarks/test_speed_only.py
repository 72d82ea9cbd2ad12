"""Models with random weights: whole, of the published sizes, and attached like any other of their family."""

import dataclasses

import pytest
import torch

import dittools
from dittools.benchmarks import model as bench
from dittools.benchmarks import speed_only
from dittools.pipelines.errors import BadInput
from tests.tiny import COMPILES

CPU = torch.device("cpu")
FAMILIES = list(speed_only.RECORDS)


def made(size, dtype=torch.float32, height=None, width=None, frames=None):
    pipe = speed_only.build(size, CPU, dtype)
    shape = (height or size.height, width or size.width, frames or size.frames)
    return pipe, speed_only.call_of(pipe, *shape, CPU, dtype)


@pytest.fixture(scope="module")
def tiny():
    """(pipe, call) of a family's tiny size, each made once."""
    found = {}
    return lambda name: found.get(name) or found.setdefault(name, made(speed_only.size_of(name, "tiny")))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_has_its_dtypes_and_no_empty_weight(name):
    pipe, call = made(speed_only.size_of(name, "tiny", layers=2), torch.bfloat16)
    model = pipe.transformer
    in_fp32 = tuple(model._keep_in_fp32_modules or ())
    for path, x in [*model.named_parameters(), *model.named_buffers()]:
        assert x.device == CPU and x.isfinite().all(), path
        assert path.endswith("bias") or x.abs().max() > 0, path
    for path, x in model.named_parameters():
        assert x.dtype == (torch.float32 if set(path.split(".")) & set(in_fp32) else torch.bfloat16), path
    with torch.no_grad():
        out = model(**call)[0]
    assert out.isfinite().all() and out.float().std() > 0.01


@pytest.mark.parametrize("name", FAMILIES)
def test_computed_tables_are_those_of_the_class(name):
    """Wherever the class itself computes a tensor, so does the model: none of them is random or missing."""
    import diffusers

    from dittools.pipelines.families import find_family

    pipe, _ = made(speed_only.size_of(name, "tiny"))
    whole = getattr(diffusers, find_family(name).transformer)(**pipe.size.config)

    def tables(model):
        held = [(f"{path}.{n}", x) for path, m in model.named_modules() for n, x in vars(m).items()]
        return dict(model.named_buffers()) | {n: x for n, x in held if isinstance(x, torch.Tensor)}

    expected = tables(whole)
    assert tables(pipe.transformer).keys() == expected.keys()
    assert bool(expected) == bool(speed_only.RECORDS[name].tables(whole))
    for path, x in tables(pipe.transformer).items():
        assert torch.equal(x, expected[path]), path


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=COMPILES)], ids=["eager", "compiled"])
def test_sparse_with_the_full_budget_is_dense(name, compiled, tiny):
    pipe, call = tiny(name)
    settings = {"method": "draft", "sparsity": 0.0, "dense_layers": 0, "dense_steps": 0}
    torch._dynamo.reset()
    with torch.no_grad():
        dense = pipe.transformer(**call)[0]
        blocks = bench.Blocks(pipe.transformer, backend="eager")
        with blocks.compiled(compiled), dittools.accelerate(pipe, **settings) as fast:
            out, record = pipe.transformer(**call)[0], fast.record()
    torch._dynamo.reset()
    torch.testing.assert_close(out, dense, rtol=1e-4, atol=1e-4)
    del record["calls"]["expected"]  # of steps that have not run as well
    assert record["fallbacks"] == [] and record["calls"] == {"dense": 0, "sparse": pipe.size.layers, "reused": 0}
    grid = pipe.size.grid(pipe.size.frames, pipe.size.height, pipe.size.width)
    assert (record["grid"]["tokens"], record["grid"]["text"]) == (grid.tokens, grid.text)


@pytest.mark.parametrize("name", FAMILIES)
def test_sparse_differs_from_dense_and_skips_what_was_asked(name, tiny):
    pipe, call = tiny(name)
    with torch.no_grad():
        dense = pipe.transformer(**call)[0]
        settings = {"method": speed_only.RECORDS[name].method, "sparsity": 0.7, "dense_layers": 0, "dense_steps": 0}
        with dittools.accelerate(pipe, **settings) as fast:
            out, record = pipe.transformer(**call)[0], fast.record()
        assert torch.equal(pipe.transformer(**call)[0], dense)
    assert record["sparsity"]["by_parts"]["picture-picture"] == pytest.approx(0.3, abs=0.02)
    assert not torch.allclose(out, dense, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "size", "billions", "tokens"),
    [
        ("wan", "1.3b", 1.42, 32_760),
        ("wan", "14b", 14.29, 75_600),
        ("wan", "5b", 5.0, 27_280),
        ("hunyuan", "13b", 12.82, 118_800 + 256),
        ("hunyuan1.5", "8b", 8.33, 49_290 + 1985),
        ("cogvideox", "5b", 5.57, 17_550 + 226),
        ("cogvideox", "1.5-5b", 5.57, 44_880 + 226),
        ("ltx", "2b", 1.92, 13_376),
        ("ltx", "13b", 13.04, 13_376),
        ("flux", "dev", 11.9, 65_536 + 512),
        ("qwen_image", "20b", 20.43, 16_384 + 512),
    ],
)
def test_the_real_sizes_are_those_of_the_checkpoints(name, size, billions, tokens):
    found = speed_only.size_of(name, size)
    model = speed_only.skeleton(found)
    assert sum(x.numel() for x in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.01)
    assert found.grid(found.frames, found.height, found.width).tokens == tokens
    assert {x.device.type for x in model.parameters()} == {"meta"}


def test_layers_and_heads_can_be_others():
    size = speed_only.size_of("hunyuan", "13b", layers=6, heads=2)
    assert (size.config["num_layers"], size.config["num_single_layers"]) == (2, 4) and size.heads == 2
    for layers in (1, 2, 59):
        assert speed_only.size_of("flux", "dev", layers=layers).layers == layers
    pipe, call = made(speed_only.size_of("ltx", "tiny", layers=1, heads=3))
    with torch.no_grad():
        assert pipe.transformer(**call)[0].isfinite().all()
    assert pipe.transformer.config.num_layers == 1 and pipe.transformer.transformer_blocks[0].attn1.heads == 3


def test_a_video_of_the_16_pixel_autoencoder_has_a_timestep_a_token():
    size = dataclasses.replace(speed_only.size_of("wan", "tiny"), strides=(4, 16), height=256, width=384)
    pipe, call = made(size)
    assert call["timestep"].shape == (1, 9 * 8 * 12)
    with torch.no_grad(), dittools.accelerate(pipe, method="svg", sparsity=0.7, dense_steps=0) as fast:
        pipe.transformer(**call)
        assert fast.record()["calls"]["sparse"] == 1 and fast.record()["fallbacks"] == []


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("wan", (82, 480, 832), "--frames 82 does not fit this model, which takes 4n + 1: use 81 or 85"),
        ("hunyuan", (129, 712, 1280), "--height 712 does not fit this model, which takes a multiple of 16: use 704 or"),
        ("hunyuan1.5", (121, 480, 840), "--width 840 does not fit this model, which takes a multiple of 16"),
        ("cogvideox", (81, 768, 1352), "use 1344 or 1360"),
        ("ltx", (120, 704, 1216), "which takes 8n + 1: use 113 or 121"),
        ("ltx", (121, 720, 1216), "use 704 or 736"),
        ("flux", (1, 4090, 4096), "use 4080 or 4096"),
        ("qwen_image", (5, 2048, 2048), "qwen-image generates images: --frames is 1, got 5"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_with_the_nearest_that_do(name, shape, message):
    with pytest.raises(BadInput) as error:
        speed_only.size_of(name).grid(*shape)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("wan", "15b"), r"'15b'.*14b"),
        (("wam",), "did you mean wan"),
        (("mochi",), "unknown --model 'mochi'.*hunyuan-video"),
        (("wan", "tiny", None, 0), "--heads must be at least 1"),
    ],
)
def test_unknown_models_and_sizes_are_refused(asked, message):
    with pytest.raises(BadInput, match=message):
        speed_only.size_of(*asked)
