"""The Hopper kernel for clusters on a card of compute capability 9.x, against the oracle.

`test_hopper_clusters_gpu.py` runs each of these in a process of its own: a kernel that hangs cannot be interrupted.
"""

import pytest
import torch
from cases import inputs, plain_attention, random_order, rms_error

from dittools.kernels import block_sparse_attention
from dittools.kernels.capability import why_not_hopper
from dittools.kernels.clusters.hopper import hopper_cluster_attention
from dittools.kernels.clusters.naive import naive_cluster_attention
from dittools.kernels.masks.cluster_mask import ClusterMask, ClusterPartition

WHY_NOT = why_not_hopper(torch.device("cuda"), torch.bfloat16, 128)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]


def clusters(*sizes):
    return ClusterPartition(sum(sizes), torch.tensor([[sizes]], dtype=torch.int32, device="cuda"))


def random_mask(queries, keys, counts, lanes=(1, 1), density=0.4, seed=0):
    """Clusters of any size, down to none, other ones in every lane."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for length, count in zip((queries, keys), counts, strict=True):
        weights = torch.rand(*lanes, count, generator=generator) ** 3
        ends = (weights.cumsum(-1) / weights.sum(-1, keepdim=True) * length).round().int()
        ends[..., -1] = length
        first = torch.zeros(*lanes, 1, dtype=torch.int32)
        sides.append(ClusterPartition(length, ends.diff(dim=-1, prepend=first).int().cuda()))
    return ClusterMask((torch.rand(*lanes, *counts, generator=generator) < density).cuda(), *sides)


def attend(q, k, v, mask, **call):
    """One call at the usual scale: (out, lse). The fixture in conftest fills fresh memory with NaN before."""
    return hopper_cluster_attention(q, k, v, mask, scale=q.shape[-1] ** -0.5, **call)


def check(q, k, v, mask, *, order=None, key_order=None, **call):
    """Against the oracle over every row; the error may be twice that of rounding inputs and weights to the dtype."""
    orders = {"order": order, "key_order": order if key_order is None else key_order}
    scale = q.shape[-1] ** -0.5
    out, lse = attend(q, k, v, mask, **orders, **call)
    exact, exact_lse = naive_cluster_attention(q.float(), k.float(), v.float(), mask, **orders, scale=scale)
    assert out.isfinite().all()
    allowed = {torch.bfloat16: 6e-3, torch.float16: 1e-3}[q.dtype]
    assert rms_error(out, exact) <= allowed, f"RMS error {rms_error(out, exact):.2e}, allowed {allowed:.0e}"
    # The RMS over all would forgive a few rows.
    worst = ((out.float() - exact).norm(dim=-1) / exact.norm(dim=-1).clamp_min(0.1)).max().item()
    assert worst <= 8 * allowed, f"a row is off by {worst:.2e}"
    empty = exact_lse.isneginf()
    assert torch.equal(lse.isneginf(), empty)
    assert (out.transpose(1, 2)[empty] == 0).all()
    torch.testing.assert_close(lse[~empty], exact_lse[~empty], atol=2e-3, rtol=1e-4)
    return out, lse


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(("tokens", "counts"), [(1, (1, 2)), (500, (4, 9)), (1100, (7, 40))], ids=str)
def test_it_matches_the_oracle(dtype, dim, tokens, counts):
    q, k, v = inputs(2, tokens, 3, dim, dtype, device="cuda")
    mask = random_mask(tokens, tokens, counts, (2, 3))
    mask.keep[0, 0, 0], mask.keep[0, 1, -1], mask.keep[1, 0] = False, True, True
    check(q, k, v, mask)
    orders = random_order(2, 3, tokens, device="cuda"), random_order(1, 3, tokens, seed=1, device="cuda")
    check(q, k, v, mask, order=orders[0], key_order=orders[1])


@pytest.mark.parametrize("dim", [64, 128])
def test_every_kind_of_slot(dim):
    query = clusters(64, 3, 0, 128, 65, 130, 1)
    for sizes in (
        (1,), (128,), (256, 128, 64, 64), (120, 48, 8, 64), (7,) * 40, (69, 3, 81, 9, 15, 31), (0, 5, 0, 0, 130, 71),
        (3, 700, 2, 0, 1),
    ):  # fmt: skip
        key = clusters(*sizes)
        q, k, v = inputs(1, query.length, 1, dim, torch.bfloat16, keys=key.length, device="cuda")
        keep = torch.rand(1, 1, query.count, key.count, generator=torch.Generator().manual_seed(2)) < 0.7
        keep[0, 0, 0], keep[0, 0, 3], keep[0, 0, 4] = True, True, False
        check(q, k, v, ClusterMask(keep.cuda(), query, key))


@pytest.mark.parametrize("tokens", [4111, 32760])
@pytest.mark.parametrize("dim", [64, 128])
def test_long_sequences_match_on_sampled_rows(tokens, dim):
    heads = 3
    q, k, v = inputs(1, tokens, heads, dim, torch.bfloat16, device="cuda")
    mask = random_mask(tokens, tokens, (tokens // 250, tokens // 75), (1, heads), density=0.2)
    mask.keep[..., 3] = True
    mask.key.run_sizes[..., 3] += 1  # no empty row
    mask.key.run_sizes.scatter_add_(
        2, mask.key.run_sizes.argmax(-1, keepdim=True), -torch.ones(1, heads, 1, dtype=torch.int32, device="cuda")
    )
    order = random_order(1, heads, tokens, device="cuda")
    out, lse = attend(q, k, v, mask, order=order, key_order=order)
    assert out.isfinite().all() and lse.isfinite().all()
    rows = torch.cat([torch.randint(tokens, (60,)), torch.tensor([0, tokens - 1])]).cuda()
    for head in range(heads):
        kept, token = mask.to_tokens(0, head, rows), order[0, head].long()
        placed = [x[:, token, head : head + 1] for x in (q, k, v)]
        found = out[:, token[rows], head : head + 1]
        exact = plain_attention(placed[0][:, rows].float(), placed[1].float(), placed[2].float(), kept)
        plain = plain_attention(placed[0][:, rows], placed[1], placed[2], kept)
        assert rms_error(found, exact) <= 2 * rms_error(plain, exact) + 1e-5
        logits = placed[0][0, rows, 0].double() @ placed[1][0, :, 0].double().T * dim**-0.5
        wanted = logits.masked_fill(~kept, -torch.inf).logsumexp(-1).float()
        torch.testing.assert_close(lse[0, head, token[rows]], wanted, atol=1e-3, rtol=0)


@pytest.mark.parametrize("lanes", [(1, 1), (1, 3), (2, 1), (2, 3)], ids=str)
def test_masks_sizes_and_orders_are_shared_or_of_a_batch_and_a_head(lanes):
    q, k, v = inputs(2, 400, 3, 64, torch.bfloat16, device="cuda")
    one, other = random_mask(400, 400, (4, 9), lanes), random_mask(400, 400, (4, 9), (2, 3), seed=3)
    orders = random_order(2, 3, 400, device="cuda"), random_order(*lanes, 400, seed=1, device="cuda")
    check(q, k, v, one, order=orders[0], key_order=orders[1])
    check(q, k, v, ClusterMask(other.keep, one.query, other.key), order=orders[1])
    check(q, k, v, ClusterMask(one.keep, other.query, one.key))


def test_queries_and_keys_of_different_length():
    q, k, v = inputs(1, 70, 2, 128, torch.bfloat16, keys=900, device="cuda")
    orders = random_order(1, 2, 70, device="cuda"), random_order(1, 2, 900, device="cuda")
    check(q, k, v, random_mask(70, 900, (3, 12), (1, 2)), order=orders[0], key_order=orders[1])


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_empty_and_full_masks(density):
    q, k, v = inputs(1, 1000, 2, 128, torch.bfloat16, device="cuda")
    check(q, k, v, random_mask(1000, 1000, (5, 12), (1, 2), density=density))


@pytest.mark.parametrize("layout", ["packed", "heads first", "odd offset", "dim first", "expanded"])
def test_any_strides(layout):
    q, k, v = inputs(2, 500, 2, 64, torch.bfloat16, device="cuda")
    if layout == "packed":
        q, k, v = torch.stack((q, k, v), 2).unbind(2)
    elif layout == "heads first":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    elif layout == "odd offset":
        q, k, v = (torch.cat((x[..., :1], x), -1)[..., 1:] for x in (q, k, v))
    elif layout == "dim first":
        q, k, v = (x.transpose(1, 3).contiguous().transpose(1, 3) for x in (q, k, v))
    else:
        k, v = (x[:, :, :1].expand(-1, -1, 2, -1) for x in (k, v))
    check(q, k, v, random_mask(500, 500, (3, 9), (1, 2)))


def test_keys_that_are_not_kept_have_no_influence_and_those_kept_do():
    q, k, v = inputs(1, 300, 1, 128, torch.bfloat16, device="cuda")
    # Each is copied along with the rest of the cluster before it.
    keep = torch.tensor([[[[True, False, True, False, True, False], [False, True, False, False, True, False]]]])
    mask = ClusterMask(keep.cuda(), clusters(100, 200), clusters(77, 20, 90, 13, 95, 5))
    want, want_lse = check(q, k, v, mask)
    for part in (slice(187, 200), slice(295, 300)):
        k[:, part], v[:, part] = torch.nan, 1e30
    found, found_lse = attend(q, k, v, mask)
    assert torch.equal(found, want) and torch.equal(found_lse, want_lse)
    v[:, 97:187] += 1
    assert (attend(q, k, v, mask)[0][:, :100] != want[:, :100]).any(-1).all()


def test_rows_of_other_clusters_are_not_overwritten():
    """Each cluster with a value of its own: a row written by a neighbour's tile would show it, whoever came last."""
    sizes = (1, 63, 65, 127, 129, 3, 190, 200)
    query, key = clusters(*sizes), clusters(*[50] * len(sizes))
    q, k, v = inputs(1, query.length, 2, 64, torch.bfloat16, keys=key.length, device="cuda")
    v[:] = torch.arange(len(sizes), device="cuda").repeat_interleave(50)[None, :, None, None]
    keep = torch.eye(len(sizes), dtype=torch.bool, device="cuda")[None, None]
    want = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).float().cuda()
    for _ in range(20):
        out, _ = attend(q, k, v, ClusterMask(keep, query, key))
        assert ((out.float() - want[None, :, None, None]).abs() < 0.1).all()


def test_calls_repeat_bit_for_bit():
    q, k, v = inputs(1, 4111, 3, 128, torch.bfloat16, device="cuda")
    mask = random_mask(4111, 4111, (16, 54), (1, 3))
    want = attend(q, k, v, mask)
    for _ in range(20):
        found = attend(q, k, v, mask)
        assert torch.equal(found[0], want[0]) and torch.equal(found[1], want[1])


def test_the_public_call_takes_it_by_name_and_gives_what_triton_does():
    q, k, v = inputs(1, 1100, 2, 128, torch.bfloat16, device="cuda")
    mask = random_mask(1100, 1100, (5, 15), (1, 2))
    orders = {"order": random_order(1, 2, 1100, device="cuda"), "key_order": random_order(1, 2, 1100, 1, "cuda")}
    found, other = (
        block_sparse_attention(q, k, v, mask, return_lse=True, implementation=name, **orders)
        for name in ("hopper", "triton")
    )
    assert rms_error(found[0], other[0]) < 1e-2
    torch.testing.assert_close(found[1], other[1], atol=2e-3, rtol=1e-4)


def test_a_call_does_not_wait_for_the_card():
    q, k, v = inputs(1, 4111, 2, 64, torch.bfloat16, device="cuda")
    mask = random_mask(4111, 4111, (16, 54), (1, 2))
    order = random_order(1, 2, 4111, device="cuda")
    attend(q, k, v, mask, order=order, key_order=order)
    torch.use_deterministic_algorithms(False)
    torch.cuda.set_sync_debug_mode("error")
    try:
        fresh = ClusterMask(mask.keep, *(ClusterPartition(x.length, x.run_sizes) for x in (mask.query, mask.key)))
        attend(q, k, v, fresh, order=order, key_order=order)
    finally:
        torch.cuda.set_sync_debug_mode("default")
