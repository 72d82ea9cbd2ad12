"""The Hopper kernel, compiled ahead of time for sm_90a: no card needed. What the machine code must and must not hold.

Run as a script it compiles every build and prints a JSON line for each: see `machine_code`.
"""

import re

import pytest
from machine_code import (
    ALL_SHARED_MEMORY,
    REGISTER_FILE,
    RESERVED,
    SHARED_MEMORY,
    compile_all,
    compiled_builds,
    instructions,
    kept_in_memory,
    machine_code,
    register_limits,
)

from dittools.kernels.block_sparse.hopper_variants import variant_of
from dittools.kernels.capability import why_no_gluon

pytestmark = pytest.mark.skipif(why_no_gluon() is not None, reason=str(why_no_gluon()))

# name: rows of a tile, head dim, key block, dtype, with an order, with a bias, keys drawn of each block
BUILDS = {
    "hd128-default": (128, 128, 128, "bfloat16", False, False, 0),
    "hd128-default-keys64": (128, 128, 64, "float16", False, False, 0),
    "hd128-default-biased": (128, 128, 64, "bfloat16", False, True, 0),
    "hd128-ordered": (128, 128, 128, "bfloat16", True, False, 0),
    "hd128-ordered-keys64": (128, 128, 64, "float16", True, False, 0),
    "hd128-ordered-biased": (128, 128, 128, "bfloat16", True, True, 0),
    "hd64": (128, 64, 128, "bfloat16", False, False, 0),
    "hd64-ordered": (128, 64, 128, "bfloat16", True, False, 0),
    "rows64": (64, 128, 64, "bfloat16", False, False, 0),
    "rows64-keys128": (64, 128, 128, "bfloat16", False, False, 0),
    "rows64-biased": (64, 128, 64, "bfloat16", False, True, 0),
    "rows64-keys128-biased": (64, 128, 128, "bfloat16", False, True, 0),
    "rows64-ordered": (64, 128, 64, "bfloat16", True, False, 0),
    "rows64-ordered-keys128": (64, 128, 128, "float16", True, False, 0),
    "rows64-ordered-biased": (64, 128, 64, "bfloat16", True, True, 0),
    "rows64-hd64": (64, 64, 64, "bfloat16", False, False, 0),
    "rows64-hd64-keys128": (64, 64, 128, "float16", False, False, 0),
    "rows64-hd64-ordered": (64, 64, 64, "bfloat16", True, False, 0),
    "rows64-hd64-biased": (64, 64, 64, "bfloat16", False, True, 0),
    "hd128-sampled": (128, 128, 128, "bfloat16", False, False, 8),
    "hd128-ordered-sampled": (128, 128, 128, "bfloat16", True, False, 8),
    "hd64-sampled": (128, 64, 128, "bfloat16", False, False, 16),
    "rows64-sampled": (64, 128, 64, "bfloat16", False, False, 4),
}  # fmt: skip


def build(rows, head_dim, key_block, dtype, ordered, biased, per):
    """Compile one build from the arguments of a real call; return its resources and SASS."""
    import torch

    from dittools.kernels.block_sparse.hopper import launch_arguments
    from dittools.kernels.block_sparse.hopper_forward import block_sparse_forward
    from dittools.kernels.block_sparse.sample import draw_sample
    from dittools.kernels.masks.block_mask import BlockMask, Partition

    q = torch.empty(2, 1000, 3, head_dim, dtype=getattr(torch, dtype))
    mask = BlockMask.full(Partition(1000, rows), Partition(1000, key_block))
    bias = torch.zeros(1, 3, mask.key.count) if biased else None
    order = torch.arange(1000, dtype=torch.int32).expand(1, 3, -1) if ordered else None
    results = torch.empty_like(q), torch.empty(2, 3, 1000)
    sample = draw_sample(mask.key, per, 0) if per else None
    _, arguments, options = launch_arguments(q, q, q, mask, 0.1, sample or bias, order, results)
    return machine_code(block_sparse_forward.warmup(*arguments, **options, grid=(1,)))


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    return compiled_builds(__file__, tmp_path_factory.mktemp("cache"))


def of(name):
    """(rows, head dim, with an order, variant) of a build."""
    rows, head_dim, _, _, ordered, _, _ = BUILDS[name]
    return rows, head_dim, ordered, variant_of(head_dim, rows, ordered)


def loops(build):
    """Machine code of each consumer's loop: the least one around the wait that leaves a product under way."""
    sass = build["sass"]
    jumps = [re.search(r"\bBRA .*(0x[0-9a-f]+)", line) for line in sass]
    backward = [(int(jump[1], 16) // 16, i) for i, jump in enumerate(jumps) if jump and int(jump[1], 16) // 16 < i]
    found = []
    for wait in instructions(build, "WARPGROUP.DEPBAR.LE"):
        if "0x1" in sass[wait]:
            begin, end = min((x for x in backward if x[0] < wait < x[1]), key=lambda x: x[1] - x[0])
            found.append(sass[begin : end + 1])
    return found


@pytest.mark.parametrize("name", BUILDS)
def test_nothing_spills_and_it_fits(builds, name):
    build, (rows, *_) = builds[name], BUILDS[name]
    assert (build["warps"], build["resources"]["REG"]) == ((12, 168) if rows == 128 else (8, 128))
    assert build["shared"] <= SHARED_MEMORY
    # With a bias two pointers wait in memory while the kernel of 128 rows starts; with an order and a sample a few
    # numbers of a tile, outside of the loops.
    *_, ordered, biased, drawn = BUILDS[name]
    assert kept_in_memory(build) <= (12 if ordered and drawn else 4 if biased and rows == 128 else 0)
    if drawn:
        inner = [loop for loop in loops(build) if len(loop) < 600]
        assert len(inner) == 2 * (rows // 64)
        assert not [line for loop in inner for line in loop if re.search(r"\b(LDL|STL)\b", line)]
    # 240 registers for each of two consumers or 232 for one, and 24 for the producer.
    limits = register_limits(build)
    assert {240 if rows == 128 else 232, 24} <= limits


@pytest.mark.parametrize("name", [name for name in BUILDS if BUILDS[name][0] == 64])
def test_two_programs_of_64_rows_share_a_multiprocessor(builds, name):
    build = builds[name]
    threads = 32 * build["warps"]
    assert 2 * threads * build["resources"]["REG"] <= REGISTER_FILE and 2 * threads <= 2048
    assert 2 * (build["shared"] + RESERVED) <= ALL_SHARED_MEMORY


@pytest.mark.parametrize("name", BUILDS)
def test_products_run_on_the_tensor_cores_and_copies_on_tma(builds, name):
    build, (rows, head_dim, ordered, variant) = builds[name], of(name)
    # A sample has a loop, and its last slot apart.
    consumers, loops = rows // 64, 3 if BUILDS[name][6] else 1
    products = [build["sass"][i] for i in instructions(build, "HGMMA")]
    # Each consumer: QK and PV in each loop, and the first QK and the last PV outside.
    of_each = (1 + loops) * consumers
    assert len(products) == of_each * (head_dim // 16 + variant.slot // 16)
    # Weights come from registers: their A operand is no descriptor. Q does where it is held.
    by_register = [re.search(r"R\d+, R\d+, gdesc", x) is not None for x in products]
    assert sum("tnspB" in x and yes for x, yes in zip(products, by_register, strict=True)) == (
        of_each * variant.slot // 16
    )
    assert sum(by_register) == of_each * (variant.slot // 16 + head_dim // 16)
    assert instructions(build, "UTMALDG")
    # By an order the output leaves row by row, else as one box of each consumer.
    assert len(instructions(build, "UTMASTG")) == (0 if ordered else consumers)
    assert not instructions(build, "HMMA")


@pytest.mark.parametrize("name", [name for name in BUILDS if not of(name)[3].persistent])
def test_the_softmax_runs_between_the_two_waits(builds, name):
    build, (rows, _, _, variant) = builds[name], of(name)
    early = [i for i in instructions(build, "WARPGROUP.DEPBAR.LE") if "0x1" in build["sass"][i]]
    late = [i for i in instructions(build, "WARPGROUP.DEPBAR.LE") if "0x0" in build["sass"][i]]
    assert len(early) == rows // 64
    exponentials = instructions(build, "MUFU.EX2")
    for start in early:
        end = min(i for i in late if i > start)
        assert sum(start < i < end for i in exponentials) >= variant.slot // 2


@pytest.mark.parametrize(
    ("name", "without"),
    [("hd128-ordered", "hd128-default"), ("hd64-ordered", "hd64"),
     ("rows64-ordered", "rows64"), ("rows64-hd64-ordered", "rows64-hd64")],
)  # fmt: skip
def test_an_order_costs_the_loop_nothing(builds, name, without):
    for ordered, plain in zip(loops(builds[name]), loops(builds[without]), strict=True):
        assert len(ordered) <= len(plain) + 12
        assert not [line for line in ordered if re.search(r"\b(LDG|STG|LDS|STS|LDSM)\b", line)]


@pytest.mark.parametrize("name", [name for name in BUILDS if of(name)[2]])
def test_rows_of_q_are_read_wide_and_are_there_for_all_warps_before_the_first_product(builds, name):
    build, (rows, head_dim, *_) = builds[name], of(name)
    sass = build["sass"]
    # 64 rows of each consumer, by 128 threads of 8 elements.
    wide = [i for i in instructions(build, "LDG") if ".128" in sass[i]]
    assert len(wide) == rows * head_dim // (128 * 8)
    stores = [i for i in instructions(build, "STS") if ".128" in sass[i]]
    assert len(stores) == len(wide)
    reads = instructions(build, "LDSM")
    firsts = {next(i for i in reads if i > store) for store in stores}
    assert len(firsts) == rows // 64
    for first in firsts:
        last = max(i for i in stores if i < first)
        fence = next(i for i in instructions(build, "FENCE.VIEW.ASYNC") if i > last)
        assert fence < next(i for i in instructions(build, "BAR.SYNC") if i > fence) < first


if __name__ == "__main__":
    compile_all(BUILDS, build)
