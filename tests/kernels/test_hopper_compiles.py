"""The Hopper kernel, compiled ahead of time for sm_90a: no card needed. What the machine code must and must not hold.

Run as a script it compiles every build and prints a JSON line for each: see `machine_code`.
"""

import re

import pytest
from machine_code import SHARED_MEMORY, compile_all, compiled_builds, instructions, machine_code

from dittools.kernels.hopper import Variant, why_no_gluon

pytestmark = pytest.mark.skipif(why_no_gluon() is not None, reason=str(why_no_gluon()))

# name: rows of a tile, head dim, key block, dtype, with an order, with a bias, variant (the default when None)
BUILDS = {
    "hd128": (128, 128, 128, "bfloat16", False, False, Variant()),
    "hd128-keys64": (128, 128, 64, "bfloat16", False, False, Variant()),
    "hd128-stages3": (128, 128, 128, "bfloat16", False, False, Variant(stages=3)),
    "hd128-persistent": (128, 128, 128, "bfloat16", False, False, Variant(persistent=True)),
    "hd128-biased": (128, 128, 64, "bfloat16", False, True, Variant(persistent=True)),
    "hd128-hold": (128, 128, 128, "bfloat16", False, False, Variant(hold=True)),
    "hd128-ordered": (128, 128, 128, "bfloat16", True, False, None),
    "hd128-ordered-keys64": (128, 128, 64, "float16", True, False, None),
    "hd128-ordered-persistent": (128, 128, 128, "bfloat16", True, False, Variant(persistent=True)),
    "hd128-ordered-biased": (128, 128, 128, "bfloat16", True, True, None),
    "hd64": (128, 64, 128, "bfloat16", False, False, None),
    "hd64-ordered": (128, 64, 128, "bfloat16", True, False, None),
    "hd64-keys64-persistent": (128, 64, 64, "float16", False, False, Variant(stages=3, persistent=True)),
    "rows64": (64, 128, 64, "bfloat16", False, False, None),
    "rows64-keys128": (64, 128, 128, "bfloat16", False, False, None),
    "rows64-biased": (64, 128, 64, "bfloat16", False, True, None),
    "rows64-keys128-biased": (64, 128, 128, "bfloat16", False, True, None),
    "rows64-ordered": (64, 128, 64, "bfloat16", True, False, None),
    "rows64-ordered-keys128": (64, 128, 128, "float16", True, False, None),
    "rows64-ordered-biased": (64, 128, 64, "bfloat16", True, True, None),
    "rows64-read": (64, 128, 64, "bfloat16", False, False, Variant(stages=3, slot=64)),
    "rows64-in-turn": (64, 128, 64, "bfloat16", False, False, Variant(stages=3, slot=64, overlap=False)),
    "rows64-slots128": (64, 128, 64, "bfloat16", False, False, Variant(stages=1, slot=128, hold=True)),
    "rows64-persistent": (64, 128, 64, "bfloat16", False, False, Variant(slot=64, hold=True, persistent=True)),
    "rows64-hd64": (64, 64, 64, "bfloat16", False, False, None),
    "rows64-hd64-keys128": (64, 64, 128, "float16", False, False, None),
    "rows64-hd64-ordered": (64, 64, 64, "bfloat16", True, False, None),
    "rows64-hd64-biased": (64, 64, 64, "bfloat16", False, True, None),
    "rows64-hd64-slots64": (64, 64, 64, "bfloat16", False, False, Variant(stages=6, slot=64, hold=True)),
}  # fmt: skip


def build(rows, head_dim, key_block, dtype, ordered, biased, variant):
    """Compile one variant from the arguments of a real call; return its resources and SASS."""
    import torch

    from dittools.blocks import BlockMask, Partition
    from dittools.kernels.hopper import launch_arguments
    from dittools.kernels.hopper_forward import block_sparse_forward

    q = torch.empty(2, 1000, 3, head_dim, dtype=getattr(torch, dtype))
    mask = BlockMask.full(Partition(1000, rows), Partition(1000, key_block))
    bias = torch.zeros(1, 3, mask.key.count) if biased else None
    order = torch.arange(1000, dtype=torch.int32).expand(1, 3, -1) if ordered else None
    results = torch.empty_like(q), torch.empty(2, 3, 1000)
    _, arguments, options = launch_arguments(q, q, q, mask, 0.1, bias, variant, order, *results)
    return machine_code(block_sparse_forward.warmup(*arguments, **options, grid=(1,)))


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    return compiled_builds(__file__, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("name", BUILDS)
def test_nothing_spills_and_it_fits(builds, name):
    build = builds[name]
    assert build["warps"] == 12
    assert build["resources"]["REG"] == 168 and build["shared"] <= SHARED_MEMORY
    # With a bias two pointers wait in memory while the kernel starts.
    spills = instructions(build, "LDL") + instructions(build, "STL")
    assert len(spills) <= (4 if BUILDS[name][3] else 0)
    # 240 registers for each consumer and 24 for the producer.
    limits = {int(x, 16) for line in build["sass"] for x in re.findall(r"USETMAXREG.* (0x\w+)", line)}
    assert {240, 24} <= limits


@pytest.mark.parametrize("name", BUILDS)
def test_products_run_on_the_tensor_cores_and_copies_on_tma(builds, name):
    head_dim = BUILDS[name][0]
    products = [builds[name]["sass"][i] for i in instructions(builds[name], "HGMMA")]
    # Two consumers, each QK and PV in the loop, and the first QK and the last PV outside it.
    assert len(products) == 2 * 2 * (head_dim // 16 + 128 // 16)
    # Weights come from registers: their A operand is no descriptor.
    assert sum("tnspB" in x and re.search(r"R\d+, R\d+, gdesc", x) is not None for x in products) == 2 * 2 * 8
    assert instructions(builds[name], "UTMALDG") and len(instructions(builds[name], "UTMASTG")) == 2
    assert not instructions(builds[name], "HMMA")


@pytest.mark.parametrize("name", BUILDS)
def test_the_softmax_runs_between_the_two_waits(builds, name):
    build = builds[name]
    early = [i for i in instructions(build, "WARPGROUP.DEPBAR.LE") if "0x1" in build["sass"][i]]
    late = [i for i in instructions(build, "WARPGROUP.DEPBAR.LE") if "0x0" in build["sass"][i]]
    assert len(early) == 2
    exponentials = instructions(build, "MUFU.EX2")
    for start in early:
        end = min(i for i in late if i > start)
        assert sum(start < i < end for i in exponentials) >= 64


if __name__ == "__main__":
    compile_all(BUILDS, build)
