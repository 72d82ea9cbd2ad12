"""The Triton kernels of the smaller operations compile for the cards they claim, and fit their shared memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.kernels.masks.cluster_mask import ClusterMask, ClusterPartition

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("a card is here: the tests run the kernels on it", allow_module_level=True)

from ahead import compiling, stack_bytes

from dittools.kernels import schedule
from dittools.kernels.antidiagonal import triton as antidiagonal_triton
from dittools.kernels.block_mass import one_pass_triton as block_mass_parts_triton
from dittools.kernels.block_mass import triton as block_mass_triton
from dittools.kernels.block_sparse import lists_triton
from dittools.kernels.block_sparse import triton as triton_block_sparse
from dittools.kernels.clusters import hopper_lists as hopper_clusters_lists
from dittools.kernels.clusters import triton as clustered_triton
from dittools.kernels.cosine_similarity import triton as likeness_triton
from dittools.kernels.counting_sort import triton as counting_sort_triton
from dittools.kernels.kmeans import triton as kmeans_triton
from dittools.kernels.kmeans import update_triton as kmeans_update_triton
from dittools.kernels.permute import triton as permute_triton
from dittools.kernels.probe import triton as probe_triton
from dittools.kernels.residual import error_triton as compensation_triton
from dittools.kernels.residual import triton as skipped_triton
from dittools.kernels.residual.dispatch import Blocks, Means
from dittools.kernels.segment_mean import triton as run_means_triton
from dittools.kernels.topk_mask import triton as fill_triton

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
        kmeans_update_triton.triton_update(x, order, order, offsets, centroids)
    check(compiled, ["_round", "_assign", "_sum_stretches", "_join_stretches"], card)
    if card == SM90:
        assert "wgmma" in compiled[1].asm["ptx"]
        assert not any(stack_bytes(kernel) for kernel in compiled)


@pytest.mark.parametrize("centroids", [64, 128])
def test_kmeans_with_room_for_several_programs(centroids):
    variant = kmeans_triton.Variant(centroids=centroids, stages=2, narrow=True)
    with compiling(SM90[0]) as compiled:
        kmeans_triton.triton_assign(torch.empty(2, 1000, 128, dtype=BF16), torch.empty(2, 300, 128), variant)
    check(compiled, ["_round", "_assign"], SM90)
    assert "wgmma" in compiled[1].asm["ptx"] and stack_bytes(compiled[1]) == 0
    # No score goes through shared memory, and two or three programs fit.
    assert compiled[1].metadata.shared * (4 - centroids // 64) <= SM90[1]


def test_counting_sort():
    with compiling(SM90[0]) as compiled:
        counting_sort_triton.triton_sort_by_label(torch.empty(2, 3000, dtype=torch.int32), 1000)
    check(compiled, ["_count_tiles", "_scan_tiles", "_offsets", "_scatter_tiles"], SM90)


def test_permute():
    x, order = torch.empty(1, 1000, 2, 96, dtype=torch.bfloat16), torch.empty(1, 2, 1000, dtype=torch.int32)
    with compiling(SM90[0]) as compiled:
        permute_triton.triton_permute((x, x, x), order, back=False)
        permute_triton.triton_permute((x,), order, back=True)
    check(compiled, ["_permute", "_permute"], SM90)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_segment_means(count, ordered):
    x, order = torch.empty(1, 3000, 2, 128, dtype=BF16), torch.empty(1, 2, 3000, dtype=torch.int32)
    with compiling(SM90[0]) as compiled, NoSync():
        run_means_triton.triton_segment_means([x] * count, order if ordered else None, torch.empty(1, 2, 41).int())
    check(compiled, ["_chunk_sums", "_segment_means"], SM90)
    assert not any(stack_bytes(kernel) for kernel in compiled)


@pytest.mark.parametrize(("card", "dtype", "dim"), [(SM90, BF16, 128), (SM86, BF16, 96), (SM86, FULL, 128)], ids=name)
def test_compensation(card, dtype, dim):
    k, offsets = torch.empty(1, 3000, 2, dim, dtype=dtype), torch.arange(0, 3001, 75, dtype=torch.int32)
    order = torch.empty(1, 2, 3000, dtype=torch.int32)
    with compiling(card[0]) as compiled, NoSync():
        compensation_triton.triton_block_approximation_error(
            torch.empty(1, 2, 300, dim), k, k, order, offsets[None, None], 0.1
        )
    check(compiled, ["_chunk_sums", "_segment_means", "_key_numbers", "_block_approximation_error"], card)
    assert dtype == FULL or not any(stack_bytes(kernel) for kernel in compiled)
    if card == SM90:
        assert "wgmma" in compiled[-1].asm["ptx"]


@pytest.mark.parametrize(
    ("card", "dtype", "query_block"), [(SM90, BF16, 128), (SM86, BF16, 128), (SM86, FULL, 64)], ids=name
)
def test_block_mass(monkeypatch, card, dtype, query_block):
    monkeypatch.setattr(block_mass_triton, "shared_memory", lambda device: card[1])
    q = torch.empty(1, 1000, 2, 128, dtype=dtype)
    with compiling(card[0]) as compiled:
        block_mass_triton.triton_block_mass(q, q, Partition(1000, query_block), Partition(1000, 128), 0.1, None)
        block_mass_parts_triton.triton_block_mass_parts(q, q, Partition(1000, query_block), Partition(1000, 128), 0.1)
    check(compiled, ["_row_lse", "_repair_lse", "_sum_blocks", "_row_parts", "_sum_rows"], card)
    if (card, dtype) == (SM90, BF16):
        mine = compiled[:3]
        assert all("wgmma" in kernel.asm["ptx"] for kernel in mine)
        # Two programs share a multiprocessor: one's exponentials beside the other's products.
        assert all(2 * kernel.metadata.shared <= card[1] for kernel in mine)


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


def test_likeness():
    x, order = torch.empty(1, 1000, 2, 96, dtype=torch.bfloat16), torch.empty(1, 1, 1000, dtype=torch.int32)
    offsets = torch.empty(1, 1, 9, dtype=torch.int32)
    with compiling(SM90[0]) as compiled, NoSync():
        likeness_triton.triton_intra_block_cosine_similarity(x, order, offsets)
        likeness_triton.triton_intra_block_cosine_similarity(x, None, offsets)
    check(compiled, ["_intra_block_cosine_similarity"] * 2, SM90)


def test_fill():
    scores, sizes = torch.empty(1, 2, 591, 591), torch.empty(1, 2, 591, dtype=torch.long)
    force, spread = torch.empty(1, 1, 591, 591, dtype=torch.bool), torch.empty(591, dtype=torch.float64)
    with compiling(SM90[0]) as compiled, NoSync():
        fill_triton.triton_topk_mask_per_row(scores, sizes, sizes, 0.2, None, spread)
        fill_triton.triton_topk_mask_per_head(scores, sizes, sizes, 0.2, True, force)
    counts = ["_count"] * fill_triton.PASSES
    lanes = ["_best_blocks", "_lane_budgets", *counts, "_count_ties", "_topk_mask_per_head"]
    check(compiled, ["_best_blocks", "_row_levels", "_topk_mask_per_row", *lanes], SM90)


@pytest.mark.parametrize("card", [SM90, SM86], ids=name)
def test_attention_with_a_schedule(monkeypatch, card):
    monkeypatch.setattr(triton_block_sparse, "shared_memory", lambda device: card[1])
    q = torch.empty(1, 1000, 2, 128, dtype=torch.bfloat16)
    mask = BlockMask.full(Partition(1000, 128), Partition(1000, 128))
    starts = schedule(mask.kv_blocks()[0])
    with compiling(card[0]) as compiled:
        triton_block_sparse.triton_block_sparse_attention(q, q, q, mask, scale=0.1, schedule=starts)
    check(compiled, ["_block_sparse_forward"], card)


@pytest.mark.parametrize(
    ("card", "dtype", "dim", "permute"),
    [(SM90, BF16, 128, True), (SM90, BF16, 96, False), (SM86, BF16, 128, True), (SM86, FULL, 128, True)],
    ids=name,
)
def test_clusters(monkeypatch, card, dtype, dim, permute):
    monkeypatch.setattr(triton_block_sparse, "shared_memory", lambda device: card[1])
    sides = [ClusterPartition(1000, torch.full((1, 2, n), 1000 // n, dtype=torch.int32)) for n in (5, 20)]
    mask = ClusterMask(torch.ones(1, 2, 5, 20, dtype=torch.bool), *sides)
    q, order = torch.empty(1, 1000, 2, dim, dtype=dtype), torch.arange(1000, dtype=torch.int32).expand(1, 2, 1000)
    call = {"order": order, "key_order": None if permute else order}
    with compiling(card[0]) as compiled, NoSync():
        clustered_triton.triton_cluster_attention(q, q, q, mask, **call, scale=0.1, permute=permute)
    check(compiled, ["_granule_lists", "_cluster_forward", "_cluster_forward"], card)
    if (card, dtype) == (SM90, BF16):
        assert all("wgmma" in kernel.asm["ptx"] for kernel in compiled[1:])


def test_lists_of_the_hopper_kernel_for_clusters():
    sides = [ClusterPartition(1000, torch.full((1, 2, n), 1000 // n, dtype=torch.int32)) for n in (5, 20)]
    mask = ClusterMask(torch.ones(1, 2, 5, 20, dtype=torch.bool), *sides)
    with compiling(SM90[0]) as compiled, NoSync():
        hopper_clusters_lists.triton_lists(mask, hopper_clusters_lists.cut(mask.key), range(2), 2)
        hopper_clusters_lists.query_tiles(mask.query, mask.keep.sum(-1), 128, 0.7)
    check(compiled, ["_piece_lists"], SM90)


@pytest.mark.parametrize(("card", "dtype"), [(SM90, BF16), (SM86, BF16), (SM86, FULL)], ids=name)
def test_skipped(card, dtype):
    q, lse = torch.empty(1, 1000, 2, 128, dtype=dtype), torch.empty(1, 2, 1000)
    order, ends = torch.zeros(1, 2, 1000, dtype=torch.int32), torch.zeros(1, 1, 61, dtype=torch.int32)
    means = Means(torch.empty(2, 60, 128), torch.empty(2, 60, 128), torch.empty(2, 8, 60), torch.empty(2, 8, 128))
    keep = torch.ones(2, 8, 60, dtype=torch.bool)
    blocks = Blocks(keep, (1, 2, 1000, 1000), order, ends[..., :9], order, ends)
    with compiling(card[0]) as compiled, NoSync():
        skipped_triton.triton_residual_attention(q, q, lse, blocks, means.bias, means, 0.1)
        skipped_triton.triton_calibrate_at_centroid(means.shift.to(dtype), q, q, blocks, 0.1)
    check(compiled, ["_residual_attention", "_anchor"], card)
    assert card != SM90 or not any(stack_bytes(kernel) for kernel in compiled)


def test_anchors_of_many_even_blocks():
    q, keep = torch.empty(1, 76_000, 1, 128, dtype=BF16), torch.ones(1, 594, 594, dtype=torch.bool)
    ends = torch.zeros(1, 1, 595, dtype=torch.int32)
    with compiling(SM90[0]) as compiled:
        blocks = Blocks(keep, (1, 1, 76_000, 76_000), None, ends, None, ends)
        skipped_triton.triton_calibrate_at_centroid(torch.empty(1, 594, 128, dtype=BF16), q, q, blocks, 0.1)
    check(compiled, ["_anchor"], SM90)
    assert stack_bytes(compiled[0]) == 0 and "wgmma" in compiled[0].asm["ptx"]


def test_one_head_of_one_block():
    q, ends = torch.empty(1, 1024, 1, 64, dtype=BF16), torch.zeros(1, 1, 2, dtype=torch.int32)
    blocks = Blocks(torch.ones(1, 1, 1, dtype=torch.bool), (1, 1, 1024, 1024), None, ends, None, ends)
    means = Means(*(torch.empty(1, 1, n) for n in (64, 64, 1, 64)))
    with compiling(SM90[0]) as compiled:
        skipped_triton.triton_residual_attention(q, q, torch.empty(1, 1, 1024), blocks, means.bias, means, 0.1)
        skipped_triton.triton_calibrate_at_centroid(means.shift.to(BF16), q, q, blocks, 0.1)
        compensation_triton.triton_block_approximation_error(torch.empty(1, 1, 1, 64), q, q, None, ends, 0.1)
    check(
        compiled,
        [
            "_residual_attention",
            "_anchor",
            "_chunk_sums",
            "_segment_means",
            "_key_numbers",
            "_block_approximation_error",
        ],
        SM90,
    )


@pytest.mark.parametrize(
    ("card", "dtype", "dim"), [(SM90, BF16, 128), (SM90, BF16, 96), (SM86, BF16, 64), (SM86, FULL, 128)], ids=name
)
def test_probe(card, dtype, dim):
    q, k = torch.empty(1, 64, 2, dim, dtype=dtype), torch.empty(1, 4111, 2, dim, dtype=dtype)
    keep, block = torch.ones(2, 64, 65, dtype=torch.bool), torch.zeros(2, 4111, dtype=torch.long)
    with compiling(card[0]) as compiled, NoSync():
        kept = probe_triton.triton_pack_rows(keep, block)
        probe_triton.triton_probe_errors(q, k, k, kept, 0.1)
    check(compiled, ["_pack_rows", "_probe", "_join_splits"], card)
    if (card, dtype) == (SM90, BF16):
        assert "wgmma" in compiled[1].asm["ptx"]
