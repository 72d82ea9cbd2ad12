import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import inputs, random_mask, random_order

from dittools.kernels import (
    block_sparse_attention,
    capability,
    choose,
    dense_attention,
    dense_kernel_name,
    draw_sample,
    implementations,
)
from dittools.kernels.masks.block_mask import BlockMask


def test_importing_the_kernels_imports_no_triton():
    code = """
import sys, torch
before = "triton" in sys.modules
import dittools.kernels, dittools.kernels.masks.block_mask
dittools.kernels.block_sparse_attention, dittools.kernels.implementations("cpu", torch.float32, 64)
assert "dittools.kernels.block_sparse.triton" not in sys.modules
assert before or "triton" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error():
    import dittools.kernels

    with pytest.raises(AttributeError, match="no attribute 'sparse'"):
        _ = dittools.kernels.sparse


def test_on_the_cpu_portable_is_chosen(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    q, k, v = inputs(1, 130, 1, 64)
    mask = random_mask(130, 64, 64)
    assert choose(q, k, v, mask) == "portable"
    assert choose(q, k, v, mask, implementation="naive") == "naive"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose(q, k, v, mask) == "portable"


def test_lse_is_returned_only_when_asked_for():
    q, k, v = inputs(1, 130, 1, 64)
    mask = random_mask(130, 64, 64)
    for name in ("portable", "naive"):
        assert isinstance(block_sparse_attention(q, k, v, mask, implementation=name), torch.Tensor)


def test_every_implementation_is_listed_with_a_reason_or_none(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = dict(implementations("cpu", torch.float32, 64))
    assert list(found) == ["hopper", "triton", "portable", "naive"]
    assert found["hopper"] == "needs a CUDA device, got cpu"
    assert found["portable"] is None and found["naive"] is None
    assert found["triton"]
    assert "got torch.float64" in dict(implementations("cpu", torch.float64, 64))["portable"]


@pytest.mark.parametrize(
    ("head_dim", "dtype", "blocks", "reason"),
    [
        (80, torch.float32, (64, 64), "needs a head dim of 64, 96 or 128, got 80"),
        (64, torch.float64, (64, 64), "needs fp16, bf16 or fp32, got torch.float64"),
        (64, torch.float32, (64, 32), "needs query and key blocks of 64 or 128, got 64 and 32"),
        (64, torch.float32, (64, 128), None),
    ],
)
def test_the_triton_predicate_names_the_offending_value(monkeypatch, head_dim, dtype, blocks, reason):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert capability.why_not_triton(torch.device("cpu"), dtype, head_dim, blocks) == reason


def test_asking_for_what_cannot_run_says_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    q, k, v = inputs(1, 130, 1, 64)
    mask = random_mask(130, 64, 64)
    with pytest.raises(ValueError, match="'triton' cannot run this call: "):
        block_sparse_attention(q, k, v, mask, implementation="triton")
    with pytest.raises(
        ValueError, match="unknown implementation 'cutlass': use one of hopper, triton, portable, naive"
    ):
        block_sparse_attention(q, k, v, mask, implementation="cutlass")
    with pytest.raises(ValueError, match=r"got torch\.float64"):
        block_sparse_attention(q.double(), k.double(), v.double(), mask)


def wrong_calls():
    q, k, v = inputs(2, 130, 2, 64)
    mask, order = random_mask(130, 64, 64, 2, 2), random_order(1, 2, 130)
    bias = torch.zeros(1, 1, 3)
    short = random_mask(128, 64, 64)
    sample = draw_sample(mask.key, 4, 0)
    three = BlockMask(torch.ones(1, 3, 3, 3, dtype=torch.bool), mask.query, mask.key)
    return {
        "ndim": ((q[0], k, v, mask), {}, r"q must be \[B, S, H, D\], got \[130, 2, 64\]"),
        "dtype": ((q, k.half(), v, mask), {}, "k is torch.float16 on cpu, but q is torch.float32"),
        "heads": ((q, k[:, :, :1], v[:, :, :1], mask), {}, r"k \[2, 130, 1, 64\] and v .* do not go with q"),
        "k and v": ((q, k, v[:, :100], mask), {}, "do not go with q"),
        "length": ((q, k, v, short), {}, "partitions 128 queries and 128 keys, but q has 130 tokens"),
        "mask": (
            (q, k, v, three),
            {},
            r"the mask must have shape \[2 or 1, 2 or 1, 3, 3\], got \[1, 3, 3, 3\]",
        ),
        "order": (
            (q, k, v, mask),
            {"order": order[0]},
            r"order must have shape \[2 or 1, 2 or 1, 130\], got",
        ),
        "order length": ((q, k, v, mask), {"order": order[..., :99]}, r"got \[1, 2, 99\]"),
        "order dtype": ((q, k, v, mask), {"order": order.float()}, "order must be int32, got torch.float32"),
        "bias": ((q, k, v, mask), {"key_bias": bias[..., :2]}, "key_bias must have shape"),
        "bias dtype": ((q, k, v, mask), {"key_bias": bias.half()}, "key_bias must be torch.float32"),
        **{
            f"sample {what}": ((q, k, v, mask), {"sample": replace(sample, **wrong)}, message)
            for what, wrong, message in (
                ("per", {"per": 3}, r"sample.per must be one of \[1, 2, 4, 8, 16, 32\] for blocks of 64, got 3"),
                ("dtype", {"positions": sample.positions.int()}, r"int64 \[draws, at most 12\], got torch.int32"),
                ("count", {"per": 2}, r"sample.positions must be int64 \[draws, at most 6\], got torch.int64"),
                ("draws", {"positions": sample.positions[0]}, r"must be int64 \[draws, at most 12\], got torch.int64"),
                ("counts", {"counts": sample.counts[:1]}, r"sample.counts must be torch.int32 \[4\], got"),
                ("counts' dtype", {"counts": sample.counts.long()}, r"must be torch.int32 \[4\], got torch.int64"),
                ("weight", {"weight": 0.0}, "sample.weight must be a positive number, got 0.0"),
                ("device", {"positions": sample.positions.to("meta")}, "sample.positions are on meta"),
                ("counts' device", {"counts": sample.counts.to("meta")}, "sample.counts are on meta"),
                ("taken", {"taken": torch.ones(1, 3, dtype=torch.int32)}, "sample.taken must have shape"),
                ("taken dtype", {"taken": torch.ones(1, 2)}, "sample.taken must be torch.int32, got torch.float32"),
            )
        },
        "sample and bias": ((q, k, v, mask), {"key_bias": bias, "sample": sample}, "do not go together: leave one out"),
        "scale": ((q, k, v, mask), {"scale": -1.0}, "scale must be a positive number, got -1.0"),
        "order on cross": (
            (q, *(x[:, :100] for x in (k, v)), random_mask(130, 64, 64, keys=100)),
            {"order": order},
            "an order needs as many queries as keys, got 130 and 100",
        ),
        "device": ((q, k.to("meta"), v, mask), {}, "k is torch.float32 on meta"),
    }


@pytest.mark.parametrize("case", wrong_calls())
def test_a_wrong_call_is_refused_in_one_line(case):
    args, kwargs, message = wrong_calls()[case]
    with pytest.raises(ValueError, match=message) as caught:
        block_sparse_attention(*args, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["none", "padding", "additive"])
def test_dense_attention_honours_masks(kind):
    q, k, v = inputs(2, 70, 3, 64)
    mask = None
    if kind == "padding":
        mask = (torch.arange(70) < torch.tensor([[70], [33]]))[:, None, None]
    elif kind == "additive":
        mask = torch.randn(2, 1, 70, 70)
    out = dense_attention(q, k, v, mask=mask, scale=0.2)
    want = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask, scale=0.2)
    torch.testing.assert_close(out, want.transpose(1, 2))


def test_the_dense_kernel_has_a_name():
    assert dense_kernel_name("cpu", torch.float32, 64) == "sdpa-cpu"
