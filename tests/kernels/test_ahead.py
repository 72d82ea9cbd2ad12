"""The Triton kernels of the smaller operations compile for the cards they claim, and fit their shared memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dittools.blocks import BlockMask, Partition
from dittools.clusters import ClusterMask, ClusterPartition

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("a card is here: the tests run the kernels on it", allow_module_level=True)

from ahead import compiling

from dittools.kernels import (
    antidiagonal_triton,
    block_mass_triton,
    clustered_triton,
    counting_sort_triton,
    hopper_clusters_lists,
    kmeans_triton,
    lists_triton,
    permute_triton,
    schedule,
    skipped_triton,
    triton_block_sparse,
)
from dittools.kernels.skipped import Blocks, Means

SM90, SM86 = (90, 227 << 10), (86, 99 << 10)  # compute capability, shared memory of one program
BF16, FULL = torch.bfloat16, torch.float32


class NoSync(TorchDispatchMode):
    """Fails on operators that would wait for a GPU."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        assert op.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "masked_select", "equal"), op
        return op(*args, **(kwargs or {}))


def name(value):
    return f"sm{value[0]}" if isinstance(value, tuple) else str(value).removeprefix("torch.")


def check(compiled, names, card):
    capability, room = card
    assert [kernel.metadata.name for kernel in compiled] == names
    for kernel in compiled:
        assert kernel.metadata.target.arch == capability
        assert kernel.asm["cubin"] and kernel.metadata.shared <= room


@pytest.mark.parametrize(("card", "dtype"), [(SM90, BF16), (SM86, BF16), (SM86, FULL)], ids=name)
def test_kmeans(card, dtype):
    x, centroids = torch.empty(2, 1000, 128, dtype=dtype), torch.empty(2, 300, 128)
    order, offsets = torch.empty(2, 1000, dtype=torch.int32), torch.empty(2, 301, dtype=torch.int32)
    with compiling(card[0]) as compiled:
        kmeans_triton.triton_assign(x, centroids)
        kmeans_triton.triton_update(x, order, offsets, centroids)
    check(compiled, ["_round", "_assign", "_update"], card)
    if card == SM90:
        assert "wgmma" in compiled[1].asm["ptx"]


def test_counting_sort():
    with compiling(SM90[0]) as compiled:
        counting_sort_triton.triton_sort_by_label(torch.empty(2, 3000, dtype=torch.int32), 1000)
    check(compiled, ["_count_tiles", "_scan_tiles", "_scatter_tiles"], SM90)


def test_permute():
    x, order = torch.empty(1, 1000, 2, 96, dtype=torch.bfloat16), torch.empty(1, 2, 1000, dtype=torch.int32)
    with compiling(SM90[0]) as compiled:
        permute_triton.triton_permute((x, x, x), order, back=False)
        permute_triton.triton_permute((x,), order, back=True)
    check(compiled, ["_permute", "_permute"], SM90)


@pytest.mark.parametrize(
    ("card", "dtype", "query_block"), [(SM90, BF16, 128), (SM86, BF16, 128), (SM86, FULL, 64)], ids=name
)
def test_block_mass(monkeypatch, card, dtype, query_block):
    monkeypatch.setattr(block_mass_triton, "shared_memory", lambda device: card[1])
    q = torch.empty(1, 1000, 2, 128, dtype=dtype)
    with compiling(card[0]) as compiled:
        block_mass_triton.triton_block_mass(q, q, Partition(1000, query_block), Partition(1000, 128), 0.1, None)
    check(compiled, ["_row_lse", "_sum_blocks"], card)


@pytest.mark.parametrize(("card", "dtype"), [(SM90, BF16), (SM86, BF16), (SM86, FULL)], ids=name)
@pytest.mark.parametrize("ordered", [False, True], ids=["raster", "order"])
def test_antidiagonals(monkeypatch, card, dtype, ordered):
    monkeypatch.setattr(antidiagonal_triton, "shared_memory", lambda device: card[1])
    q, order = torch.empty(1, 3000, 2, 128, dtype=dtype), torch.empty(1, 1, 3000, dtype=torch.int32)
    with compiling(card[0]) as compiled, NoSync():
        antidiagonal_triton.triton_antidiagonals(q, q, Partition(3000, 128), 8, 0.01, order if ordered else None)
    check(compiled, ["_score_blocks", "_mean_shares"], card)
    if card == SM90:
        assert "wgmma" in compiled[0].asm["ptx"]


def test_lists():
    scores, force = torch.empty(1, 2, 591, 591), torch.empty(591, dtype=torch.bool)
    with compiling(SM90[0]) as compiled:
        lists_triton.triton_lists("keep", scores > 0)
        lists_triton.triton_lists("top-k", scores, 60)
        lists_triton.triton_lists("mass", scores, 0.5, force, 1)
    check(compiled, ["_lists"] * 3, SM90)


@pytest.mark.parametrize("card", [SM90, SM86], ids=name)
def test_attention_with_a_schedule(monkeypatch, card):
    monkeypatch.setattr(triton_block_sparse, "_shared_memory", lambda device: card[1])
    q = torch.empty(1, 1000, 2, 128, dtype=torch.bfloat16)
    mask = BlockMask.full(Partition(1000, 128), Partition(1000, 128))
    starts = schedule(mask.lists()[0])
    with compiling(card[0]) as compiled:
        triton_block_sparse.triton_block_sparse_attention(q, q, q, mask, scale=0.1, schedule=starts)
    check(compiled, ["_block_sparse_forward"], card)


@pytest.mark.parametrize(
    ("card", "dtype", "dim", "permute"),
    [(SM90, BF16, 128, True), (SM90, BF16, 96, False), (SM86, BF16, 128, True), (SM86, FULL, 128, True)],
    ids=name,
)
def test_clusters(monkeypatch, card, dtype, dim, permute):
    monkeypatch.setattr(triton_block_sparse, "_shared_memory", lambda device: card[1])
    sides = [ClusterPartition(1000, torch.full((1, 2, n), 1000 // n, dtype=torch.int32)) for n in (5, 20)]
    mask = ClusterMask(torch.ones(1, 2, 5, 20, dtype=torch.bool), *sides)
    q, order = torch.empty(1, 1000, 2, dim, dtype=dtype), torch.arange(1000, dtype=torch.int32).expand(1, 2, 1000)
    call = {"order": order, "key_order": None if permute else order}
    with compiling(card[0]) as compiled, NoSync():
        clustered_triton.triton_cluster_attention(q, q, q, mask, **call, scale=0.1, permute=permute)
    check(compiled, ["_granule_lists", "_cluster_forward", "_cluster_forward"], card)
    if (card, dtype) == (SM90, BF16):
        assert all("wgmma" in kernel.asm["ptx"] for kernel in compiled[1:])


@pytest.mark.parametrize("unit", [8, 16])
def test_lists_of_the_hopper_kernel_for_clusters(unit):
    sides = [ClusterPartition(1000, torch.full((1, 2, n), 1000 // n, dtype=torch.int32)) for n in (5, 20)]
    mask = ClusterMask(torch.ones(1, 2, 5, 20, dtype=torch.bool), *sides)
    with compiling(SM90[0]) as compiled, NoSync():
        hopper_clusters_lists.triton_lists(mask, hopper_clusters_lists.cut(mask.key, unit), range(2), 2)
        hopper_clusters_lists.query_tiles(mask.query, mask.keep.sum(-1), 128, 0.7)
    check(compiled, ["_piece_lists"], SM90)


@pytest.mark.parametrize(("card", "dtype"), [(SM90, BF16), (SM86, BF16), (SM86, FULL)], ids=name)
def test_skipped(card, dtype):
    q, lse = torch.empty(1, 1000, 2, 128, dtype=dtype), torch.empty(1, 2, 1000)
    labels, order = torch.zeros(2, 1000, dtype=torch.long), torch.zeros(1, 2, 1000, dtype=torch.int32)
    means = Means(torch.empty(2, 60, 128), torch.empty(2, 60, 128), torch.empty(2, 8, 60), torch.empty(2, 8, 128))
    keep, offsets = torch.ones(2, 8, 60, dtype=torch.bool), torch.zeros(1, 1, 61, dtype=torch.int32)
    blocks = Blocks(keep, labels, labels, torch.ones(2, 60), order, order, offsets)
    with compiling(card[0]) as compiled, NoSync():
        skipped_triton.triton_add_skipped(q, q, lse, blocks, means.bias, means, 0.1)
        skipped_triton.triton_anchor(means.shift.to(dtype), q, q, blocks, 0.1)
    check(compiled, ["_add_skipped", "_anchor"], card)
