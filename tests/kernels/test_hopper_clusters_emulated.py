"""The source of the Hopper kernel for clusters, run in `gluon_emulator` against the oracle."""

import pytest
import torch
from cases import inputs, random_order, rms_error
from hypothesis import given, settings
from hypothesis import strategies as st

from dittools.clusters import ClusterMask, ClusterPartition
from dittools.kernels import gather_tokens
from dittools.kernels.clustered import naive_cluster_attention
from dittools.kernels.hopper import why_no_gluon
from dittools.kernels.hopper_clusters import Variant, launch_arguments

pytestmark = pytest.mark.skipif(why_no_gluon() is not None, reason=str(why_no_gluon()))


def clusters(*sizes):
    """One lane of these sizes."""
    return ClusterPartition(sum(sizes), torch.tensor([[sizes]], dtype=torch.int32))


def random_clusters(length, count, lanes=(1, 1), seed=0):
    """Sizes from 0 up, other ones in each lane, that sum to ``length``."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(*lanes, count, generator=generator) ** 3
    ends = (weights.cumsum(-1) / weights.sum(-1, keepdim=True) * length).round().int()
    ends[..., -1] = length
    return ClusterPartition(length, ends.diff(dim=-1, prepend=torch.zeros(*lanes, 1, dtype=torch.int32)).int())


def random_mask(queries, keys, counts, lanes=(1, 1), density=0.5, seed=0):
    keep = torch.rand(*lanes, *counts, generator=torch.Generator().manual_seed(seed + 1)) < density
    parts = random_clusters(queries, counts[0], lanes, seed), random_clusters(keys, counts[1], lanes, seed + 7)
    return ClusterMask(keep, *parts)


def run(q, k, v, mask, *, order=None, key_order=None, scale=0.1, variant=None, seed=0):
    from gluon_emulator import emulate

    from dittools.kernels.hopper_clusters_forward import cluster_forward

    placed = (k, v) if key_order is None else gather_tokens((k, v), key_order)
    out, lse, launches = launch_arguments(q, *placed, mask, scale, order, variant)
    out.fill_(torch.nan)
    lse.fill_(torch.nan)
    for programs, arguments, options in launches:
        emulate(cluster_forward, programs, arguments, options, seed)
    exact, exact_lse = naive_cluster_attention(
        q.float(), k.float(), v.float(), mask, order=order, key_order=key_order, scale=scale
    )
    assert rms_error(out, exact) < 2.0**-7, rms_error(out, exact)
    # The RMS over all would forgive a few rows.
    worst = ((out.float() - exact).norm(dim=-1) / exact.norm(dim=-1).clamp_min(0.1)).max()
    assert worst < 0.05, worst
    empty = exact_lse.isneginf()
    assert torch.equal(lse.isneginf(), empty)
    assert (out.transpose(1, 2)[empty] == 0).all()
    torch.testing.assert_close(lse[~empty], exact_lse[~empty], atol=1e-4, rtol=1e-5)
    return out, lse


@settings(max_examples=40, deadline=None)
@given(
    queries=st.integers(1, 500),
    keys=st.integers(1, 900),
    counts=st.tuples(st.integers(1, 7), st.integers(1, 40)),
    lanes=st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2)]),
    dim=st.sampled_from([64, 128]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    density=st.sampled_from([0.0, 0.15, 0.5, 1.0]),
    ordered=st.booleans(),
    stages=st.integers(2, 3),
    unit=st.sampled_from([8, 16]),
    pin=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_sizes_in_any_variant(queries, keys, counts, lanes, dim, dtype, density, ordered, stages, unit, pin, seed):
    q, k, v = inputs(lanes[0], queries, lanes[1], dim, dtype, keys=keys, seed=seed)
    mask = random_mask(queries, keys, counts, lanes, density, seed)
    orders = (random_order(*lanes, queries, seed), random_order(*lanes, keys, seed + 1)) if ordered else (None, None)
    run(q, k, v, mask, order=orders[0], key_order=orders[1], variant=Variant(stages, unit, pin), seed=seed)
