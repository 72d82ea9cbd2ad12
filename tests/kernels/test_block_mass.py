import pytest
import torch
from cases import inputs
from places import GPU, INTERPRETED, everywhere, no_sync

from dittools.kernels import block_sparse_attention, measure_block_mass, measure_lse
from dittools.kernels.block_mass import dispatch as home
from dittools.kernels.block_mass.naive import naive_block_mass
from dittools.kernels.capability import why_not_triton_lse
from dittools.kernels.masks.block_mask import BlockMask, Partition


def close(found, wanted, dtype=torch.float32):
    # Products of 16-bit numbers are exact in fp32; what differs is the order of sums, and fp16's place on the CPU.
    tolerance = 1e-4 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


def log_sum_exp(q, k, scale):
    return (torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float()) * scale).logsumexp(-1)


@everywhere
@pytest.mark.parametrize(
    ("tokens", "query_block", "key_block", "dim", "dtype"),
    [
        (63, 64, 64, 64, torch.float32),
        (70, 16, 32, 20, torch.float32),
        (128, 32, 64, 64, torch.bfloat16),
        (200, 64, 128, 96, torch.bfloat16),
        (150, 128, 16, 128, torch.float16),
        (290, 128, 128, 64, torch.bfloat16),
        (256, 64, 128, 64, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("way", ["two passes", "one pass", "known"])
def test_the_mass_is_the_sum_of_the_softmax_over_each_block(place, tokens, query_block, key_block, dim, dtype, way):
    implementation, device = place
    q, k, _ = inputs(1, tokens, 2, dim, dtype, device=device)
    query, key = Partition(tokens, query_block), Partition(tokens, key_block)
    lse = log_sum_exp(q, k, dim**-0.5) if way == "known" else None
    passes = 1 if way == "one pass" else 2
    found = measure_block_mass(q, k, query, key, lse=lse, passes=passes, implementation=implementation)
    assert found.shape == (1, 2, query.count, key.count) and found.dtype == torch.float32
    close(found, naive_block_mass(q, k, query, key), dtype)
    close(found.sum(-1), query.sizes(device).expand(1, 2, -1).float(), dtype)


@everywhere
@pytest.mark.parametrize(("tokens", "dim", "dtype"), [(63, 64, torch.float32), (290, 96, torch.bfloat16)], ids=str)
def test_the_lse_alone_is_that_of_the_logits(place, tokens, dim, dtype, monkeypatch):
    implementation, device = place
    q, k, _ = inputs(2, tokens, 2, dim, dtype, keys=tokens + 7, device=device)
    want = log_sum_exp(q, k, 0.2)
    found = measure_lse(q, k, scale=0.2, implementation=implementation)
    assert found.dtype == torch.float32
    close(found, want, dtype)
    if implementation == "portable":
        for name in ("CPU_CHUNK_BYTES", "CHUNK_BYTES"):
            monkeypatch.setattr(home, name, 1)
        close(measure_lse(q, k, scale=0.2, implementation="portable"), want, dtype)


def test_a_head_dim_too_wide_for_the_kernel_is_said():
    q = torch.zeros(1, 32, 1, 512)
    for call in (lambda: measure_lse(q, q, implementation="triton"), lambda: mass_of(q)):
        with pytest.raises(ValueError, match="triton"):
            call()
    assert (
        why_not_triton_lse(q) == "needs a head dim of at most 256, got 512" and why_not_triton_lse(q[..., :256]) is None
    )


def mass_of(q):
    partition = Partition(32, 16)
    return measure_block_mass(q, q, partition, partition, implementation="triton")


@everywhere
def test_queries_and_keys_of_different_length_and_a_scale(place):
    implementation, device = place
    q, k, _ = inputs(2, 40, 2, 16, keys=90, device=device)
    query, key = Partition(40, 32), Partition(90, 16)
    found = measure_block_mass(q, k, query, key, scale=0.7, implementation=implementation)
    close(found, naive_block_mass(q, k, query, key, scale=0.7))


@everywhere
def test_any_strides(place):
    implementation, device = place
    q, k, _ = inputs(2, 40, 2, 16, device=device)
    partition = Partition(40, 16)
    want = naive_block_mass(q, k, partition, partition)
    lse = log_sum_exp(q, k, 0.25).transpose(1, 2).contiguous().transpose(1, 2)
    heads_first = k.transpose(1, 2).contiguous().transpose(1, 2)
    dim_first = q.transpose(1, 3).contiguous().transpose(1, 3)
    close(measure_block_mass(dim_first, heads_first, partition, partition, implementation=implementation), want)
    close(measure_block_mass(dim_first, k, partition, partition, lse=lse, implementation=implementation), want)


@everywhere
def test_one_pass_takes_heads_in_turns_any_strides_and_large_logits(place, monkeypatch):
    implementation, device = place
    q, k, _ = inputs(2, 70, 3, 16, keys=90, device=device)
    query, key = Partition(70, 16), Partition(90, 32)
    if implementation == "triton":
        from dittools.kernels.block_mass import one_pass_triton as block_mass_parts_triton

        monkeypatch.setattr(block_mass_parts_triton, "PART_BYTES", 4 * 70 * 3 * 4)  # four lanes of six
    dim_first, heads_first = q.transpose(1, 3).contiguous().transpose(1, 3), k.transpose(1, 2).contiguous()
    found = measure_block_mass(
        30 * dim_first, heads_first.transpose(1, 2), query, key, passes=1, implementation=implementation
    )
    close(found, naive_block_mass(30 * q, k, query, key), torch.bfloat16)
    with pytest.raises(ValueError, match="passes must be 1 or 2, got 3"):
        measure_block_mass(q, k, query, key, passes=3, implementation=implementation)


@everywhere
def test_the_lse_of_a_sparse_call_gives_masses_relative_to_what_it_kept(place):
    implementation, device = place
    q, k, v = inputs(1, 90, 1, 64, device=device)
    partition = Partition(90, 32)
    keep = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]], dtype=torch.bool, device=device)[None, None]
    mask = BlockMask(keep, partition, partition)
    _, lse = block_sparse_attention(q, k, v, mask, return_lse=True, implementation="naive")
    found = measure_block_mass(q, k, partition, partition, lse=lse, implementation=implementation)
    close((found * keep).sum(-1).flatten(), torch.tensor([32.0, 32.0, 0.0], device=device))
    assert (found[0, 0, 2] == 0).all()


@everywhere
def test_large_logits_do_not_overflow(place):
    implementation, device = place
    q, k, _ = inputs(1, 40, 1, 16, device=device)
    partition = Partition(40, 16)
    found = measure_block_mass(30 * q, 30 * k, partition, partition, implementation=implementation)
    assert found.isfinite().all()
    close(found, naive_block_mass(30 * q, 30 * k, partition, partition), torch.bfloat16)


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_lse_far_from_what_the_first_keys_say(place, dtype):
    implementation, device = place
    q, k, _ = inputs(1, 150, 3, 16, dtype, keys=300, device=device)
    k[:, :130, 0] = 0  # a head whose first keys say nothing of the rest, which is large
    k[:, 130:, 0] *= 40
    k[:, :8, 1] *= 40  # one whose first keys are all that counts
    k[:, 290:, 2] *= 40  # one whose last keys are
    want = log_sum_exp(q, k, 2.0)
    assert want[0, 0].max() > 200
    found = measure_lse(q, k, scale=2.0, implementation=implementation)
    torch.testing.assert_close(found, want, atol=1e-3, rtol=1e-5)
    query, key = Partition(150, 64), Partition(300, 32)
    found = measure_block_mass(q, k, query, key, scale=2.0, implementation=implementation)
    close(found, naive_block_mass(q, k, query, key, scale=2.0), torch.bfloat16)


@pytest.mark.skipif(not INTERPRETED, reason="asks the Triton path for each of its variants")
@pytest.mark.parametrize("lengths", [(130, 130), (256, 512), (64, 1100), (200, 31)], ids=str)
@pytest.mark.parametrize("blocks", [(128, 128), (64, 64), (128, 32)], ids=str)
def test_every_variant_interpreted(lengths, blocks):
    from dittools.kernels.block_mass.triton import Variant, triton_block_mass

    q, k, _ = inputs(1, lengths[0], 2, 32, torch.bfloat16, keys=lengths[1])
    query, key = (Partition(*pair) for pair in zip(lengths, blocks, strict=True))
    want = naive_block_mass(q, k, query, key, scale=0.3)
    for variant in (None, Variant(keys=128, stages=2), Variant(keys=64, warps=4, group=4), Variant(keys=32, group=1)):
        close(triton_block_mass(q, k, query, key, 0.3, None, variant), want, torch.bfloat16)


def test_memory_is_bounded_and_any_block_size_will_do(monkeypatch):
    q, k, _ = inputs(1, 100, 2, 6)
    query, key = Partition(100, 7), Partition(100, 33)
    whole = measure_block_mass(q, k, query, key)
    close(whole, naive_block_mass(q, k, query, key))
    monkeypatch.setattr(home, "CPU_CHUNK_BYTES", 4 * 100 * 7 * 4)  # four query blocks at a time
    torch.testing.assert_close(measure_block_mass(q, k, query, key), whole)
    monkeypatch.setattr(home, "CPU_CHUNK_BYTES", 1)
    torch.testing.assert_close(measure_block_mass(q, k, query, key), whole)


def wrong_calls():
    q, k, _ = inputs(1, 20, 2, 4)
    p = Partition(20, 8)
    return {
        "ndim": ((q[0], k, p, p), {}, r"must be \[B, S, H, D\], got \[20, 2, 4\]"),
        "dtype": ((q, k.half(), p, p), {}, "k is torch.float16 on cpu, but q is torch.float32"),
        "heads": ((q, k[:, :, :1], p, p), {}, "does not go with q"),
        "length": ((q, k, Partition(19, 8), p), {}, "of 19 queries and 20 keys, but q has 20 tokens and k has 20"),
        "lse": ((q, k, p, p), {"lse": torch.zeros(1, 20, 2)}, r"lse must be torch.float32 \[1, 2, 20\]"),
    }


@pytest.mark.parametrize("case", wrong_calls())
def test_a_wrong_call_is_refused(case):
    args, kwargs, message = wrong_calls()[case]
    with pytest.raises(ValueError, match=message):
        measure_block_mass(*args, **kwargs)


@pytest.mark.skipif(INTERPRETED, reason="says what happens outside of the interpreter")
def test_the_triton_path_names_what_it_does_not_take(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    q, k, _ = inputs(1, 20, 1, 512)
    with pytest.raises(ValueError, match="needs blocks of 16, 32, 64 or 128, got 8 and 16"):
        measure_block_mass(q, k, Partition(20, 8), Partition(20, 16), implementation="triton")
    with pytest.raises(ValueError, match=r"needs query blocks of at most 32 KiB, got 32 x 512 of torch\.float32"):
        measure_block_mass(q, k, Partition(20, 32), Partition(20, 16), implementation="triton")


@pytest.mark.parametrize("dim", [pytest.param(dim, marks=GPU) for dim in (64, 128)])
@pytest.mark.parametrize("block", [64, 128])
def test_long_sequences_on_the_gpu_without_a_host_sync(dim, block):
    q, k, v = inputs(1, 4111, 3, dim, torch.bfloat16, device="cuda")
    partition = Partition(4111, block)
    measure_block_mass(q, k, partition, partition)
    with no_sync():
        found = measure_block_mass(q, k, partition, partition)
    want = naive_block_mass(q, k, partition, partition)
    torch.testing.assert_close(found, want, atol=2e-3, rtol=2e-3)
    _, lse = block_sparse_attention(q, k, v, BlockMask.full(partition, partition, "cuda"), return_lse=True)
    torch.testing.assert_close(measure_block_mass(q, k, partition, partition, lse=lse), want, atol=2e-3, rtol=2e-3)
