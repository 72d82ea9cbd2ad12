"""The Hopper kernel for k-means, compiled ahead of time for sm_90a: what the machine code must and must not hold.

Run as a script it compiles every build and prints a JSON line for each: see `machine_code`.
"""

import re

import pytest
from machine_code import SHARED_MEMORY, compile_all, compiled_builds, instructions, machine_code

from dittools.kernels.hopper import why_no_gluon
from dittools.kernels.kmeans_hopper import HopperVariant

pytestmark = pytest.mark.skipif(why_no_gluon() is not None, reason=str(why_no_gluon()))

# name: head dim, dtype, variant
BUILDS = {
    "hd128": (128, "bfloat16", HopperVariant()),
    "hd128-turn1": (128, "bfloat16", HopperVariant(turn=1)),
    "hd128-turn2": (128, "bfloat16", HopperVariant(turn=2)),
    "hd128-one-buffer": (128, "bfloat16", HopperVariant(stages=5, buffers=1)),
    "hd64": (64, "float16", HopperVariant()),
}


def build(head_dim, dtype, variant):
    """Compile one build from the arguments of a real call; return its resources and SASS."""
    import torch

    from dittools.kernels import kmeans_hopper
    from dittools.kernels.kmeans_hopper_forward import nearest_forward

    x, centroids = torch.empty(2, 3, 1000, head_dim, dtype=getattr(torch, dtype)), torch.empty(6, 384, head_dim)
    kmeans_hopper.round_centroids = lambda *_: (centroids.to(x.dtype), centroids[..., 0].contiguous())
    _, _, arguments, options = kmeans_hopper.assign_arguments(x, centroids, variant)
    return machine_code(nearest_forward.warmup(*arguments, **options, grid=(1,)))


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    return compiled_builds(__file__, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("name", BUILDS)
def test_nothing_spills_and_it_fits(builds, name):
    build = builds[name]
    assert build["warps"] == 12
    assert build["resources"]["REG"] == 168 and build["shared"] <= SHARED_MEMORY
    assert len(instructions(build, "LDL") + instructions(build, "STL")) <= 24
    limits = {int(x, 16) for line in build["sass"] for x in re.findall(r"USETMAXREG.* (0x\w+)", line)}
    assert {240, 24} <= limits


if __name__ == "__main__":
    compile_all(BUILDS, build)
