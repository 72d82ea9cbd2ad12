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
    "hd128-turn3": (128, "bfloat16", HopperVariant(turn=3)),
    "hd64": (64, "float16", HopperVariant()),
}


def build(head_dim, dtype, variant):
    """Compile one build from the arguments of a real call; return its resources and SASS."""
    import torch

    from dittools.kernels.kmeans_hopper import assign_arguments
    from dittools.kernels.kmeans_hopper_forward import nearest_forward

    x = torch.empty(2, 3, 1000, head_dim, dtype=getattr(torch, dtype))
    _, _, arguments, options = assign_arguments(x, x.flatten(0, 1)[:, :384], torch.empty(6, 384), variant)
    return machine_code(nearest_forward.warmup(*arguments, **options, grid=(1,)))


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    return compiled_builds(__file__, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("name", BUILDS)
def test_nothing_spills_and_it_fits(builds, name):
    build = builds[name]
    assert build["warps"] == 12
    assert build["resources"]["REG"] == 168 and build["shared"] <= SHARED_MEMORY
    # A few numbers of a program wait in memory. Scores never do: those of one half are 256 bytes a thread.
    assert build["resources"]["STACK"] < 128
    limits = {int(x, 16) for line in build["sass"] for x in re.findall(r"USETMAXREG.* (0x\w+)", line)}
    assert {240, 24} <= limits


@pytest.mark.parametrize("name", BUILDS)
def test_products_run_on_the_tensor_cores_and_copies_on_tma(builds, name):
    head_dim, _, variant = BUILDS[name]
    # Two consumers, two halves: slots that fill no turn, and a turn.
    slots = (variant.turn > 1) + variant.turn
    assert len(instructions(builds[name], "HGMMA")) == 2 * 2 * slots * head_dim // 16
    assert instructions(builds[name], "UTMALDG") and not instructions(builds[name], "HMMA")
    # Each score is compared once: 64 of a half in a thread, and a few more at the end of a tile.
    assert 0 <= len(instructions(builds[name], "FSETP")) - 2 * 2 * slots * 64 <= 32


@pytest.mark.parametrize("name", [name for name in BUILDS if BUILDS[name][2].turn > 1])
def test_scores_are_compared_while_a_product_is_under_way(builds, name):
    """Between each wait that leaves a product under way and the next wait, a good part of a half's scores is."""
    build = builds[name]
    waits, compared = instructions(build, "WARPGROUP.DEPBAR.LE"), instructions(build, "FSETP")
    early = [i for i in waits if "0x1" in build["sass"][i]]
    assert len(early) == 2 * (1 + 2 * BUILDS[name][2].turn - 1)
    for start in early[: len(early) // 2]:
        end = min(i for i in waits if i > start)
        assert sum(start < i < end for i in compared) >= 16


if __name__ == "__main__":
    compile_all(BUILDS, build)
