import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dittools.kernels.masks.block_mask import BlockMask, Partition


def mask(tokens, query_block, key_block, batches=1, heads=1, density=0.5, seed=0):
    query, key = Partition(tokens, query_block), Partition(tokens, key_block)
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(batches, heads, query.count, key.count, generator=generator) < density
    return BlockMask(keep, query, key)


@pytest.mark.parametrize(
    ("length", "size", "sizes"),
    [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 4, [3]), (1, 1, [1]), (9, 4, [4, 4, 1])],
)
def test_a_partition_covers_its_length_with_a_ragged_last_block(length, size, sizes):
    partition = Partition(length, size)
    assert partition.count == len(sizes) and partition.tail == sizes[-1]
    assert partition.sizes().tolist() == sizes


@pytest.mark.parametrize("arguments", [(0, 64), (10, 0), (-3, 4), (10, 2.0), (True, 1)])
def test_a_wrong_partition_is_refused(arguments):
    with pytest.raises(ValueError, match="must be an integer of at least 1, got"):
        Partition(*arguments)


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 90),
    query_block=st.integers(1, 40),
    key_block=st.integers(1, 40),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_density_is_the_exact_share_of_kept_pairs(tokens, query_block, key_block, density, seed):
    blocks = mask(tokens, query_block, key_block, 2, 3, density, seed)
    found = blocks.density()
    assert found.shape == (2, 3) and found.dtype == torch.float32
    for b in range(2):
        for h in range(3):
            pairs = blocks.to_tokens(b, h, range(tokens)).sum().item()
            assert found[b, h].item() == torch.tensor(pairs / tokens**2, dtype=torch.float32).item()


def test_density_stays_exact_for_long_sequences():
    full = BlockMask.full(Partition(118_801, 64), Partition(118_801, 64))
    assert full.density().item() == 1.0
    full.keep[0, 0, -1, -1] = False
    missing = (118_801 % 64) ** 2
    assert full.density().double().item() == pytest.approx(1 - missing / 118_801**2, abs=6e-8)


def test_token_rows_repeat_the_blocks_and_stop_at_the_ragged_end():
    blocks = mask(70, 32, 16, heads=2)
    rows = blocks.to_tokens(5, 1, torch.tensor([0, 31, 32, 69]))
    assert rows.shape == (4, 70) and rows.dtype == torch.bool
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[3], blocks.keep[0, 1, 2].repeat_interleave(16)[:70])


def test_lists_are_made_once():
    blocks = mask(200, 64, 64)
    assert blocks.kv_blocks() is blocks.kv_blocks()
    counts, indices = blocks.kv_blocks()
    assert counts.shape == (1, 1, 4) and indices.shape == (1, 1, 4, 4)
    assert torch.equal(counts.long(), blocks.keep.sum(-1))


def test_a_mask_moves_to_another_device():
    blocks = mask(200, 64, 64)
    assert blocks.to("cpu") is blocks
    moved = blocks.to("meta")
    assert moved.keep.device.type == "meta" and moved.query == blocks.query


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (torch.ones(2, 2, dtype=torch.bool), r"must be bool \[B or 1, H or 1, query blocks, key blocks\]"),
        (torch.ones(1, 1, 2, 2), "got torch.float32"),
        (torch.ones(1, 1, 2, 3, dtype=torch.bool), "has 2 x 3 blocks, but its partitions have 2 x 2"),
    ],
)
def test_a_wrong_mask_is_refused_in_one_line(keep, message):
    with pytest.raises(ValueError, match=message) as caught:
        BlockMask(keep, Partition(100, 64), Partition(100, 64))
    assert "\n" not in str(caught.value)
