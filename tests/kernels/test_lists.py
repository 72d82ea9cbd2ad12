import pytest
import torch
from cases import check, inputs, random_mask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import GPU, INTERPRETED, everywhere, no_sync

from dittools.kernels import (
    block_sparse_attention,
    from_keep,
    from_mass,
    from_top_k,
    keep_mass,
    keep_top_k,
    schedule,
    to_keep,
)
from dittools.kernels.block_sparse.lists import to_bits
from dittools.kernels.masks.block_mask import BlockMask, Partition

MANY = 8 if INTERPRETED else 30
# Few distinct scores, so that ties are everywhere.
quietly = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
sizes = {"rows": st.integers(1, 5), "columns": st.integers(1, 20), "seed": st.integers(0, 99)}


def random_scores(rows, columns, seed):
    """Whole numbers from 0 to 4, ``[2, 1, rows, columns]``: sums of them are exact in any order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, (2, 1, rows, columns), generator=generator).float()


def random_force(scores, seed, share=0.2):
    return torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed)) < share


def rows_of(*tensors):
    """Matching rows as lists; None stands for no force."""
    last = tensors[0].shape[-1]
    count = tensors[0].numel() // last
    columns = [[[False] * last] * count if x is None else x.reshape(-1, last).tolist() for x in tensors]
    return zip(*columns, strict=True)


def same_lists(make, place, *args, keep, **kwargs):
    """Lists made at a place are those of the mask."""
    implementation, device = place
    args = [x.to(device) if isinstance(x, torch.Tensor) else x for x in args]
    kwargs = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in kwargs.items()}
    for found, want in zip(make(*args, implementation=implementation, **kwargs), from_keep(keep), strict=True):
        assert found.dtype == torch.int32 and torch.equal(found.cpu(), want)


def best_first(scores, force):
    return sorted(range(len(scores)), key=lambda j: (not force[j], -scores[j], j))


@everywhere
@settings(max_examples=MANY, **quietly)
@given(rows=st.integers(1, 5), columns=st.integers(1, 100), density=st.floats(0, 1), seed=st.integers(0, 99))
def test_bits_say_which_blocks_are_kept(place, rows, columns, density, seed):
    implementation, device = place
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(2, 1, rows, columns, generator=generator) < density
    counts, indices = from_keep(keep)
    indices = torch.where(torch.arange(columns) < counts[..., None], indices, columns - 1)  # what follows means nothing
    bits = to_bits(counts.to(device), indices.to(device), implementation=implementation).cpu()
    assert bits.dtype == torch.int32 and bits.shape == (2, 1, rows, -(-columns // 32))
    block = torch.arange(columns)
    assert torch.equal(((bits[..., block // 32] >> (block % 32)) & 1).bool(), keep)


@everywhere
@settings(max_examples=MANY, **quietly)
@given(rows=st.integers(1, 9), columns=st.integers(1, 70), density=st.floats(0, 1), seed=st.integers(0, 99))
def test_lists_hold_the_kept_blocks_in_ascending_order(place, rows, columns, density, seed):
    implementation, device = place
    keep = torch.rand(2, 1, rows, columns, generator=torch.Generator().manual_seed(seed)) < density
    counts, indices = (x.cpu() for x in from_keep(keep.to(device), implementation=implementation))
    assert counts.dtype == indices.dtype == torch.int32
    assert counts.shape == (2, 1, rows) and indices.shape == (2, 1, rows, columns)
    assert counts.is_contiguous() and indices.is_contiguous()
    for b in range(2):
        for m in range(rows):
            assert indices[b, 0, m, : counts[b, 0, m]].tolist() == keep[b, 0, m].nonzero().flatten().tolist()
    assert ((indices >= 0) & (indices < columns)).all()
    assert torch.equal(to_keep(counts, indices, columns), keep)


def test_strided_masks_are_read_as_they_are():
    keep = (torch.rand(1, 2, 7, 5) < 0.5).transpose(-1, -2)
    for found, want in zip(from_keep(keep), from_keep(keep.contiguous()), strict=True):
        assert torch.equal(found, want)


def test_what_stands_after_the_count_is_not_read():
    counts, indices = torch.tensor([2, 0], dtype=torch.int32), torch.tensor([[1, 3, 99], [7, 7, 7]])
    assert to_keep(counts, indices, 5).tolist() == [[False, True, False, True, False], [False] * 5]


@everywhere
@settings(max_examples=MANY, **quietly)
@given(**sizes, k=st.integers(0, 22), forced=st.booleans())
def test_top_k_keeps_the_best_and_the_lower_of_equals(place, rows, columns, seed, k, forced):
    scores = random_scores(rows, columns, seed)
    force = random_force(scores, seed + 1) if forced else None
    keep = keep_top_k(scores, k, force)
    assert keep.shape == scores.shape and keep.dtype == torch.bool
    for row, must, found in rows_of(scores, force, keep):
        wanted = best_first(row, must)[: max(k, sum(must))]
        assert [j for j, kept in enumerate(found) if kept] == sorted(wanted)
    same_lists(from_top_k, place, scores, k, force, keep=keep)


@everywhere
def test_each_row_may_have_a_k_of_its_own(place):
    scores = random_scores(4, 9, 0)
    k = torch.tensor([0, 3, 9, 50])
    assert keep_top_k(scores, k).sum(-1).tolist() == [[[0, 3, 9, 9]]] * 2
    same_lists(from_top_k, place, scores, k, keep=keep_top_k(scores, k))
    per_batch = torch.tensor([1, 2]).view(2, 1, 1)
    same_lists(from_top_k, place, scores, per_batch, keep=keep_top_k(scores, per_batch))
    assert keep_top_k(scores, per_batch).sum(-1).flatten().tolist() == [1] * 4 + [2] * 4


@everywhere
def test_scores_of_every_kind_keep_their_order(place):
    kinds = [0.0, -0.0, 1e-40, -1e-40, 3.5, -3.5, 1e30, -1e30, -torch.inf, 2.0, 3.5, -0.0]
    scores = torch.tensor([kinds, kinds[::-1]])
    for k in range(len(kinds) + 1):
        keep = keep_top_k(scores, k)
        for row, found in rows_of(scores, keep):
            assert {j for j, kept in enumerate(found) if kept} == set(best_first(row, [False] * len(row))[:k])
        same_lists(from_top_k, place, scores, k, keep=keep)
        same_lists(from_top_k, place, scores.bfloat16(), k, keep=keep_top_k(scores.bfloat16(), k))


def test_a_block_without_a_score_is_kept_only_when_forced():
    scores = torch.tensor([[-torch.inf, 1.0, -torch.inf, 0.0]])
    assert keep_top_k(scores, 2).tolist() == [[False, True, False, True]]
    force = torch.tensor([False, False, True, False])
    assert keep_top_k(scores, 2, force).tolist() == [[False, True, True, False]]


@everywhere
@settings(max_examples=MANY, **quietly)
@given(
    **sizes,
    p=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    min_share=st.sampled_from([0.0, 0.3, 1.0]),
    min_count=st.integers(0, 3),
    forced=st.booleans(),
)
def test_mass_keeps_the_fewest_blocks_that_reach_the_share(place, rows, columns, seed, p, min_share, min_count, forced):
    scores = random_scores(rows, columns, seed)
    force = random_force(scores, seed + 1) if forced else None
    limits = {"min_share": min_share, "min_count": min_count}
    keep = keep_mass(scores, p, force=force, **limits)
    least = max(min_count, int(min_share * columns))
    for row, must, found in rows_of(scores, force, keep):
        wanted, held = set(), 0.0
        for rank, j in enumerate(best_first(row, must)):
            if must[j] or held < p * sum(row) or rank < least or p == 1:
                wanted.add(j)
            held += row[j]
        assert {j for j, kept in enumerate(found) if kept} == wanted
    same_lists(from_mass, place, scores, p, force=force, **limits, keep=keep)
    same_lists(from_mass, place, scores, torch.tensor(p), force=force, **limits, keep=keep)
    each = keep_mass(scores, torch.tensor(p), force=force, **limits)
    assert torch.equal(each, keep)


def test_the_block_that_crosses_p_is_kept_and_every_row_has_one():
    row = torch.tensor([[0.1, 0.6, 0.3], [0.0, 0.0, 0.0]])
    assert keep_mass(row, 0.5).tolist() == [[False, True, False], [True, False, False]]
    assert keep_mass(row, 0.7).tolist() == [[False, True, True], [True, False, False]]
    assert keep_mass(row, torch.tensor([0.5, 1.0])).tolist() == [[False, True, False], [True, True, True]]


def test_what_forced_blocks_hold_counts_towards_p():
    row, force = torch.tensor([[0.5, 0.1, 0.4]]), torch.tensor([False, False, True])
    assert keep_mass(row, 0.35, force=force).tolist() == [[False, False, True]]
    assert keep_mass(row, 0.45, force=force).tolist() == [[True, False, True]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: keep_top_k(x, -1), "k must be at least 0, got -1"),
        (lambda x: keep_mass(x, 1.5), r"p must be between 0 and 1, got 1\.5"),
        (lambda x: keep_mass(x, 0.5, min_share=-0.1), "min_share must be between 0 and 1"),
        (lambda x: keep_mass(x, 0.5, min_count=-1), "min_count must be at least 0, got -1"),
    ],
)
def test_a_wrong_number_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(2, 3))


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 30), seed=st.integers(0, 99))
def test_the_schedule_starts_long_rows_first_and_keeps_heads_together(rows, seed):
    counts = torch.randint(6, (2, 3, rows), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    order = schedule(counts)
    assert order.dtype == torch.int32 and order.shape == counts.shape
    for head, found in zip(counts.view(-1, rows).tolist(), order.view(-1, rows).tolist(), strict=True):
        assert found == sorted(range(rows), key=lambda m: (-head[m], m))


def test_a_mask_from_lists_is_the_mask_they_stand_for():
    mask = random_mask(150, 64, 32, 2, 3)
    counts, indices = mask.kv_blocks()
    made = BlockMask.from_kv_blocks(counts, indices[..., :4], mask.query, mask.key)
    short = torch.where(mask.keep.cumsum(-1) <= 4, mask.keep, False)
    made = BlockMask.from_kv_blocks(counts.clamp_max(4), indices[..., :4], mask.query, mask.key)
    assert made.kv_blocks()[1].shape == mask.keep.shape and made.kv_blocks() is made.kv_blocks()
    assert "keep" not in vars(made)
    assert torch.equal(made.keep, short) and made.keep is made.keep
    assert torch.equal(made.density(), BlockMask(short, mask.query, mask.key).density())
    assert made.to("meta").keep.device.type == "meta" and made.to("cpu") is made
    with pytest.raises(AttributeError, match="'BlockMask' object has no attribute 'kept'"):
        _ = made.kept


def test_attention_over_a_mask_from_lists():
    q, k, v = inputs(1, 150, 2, 32)
    mask = random_mask(150, 32, 32, heads=2)
    made = BlockMask.from_kv_blocks(*mask.kv_blocks(), mask.query, mask.key)
    check("portable", q, k, v, made)
    assert torch.equal(block_sparse_attention(q, k, v, made), block_sparse_attention(q, k, v, mask))


def wrong_lists():
    counts, indices = random_mask(150, 64, 32, 2, 3).kv_blocks()
    query, key = Partition(150, 64), Partition(150, 32)
    return {
        "dtype": ((counts.long(), indices, query, key), "got kv_num_blocks torch.int64 and kv_indices torch.int32"),
        "ndim": ((counts[0], indices[0], query, key), r"got \[3, 3\] and \[3, 3, 5\]"),
        "heads": ((counts[:, :1], indices, query, key), r"got \[2, 1, 3\] and \[2, 3, 3, 5\]"),
        "rows": ((counts, indices, Partition(300, 64), key), "3 rows of 5 blocks, but their partitions have 5 x 5"),
        "columns": ((counts, indices, query, Partition(90, 32)), "3 rows of 5 blocks, but their partitions have 3 x 3"),
        "device": ((counts, indices.to("meta"), query, key), "kv_num_blocks are on cpu, but kv_indices on meta"),
    }


@pytest.mark.parametrize("case", wrong_lists())
def test_lists_that_do_not_fit_are_refused(case):
    args, message = wrong_lists()[case]
    with pytest.raises(ValueError, match=message):
        BlockMask.from_kv_blocks(*args)


@pytest.mark.parametrize("blocks", [pytest.param(591, marks=GPU)])
def test_lists_are_made_on_the_gpu_without_a_host_sync(blocks):
    scores = torch.rand(1, 4, blocks, blocks, device="cuda").softmax(-1)
    force = torch.rand(blocks, device="cuda") < 0.01
    partition = Partition(blocks * 128, 128)
    with no_sync():
        for counts, indices in (from_top_k(scores, 60, force), from_mass(scores, 0.5, min_share=0.1, force=force)):
            schedule(counts)
            BlockMask.from_kv_blocks(counts, indices, partition, partition).density()
    for made, keep in zip(from_top_k(scores, 60), from_keep(keep_top_k(scores.cpu(), 60)), strict=True):
        assert torch.equal(made.cpu(), keep)
