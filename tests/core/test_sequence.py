"""What of an attention call sparse calls can take: any padding and text on both sides, without losing a pair."""

from dataclasses import replace
from itertools import pairwise
from math import prod

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dittools.kinds import kinds_of
from dittools.masks import Beside, KeyBias, key_bias
from dittools.sequence import sub_calls
from dittools.tokens import Layout, Part, TokenGrid

CPU = torch.device("cpu")


def _runs(parts, start):
    """Where parts side by side are, the first beginning at ``start``."""
    ends = [start, *(start := start + part.tokens for part in parts)]
    return [slice(*pair) for pair in pairwise(ends)]


def dense(q, k, v, mask=None):
    """PyTorch's attention on [B, S, H, D]."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask).transpose(1, 2)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_full_attention_piece_by_piece_is_the_call_with_its_mask(data):
    shape = st.tuples(*(st.integers(1, 3) for _ in range(3)))
    grid, batch = data.draw(shape), data.draw(st.integers(1, 3))
    part = st.one_of(
        st.integers(0, 4).map(lambda n: Part("text", n)),
        st.builds(lambda kind, shape: Part.of(kind, *shape), st.sampled_from(["history", "reference"]), shape),
        st.integers(1, 4).map(lambda n: Part("reference", n)),
        st.integers(1, 4).map(lambda n: Part("text", n, queries=False)),
        shape.map(lambda shape: Part("history", prod(shape), shape, queries=False)),
    )
    before, after = (tuple(data.draw(st.lists(part, max_size=3))) for _ in range(2))
    video, ahead = prod(grid), sum(part.tokens for part in before)
    tokens = ahead + video + sum(part.tokens for part in after)
    told = [list(before), list(after)]
    blind = [(i, j) for i in (0, 1) for j, part in enumerate(told[i]) if part.shape is None]
    if blind and data.draw(st.booleans()):  # one length only the call knows
        i, j = data.draw(st.sampled_from(blind))
        told[i][j] = replace(told[i][j], tokens=None)
    layout = Layout(*grid, *map(tuple, told))
    shown = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=tokens, max_size=tokens), min_size=batch, max_size=batch))
    )
    shown[:, ahead : ahead + video] = True
    for placed, at in zip(before, _runs(before, 0), strict=True):
        if placed.shape is not None and data.draw(st.booleans()):
            shown[:, at] = True
    asks = torch.tensor([part.queries for part in (*before, Part("picture", 1), *after)]).repeat_interleave(
        torch.tensor([part.tokens for part in (*before, Part("picture", video), *after)])
    )
    seen_by = shown[:, None].expand(-1, tokens, -1).clone()
    seen_by[:, torch.arange(tokens) < ahead] &= torch.ones(tokens, tokens).tril().bool()[:ahead]
    form = data.draw(
        st.sampled_from(["row", "pairs", "numbers", "ones and zeros", "favours", "causal before the picture", "none"])
    )
    mask = {
        "row": shown[:, None, None],
        "pairs": shown[:, None, None] & shown[:, None, :, None],
        "numbers": torch.zeros(batch, 1, 1, tokens).masked_fill(~shown[:, None, None], -10_000.0),
        # Chroma's: shown pairs are favoured, and nothing is hidden.
        "ones and zeros": (shown[:, None, None] & shown[:, None, :, None]).float(),
        # Text that counts less or more, each row with a number of its own on all keys.
        "favours": torch.where(shown, 0.0, torch.arange(tokens) - 2.0)[:, None, None] + torch.arange(tokens)[:, None],
        "causal before the picture": seen_by[:, None],
        "none": None,
    }[form]
    q, k, v = torch.randn(3, batch, tokens, 2, 4, generator=torch.Generator().manual_seed(0))
    q, mask = q[:, asks], mask if mask is None or mask.shape[2] == 1 else mask[:, :, asks]
    queries = asks.nonzero().flatten()
    assert layout.queries_of(tokens) == len(queries) and torch.equal(layout.queries_at(tokens), queries)
    bias = None if mask is None else key_bias(mask, batch, tokens, slice(ahead, ahead + video), queries)
    found = sub_calls(layout, tokens, bias, CPU)

    out = torch.full_like(q, torch.nan)
    seen = 0
    for piece in found:
        keys = piece.take(k)
        part = [piece.take_queries(q, keys), keys, piece.take(v)]
        assert part[0].shape[1] == piece.grid.tokens and piece.grid.shape == grid
        where = torch.arange(tokens)[piece.tokens]
        assert torch.equal(where[piece.grid.video_slice], torch.arange(ahead, ahead + video))  # in its order
        mine = {(part.shape, int(where[at.start])) for part, at in piece.grid.grids[1:]}
        row = torch.ones(tokens, dtype=torch.bool)  # whose keys count as much as the picture's
        if mask is not None:
            sample = 0 if piece.samples is None else int(piece.samples[0])
            row = bias.bias[sample] == 0
            row &= True if bias.apart is None else ~bias.apart[sample]
        sides = [(before, 0), (after, ahead + video)]
        given = [pair for side, start in sides for pair in zip(side, _runs(side, start), strict=True)]
        assert mine == {(part.shape, at.start) for part, at in given if part.shape and row[at].all()}
        for _, at in piece.grid.grids[1:]:
            assert torch.equal(where[at], torch.arange(at.stop - at.start) + where[at.start])
        whole = dense(*part)
        own = torch.ones(len(where), dtype=torch.bool) if piece.own is None else piece.own.flags
        assert torch.equal(own, asks[where])  # keys alone are taken where they are a grid
        assert asks.all() or torch.equal(queries[piece.queries], where[own])
        if piece.beside:
            lse = torch.einsum("bqhd,bkhd->bhqk", *part[:2]).mul(0.5).logsumexp(-1)
            whole, _ = piece.join(whole, lse, part[0], k, v, 0.5)
        piece.scatter(whole, out)
        if piece.rest is not None:
            piece.scatter_rest(q, k, v, mask, 0.5, out)
        seen += len(part[0])
    assert seen == batch
    rows = torch.ones(batch, tokens, dtype=torch.bool) if form != "pairs" else shown
    rows = rows[:, asks] & (True if mask is None or form != "causal before the picture" else mask.any(-1)[:, 0])
    torch.testing.assert_close(out[rows], dense(q, k, v, mask)[rows], rtol=1e-4, atol=1e-5)
    assert out[rows].isfinite().all() and (form == "causal before the picture" or out.isfinite().all())


def test_text_on_both_sides_is_taken_behind_the_picture_and_one_side_is_left_alone():
    (both,) = sub_calls(Layout(1, 2, 3, before=2, after=None), 11, None, CPU)
    assert both.grid == TokenGrid(1, 2, 3, 5, "last")
    assert both.tokens.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 1]
    (one,) = sub_calls(Layout(1, 2, 3, before=None), 8, None, CPU)
    assert one.whole and one.grid == TokenGrid(1, 2, 3, 2, "first")


def test_references_behind_the_picture_are_left_alone_beside_text_that_fills_blocks_and_history_is_taken_behind_it():
    image = Part.of("reference", 1, 2, 2)
    (alone,) = sub_calls(Layout(1, 2, 3, before=None, after=(image,)), 256 + 6 + 4, None, CPU)
    assert alone.whole and alone.grid == TokenGrid(1, 2, 3, 256, "first", (image,))
    (moved,) = sub_calls(Layout(1, 2, 3, before=None, after=(image,)), 2 + 6 + 4, None, CPU)
    assert moved.grid == TokenGrid(1, 2, 3, 2, "last", (image,)) and moved.tokens.tolist() == [*range(2, 12), 0, 1]
    past = Part.of("history", 2, 1, 1)
    (behind,) = sub_calls(Layout(1, 2, 3, before=(past,), after=(Part("sound", 1), Part("text", None))), 12, None, CPU)
    assert behind.grid == TokenGrid(1, 2, 3, 3, "last", (past, Part("sound", 1)))
    assert behind.tokens.tolist() == [*range(2, 8), 0, 1, *range(8, 12)]


def test_keys_without_queries_are_seen_beside_one_sparse_call_of_a_batch_whose_texts_differ_in_length():
    layout = Layout(1, 2, 3, before=(Part("text", None, queries=False), Part.of("history", 1, 1, 2)))
    hidden = torch.zeros(3, 4 + 2 + 6)
    hidden[1, :3] = hidden[2, :4] = -torch.inf
    (piece,) = sub_calls(layout, 12, KeyBias(hidden), CPU)
    assert piece.samples is None and piece.grid == TokenGrid(1, 2, 3, parts=(Part.of("history", 1, 1, 2),))
    assert piece.tokens.tolist() == [*range(6, 12), 4, 5] and piece.queries.tolist() == [*range(2, 8), 0, 1]
    told = {tuple(seen.samples.tolist()): (seen.keys.tokens.tolist(), seen.kinds) for seen in piece.beside}
    assert told == {(0,): ([0, 1, 2, 3], (("text", 4),)), (1,): ([3], (("text", 1),))}
    assert all(seen.keys.bias is None for seen in piece.beside) and piece.beside_of(3) == {"text": 5}
    (alone,) = sub_calls(Layout(1, 2, 3, after=(Part("text", None, queries=False),)), 10, None, CPU)
    assert alone.whole and alone.tokens == slice(0, 6) and alone.rest is None  # no query is moved


def test_a_grid_has_no_keys_alone():
    with pytest.raises(ValueError, match="must have queries"):
        TokenGrid(1, 2, 3, parts=(Part("sound", 2, queries=False),))
    layout = Layout(1, 2, 3, before=(Part("text", None, queries=False),), after=(Part("sound", 2),))
    assert layout.grid(5) == TokenGrid(1, 2, 3, parts=(Part("sound", 2),)) and layout.keys_alone == 0
    assert layout.queries_of(5 + 6 + 2) == 8 and layout.in_order(5 + 6 + 2)


def test_trailing_padding_is_cut_off_without_a_gather():
    bias = KeyBias(torch.tensor([[0.0] * 8 + [-torch.inf] * 2]))
    (piece,) = sub_calls(Layout(1, 2, 3, after=None), 10, bias, CPU)
    assert piece.tokens == slice(0, 8) and piece.rest.tolist() == [8, 9] and not piece.beside


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
    assert says in key_bias(mask, 1, 6, slice(1, 6))


def test_a_part_that_is_hidden_whole_is_no_part_of_what_is_taken():
    layout = Layout(1, 2, 3, (Part("sound", 2), Part("text", 2)), (Part.of("reference", 1, 2, 2), Part("text", 2)))
    hidden = torch.zeros(2, 16).masked_fill((torch.arange(16) < 4) | (torch.arange(16) >= 10), -torch.inf)
    hidden[1, 10:14] = 0
    alone, one = sub_calls(layout, 16, KeyBias(hidden), CPU)
    assert [piece.samples.tolist() for piece in (alone, one)] == [[0], [1]]
    assert alone.grid == TokenGrid(1, 2, 3) and kinds_of(one.grid) == {"picture": 6, "reference": 4}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_keys_beside_a_sparse_call_are_as_exact_as_attention_of_that_dtype(dtype):
    drawn = torch.Generator().manual_seed(0)
    for size in (6.0, 3_000.0):  # of queries: logits of a model, and those that are more than fp16 holds
        q, k, v = (torch.randn(1, 80, 2, 64, generator=drawn) * x for x in (size, 1, 1))
        q, k, v = (x.to(dtype) for x in (q, k, v))
        exact = [x.double() for x in (q[:, :60], k, v)]
        lse = torch.einsum("bqhd,bkhd->bhqk", exact[0], exact[1][:, :60]).mul(0.125).logsumexp(-1).float()
        out = dense(exact[0], *(x[:, :60] for x in exact[1:])).to(dtype)
        beside = Beside(torch.arange(60, 80), torch.zeros(20))
        joined, total = beside.join(out, lse, q[:, :60], k, v, slice(None), 0.125)
        logits = torch.einsum("bqhd,bkhd->bhqk", *exact[:2]).mul(0.125)
        torch.testing.assert_close(total, logits.logsumexp(-1).float())
        wrong, usual = ((x.double() - dense(*exact)).square().mean() for x in (joined, dense(q[:, :60], k, v)))
        assert wrong < 4 * usual


def test_the_same_number_on_every_logit_hides_nothing():
    found = key_bias(torch.full((1, 1, 6, 6), 1.0), 2, 6, slice(0, 6))
    assert torch.equal(found.bias, torch.zeros(2, 6)) and found.apart is None


@pytest.mark.parametrize(("number", "says"), [(-torch.inf, "hides tokens"), (1.0, "adds a bias to tokens")])
def test_padding_inside_the_picture_is_refused(number, says):
    bias = KeyBias(torch.tensor([[0.0, number, 0.0, 0.0]]))
    assert f"{says} of the picture" in sub_calls(Layout(1, 2, 2), 4, bias, CPU)
    hidden = torch.zeros(1, 1, 1, 4).index_fill(-1, torch.tensor([2]), -torch.inf)
    assert "hides tokens of the picture" in key_bias(hidden, 1, 4, slice(2, 4))


@pytest.mark.parametrize("layout", [Layout(1, 2, 2), Layout(1, 2, 2, before=3, after=2), Layout(1, 3, 3, before=None)])
def test_a_sequence_the_picture_does_not_fit_into_is_an_error(layout):
    with pytest.raises(ValueError, match="attention over 8 tokens"):
        layout.parts_of(8)
