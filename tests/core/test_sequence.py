"""What of an attention call sparse calls can take: any padding and text on both sides, without losing a pair."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dittools.masks import key_bias
from dittools.sequence import pieces
from dittools.tokens import Layout, TokenGrid

CPU = torch.device("cpu")


def dense(q, k, v, mask=None):
    """PyTorch's attention on [B, S, H, D]."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask).transpose(1, 2)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_full_attention_piece_by_piece_is_the_call_with_its_mask(data):
    grid = tuple(data.draw(st.integers(1, 3)) for _ in range(3))
    before, after, batch = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 4)), data.draw(st.integers(1, 3))
    video = grid[0] * grid[1] * grid[2]
    tokens = before + video + after
    told = data.draw(st.sampled_from(["before", "after", "both"]))
    layout = Layout(*grid, None if told == "after" else before, None if told == "before" else after)
    shown = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=tokens, max_size=tokens), min_size=batch, max_size=batch))
    )
    shown[:, before : before + video] = True
    form = data.draw(st.sampled_from(["row", "pairs", "numbers", "ones and zeros", "favours", "none"]))
    mask = {
        "row": shown[:, None, None],
        "pairs": shown[:, None, None] & shown[:, None, :, None],
        "numbers": torch.zeros(batch, 1, 1, tokens).masked_fill(~shown[:, None, None], -10_000.0),
        # Chroma's: shown pairs are favoured, and nothing is hidden.
        "ones and zeros": (shown[:, None, None] & shown[:, None, :, None]).float(),
        # Text that counts less or more, each row with a number of its own on all keys.
        "favours": torch.where(shown, 0.0, torch.arange(tokens) - 2.0)[:, None, None] + torch.arange(tokens)[:, None],
        "none": None,
    }[form]
    q, k, v = torch.randn(3, batch, tokens, 2, 4, generator=torch.Generator().manual_seed(0))
    found = pieces(layout, tokens, None if mask is None else key_bias(mask, batch, tokens, before), CPU)

    out = torch.full_like(q, torch.nan)
    seen = 0
    for piece in found:
        part = [piece.take(x) for x in (q, k, v)]
        assert part[0].shape[1] == piece.grid.tokens and piece.grid.shape == grid
        picture = torch.arange(before, before + video)
        where = torch.arange(tokens)[piece.tokens][piece.grid.video_slice]
        assert torch.equal(where, picture)  # in its order, where the grid has it
        whole = dense(*part)
        if piece.beside is not None:
            lse = torch.einsum("bqhd,bkhd->bhqk", *part[:2]).mul(0.5).logsumexp(-1)
            whole = piece.join(whole, lse, part[0], k, v, 0.5)
        piece.put(whole, out)
        if piece.rest is not None:
            piece.put_rest(q, k, v, mask, 0.5, out)
        seen += len(part[0])
    assert seen == batch
    rows = torch.ones(batch, tokens, dtype=torch.bool) if form != "pairs" else shown
    torch.testing.assert_close(out[rows], dense(q, k, v, mask)[rows], rtol=1e-4, atol=1e-5)
    assert out.isfinite().all()


def test_text_on_both_sides_is_taken_behind_the_picture_and_one_side_is_left_alone():
    (both,) = pieces(Layout(1, 2, 3, before=2, after=None), 11, None, CPU)
    assert both.grid == TokenGrid(1, 2, 3, 5, "last")
    assert both.tokens.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 1]
    (one,) = pieces(Layout(1, 2, 3, before=None), 8, None, CPU)
    assert one.whole and one.grid == TokenGrid(1, 2, 3, 2, "first")


def test_trailing_padding_is_cut_off_without_a_gather():
    bias = torch.tensor([[0.0] * 8 + [-torch.inf] * 2])
    (piece,) = pieces(Layout(1, 2, 3, after=None), 10, bias, CPU)
    assert piece.tokens == slice(0, 8) and piece.rest.tolist() == [8, 9] and piece.beside is None


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (
            torch.zeros(1, 1, 6, 6).index_put((*torch.tensor([[0], [0], [2], [4]]),), torch.tensor(1.0)),
            "adds a bias to pairs",
        ),
        (torch.arange(12.0).view(1, 2, 1, 6) ** 2, "adds a bias by head"),
        (torch.ones(6, 6).tril().bool(), "hides keys from some rows only"),
        (torch.tensor([[[[True] * 6]], [[[True] * 5 + [False]]]]).transpose(0, 1), "hides keys from some rows only"),
        (torch.ones(1, 1, 5, 5).bool(), "of [1, 1, 5, 5] for 6 tokens"),
    ],
    ids=["bias", "bias by head", "causal", "head by head", "size"],
)
def test_a_mask_that_is_no_padding_is_said_to_be_none(mask, says):
    assert says in key_bias(mask, 1, 6, 1)


def test_the_same_number_on_every_logit_hides_nothing():
    assert torch.equal(key_bias(torch.full((1, 1, 6, 6), 1.0), 2, 6, 0), torch.zeros(2, 6))


@pytest.mark.parametrize(("number", "says"), [(-torch.inf, "hides tokens"), (1.0, "adds a bias to tokens")])
def test_padding_inside_the_picture_is_refused(number, says):
    bias = torch.tensor([[0.0, number, 0.0, 0.0]])
    assert f"{says} of the picture" in pieces(Layout(1, 2, 2), 4, bias, CPU)
    hidden = torch.zeros(1, 1, 1, 4).index_fill(-1, torch.tensor([2]), -torch.inf)
    assert "hides tokens of the picture" in key_bias(hidden, 1, 4, 2)


@pytest.mark.parametrize("layout", [Layout(1, 2, 2), Layout(1, 2, 2, before=3, after=2), Layout(1, 3, 3, before=None)])
def test_a_sequence_the_picture_does_not_fit_into_is_an_error(layout):
    with pytest.raises(ValueError, match="attention over 8 tokens"):
        layout.around(8)
