"""Calls whose queries see different keys, cut into pieces: exact to the token, and no piece has a key too many."""

from dataclasses import replace

import pytest
import torch

from dittools import visibility
from dittools.dense_frames import attend_frames, shown_pairs
from dittools.limited_calls import hides_grid, limited_calls
from dittools.masks import KeyBias
from dittools.sequence import SubCall, sub_calls
from dittools.tokens import Layout, Part, TokenGrid

CPU = torch.device("cpu")


def dense(q, k, v, mask=None):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.5).transpose(1, 2)


def blocks(groups: torch.Tensor) -> torch.Tensor:
    """Bool ``[S, S]``: what is in an earlier group or the same is seen."""
    return groups[:, None] >= groups


def causal_frames() -> tuple[list[Part], torch.Tensor]:
    parts = [Part.of("picture", 6, 2, 3)]
    return parts, blocks(torch.arange(36) // 12)


def prefix() -> tuple[list[Part], torch.Tensor]:
    """Text that sees what is before it, and a picture that sees all."""
    parts = [Part("text", 7), Part.of("picture", 1, 3, 4)]
    return parts, blocks(torch.arange(19).clamp_max(7))


def segments() -> tuple[list[Part], torch.Tensor]:
    parts = [
        Part("text", 5),
        Part.of("picture", 1, 3, 4),
        Part("text", 3),
        Part.of("reference", 1, 2, 5),
        Part("text", 2),
    ]
    owner = torch.tensor([0] * 2 + [1] * 15 + [2] * 13 + [0] * 2)
    return parts, owner[:, None] == owner


def own_frame_of_history() -> tuple[list[Part], torch.Tensor]:
    """Every frame sees the whole picture and its own frame of what is kept."""
    parts = [Part.of("picture", 3, 2, 2), Part.of("history", 2, 2, 2), Part("history", 2)]
    frame = torch.cat((torch.arange(12) // 4, torch.arange(8) // 4 + 1, torch.full((2,), 9)))
    mask = (torch.arange(22)[:, None] < 12) & ((torch.arange(22) < 12) | (frame[:, None] == frame))
    return parts, mask | torch.eye(22, dtype=torch.bool)


def behind_history() -> tuple[list[Part], torch.Tensor]:
    """History that sees itself alone, in front of frames in two causal blocks, text that sees all behind them."""
    parts = [Part.of("history", 2, 2, 2), Part.of("picture", 4, 2, 2), Part("text", 3)]
    groups = torch.cat((torch.zeros(8), torch.arange(16) // 8 + 1, torch.full((3,), 2)))
    return parts, blocks(groups)


CASES = [causal_frames, prefix, segments, own_frame_of_history, behind_history]


def as_numbers(mask: torch.Tensor) -> torch.Tensor:
    return (~mask).float() * torch.finfo(torch.float32).min


def assembled(pieces: list[SubCall], q, k, v, mask) -> torch.Tensor:
    """What pieces give when each is attended to in full, keys that it does not take being poisoned."""
    out = torch.full_like(q, torch.nan)
    for piece in pieces:
        keys = piece.take(k)
        part = piece.take_queries(q, keys), keys, piece.take(v)
        assert part[0].shape[1] == piece.grid.tokens
        result = dense(*part)
        if piece.beside:
            lse = torch.einsum("bqhd,bkhd->bhqk", *part[:2]).mul(0.5).logsumexp(-1)
            result, _ = piece.join(result, lse, part[0], k, v, 0.5)
        piece.scatter(result, out)
        if piece.rest is not None:
            piece.scatter_rest(q, k, v, mask, 0.5, out)
    return out


@pytest.mark.parametrize("form", ["bool", "numbers", "batch"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_pieces_are_the_masked_call_to_the_token(case, form, monkeypatch):
    monkeypatch.setattr(visibility, "ROWS", 4)  # so that runs end where reading does
    parts, shown = case()
    tokens = len(shown)
    mask = as_numbers(shown) if form == "numbers" else shown
    if form == "batch":  # of which the second sample misses its first text, or sees all
        other = shown.clone()
        hidden = slice(0, parts[0].tokens if parts[0].kind == "text" else 0)
        other[:, hidden] = False
        other[hidden, hidden] = True
        mask = torch.stack((shown, other, shown))[:, None]
    q, k, v = torch.randn(3, 3, tokens, 2, 4, generator=torch.Generator().manual_seed(0))
    pieces = limited_calls(parts, mask, CPU)
    torch.testing.assert_close(assembled(pieces, q, k, v, mask), dense(q, k, v, mask), rtol=1e-4, atol=1e-5)
    masks = (shown if form != "batch" else mask[:, 0]).expand(3, tokens, tokens)
    for sample in range(3):
        mine = [p for p in pieces if p.samples is None or sample in p.samples]
        rows = torch.zeros(tokens, dtype=torch.long)
        counted = 0
        for piece in mine:
            taken = torch.arange(tokens)[piece.tokens]
            own = taken if piece.own is None else taken[piece.own.flags]
            rows[own] += 1
            assert masks[sample][own][:, taken].all()  # no pair beyond the limit
            counted += piece.pairs + piece.pairs_beside(1).total() + piece.more
            assert sum(piece.kinds.values()) == len(own) and piece.kinds["picture"] == piece.grid.video
        assert rows.max() == 1
        picture = [rows[at] for part, at in zip(parts, _places(parts), strict=True) if part.kind == "picture"]
        assert all(found.all() for found in picture)
        seen = masks[sample][rows > 0].any(0)
        assert counted == masks[sample][(rows > 0) | seen].sum()  # pairs are counted once, those of padding never


def _places(parts):
    ends = torch.tensor([part.tokens for part in parts]).cumsum(0).tolist()
    return [slice(end - part.tokens, end) for part, end in zip(parts, ends, strict=True)]


def test_causal_frames_see_the_frames_before_as_one_part_of_history():
    pieces = limited_calls(*causal_frames(), CPU)
    assert [piece.grid.shape for piece in pieces] == [(2, 2, 3)] * 3
    assert [[part.shape for part in piece.grid.parts] for piece in pieces] == [[], [(2, 2, 3)], [(4, 2, 3)]]
    assert {part.kind for piece in pieces for part in piece.grid.parts} == {"history"}
    assert [piece.kinds for piece in pieces] == [{"picture": 12}, *({"picture": 12, "history": 0},) * 2]
    assert pieces[0].tokens == slice(0, 12)


def test_segments_are_pieces_with_a_picture_of_their_own_and_the_text_that_sees_as_it_does():
    one, two = limited_calls(*segments(), CPU)
    assert (one.grid.shape, one.grid.text, two.grid.shape, two.grid.text) == ((1, 3, 4), 3, (1, 2, 5), 3)
    assert one.own is None and two.own is None and one.rest.tolist() == [0, 1, 30, 31]


def test_frames_that_see_a_frame_of_their_own_beside_the_picture_are_one_piece():
    (piece,) = limited_calls(*own_frame_of_history(), CPU)
    assert piece.grid == TokenGrid(3, 2, 2)
    seen = [(beside.keys.tokens.tolist(), beside.rows.tolist()) for beside in piece.beside]
    assert seen == [([12, 13, 14, 15], [4, 5, 6, 7]), ([16, 17, 18, 19], [8, 9, 10, 11])]
    assert piece.pairs_beside(3) == {("picture", "history"): 3 * 2 * 4 * 4} and piece.more == 8  # history sees itself


@pytest.mark.parametrize("hidden", ["rows of a frame", "itself", "pairs", "heads", "bias of pairs"])
def test_what_is_no_limit_of_whole_frames_is_none(hidden):
    parts, mask = causal_frames()
    if hidden == "rows of a frame":
        mask[15:, :3] = False
    elif hidden == "itself":
        mask[20, 20] = False
    elif hidden == "pairs":
        mask &= torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) < 0.9
    elif hidden == "heads":
        mask = torch.stack((mask, torch.ones_like(mask)))[None]
    else:
        mask = -(torch.arange(36)[:, None] - torch.arange(36)).abs().float()
    assert limited_calls(parts, mask, CPU) is None


def test_a_grid_that_a_mask_hides_is_noticed():
    parts, _ = segments()
    bias = torch.zeros(1, 32)
    assert not hides_grid(parts, KeyBias(bias)) and not hides_grid(parts, None)
    assert hides_grid(parts, KeyBias(bias.index_fill(1, torch.tensor([25]), -torch.inf)))
    assert not hides_grid(parts, KeyBias(bias.index_fill(1, torch.tensor([18]), -torch.inf)))


def test_keys_that_some_frames_see_are_joined_for_these_alone_and_dense_calls_see_the_same():
    shared = Part.of("history", 1, 2, 3)
    behind = (Part("reference", 4, seen_by=(0, 0)), Part("reference", 5, queries=False, seen_by=(1, 3)))
    parts = (*behind, Part("text", 3, queries=False), Part("sound", 2, queries=False, seen_by=(2, 4)))
    layout = Layout(4, 2, 3, before=(replace(shared, queries=False),), after=parts)
    keys, queries = 6 + 24 + 4 + 5 + 3 + 2, 24 + 4
    assert layout.queries_of(keys) == queries and layout.grid() == TokenGrid(4, 2, 3, parts=(shared,))
    q, k, v = (torch.randn(2, n, 2, 4, generator=torch.Generator().manual_seed(n)) for n in (queries, keys, keys))
    frame = torch.arange(24) // 6
    shown = torch.zeros(queries, keys, dtype=torch.bool)
    shown[:24, :30] = shown[:24, 39:42] = True
    shown[:24, 34:39] = ((frame >= 1) & (frame < 3))[:, None]
    shown[:24, 42:] = (frame >= 2)[:, None]
    expected = torch.zeros_like(q)
    expected[:, :24] = dense(q[:, :24], k, v, shown[:24])
    (piece,) = sub_calls(layout, keys, None, CPU)
    torch.testing.assert_close(assembled([piece], q, k, v, None), expected)
    torch.testing.assert_close(attend_frames(layout, q, k, v, 0.5), expected)
    assert torch.equal(shown_pairs(layout, keys, torch.arange(queries), torch.arange(keys)), shown)
    assert piece.pairs_beside(1) == {
        ("picture", "text"): 24 * 3,
        ("picture", "reference"): 12 * 5,
        ("picture", "sound"): 12 * 2,
    }
