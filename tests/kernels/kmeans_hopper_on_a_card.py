"""The Hopper kernel for k-means on a card of compute capability 9.x, against the nearest of all centroids.

`test_kmeans_hopper_gpu.py` runs each of these in a process of its own: a kernel that hangs cannot be interrupted.
"""

import pytest
import torch
from places import no_sync

from dittools.bench.proof_kmeans import judge
from dittools.kernels import cluster_runs, cluster_tokens, nearest_centroids
from dittools.kernels.kmeans_hopper import HopperVariant, hopper_assign, why_not_hopper_kmeans

WHY_NOT = "needs a CUDA device"
if torch.cuda.is_available():
    WHY_NOT = why_not_hopper_kmeans(torch.empty(1, 1, 128, dtype=torch.bfloat16, device="cuda"))
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]

VARIANTS = {
    "default": None,
    "turn1": HopperVariant(turn=1),
    "turn2": HopperVariant(turn=2),
    "one-buffer": HopperVariant(stages=5, buffers=1),
}


def points(*shape, dtype=torch.bfloat16, seed=0):
    made = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=made, device="cuda").to(dtype)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("clusters", [1, 129, 300, 1000])
@pytest.mark.parametrize("count", [1, 511, 40_001])
def test_every_variant_finds_the_nearest(variant, dtype, dim, clusters, count):
    x = points(1, count, 3, dim, dtype=dtype).transpose(1, 2)
    centroids = points(3, clusters, dim, seed=1).float()
    centroids[:, clusters // 2] = centroids[:, 0]
    labels = hopper_assign(x, centroids, VARIANTS[variant])
    judge(x, centroids, labels)
    assert clusters < 3 or not (labels == clusters // 2).any()
    for _ in range(5):
        assert torch.equal(hopper_assign(x, centroids, VARIANTS[variant]), labels)


def test_iterations_are_those_of_triton_without_a_host_sync():
    x = points(1, 20_011, 4, 128).transpose(1, 2)
    call = {"clusters": 300, "iterations": 1}
    runs = cluster_runs(x, **call, implementation="hopper")
    with no_sync():
        cluster_runs(x, centroids=runs.centroids, implementation="hopper")
    want = cluster_runs(x, **call, implementation="triton")
    # What is nearly as near may be taken for nearer by either.
    assert (runs.sizes - want.sizes).abs().sum() < 1e-3 * x.shape[2]
    ordered = runs.order.sort(-1).values
    assert torch.equal(ordered, torch.arange(20_011, device="cuda", dtype=torch.int32).expand(4, -1))


@pytest.mark.parametrize("layout", ["heads first", "odd offset", "dim first", "text first"])
def test_any_strides(layout):
    x = points(2, 500, 2, 64)
    if layout == "heads first":
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "odd offset":
        x = torch.cat((x[..., :1], x), -1)[..., 1:]
    elif layout == "dim first":
        x = x.transpose(1, 3).contiguous().transpose(1, 3)
    else:
        x = x[:, 77:]
    x = x.transpose(1, 2)
    centroids = points(4, 70, 64, seed=1).float()
    judge(x, centroids, hopper_assign(x, centroids))


def test_points_that_are_not_numbers_get_a_label_all_the_same():
    x = points(1, 1, 700, 64)
    x[0, 0, 300] = torch.nan
    start = points(1, 40, 64, seed=1).float()
    labels = nearest_centroids(x, start, implementation="hopper")
    assert ((labels >= 0) & (labels < 40)).all()
    found = cluster_tokens(x, centroids=start, iterations=1, implementation="hopper")
    assert found.centroids.isnan().any(-1).sum() == 1
