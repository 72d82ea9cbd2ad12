import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dittools.kernels import block_lists


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 70), density=st.floats(0, 1), seed=st.integers(0, 99))
def test_lists_hold_the_kept_blocks_in_ascending_order(rows, columns, density, seed):
    keep = torch.rand(2, 1, rows, columns, generator=torch.Generator().manual_seed(seed)) < density
    counts, indices = block_lists(keep)
    assert counts.dtype == indices.dtype == torch.int32
    assert counts.shape == (2, 1, rows) and indices.shape == (2, 1, rows, columns)
    assert counts.is_contiguous() and indices.is_contiguous()
    for b in range(2):
        for m in range(rows):
            assert indices[b, 0, m, : counts[b, 0, m]].tolist() == keep[b, 0, m].nonzero().flatten().tolist()
    assert ((indices >= 0) & (indices < columns)).all()


def test_strided_masks_are_read_as_they_are():
    keep = (torch.rand(1, 2, 7, 5) < 0.5).transpose(-1, -2)
    for found, want in zip(block_lists(keep), block_lists(keep.contiguous()), strict=True):
        assert torch.equal(found, want)
