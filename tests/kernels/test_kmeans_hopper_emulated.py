"""The source of the Hopper kernel for k-means, run in `gluon_emulator` against the nearest of all centroids."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dittools.kernels.hopper import SLOT, why_no_gluon
from dittools.kernels.kmeans_hopper import HopperVariant, assign_arguments, default_variant

pytestmark = pytest.mark.skipif(why_no_gluon() is not None, reason=str(why_no_gluon()))


def filled(centroids, dtype):
    """What `round_centroids` gives, in plain PyTorch."""
    lanes, count, dim = centroids.shape
    rounded = torch.zeros(lanes, -(-count // SLOT) * SLOT, dim, dtype=dtype)
    rounded[:, :count] = centroids.to(dtype)
    half = torch.full(rounded.shape[:2], torch.inf)
    half[:, :count] = rounded[:, :count].float().square().sum(-1) / 2
    return rounded, half


def run(x, centroids, variant=None, programs=1000, seed=0):
    """Labels ``[N, S]``, which name a nearest centroid and, of equal ones, the lowest."""
    from gluon_emulator import emulate

    from dittools.kernels.kmeans_hopper_forward import nearest_forward

    rounded, half = filled(centroids, x.dtype)
    labels, most, arguments, options = assign_arguments(x, rounded, half, variant)
    labels.fill_(-7)
    emulate(nearest_forward, min(most, programs), arguments, options, seed)
    flat = x if x.ndim == 3 else x.flatten(0, 1)
    scores = flat.float() @ rounded.float().transpose(1, 2) - half[:, None]  # [N, S, C']
    taken = scores.gather(-1, labels[..., None].long())[..., 0]
    best = scores.amax(-1)
    assert (best - taken <= 1e-4 * (1 + best.abs())).all()
    before = torch.arange(scores.shape[-1]) < labels[..., None]
    assert not ((scores > best[..., None] + 1e-4 * (1 + best.abs()[..., None])) & before).any()
    return labels


def points(*shape, dtype=torch.bfloat16, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 700),
    clusters=st.integers(1, 900),
    dim=st.sampled_from([64, 128]),
    ring=st.sampled_from([(1, 1, 1), (2, 1, 2), (2, 2, 3), (3, 2, 4), (5, 1, 4), (3, 2, 1)]),
    programs=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_any_shape_in_any_variant(count, clusters, dim, ring, programs, seed):
    x = points(1, count, 2, dim, seed=seed).transpose(1, 2)
    run(x, points(2, clusters, dim, seed=seed + 1).float(), HopperVariant(*ring), programs, seed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_of_centroids_that_are_alike_the_lowest_takes_the_point(dtype):
    centroids = points(1, 300, 64).float()
    for twin, of in ((1, 0), (33, 5), (17, 16), (260, 5), (299, 130)):
        centroids[:, twin] = centroids[:, of]
    labels = run(points(1, 500, 64, dtype=dtype, seed=1), centroids)
    assert not torch.isin(labels, torch.tensor([1, 33, 17, 260, 299])).any()
    assert (run(torch.zeros(1, 40, 64, dtype=dtype), torch.zeros(1, 300, 64)) == 0).all()


def test_lanes_and_strides_are_read_as_they_are():
    tokens = points(2, 300, 3, 64)  # [B, S, H, D]
    centroids = points(6, 40, 64, seed=1).float()
    want = run(tokens.transpose(1, 2).contiguous(), centroids)
    assert torch.equal(run(tokens.transpose(1, 2), centroids), want)
    assert torch.equal(run(tokens.transpose(1, 2).flatten(0, 1), centroids), want)
    part = points(2, 330, 3, 64)[:, 30:].transpose(1, 2)  # text before the video
    run(part, centroids)


def test_a_score_that_is_not_a_number_wins_nothing():
    from gluon_emulator import emulate

    from dittools.kernels.kmeans_hopper_forward import nearest_forward

    x = points(1, 40, 64)
    rounded, half = filled(points(1, 9, 64, seed=1).float(), x.dtype)
    half[0, 4] = torch.nan  # so are all scores of this centroid, as they would be of such a point
    labels, programs, arguments, options = assign_arguments(x, rounded, half)
    emulate(nearest_forward, programs, arguments, options)
    assert ((labels >= 0) & (labels < 9) & (labels != 4)).all()


def test_turns_are_as_few_as_can_be():
    assert [default_variant(slots).turn for slots in (1, 2, 3, 4, 6, 8)] == [1, 2, 3, 4, 3, 4]
