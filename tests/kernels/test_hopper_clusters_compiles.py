"""The Hopper kernel for clusters, compiled ahead of time for sm_90a: what its machine code must and must not hold.

Run as a script it compiles every build and prints a JSON line for each: see `machine_code`.
"""

import re

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

from dittools.kernels.capability import why_no_gluon

pytestmark = pytest.mark.skipif(why_no_gluon() is not None, reason=str(why_no_gluon()))

# name: head dim, dtype, with an order
BUILDS = {
    "hd128": (128, "bfloat16", False),
    "hd128-ordered": (128, "float16", True),
    "hd64": (64, "bfloat16", False),
    "hd64-ordered": (64, "float16", True),
}


def build(head_dim, dtype, ordered):
    """Compile one build from the arguments of a real call; return its resources and SASS."""
    import torch

    from dittools.kernels.clusters.hopper import launch_arguments
    from dittools.kernels.clusters.hopper_forward import cluster_forward
    from dittools.kernels.masks.cluster_mask import ClusterMask, ClusterPartition

    q = torch.empty(2, 1000, 3, head_dim, dtype=getattr(torch, dtype))
    some = ClusterPartition(1000, torch.tensor([[[300, 0, 700]]], dtype=torch.int32))
    order = torch.arange(1000, dtype=torch.int32).expand(1, 3, -1) if ordered else None
    _, _, launches = launch_arguments(q, q, q, ClusterMask.full(some, some), 0.1, order)
    ((_, arguments, options),) = launches
    return machine_code(cluster_forward.warmup(*arguments, **options, grid=(1,)))


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    return compiled_builds(__file__, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("name", BUILDS)
def test_nothing_spills_and_it_fits(builds, name):
    build = builds[name]
    assert build["warps"] == 12
    assert build["resources"]["REG"] == 168 and build["shared"] <= SHARED_MEMORY
    assert build["resources"]["LOCAL"] == 0
    assert kept_in_memory(build) == 0
    # 232 registers for each consumer and 40 for the producer.
    limits = register_limits(build)
    assert {232, 40} <= limits and 2 * 232 + 40 <= 3 * 168


@pytest.mark.parametrize("name", BUILDS)
def test_products_run_on_the_tensor_cores_and_copies_on_tma(builds, name):
    build, head_dim = builds[name], BUILDS[name][0]
    products = [build["sass"][i] for i in instructions(build, "HGMMA")]
    # Two consumers, each QK and PV in the loop, and the first QK and the last PV outside it.
    assert len(products) == 2 * 2 * (head_dim // 16 + 128 // 16)
    # Weights come from registers: their A operand is no descriptor.
    assert sum("tnspB" in x and re.search(r"R\d+, R\d+, gdesc", x) is not None for x in products) == 2 * 2 * 8
    assert not instructions(build, "HMMA")
    # K and V: for each size of piece one copy a panel of 64 columns, in a loop over pieces; Triton 3.8 and newer make
    # one piece of code of all sizes but the smallest.
    assert len(instructions(build, "UTMALDG")) in {2 * count * (head_dim // 64) for count in (4, 2)}


@pytest.mark.parametrize("name", BUILDS)
def test_a_piece_costs_few_instructions(builds, name):
    """Producers have to keep up: 5 pieces a slot on average, 16 at most. Each warp copies one panel of K or of V."""
    build = builds[name]
    copies = instructions(build, "UTMALDG")
    branches = [i for i in instructions(build, "BRA") if copies[0] < i]
    ends = [next(i for i in branches if i > copy) for copy in copies]
    begins = [max([0, *(j for j in instructions(build, "BRA") if j < copy)]) for copy in copies]
    assert all(end - begin <= 30 for begin, end in zip(begins, ends, strict=True))


@pytest.mark.parametrize("name", BUILDS)
def test_the_softmax_runs_between_the_two_waits_and_the_mask_is_read_before(builds, name):
    build = builds[name]
    early = [i for i in instructions(build, "WARPGROUP.DEPBAR.LE") if "0x1" in build["sass"][i]]
    late = [i for i in instructions(build, "WARPGROUP.DEPBAR.LE") if "0x0" in build["sass"][i]]
    assert len(early) == 2
    exponentials = instructions(build, "MUFU.EX2")
    for start in early:
        end = min(i for i in late if i > start)
        assert sum(start < i < end for i in exponentials) >= 64
        # What the mask of dead keys needs is on its way before the products are waited for.
        assert not [i for i in instructions(build, "LDG") if start < i < end]
        # Only slots with dead keys pay for it: a branch skips its selects.
        selects = [i for i in instructions(build, "FSEL") if start < i < end]
        skips = [i for i in instructions(build, "BRA") if start < i < selects[0]]
        assert len(selects) >= 64 and skips


@pytest.mark.parametrize("name", BUILDS)
def test_rows_of_q_are_read_wide(builds, name):
    build, head_dim = builds[name], BUILDS[name][0]
    wide = [i for i in instructions(build, "LDG") if ".128" in build["sass"][i]]
    # Two consumers, 64 rows each, by 128 threads of 8 elements.
    assert len(wide) == 2 * 64 * head_dim // (128 * 8)


@pytest.mark.parametrize("name", BUILDS)
def test_rows_of_q_are_there_for_all_warps_before_the_first_product(builds, name):
    build = builds[name]
    stores = [i for i in instructions(build, "STS") if ".128" in build["sass"][i]]
    products, fences, barriers = (instructions(build, x) for x in ("HGMMA", "FENCE.VIEW.ASYNC", "BAR.SYNC"))
    firsts = [next(i for i in products if i > store) for store in stores]
    assert len(set(firsts)) == 2  # one of each consumer
    for first in set(firsts):
        last = max(i for i in stores if i < first)
        fence = next(i for i in fences if i > last)
        assert fence < next(i for i in barriers if i > fence) < first


if __name__ == "__main__":
    compile_all(BUILDS, build)
