import pytest
import torch
from cases import inputs, random_order
from places import everywhere

from dittools.kernels.cosine_similarity.dispatch import intra_block_cosine_similarity
from dittools.kernels.cosine_similarity.naive import naive_intra_block_cosine_similarity
from dittools.kernels.segment_mean.naive import naive_segment_means


def offsets_of(ends, device="cpu"):
    return torch.tensor(ends, dtype=torch.int32, device=device)[None, None]


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [20, 64])
@pytest.mark.parametrize("lanes", [None, (1, 1), (2, 3)], ids=str)
def test_means_and_mean_cosines_of_runs(place, lanes, dim, dtype):
    implementation, device = place
    x = inputs(2, 150, 3, dim, dtype, device=device)[0] + 0.5
    x[:, 3] = 0  # a token without a direction counts as one that is like none
    order = None if lanes is None else random_order(*lanes, 150, device=device)
    for ends in ((0, 64, 128, 150), (0, 0, 1, 90, 150)):
        offsets = offsets_of(ends, device)
        means, likeness = intra_block_cosine_similarity(x, order, offsets, implementation=implementation)
        torch.testing.assert_close(means, naive_segment_means(x, order, offsets), rtol=1e-5, atol=1e-5)
        want = naive_intra_block_cosine_similarity(x, order, offsets).to(device)
        torch.testing.assert_close(likeness, want, rtol=1e-5, atol=1e-5)


@everywhere
def test_runs_and_orders_of_each_head(place):
    implementation, device = place
    x = inputs(1, 40, 2, 16, device=device)[0]
    order = random_order(1, 2, 40, device=device)
    offsets = torch.tensor([[[0, 10, 40], [0, 33, 40]]], dtype=torch.int32, device=device)
    means, likeness = intra_block_cosine_similarity(x.transpose(1, 3).contiguous().transpose(1, 3), order, offsets,
                                   implementation=implementation)  # fmt: skip
    torch.testing.assert_close(means, naive_segment_means(x, order, offsets), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        likeness, naive_intra_block_cosine_similarity(x, order, offsets).to(device), rtol=1e-5, atol=1e-5
    )
