"""The Hopper kernel for block mass, compiled ahead of time for sm_90a: what the machine code must and must not hold.

Run as a script it compiles every build and prints a JSON line for each: see `machine_code`.
"""

import pytest
from machine_code import (
    SHARED_MEMORY,
    compile_all,
    compiled_builds,
    instructions,
    kept_in_memory,
    machine_code,
    register_limits,
)

from dittools.kernels.block_mass.hopper import TURN
from dittools.kernels.capability import why_no_gluon

pytestmark = pytest.mark.skipif(why_no_gluon() is not None, reason=str(why_no_gluon()))

# name: head dim, query and key block (None: the LSE pass), dtype
BUILDS = {
    "lse-hd128": (128, None, "bfloat16"),
    "lse-hd64": (64, None, "float16"),
    "mass-hd128": (128, (128, 128), "bfloat16"),
    "mass-hd128-128x64": (128, (128, 64), "bfloat16"),
    "mass-hd128-64x64": (128, (64, 64), "bfloat16"),
    "mass-hd64": (64, (128, 128), "bfloat16"),
    "mass-hd64-64x64": (64, (64, 64), "float16"),
}


def build(head_dim, blocks, dtype):
    """Compile one build from the arguments of a real call; return its resources and SASS."""

    import torch

    from dittools.kernels.block_mass.hopper import lse_arguments, mass_arguments
    from dittools.kernels.block_mass.hopper_forward import block_mass_forward
    from dittools.kernels.masks.block_mask import Partition

    q = torch.empty(2, 1000, 3, head_dim, dtype=getattr(torch, dtype))
    if blocks is None:
        _, _, arguments, options = lse_arguments(q, q, 0.1)
    else:
        sides = [Partition(1000, size) for size in blocks]
        _, _, arguments, options = mass_arguments(q, q, *sides, 0.1, torch.empty(2, 3, 1000))
    return machine_code(block_mass_forward.warmup(*arguments, **options, grid=(1,)))


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    return compiled_builds(__file__, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("name", BUILDS)
def test_nothing_spills_and_it_fits(builds, name):
    build = builds[name]
    assert build["warps"] == 12
    assert build["resources"]["REG"] == 168 and build["shared"] <= SHARED_MEMORY
    # A few numbers that are seldom needed wait in memory; logits never do.
    assert kept_in_memory(build) <= 24
    limits = register_limits(build)
    assert {240, 24} <= limits


@pytest.mark.parametrize("name", BUILDS)
def test_products_run_on_the_tensor_cores_and_copies_on_tma(builds, name):
    head_dim = BUILDS[name][0]
    # Two consumers, two halves: the first slot, those that fill no turn, and a turn.
    slots = 2 + TURN
    assert len(instructions(builds[name], "HGMMA")) == 2 * 2 * slots * head_dim // 16
    assert instructions(builds[name], "UTMALDG") and not instructions(builds[name], "HMMA")
    # One exponential a pair: no weight is made twice.
    assert 0 <= len(instructions(builds[name], "MUFU.EX2")) - 2 * 2 * slots * 64 <= 16


@pytest.mark.parametrize("name", BUILDS)
def test_exponentials_run_while_a_product_is_under_way(builds, name):
    """After each wait that leaves a product under way, most of the exponentials come before the next wait."""
    build = builds[name]
    waits = instructions(build, "WARPGROUP.DEPBAR.LE")
    exponentials = instructions(build, "MUFU.EX2")
    early = [i for i in waits if "0x1" in build["sass"][i]]
    assert len(early) == 2 * (1 + 1 + 2 * TURN - 1)
    for start in early[1 : len(early) // 2]:
        end = min(i for i in waits if i > start)
        assert sum(start < i < end for i in exponentials) >= 32


if __name__ == "__main__":
    compile_all(BUILDS, build)
