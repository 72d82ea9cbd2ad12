"""Where the tokens of every rank are in the whole sequence, where text and picture are split apart.

The plans of FLUX, FLUX.2 and Qwen-Image split the text and the picture, and the attention processor puts a rank's
share of one behind its share of the other: after the exchange the sequence would be text 0, picture 0, text 1, picture
1. The exchange copies each rank's tokens anyway, and here is where to.
"""

from __future__ import annotations

from collections.abc import Sequence

from dittools.ranks import stretches
from dittools.tokens import Layout

Places = "list[list[tuple[int, int]]]"
"""Of each rank, the runs of its tokens one after the other: where each begins in the whole sequence, and its tokens."""


def places_of(tokens: Sequence[int], layout: Layout | None = None) -> list[list[tuple[int, int]]]:
    """The runs of each rank's tokens in the whole sequence.

    Args:
        tokens: of each rank.
        layout: of the whole sequence; None, or one without text or split as it stands: ranks follow one another as
            they are. Text on one side of the rest, or all behind the picture, was split by itself, and so was the rest.
    """
    rest = None if layout is None or layout.one_sequence else _beside_text(layout, sum(tokens))
    if rest is None:
        return _one_after_another([[count] for count in tokens])
    first, count = rest
    shares = [stop - start for start, stop in stretches(count, len(tokens))]
    text = [all_ - share for all_, share in zip(tokens, shares, strict=True)]
    if min(text) < 0:
        return _one_after_another([[count] for count in tokens])
    return _one_after_another([[t, s] if first else [s, t] for t, s in zip(text, shares, strict=True)])


def _beside_text(layout: Layout, tokens: int) -> tuple[bool, int] | None:
    """Whether text comes first, and how many tokens are no text; None where there is no text on one side alone."""
    try:
        parts = layout.parts_of(tokens)
    except ValueError:
        return None  # another sequence, which runs dense in whatever order
    kinds = layout.apart(parts)
    number = sum(kinds)
    count = sum(part.tokens for part, apart in zip(parts, kinds, strict=True) if not apart)
    if number and kinds == [True] * number + [False] * (len(kinds) - number):
        return True, count
    if number and kinds == [False] * (len(kinds) - number) + [True] * number:
        return False, count
    return None


def _one_after_another(counts: list[list[int]]) -> list[list[tuple[int, int]]]:
    """Runs by rank, those of one number side by side in the whole sequence."""
    start, found = 0, [[] for _ in counts]
    for number in range(len(counts[0])):
        for rank, runs in enumerate(counts):
            if runs[number]:
                found[rank].append((start, runs[number]))
            start += runs[number]
    return found
