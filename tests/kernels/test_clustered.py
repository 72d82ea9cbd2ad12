"""Attention between clusters of any size, each side in an order of its own."""

import json

import pytest
import torch
import torch.nn.functional as F
from cases import inputs, plain_attention, random_order, rms_error
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import INTERPRETED, everywhere

from dittools.kernels import block_sparse_attention
from dittools.kernels.masks.cluster_mask import ClusterMask, ClusterPartition

HALF, BF16, FULL = torch.float16, torch.bfloat16, torch.float32


def name(value):
    return str(value).removeprefix("torch.")


def random_sizes(length, clusters, lanes=(1, 1), seed=0):
    """Sizes that sum to ``length`` in every lane; about a third of the clusters is small, some are empty."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(*lanes, clusters, generator=generator) ** 3
    ends = (weights.cumsum(-1) / weights.sum(-1, keepdim=True) * length).round().int()
    ends[..., -1] = length
    sizes = ends.diff(dim=-1, prepend=torch.zeros(*lanes, 1, dtype=torch.int32))
    return ClusterPartition(length, sizes.int())


def random_clusters(queries, keys, counts, lanes=(1, 1), density=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed + 1)
    keep = torch.rand(*lanes, *counts, generator=generator) < density
    return ClusterMask(
        keep, random_sizes(queries, counts[0], lanes, seed), random_sizes(keys, counts[1], lanes, seed + 7)
    )


def token_mask(mask, order, key_order, batches, heads):
    """The mask between tokens: bool ``[B, H, Sq, Sk]``."""
    rows = range(mask.query.length)
    kept = torch.stack([torch.stack([mask.to_tokens(b, h, rows) for h in range(heads)]) for b in range(batches)])
    for axis, tokens in ((-2, order), (-1, order if key_order is None else key_order)):
        if tokens is not None:
            position = tokens.long().argsort(-1).expand(batches, heads, -1)
            kept = kept.gather(axis, position.unsqueeze(-1 if axis == -2 else -2).expand_as(kept))
    return kept


def check(place, q, k, v, mask, order=None, key_order=None, scale=None):
    """One call against the oracle, and the oracle against masked softmax over tokens; gives (out, lse)."""
    implementation, device = place
    call = {"order": order, "key_order": key_order, "scale": scale, "return_lse": True}
    exact, exact_lse = block_sparse_attention(q.float(), k.float(), v.float(), mask, implementation="naive", **call)
    kept = token_mask(mask, order, key_order, q.shape[0], q.shape[2])
    plain = plain_attention(q.float(), k.float(), v.float(), kept, scale)
    torch.testing.assert_close(exact, plain, atol=2e-5, rtol=1e-4)
    there = {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in call.items()}
    out, lse = block_sparse_attention(
        *(x.to(device) for x in (q, k, v)), mask.to(device), implementation=implementation, **there
    )
    out, lse = out.cpu(), lse.cpu()
    assert out.shape == q.shape and out.dtype == q.dtype and lse.dtype == torch.float32
    low = 0.0 if q.dtype == FULL else rms_error(plain_attention(q, k, v, kept, scale), exact)
    assert rms_error(out, exact) <= 1e-5 + 2 * low
    empty = exact_lse.isneginf()
    assert torch.equal(lse.isneginf(), empty) and (out.transpose(1, 2)[empty] == 0).all()
    loose = 2e-5 if q.dtype == FULL else 2e-4
    torch.testing.assert_close(lse[~empty], exact_lse[~empty], atol=loose, rtol=1e-6)
    return out, lse


@everywhere
@pytest.mark.parametrize(
    ("tokens", "counts", "dim", "dtype"),
    [
        (63, (3, 7), 64, FULL),
        (300, (5, 11), 64, BF16),
        (250, (2, 40), 96, HALF),
        (301, (4, 9), 128, BF16),
        (260, (30, 6), 64, FULL),
    ],
    ids=name,
)
@pytest.mark.parametrize("orders", ["tokens", "one", "two"])
def test_matches_the_oracle(place, tokens, counts, dim, dtype, orders):
    q, k, v = inputs(1, tokens, 2, dim, dtype)
    order = None if orders == "tokens" else random_order(1, 2, tokens)
    key_order = random_order(1, 2, tokens, seed=1) if orders == "two" else None
    check(place, q, k, v, random_clusters(tokens, tokens, counts, (1, 2)), order, key_order)


@everywhere
@pytest.mark.parametrize("lanes", [(1, 1), (1, 3), (2, 1), (2, 3)], ids=str)
def test_masks_sizes_and_orders_are_shared_or_of_a_batch_and_a_head(place, lanes):
    q, k, v = inputs(2, 150, 3, 64)
    one, other = random_clusters(150, 150, (4, 9), lanes), random_clusters(150, 150, (4, 9), (2, 3), seed=3)
    check(place, q, k, v, one, random_order(2, 3, 150), random_order(*lanes, 150, seed=1))
    check(place, q, k, v, ClusterMask(other.keep, one.query, other.key), random_order(*lanes, 150))
    check(place, q, k, v, ClusterMask(one.keep, other.query, one.key))


@everywhere
def test_queries_and_keys_of_different_length(place):
    q, k, v = inputs(1, 70, 2, 64, keys=300)
    mask = random_clusters(70, 300, (3, 12), (1, 2))
    check(place, q, k, v, mask, random_order(1, 2, 70), random_order(1, 2, 300), scale=0.3)


@everywhere
def test_empty_rows_give_zeros_and_full_rows_everything(place):
    q, k, v = inputs(1, 260, 2, 64)
    mask = random_clusters(260, 260, (5, 9), (1, 2))
    mask.keep[:, :, 1], mask.keep[:, :, 3] = False, True
    mask.query.run_sizes[:] = torch.tensor([10, 120, 0, 130, 0], dtype=torch.int32)
    out, lse = check(place, q, k, v, mask)
    assert (out[:, 10:130] == 0).all() and lse[..., 10:130].isneginf().all()


@everywhere
@pytest.mark.parametrize("keep", [False, True])
def test_all_or_nothing(place, keep):
    q, k, v = inputs(1, 200, 1, 64)
    mask = random_clusters(200, 200, (3, 20))
    mask.keep[:] = keep
    out, _ = check(place, q, k, v, mask, random_order(1, 1, 200), random_order(1, 1, 200, seed=4))
    if keep:
        dense = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
        torch.testing.assert_close(out, dense, atol=1e-5, rtol=1e-5)


@everywhere
def test_a_mask_that_keeps_only_empty_clusters_keeps_nothing(place):
    q, k, v = inputs(1, 100, 1, 64)
    mask = random_clusters(100, 100, (2, 3))
    mask.key.run_sizes[:] = torch.tensor([60, 0, 40], dtype=torch.int32)
    mask.keep[:] = torch.tensor([False, True, False])
    _, lse = check(place, q, k, v, mask)
    assert lse.isneginf().all()


@everywhere
def test_keys_that_are_not_selected_have_no_influence(place):
    implementation, device = place
    q, k, v = inputs(1, 300, 2, 64)
    mask = random_clusters(300, 300, (4, 12), (1, 2))
    mask.keep[..., 5] = False
    mask.key.run_sizes[:] = torch.tensor([25] * 12, dtype=torch.int32)
    key_order = random_order(1, 2, 300, seed=1)
    want = check(place, q, k, v, mask, key_order=key_order)
    for head in range(2):
        skipped = key_order[0, head, 125:150].long()
        k[0, skipped, head], v[0, skipped, head] = torch.nan, 1e30
    found = block_sparse_attention(
        *(x.to(device) for x in (q, k, v)), mask.to(device), key_order=key_order.to(device), return_lse=True,
        implementation=implementation,
    )  # fmt: skip
    assert torch.equal(found[0].cpu(), want[0]) and torch.equal(found[1].cpu(), want[1])


@everywhere
def test_any_strides(place):
    q, k, v = inputs(2, 111, 2, 64)
    mask = random_clusters(111, 111, (3, 6), (1, 2))
    want, _ = check(place, q, k, v, mask)
    q, k, v = torch.stack((q, k, v), 2).unbind(2)
    torch.testing.assert_close(check(place, q, k, v, mask)[0], want)


@everywhere
@settings(max_examples=4 if INTERPRETED else 25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lanes=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    queries=st.integers(1, 200),
    keys=st.integers(1, 200),
    counts=st.tuples(st.integers(1, 12), st.integers(1, 30)),
    density=st.floats(0, 1),
    ordered=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_sizes(place, lanes, queries, keys, counts, density, ordered, seed):
    q, k, v = inputs(*[lanes[0], queries, lanes[1], 64], keys=keys, seed=seed)
    mask = random_clusters(queries, keys, counts, lanes, density, seed)
    orders = (random_order(*lanes, queries, seed), random_order(*lanes, keys, seed + 1))
    check(place, q, k, v, mask, *(orders if ordered or queries != keys else (None, None)))


@pytest.mark.skipif(INTERPRETED, reason="times nothing in the interpreter")
def test_the_timing_checks_its_case_and_writes_what_it_found(tmp_path, monkeypatch):
    from dittools.benchmarks import time_clusters

    small = ["--tokens", "300", "--heads", "2", "--dim", "64", "--clusters", "4", "12", "--repeats", "1"]
    time_clusters.main([*small, "--density", "0.4", "--json", str(tmp_path / "found.json")])
    (found,) = json.loads((tmp_path / "found.json").read_text())["cases"]
    assert set(found["r"]) == {"kernel", "call", "call+centroids"} and 0.2 < found["density"] < 0.6
    for form, r in found["r"].items():
        assert r == pytest.approx(found["milliseconds"]["dense"] * found["density"] / found["milliseconds"][form])
    monkeypatch.setattr(time_clusters, "block_sparse_attention", lambda q, *_, **__: (q, None))
    with pytest.raises(RuntimeError, match="not timed"):
        time_clusters.case(2, 300, 64, (4, 12), 0.4)


@pytest.mark.skipif(INTERPRETED, reason="times nothing in the interpreter")
def test_the_timing_takes_the_hopper_kernel_where_it_runs(monkeypatch):
    from dittools.benchmarks import time_clusters

    taken = []

    def attend(q, k, v, mask, *, order, scale, key_order=None):
        taken.append(key_order is None)
        orders = {"order": order, "key_order": torch.arange(300).expand(1, 1, -1) if key_order is None else key_order}
        return block_sparse_attention(q, k, v, mask, **orders, scale=scale, return_lse=True, implementation="portable")

    monkeypatch.setattr(time_clusters, "why_not_hopper", lambda *_: None)
    monkeypatch.setattr(time_clusters, "hopper_cluster_attention", attend)
    found = time_clusters.case(2, 300, 64, (4, 12), 0.4, repeats=1)
    hopper = {form for form in found["r"] if form.startswith("hopper")}
    assert hopper == {"hopper", "hopper call"} and set(taken) == {True, False}
    monkeypatch.setattr(time_clusters, "hopper_cluster_attention", lambda q, *_, **__: (q, None))
    with pytest.raises(RuntimeError, match="not timed"):
        time_clusters.case(2, 300, 64, (4, 12), 0.4, repeats=1)
