"""The Triton kernels of the smaller operations compile for the cards they claim, and fit their shared memory."""

import pytest
import torch

from dittools.blocks import BlockMask, Partition

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("a card is here: the tests run the kernels on it", allow_module_level=True)

from ahead import compiling

from dittools.kernels import (
    block_mass_triton,
    counting_sort_triton,
    kmeans_triton,
    lists_triton,
    permute_triton,
    schedule,
    triton_block_sparse,
)

SM90, SM86 = (90, 227 << 10), (86, 99 << 10)  # compute capability, shared memory of one program
BF16, FULL = torch.bfloat16, torch.float32


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
    check(compiled, ["_assign", "_update"], card)
    if card == SM90:
        assert "wgmma" in compiled[0].asm["ptx"]


def test_counting_sort():
    with compiling(SM90[0]) as compiled:
        counting_sort_triton.triton_sort_by_label(torch.empty(2, 3000, dtype=torch.int32), 1000)
    check(compiled, ["_count_tiles", "_scatter_tiles"], SM90)


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
