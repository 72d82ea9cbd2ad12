"""Measured block mass against a softmax written out."""

import torch

from dittools.quality.attention_mass import block_mass, top_share


def test_block_mass_is_the_sum_of_the_softmax_over_each_block():
    torch.manual_seed(0)
    q, k = torch.randn(2, 11, 3, 8), torch.randn(2, 11, 3, 8)
    mass = block_mass(q, k, block=4)
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div(8**0.5).softmax(-1) / 11
    for i in range(3):
        for j in range(3):
            block = weights[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].sum((-1, -2))
            torch.testing.assert_close(mass[:, :, i, j], block)
    torch.testing.assert_close(mass.sum((-1, -2)), torch.ones(2, 3))


def test_top_share_of_even_and_of_peaked_attention():
    even = torch.full((1, 1, 10, 10), 0.01)
    peaked = torch.zeros(1, 1, 10, 10)
    peaked[..., 3, 4] = 1.0
    torch.testing.assert_close(top_share(even, 0.2), torch.tensor([[0.2]]))
    torch.testing.assert_close(top_share(peaked, 0.05), torch.tensor([[1.0]]))
