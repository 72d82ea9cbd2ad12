import json

import pytest
import torch
from cases import inputs, random_order
from places import GPU, INTERPRETED, everywhere, no_sync

from dittools.kernels import measure_antidiagonals
from dittools.kernels.antidiagonal import dispatch as home
from dittools.kernels.antidiagonal.dispatch import fold
from dittools.kernels.antidiagonal.naive import naive_antidiagonals
from dittools.kernels.masks.block_mask import Partition


def close(found, wanted, dtype=torch.float32):
    # Products of 16-bit numbers are exact in fp32; plain PyTorch rounds each score to 16 bits.
    tolerance = 1e-5 if dtype == torch.float32 else 5e-3
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=10 * tolerance)


@everywhere
@pytest.mark.parametrize(
    ("tokens", "block", "stride", "dim", "dtype"),
    [
        (300, 64, 4, 64, torch.float32),
        (301, 64, 8, 20, torch.float32),
        (7, 16, 8, 8, torch.float32),
        (1030, 128, 8, 64, torch.bfloat16),
        (1111, 128, 16, 96, torch.bfloat16),
        (1200, 64, 4, 128, torch.float16),
        (290, 128, 4, 80, torch.bfloat16),
        (130, 64, 64, 72, torch.bfloat16),
    ],
    ids=str,
)
@pytest.mark.parametrize("ordered", [False, True], ids=["raster", "order"])
def test_shares_are_those_of_the_definition(place, tokens, block, stride, dim, dtype, ordered):
    implementation, device = place
    q, k, _ = inputs(2, tokens, 2, dim, dtype, device=device)
    q = q * 3  # so that rows are far from even
    blocks = Partition(tokens, block)
    order = random_order(1, 1, tokens, device=device) if ordered else None
    found = measure_antidiagonals(q, k, blocks, stride, order=order, implementation=implementation)
    assert found.shape == (2, 2, blocks.count, blocks.count) and found.dtype == torch.float32
    close(found, naive_antidiagonals(q, k, blocks, stride, order=order), dtype)
    close(found.sum(-1), torch.ones_like(found[..., 0]), torch.bfloat16)


@everywhere
def test_an_order_of_each_batch_and_any_strides(place):
    implementation, device = place
    q, k, _ = inputs(2, 90, 2, 16, device=device)
    blocks, order = Partition(90, 16), random_order(2, 1, 90, device=device)
    want = naive_antidiagonals(q, k, blocks, 4, scale=0.7, order=order)
    heads_first = k.transpose(1, 2).contiguous().transpose(1, 2)
    dim_first = q.transpose(1, 3).contiguous().transpose(1, 3)
    call = {"scale": 0.7, "order": order, "implementation": implementation}
    close(measure_antidiagonals(dim_first, heads_first, blocks, 4, **call), want)


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_large_scores_do_not_overflow_and_leave_nothing_undefined(place, dtype):
    implementation, device = place
    q, k, _ = inputs(1, 700, 1, 16, device=device)
    q, k = (100 * q).to(dtype), (100 * k).to(dtype)
    blocks = Partition(700, 16)
    found = measure_antidiagonals(q, k, blocks, 4, implementation=implementation)
    assert (q.float().abs().max() * k.float().abs().max()) > torch.finfo(torch.float16).max
    want = naive_antidiagonals(q, k, blocks, 4)
    assert found.isfinite().all()
    if dtype == torch.bfloat16:  # whose rounded scores differ by more than rows that see one block allow
        torch.testing.assert_close(found.sum(-1), want.sum(-1), atol=1e-2, rtol=1e-2)
    else:
        close(found, want, torch.bfloat16)


@everywhere
@pytest.mark.parametrize("order", [False, True], ids=["raster", "order"])
def test_a_few_heads_at_a_time_change_nothing(place, order, monkeypatch):
    implementation, device = place
    q, k, _ = inputs(2, 70, 3, 16, device=device)
    blocks = Partition(70, 16)
    order = random_order(1, 1, 70, device=device) if order else None
    want = naive_antidiagonals(q, k, blocks, 4, order=order)
    homes = [home]
    if implementation == "triton":
        from dittools.kernels.antidiagonal import triton as antidiagonal_triton

        homes.append(antidiagonal_triton)
    for bound in (1, 4 * 4 * 18 * 5 + 1):
        for one in homes:
            monkeypatch.setattr(one, "CHUNK_BYTES", bound)
        close(measure_antidiagonals(q, k, blocks, 4, order=order, implementation=implementation), want)


@everywhere
def test_every_variant_of_the_kernel_gives_the_same(place):
    implementation, device = place
    if implementation != "triton":
        pytest.skip("plain PyTorch has none")
    from dittools.kernels.antidiagonal.triton import Variant, triton_antidiagonals

    q, k, _ = inputs(1, 1300, 2, 64, torch.bfloat16, device=device)
    blocks = Partition(1300, 128)
    want = naive_antidiagonals(q, k, blocks, 8, scale=0.2)
    for variant in (Variant(), Variant(lasting=True), Variant(columns=128, warps=4, stages=3), Variant(rows=64)):
        close(triton_antidiagonals(q, k, blocks, 8, 0.2 / 8, variant=variant), want, torch.bfloat16)


def test_folding_lays_tokens_side_by_side_and_repeats_the_last():
    x = torch.arange(1.0, 6).view(1, 5, 1, 1)
    assert fold(x, 4)[0, :, 0].tolist() == [[1, 2, 3, 4], [5, 5, 5, 5]]
    assert fold(x, 4, backwards=True)[0, :, 0].tolist() == [[4, 3, 2, 1], [5, 5, 5, 5]]


def wrong_calls():
    q, k, _ = inputs(1, 20, 2, 4)
    p = Partition(20, 8)
    return {
        "ndim": ((q[0], k, p, 4), {}, r"must both be \[B, S, H, D\], got \[20, 2, 4\]"),
        "dtype": ((q, k.half(), p, 4), {}, "k is torch.float16 on cpu, but q is torch.float32"),
        "length": ((q, k, Partition(19, 8), 4), {}, "of 19 tokens, but q has 20"),
        "stride": ((q, k, p, 3), {}, "must divide blocks of 8 tokens, got 3"),
        "order": ((q, k, p, 4), {"order": torch.zeros(1, 2, 20)}, r"order must be int32 \[1 or 1, 1, 20\], got \[1, 2"),
    }


@pytest.mark.parametrize("case", wrong_calls())
def test_a_wrong_call_is_refused(case):
    args, kwargs, message = wrong_calls()[case]
    with pytest.raises(ValueError, match=message):
        measure_antidiagonals(*args, **kwargs)


@pytest.mark.skipif(INTERPRETED, reason="says what happens outside of the interpreter")
def test_the_triton_path_names_what_it_does_not_take(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    q, k, _ = inputs(1, 20, 1, 300)
    with pytest.raises(ValueError, match="needs a head dim of at most 256, got 300"):
        measure_antidiagonals(q, k, Partition(20, 16), 4, implementation="triton")
    with pytest.raises(ValueError, match=r"needs blocks of 1, 2, 4, \.\. or 64 tiles, got 3"):
        measure_antidiagonals(q[..., :64], k[..., :64], Partition(20, 12), 4, implementation="triton")


@pytest.mark.parametrize("dim", [pytest.param(dim, marks=GPU) for dim in (64, 128)])
@pytest.mark.parametrize("ordered", [False, True])
def test_long_sequences_on_the_gpu_without_a_host_sync(dim, ordered):
    q, k, _ = inputs(1, 4111, 3, dim, torch.bfloat16, device="cuda")
    blocks = Partition(4111, 128)
    order = random_order(1, 1, 4111, device="cuda") if ordered else None
    measure_antidiagonals(q, k, blocks, 8, order=order)
    with no_sync():
        found = measure_antidiagonals(q, k, blocks, 8, order=order)
    close(found, naive_antidiagonals(q, k, blocks, 8, order=order), torch.bfloat16)


@pytest.mark.skipif(INTERPRETED, reason="times nothing in the interpreter")
def test_the_timing_checks_its_case_and_leaves_out_what_is_wrong(tmp_path, monkeypatch):
    from dittools.benchmarks import time_antidiagonals

    small = ["--tokens", "203", "--heads", "2", "--dim", "16", "--block", "16", "--stride", "4", "--repeats", "1"]
    time_antidiagonals.main([*small, "--json", str(tmp_path / "found.json")])
    (found,) = json.loads((tmp_path / "found.json").read_text())["cases"]
    assert set(found["milliseconds"]) == {"raster: as called", "order: as called", "select"} and not found["left_out"]
    assert set(found["tflops"]) == {"raster: as called", "order: as called"}
    monkeypatch.setattr(time_antidiagonals, "measure_antidiagonals", lambda q, *_, **__: torch.ones(1, 2, 13, 13))
    found = time_antidiagonals.case(2, 203, 16, 16, 4, 0.3, repeats=1)
    assert set(found["milliseconds"]) == {"select"} and "not timed" in found["left_out"]["order: as called"]
