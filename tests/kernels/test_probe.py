import pytest
import torch
from cases import inputs, rms_error
from places import GPU, everywhere, no_sync

from dittools.kernels.capability import why_not_triton_probe
from dittools.kernels.probe.dispatch import pack_masks, pack_rows, probe_errors, unpack_masks
from dittools.kernels.probe.naive import naive_probe_errors


def drawn_masks(count, rows, keys, seed=0):
    """Bool ``[count, rows, keys]`` of several densities; every row keeps something."""
    made = torch.Generator().manual_seed(seed)
    shares = torch.linspace(0.5, 0.1, count)[:, None, None]
    masks = torch.rand(count, rows, keys, generator=made) < shares
    masks[..., -1] = True
    return masks


@pytest.mark.parametrize("keys", [1, 32, 64, 65, 200])
def test_what_is_packed_comes_back(keys):
    masks = drawn_masks(3, 5, keys)
    kept = pack_masks(masks)
    assert kept.dtype == torch.int32 and kept.shape == (3, 2 * -(-keys // 64), 5)
    assert torch.equal(unpack_masks(kept, keys), masks)


@everywhere
@pytest.mark.parametrize(("rows", "blocks", "keys"), [(64, 7, 200), (70, 3, 64), (5, 9, 97)])
def test_packed_rows_keep_the_keys_of_the_blocks_they_keep(place, rows, blocks, keys):
    implementation, device = place
    keep = drawn_masks(2, rows, blocks).to(device)
    block = torch.randint(blocks, (2, keys), generator=torch.Generator().manual_seed(1)).to(device)
    found = unpack_masks(pack_rows(keep, block, implementation=implementation), keys)
    for c in range(2):
        assert torch.equal(found[c], keep[c][:, block[c]])


@everywhere
@pytest.mark.parametrize(
    ("batches", "rows", "keys", "dim", "count", "dtype"),
    [
        (1, 64, 200, 64, 2, torch.bfloat16),
        (2, 16, 130, 128, 2, torch.bfloat16),
        (1, 64, 256, 128, 1, torch.bfloat16),
        (1, 21, 63, 96, 5, torch.bfloat16),
        (1, 70, 97, 64, 3, torch.float16),
        (2, 40, 90, 128, 2, torch.float32),
        (1, 3, 31, 20, 2, torch.float32),
    ],
    ids=str,
)
def test_errors_are_those_of_the_masked_softmax(place, batches, rows, keys, dim, count, dtype):
    implementation, device = place
    q, k, v = inputs(batches, rows, 2, dim, dtype, keys=keys, device=device)
    masks = drawn_masks(count, rows, keys).to(device)
    found = probe_errors(q, k, v, pack_masks(masks), implementation=implementation)
    want = naive_probe_errors(q, k, v, masks)
    assert found.shape == (count, batches, 2) and found.dtype == torch.float32
    assert rms_error(found, want) < (1e-5 if dtype == torch.float32 else 0.01)


@everywhere
def test_splits_of_the_keys_change_nothing(place, monkeypatch):
    implementation, device = place
    if implementation == "triton":
        from dittools.kernels.probe import triton as probe_triton

        monkeypatch.setattr(probe_triton, "_room", lambda _: 1000)
    q, k, v = inputs(1, 16, 2, 64, keys=500, device=device)
    q[:, :, 0] *= 6  # weights that differ by far between splits
    masks = drawn_masks(3, 16, 500).to(device)
    found = probe_errors(q, k, v, pack_masks(masks), implementation=implementation)
    assert rms_error(found, naive_probe_errors(q, k, v, masks)) < 1e-5


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_mask_that_keeps_nothing_of_the_mass_loses_the_whole_output(place, dtype):
    implementation, device = place
    q, k, v = inputs(1, 16, 2, 64, dtype, keys=150, device=device)
    q[:], k[:] = 0, 0
    q[..., 0], k[:, 70, :, 0] = 40.0, 40.0  # all mass on one key, 1600 nats above the rest
    masks = torch.ones(3, 16, 150, dtype=torch.bool, device=device)
    masks[0, :, 70] = False
    masks[1] = False
    found = probe_errors(q, k, v, pack_masks(masks), scale=1.0, implementation=implementation)
    whole = v[:, 70].float().square().mean(-1)
    # Of 1600 x log2(e) a fused multiply-add leaves 1e-4: the sum of the weights has it, weights in bf16 have not.
    rtol = 1e-3 if dtype == torch.bfloat16 else 1.3e-6
    torch.testing.assert_close(found, torch.stack((whole, whole, torch.zeros_like(whole))), rtol=rtol, atol=1e-5)


@everywhere
def test_any_strides(place):
    implementation, device = place
    q, k, v = inputs(2, 16, 2, 32, keys=70, device=device)
    masks = drawn_masks(2, 16, 70).to(device)
    want = naive_probe_errors(q, k, v, masks)
    k = k.transpose(1, 2).contiguous().transpose(1, 2)
    v = v.transpose(1, 3).contiguous().transpose(1, 3)
    found = probe_errors(q, k, v, pack_masks(masks), implementation=implementation)
    assert rms_error(found, want) < 1e-5


def wrong_calls():
    q, k, v = inputs(1, 8, 2, 16, keys=70)
    kept = pack_masks(drawn_masks(2, 8, 70))
    return {
        "ndim": ((q[0], k, v, kept), r"q must be \[B, S, H, D\], got \[8, 2, 16\]"),
        "dtype": ((q, k.half(), v, kept), "k is torch.float16 on cpu, but q is torch.float32"),
        "heads": ((q, k[:, :, :1], v, kept), "do not go with q"),
        "words": ((q, k, v, kept[:, :3]), r"kept must be torch.int32 \[masks, 4, 8\] on cpu, got torch.int32 \[2, 3"),
        "none": ((q, k, v, kept[:0]), "kept must be"),
        "bits": ((q, k, v, kept.long()), "got torch.int64"),
    }


@pytest.mark.parametrize("case", wrong_calls())
def test_a_wrong_call_is_refused(case):
    args, message = wrong_calls()[case]
    with pytest.raises(ValueError, match=message):
        probe_errors(*args)


def test_a_head_dim_too_wide_for_the_kernel_is_said():
    q = torch.zeros(1, 8, 1, 256)
    assert (
        why_not_triton_probe(q) == "needs a head dim of at most 128, got 256"
        and why_not_triton_probe(q[..., :128]) is None
    )
    assert probe_errors(q, q, q, pack_masks(torch.ones(1, 8, 8, dtype=torch.bool))).item() == 0


@pytest.mark.parametrize("dim", [pytest.param(dim, marks=GPU) for dim in (64, 128)])
@pytest.mark.parametrize("tokens", [4111, 32760])
def test_long_sequences_on_the_gpu_without_a_host_sync(dim, tokens):
    q, k, v = inputs(2, 64, 3, dim, torch.bfloat16, keys=tokens, device="cuda")
    masks = drawn_masks(2, 64, tokens).cuda()
    kept = pack_masks(masks)
    probe_errors(q, k, v, kept)
    with no_sync():
        found = probe_errors(q, k, v, kept)
    assert rms_error(found, naive_probe_errors(q, k, v, masks)) < 0.02


@pytest.mark.parametrize("programs", [1, 6, 24, 80, 200, 264, 300, 2000])
def test_splits_are_as_few_as_keep_a_card_busy(programs):
    from dittools.kernels.probe.triton import BUSY, WAVES, _splits

    room, keys = 264, 75_600
    split, splits = _splits(keys, 64, programs, room)
    assert split % 64 == 0 and (splits - 1) * split < keys <= splits * split

    def busy(count):
        return programs * count / (-(-programs * count // room) * room)

    most = max(1, WAVES * room // programs)
    assert 1 <= splits <= most
    wanted = next((n for n in range(1, most + 1) if busy(n) >= BUSY), None)
    # Whole tiles a split may leave a split out again.
    assert splits <= (wanted or most) and splits >= 0.9 * (wanted or 1)
