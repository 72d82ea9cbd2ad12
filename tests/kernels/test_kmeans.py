import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import GPU, INTERPRETED, everywhere, no_sync

from dittools.kernels import cluster_runs, cluster_tokens, nearest_centroids, sort_by_label, stratified_start
from dittools.kernels.kmeans import dispatch as kmeans
from dittools.kernels.kmeans.naive import naive_kmeans

MANY = 4 if INTERPRETED else 20


def points(lanes, count, dim, seed=0, groups=6, dtype=torch.float32, device="cpu"):
    """Points around a few centres, neighbours in the sequence often of one group."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(lanes, groups, dim, generator=generator)
    group = torch.randint(groups, (lanes, -(-count // 5)), generator=generator).repeat_interleave(5, 1)[:, :count]
    x = centres.gather(1, group[..., None].expand(-1, -1, dim)) + torch.randn(lanes, count, dim, generator=generator)
    return x.to(device=device, dtype=dtype)


def inertia(x, centroids):
    """Mean squared distance to the nearest centroid, of all lanes."""
    return torch.cdist(x.double(), centroids.double()).amin(-1).square().mean().item()


def consistent(x, found):
    """Labels, sizes and centroids belong together, and empty clusters are legal."""
    clusters = found.centroids.shape[1]
    assert found.labels.dtype == found.sizes.dtype == torch.int32 and found.centroids.dtype == torch.float32
    mine = found.labels[:, None].long() == torch.arange(clusters, device=x.device)[:, None]  # [N, C, S]
    assert torch.equal(found.sizes.long(), mine.sum(-1))
    means = mine.float() @ x.float() / found.sizes.clamp_min(1)[..., None]
    filled = found.sizes > 0
    torch.testing.assert_close(found.centroids[filled], means[filled], atol=1e-4, rtol=1e-4)


@everywhere
@settings(
    max_examples=4 if INTERPRETED else 20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lanes=st.integers(1, 2),
    count=st.integers(1, 60),
    dim=st.integers(1, 20),
    clusters=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_iterations_are_those_of_lloyd(place, lanes, count, dim, clusters, seed):
    implementation, device = place
    x = points(lanes, count, dim, seed, device=device)
    start = stratified_start(x, min(clusters, count))
    once = cluster_tokens(x, centroids=start, iterations=1, implementation=implementation)
    twice = cluster_tokens(x, centroids=start, iterations=2, implementation=implementation)
    for before, found in ((start, once), (once.centroids, twice)):
        consistent(x, found)
        assert torch.equal(found.centroids[found.sizes == 0], before[found.sizes == 0])
        # Every label is the nearest centroid, but for ties within what fp32 can tell.
        distances = (x[:, :, None].double() - before[:, None].double()).square().sum(-1)  # [N, S, C]
        chosen = distances.gather(-1, found.labels[..., None].long())[..., 0]
        size = x.square().sum(-1) + before.square().sum(-1).amax(-1, keepdim=True)  # [N, S]
        assert (chosen <= distances.amin(-1) + 1e-5 * (size + 1)).all()


@everywhere
@pytest.mark.parametrize("dim", [64, 128])
def test_low_precision_points(place, dim):
    implementation, device = place
    x = points(1, 150, dim, dtype=torch.bfloat16, device=device)
    start = stratified_start(x, 12)
    found = cluster_tokens(x, centroids=start, implementation=implementation)
    consistent(x, found)
    want = naive_kmeans(x, start, 2)
    assert inertia(x, found.centroids) <= 1.01 * inertia(x, want.centroids)


@everywhere
def test_more_points_than_a_tile_and_more_clusters_than_a_tile(place):
    implementation, device = place
    x = points(1, 130, 8, groups=70, device=device)
    start = stratified_start(x, 70)
    found = cluster_tokens(x, centroids=start, iterations=1, implementation=implementation)
    want = naive_kmeans(x, start, 1)
    assert torch.equal(found.labels, want.labels)
    torch.testing.assert_close(found.centroids, want.centroids, atol=1e-4, rtol=1e-4)


@everywhere
def test_duplicates_go_to_the_lowest_centroid_and_leave_empty_clusters_as_they_were(place):
    implementation, device = place
    x = torch.tensor([[[1.0, 0.0]] * 30 + [[0.0, 1.0]] * 10], device=device)
    start = torch.tensor([[[5.0, 5.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [9.0, 9.0]]], device=device)
    found = cluster_tokens(x, centroids=start, iterations=3, implementation=implementation)
    assert found.sizes.tolist() == [[0, 30, 10, 0, 0]]
    assert found.labels.tolist() == [[1] * 30 + [2] * 10]
    assert torch.equal(found.centroids, start)


@everywhere
def test_points_that_are_all_alike(place):
    implementation, device = place
    x = torch.full((1, 40, 16), 0.25, device=device)
    found = cluster_tokens(x, 40, implementation=implementation)
    assert (found.labels == 0).all() and found.sizes[0, 0] == found.sizes.sum() == 40
    assert (found.centroids == 0.25).all()


@everywhere
def test_points_that_are_not_numbers_do_not_leave_the_range(place):
    implementation, device = place
    x = points(1, 40, 16, device=device)
    x[0, 7] = torch.nan
    labels = nearest_centroids(x, stratified_start(points(1, 40, 16, device=device), 9), implementation=implementation)
    assert ((labels >= 0) & (labels < 9)).all()


@everywhere
def test_heads_are_read_by_strides(place):
    implementation, device = place
    x = points(2, 40, 16, device=device)
    tokens_first = x.transpose(0, 1).contiguous().transpose(0, 1)
    dim_first = x.transpose(1, 2).contiguous().transpose(1, 2)
    call = {"clusters": 7, "iterations": 1, "implementation": implementation}
    want = cluster_tokens(x, **call)
    for strided in (tokens_first, dim_first):
        for found, wanted in zip(cluster_tokens(strided, **call), want, strict=True):
            torch.testing.assert_close(found, wanted)


@everywhere
def test_runs_are_the_clusters_brought_together_and_read_where_tokens_lie(place):
    implementation, device = place
    x = points(1, 2 * 40 * 2, 20, dtype=torch.bfloat16, device=device).view(2, 40, 2, 20)  # [B, S, H, D]
    part = x[:, 3:].transpose(1, 2)
    call = {"clusters": 5, "iterations": 1, "implementation": implementation}
    want = cluster_tokens(part.flatten(0, 1), **call)
    found = cluster_runs(part, **call)
    order, offsets = sort_by_label(want.labels, 5, implementation="portable" if device == "cpu" else None)
    assert torch.equal(found.order, order) and torch.equal(found.sizes, offsets.diff(dim=-1))
    assert torch.equal(found.sizes, want.sizes)
    torch.testing.assert_close(found.centroids, want.centroids)


@everywhere
def test_every_variant_of_the_assignment_gives_the_same(place):
    implementation, device = place
    if implementation != "triton":
        pytest.skip("plain PyTorch has none")
    from dittools.kernels.kmeans.triton import Variant, triton_assign

    x = points(1, 300, 40, dtype=torch.bfloat16, device=device)
    centroids = points(1, 70, 40, seed=1, device=device)
    centroids[:, 33] = centroids[:, 5]  # the lower of two that are alike takes the point
    rounded = centroids.to(torch.bfloat16).double()
    distance = (x[:, :, None].double() - rounded[:, None]).square().sum(-1)
    for variant in (
        Variant(),
        Variant(folded=True),
        Variant(points=256),
        Variant(centroids=128),
        Variant(64, 32, 4, 2),
        Variant(narrow=True),
        Variant(64, 64, 4, 2, narrow=True),
        Variant(centroids=128, stages=2, folded=True, narrow=True),
    ):
        labels = triton_assign(x, centroids, variant)
        assert labels.dtype == torch.int32 and (labels != 33).all()
        taken = distance.gather(-1, labels[..., None].long())[..., 0]
        assert (taken <= distance.amin(-1) + 1e-4).all()


# Of 300 points: all in one cluster but a few, about five clusters, and more than a stretch has room for.
@everywhere
@pytest.mark.parametrize(("clusters", "share"), [(3, 0.95), (5, 0.0), (300, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_variant_of_the_update_gives_the_means(place, clusters, share, dtype):
    implementation, device = place
    if implementation != "triton":
        pytest.skip("plain PyTorch has none")
    from dittools.kernels.kmeans.update_triton import Variant, triton_update

    x = points(2, 301, 20, dtype=dtype, device=device).unflatten(0, (1, 2))
    x[0, 1, 5] = torch.nan  # spoils its own cluster and no other
    drawn = torch.Generator().manual_seed(0)
    labels = torch.randint(clusters, (2, 301), generator=drawn, dtype=torch.int32)
    labels[torch.rand(2, 301, generator=drawn) < share] = 1
    order, offsets = sort_by_label(labels, clusters, implementation="portable")
    old = points(2, clusters, 20, seed=1)
    mine = labels[:, None].long() == torch.arange(clusters)[:, None]  # [2, C, 301]
    wide = x[0].cpu().double()
    means = torch.stack([torch.stack([wide[n][mine[n, c]].mean(0) for c in range(clusters)]) for n in range(2)])
    want = torch.where(mine.any(-1)[..., None], means, old.double()).float()
    moved = (y.to(device) for y in (labels, order, offsets, old))
    given = (x, *moved)
    for variant in (Variant(), Variant(32), Variant(128, 8, 80)):
        found = triton_update(*given, variant).cpu()
        torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5, equal_nan=True)


@everywhere
def test_a_warm_start_goes_on_where_the_last_call_ended(place):
    implementation, device = place
    x = points(1, 60, 8, device=device)
    first = cluster_tokens(x, 9, iterations=2, implementation=implementation)
    second = cluster_tokens(x, centroids=first.centroids, iterations=1, implementation=implementation)
    want = cluster_tokens(x, 9, iterations=3, implementation=implementation)
    assert torch.equal(second.labels, want.labels)
    torch.testing.assert_close(second.centroids, want.centroids)
    nearest = nearest_centroids(x, first.centroids, implementation=implementation)
    assert torch.equal(nearest, second.labels)


# Starts from which no cluster loses all its points: scikit-learn moves such a cluster, where ours stays.
@pytest.mark.parametrize(("clusters", "seed"), [(8, 0), (8, 1), (60, 0), (60, 1), (60, 3)])
def test_inertia_is_that_of_scikit_learn_from_the_same_start(clusters, seed):
    cluster = pytest.importorskip("sklearn.cluster")
    x = points(1, 1500, 16, seed, groups=40)
    start = stratified_start(x, clusters, torch.Generator().manual_seed(seed))
    found = cluster_tokens(x, centroids=start, iterations=25)
    theirs = cluster.KMeans(clusters, init=start[0].numpy(), n_init=1, max_iter=25, tol=0, algorithm="lloyd")
    wanted = theirs.fit(x[0].numpy()).inertia_ / 1500
    assert inertia(x, found.centroids) == pytest.approx(wanted, rel=0.01)
    assert found.sizes.min() > 0 and found.sizes.sum() == 1500


def test_a_fresh_start_takes_one_point_of_each_stretch():
    x = torch.arange(10.0)[None, :, None].expand(2, -1, 3)
    assert stratified_start(x, 5)[0, :, 0].tolist() == [1, 3, 5, 7, 9]
    assert stratified_start(x, 10)[1, :, 2].tolist() == list(range(10))
    drawn = [stratified_start(x, 3, torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(*drawn)
    for i, value in enumerate(drawn[0][0, :, 0].tolist()):
        assert 10 * i // 3 <= value < 10 * (i + 1) // 3


def test_memory_is_bounded(monkeypatch):
    x = points(3, 50, 6)
    want = cluster_tokens(x, 9)
    largest, nearest = [], kmeans._nearest

    def watched(chunk, centroids):
        largest.append(chunk.shape[0] * chunk.shape[1])
        return nearest(chunk, centroids)

    monkeypatch.setattr(kmeans, "_nearest", watched)
    for rows in (1, 20, 100):
        largest.clear()
        monkeypatch.setattr(kmeans, "CPU_CHUNK_BYTES", rows * 4 * (9 + 6))
        found = cluster_tokens(x, 9)
        assert max(largest) <= rows
        assert torch.equal(found.labels, want.labels)
        torch.testing.assert_close(found.centroids, want.centroids)


@pytest.mark.parametrize(
    ("x", "kwargs", "message"),
    [
        (torch.zeros(5, 2), {"clusters": 2}, r"x must be \[N, S, D\] or \[B, H, S, D\], got \[5, 2\]"),
        (torch.zeros(1, 5, 2), {}, "give either clusters, for a fresh start, or centroids, for a warm one"),
        (torch.zeros(1, 5, 2), {"clusters": 2, "centroids": torch.zeros(1, 2, 2)}, "give either clusters"),
        (torch.zeros(1, 5, 2), {"clusters": 6}, "between 1 and the 5 points, got 6"),
        (torch.zeros(1, 5, 2), {"clusters": 2, "iterations": 0}, "iterations must be at least 1, got 0"),
        (torch.zeros(1, 5, 2), {"centroids": torch.zeros(1, 3, 4)}, r"must be \[1, C, 2\], got \[1, 3, 4\]"),
        (torch.zeros(1, 5, 2), {"centroids": torch.zeros(1, 3, 2, device="meta")}, "centroids are on meta"),
    ],
)
def test_a_wrong_call_is_refused(x, kwargs, message):
    with pytest.raises(ValueError, match=message):
        cluster_tokens(x, **kwargs)


@pytest.mark.parametrize("dtype", [pytest.param(dtype, marks=GPU) for dtype in (torch.bfloat16, torch.float32)])
def test_long_sequences_on_the_gpu_without_a_host_sync(dtype):
    x = points(4, 20_011, 128, groups=200, dtype=dtype, device="cuda")
    start = stratified_start(x, 300)
    cluster_tokens(x, centroids=start)
    with no_sync():
        found = cluster_tokens(x, centroids=start)
        sort_by_label(found.labels, 300)
    consistent(x, found)
    want = cluster_tokens(x, centroids=start, implementation="portable")
    assert inertia(x, found.centroids) <= 1.01 * inertia(x, want.centroids)


@pytest.mark.skipif(INTERPRETED, reason="times nothing in the interpreter")
def test_the_timing_checks_its_case_and_leaves_out_what_is_wrong(tmp_path, monkeypatch):
    from dittools.benchmarks import time_kmeans

    small = ["--tokens", "300", "--heads", "2", "--dim", "16", "--clusters", "4", "12", "--repeats", "1"]
    time_kmeans.main([*small, "--json", str(tmp_path / "found.json")])
    few, many = json.loads((tmp_path / "found.json").read_text())["cases"]
    assert few["clusters"] == 4 and set(many["milliseconds"]) == {"assign", "sort", "k-means", "order"}
    assert not many["left_out"]
    wrong = {"assign": lambda: torch.zeros(2, 300, dtype=torch.int32)}
    monkeypatch.setattr(time_kmeans, "_assignments", lambda *_: wrong)
    found = time_kmeans.case(2, 300, 16, 12, 2, repeats=1)
    assert "assign" not in found["milliseconds"] and "not timed" in found["left_out"]["assign"]
    x = points(1, 2 * 40, 8).view(1, 2, 40, 8)
    runs = cluster_runs(x, 5)
    order, means, sizes = (y.unflatten(0, (1, 2)) for y in runs)
    time_kmeans.check_runs(x, order, means, sizes)
    for broken in ((order * 0, means, sizes), (order, means + 1, sizes), (order, means, sizes + 1)):
        with pytest.raises(RuntimeError, match="not timed"):
            time_kmeans.check_runs(x, *broken)
    labels = nearest_centroids(x, runs.centroids)
    order, offsets = sort_by_label(labels, 5)
    time_kmeans.check_order(labels, order, offsets)
    means = cluster_tokens(x, centroids=runs.centroids, iterations=1).centroids
    time_kmeans.check_means(x, labels, means)
    for broken in (
        lambda: time_kmeans.check_order(labels, order.flip(-1), offsets),
        lambda: time_kmeans.check_order(labels, order, offsets + 1),
        lambda: time_kmeans.check_means(x, labels, means + 0.01),
    ):
        with pytest.raises(RuntimeError, match="not timed"):
            broken()
