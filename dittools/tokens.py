"""Where each token sits in the picture: frames x height x width of video tokens, and where the text is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from numbers import Integral
from typing import NamedTuple

import torch

TEXT_POSITIONS = ("none", "first", "last")
WHOLE = 128  # tokens of the largest block: so many share none
KINDS = ("text", "reference", "history", "picture", "sound")


@dataclass(frozen=True)
class Part:
    """A run of tokens of one kind in a sequence.

    Args:
        kind: one of `KINDS`.
        tokens: how many; None where only the attention call knows.
        shape: (frames, height, width) where it is a grid of its own; without one it stays dense.
        queries: whether its tokens have queries too. Of a part without, such as text that a picture attends to and
            that attends to nothing itself, a call has keys and values alone. Every query sees them, unless they are a
            grid, such as frames of before: that has a budget of its own.
        seen_by: first frame of the picture whose queries see its keys, and the one after the last; None: all queries
            do. Such a part is in no grid: its keys are kept by those that see them, and its own queries give zeros.

    Raises:
        ValueError: for an unknown kind, or a shape that is not that of so many tokens.
    """

    kind: str
    tokens: int | None
    shape: tuple[int, int, int] | None = None
    queries: bool = True
    seen_by: tuple[int, int] | None = None

    @property
    def planned(self) -> bool:
        """Whether it is in the grid that a method plans for."""
        return self.seen_by is None and (self.queries or self.shape is not None)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"Part.kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.shape is not None:
            object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
            if len(self.shape) != 3 or min(self.shape) < 1 or prod(self.shape) != self.tokens:
                raise ValueError(f"a {self.kind} of {self.tokens} tokens cannot be a grid of {self.shape}")

    @classmethod
    def of(cls, kind: str, *shape: int) -> Part:
        """A part that is a grid of (frames, height, width)."""
        return cls(kind, prod(shape), shape)


class Placed(NamedTuple):
    """A part and where it is in the sequence."""

    part: Part
    at: slice


def placed(parts: Iterable[Part]) -> Iterator[Placed]:
    """Each part and where it is in a sequence of them."""
    start = 0
    for part in parts:
        yield Placed(part, slice(start, start + part.tokens))
        start += part.tokens


@dataclass(frozen=True)
class TokenGrid:
    """The layout of one self-attention sequence, in tokens (after the VAE and the patch embedding).

    Video tokens run frame by frame, then row by row (raster): video token ``i`` is in frame
    ``i // (height * width)``, and its patch is ``i % (height * width)``. An image is a grid of one frame. Reference
    pictures and history follow the video, and text is in front of all that or behind it.

    Args:
        frames, height, width: tokens along each axis, at least 1.
        text: text tokens that share the sequence; 0 where the text has its own cross-attention.
        text_position: "first" or "last" in the sequence, "none" when ``text`` is 0.
        parts: what follows the video, each with grids of its own, of those of one kind side by side.

    Raises:
        ValueError: for a size below its minimum, or a text position that does not go with ``text``.
    """

    frames: int
    height: int
    width: int
    text: int = 0
    text_position: str = "none"
    parts: tuple[Part, ...] = ()

    def __post_init__(self):
        parts = (Part(**part) if isinstance(part, Mapping) else part for part in self.parts)
        object.__setattr__(self, "parts", tuple(parts))
        if not all(part.queries for part in self.parts):
            raise ValueError("TokenGrid.parts must have queries: keys alone are beside the sequence, in a Layout")
        for name, least in (("frames", 1), ("height", 1), ("width", 1), ("text", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise ValueError(f"TokenGrid.{name} must be an integer of at least {least}, got {value!r}")
            object.__setattr__(self, name, int(value))
        if self.text_position not in TEXT_POSITIONS:
            raise ValueError(
                f"TokenGrid.text_position must be one of {', '.join(TEXT_POSITIONS)}, got {self.text_position!r}"
            )
        if (self.text > 0) != (self.text_position != "none"):
            raise ValueError(
                f"TokenGrid has {self.text} text tokens at position {self.text_position!r}: "
                "use 'first' or 'last' with text, 'none' without"
            )

    @property
    def frame(self) -> int:
        """Tokens of one frame."""
        return self.height * self.width

    @property
    def video(self) -> int:
        """Video tokens in the sequence."""
        return self.frames * self.frame

    @property
    def tokens(self) -> int:
        """All tokens in the sequence, S."""
        return self.video + self.text + sum(part.tokens for part in self.parts)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(frames, height, width)."""
        return self.frames, self.height, self.width

    @property
    def video_start(self) -> int:
        """Sequence index of the first video token."""
        return self.text if self.text_position == "first" else 0

    @property
    def video_slice(self) -> slice:
        """The video tokens within the sequence."""
        return slice(self.video_start, self.video_start + self.video)

    @property
    def text_slice(self) -> slice:
        """The text tokens within the sequence; empty when there are none."""
        start = 0 if self.text_position == "first" else self.tokens - self.text
        return slice(start, start + self.text)

    @property
    def placed(self) -> list[Placed]:
        """All parts of the sequence, in its order: picture, what follows it, and text where it is."""
        listed = [Part.of("picture", *self.shape), *self.parts]
        if self.text:
            listed.insert(0 if self.text_position == "first" else len(listed), Part("text", self.text))
        return list(placed(listed))

    @property
    def grids(self) -> list[Placed]:
        """The parts that are grids, the picture first."""
        return [placed for placed in self.placed if placed.part.shape is not None]

    def positions(self, device: torch.device | str | None = None) -> torch.Tensor:
        """Frame, row and column of every video token: int64 ``[video, 3]``, in raster order."""
        i = torch.arange(self.video, device=device)
        patch = i % self.frame
        return torch.stack((i // self.frame, patch // self.width, patch % self.width), dim=-1)

    def is_text(self, device: torch.device | str | None = None) -> torch.Tensor:
        """Which sequence tokens are text: bool ``[tokens]``."""
        text = torch.zeros(self.tokens, dtype=torch.bool, device=device)
        text[self.text_slice] = True
        return text

    def stays_dense(self) -> torch.Tensor:
        """Which sequence tokens see all and are seen by all, being in no grid: bool ``[tokens]`` on the CPU."""
        dense = torch.ones(self.tokens, dtype=torch.bool)
        for _, at in self.grids:
            dense[at] = False
        return dense

    def places(self) -> torch.Tensor:
        """Where in the picture each token is, as the raster index of a video token: int64 ``[tokens]`` on the CPU.

        A token of another grid is at the same place of the picture, by shares of each axis; one of no grid at 0.
        """
        found = torch.zeros(self.tokens, dtype=torch.int64)
        for part, at in self.grids:
            own = TokenGrid(*part.shape).positions()
            mine, theirs = torch.tensor(self.shape), torch.tensor(part.shape)
            frame, row, column = ((2 * own + 1) * mine // (2 * theirs)).unbind(-1)
            found[at] = (frame * self.height + row) * self.width + column
        return found


def arranged(parts: Sequence[Part]) -> tuple[TokenGrid, list[int]]:
    """The grid of a sequence, and which of its parts come first, second, ... in that grid.

    Text comes last, what is behind the picture and then what was in front. Where all of it is in front it stays there,
    unless there are references beside it and it would share a block with the picture: that block would be dense.

    Args:
        parts: one picture among them, each with its number of tokens.
    """
    at = [part.kind for part in parts].index("picture")
    text = [i for i, part in enumerate(parts) if part.kind == "text"]
    count = sum(parts[i].tokens for i in text)
    kinds = list(dict.fromkeys(part.kind for part in parts))
    others = [i for i, part in enumerate(parts) if part.kind not in ("picture", "text")]
    others.sort(key=lambda i: (parts[i].shape is None, kinds.index(parts[i].kind), i))
    text.sort(key=lambda i: (i < at, i))
    first = bool(text) and text == list(range(at)) and (not others or count % WHOLE == 0)
    position = "none" if not count else "first" if first else "last"
    grid = TokenGrid(*parts[at].shape, count, position, tuple(parts[i] for i in others))
    return grid, [*text, at, *others] if first else [at, *others, *text]


@dataclass(frozen=True)
class Layout:
    """Where the picture is in a sequence whose length only the attention call knows.

    Args:
        frames, height, width: tokens of the picture along each axis.
        before, after: what is in front of it and behind it: tokens of text, or parts in their order. One number of
            tokens may be None: all that the sequence has beyond the rest. It may differ from call to call, as the
            text of two prompts does. Parts without queries are in the sequence of keys alone.
        notes: what a user should know of it, a line each.
        one_sequence: whether what splits it among ranks splits it as it stands, and not text and all else apart.
        behind_apart: whether that splits all behind the picture apart, not text alone.
    """

    frames: int
    height: int
    width: int
    before: int | tuple[Part, ...] | None = 0
    after: int | tuple[Part, ...] | None = 0
    notes: tuple[str, ...] = ()
    one_sequence: bool = False
    behind_apart: bool = False

    @property
    def parts(self) -> list[Part]:
        """All parts in the order of the sequence, the picture among them."""
        before, after = map(_parts, (self.before, self.after))
        return [*before, Part.of("picture", self.frames, self.height, self.width), *after]

    def beside_text(self, position: str, queries: bool = True) -> Layout:
        """The same with text that only the call knows the length of: "first" or "last" in the sequence."""
        text, before, after = (Part("text", None, queries=queries),), _parts(self.before), _parts(self.after)
        first = position == "first"
        return replace(self, before=text + before if first else before, after=after if first else after + text)

    def parts_of(self, tokens: int) -> list[Part]:
        """The parts of a sequence of so many keys, none of them empty.

        Raises:
            ValueError: when they do not fit into it.
        """
        parts = self.parts
        rest = tokens - sum(part.tokens or 0 for part in parts)
        unknown = [part for part in parts if part.tokens is None]
        if rest < 0 or (rest > 0 and not unknown):
            raise ValueError(f"attention over {tokens} tokens, where the grid has {tokens - rest}")
        known = (part if part.tokens is not None else replace(part, tokens=rest) for part in parts)
        return [part for part in known if part.tokens]

    def apart(self, parts: Sequence[Part]) -> list[bool]:
        """Which of its parts are split among ranks apart from all else."""
        if self.one_sequence:
            return [False] * len(parts)
        at = [part.kind for part in parts].index("picture")
        return [part.kind == "text" or (self.behind_apart and number > at) for number, part in enumerate(parts)]

    def queries_of(self, tokens: int) -> int:
        """How many queries a call over so many keys has."""
        return sum(part.tokens for part in self.parts_of(tokens) if part.queries)

    def queries_at(self, tokens: int) -> torch.Tensor:
        """Which of so many keys have a query, in the order of these: int64 ``[queries]`` on the CPU."""
        parts = self.parts_of(tokens)
        asks = torch.tensor([part.queries for part in parts])
        return asks.repeat_interleave(torch.tensor([part.tokens for part in parts])).nonzero().flatten()

    @property
    def keys_alone(self) -> int:
        """Tokens without queries, as far as that is known before the call."""
        return sum(part.tokens or 0 for part in self.parts if not part.queries)

    def in_order(self, tokens: int) -> bool:
        """Whether the tokens that have queries are in the order of their grid as they stand."""
        parts = [part for part in self.parts_of(tokens) if part.queries]
        return arranged(parts)[1] == list(range(len(parts)))

    @property
    def picture(self) -> int:
        """Tokens of the picture."""
        return self.frames * self.height * self.width

    def picture_start(self, tokens: int) -> int:
        """Where the picture begins in a sequence of this length."""
        parts = self.parts_of(tokens)
        return sum(part.tokens for part in parts[: [part.kind for part in parts].index("picture")])

    def grid(self, unknown: int = 0) -> TokenGrid:
        """The grid of what has queries or is a grid, where the part that may be None has so many tokens."""
        known = sum(part.tokens or 0 for part in self.parts)
        some = any(part.tokens is None for part in self.parts)
        parts = [part for part in self.parts_of(known + unknown * some) if part.planned]
        return arranged([replace(part, queries=True) for part in parts])[0]


def _parts(side: int | tuple[Part, ...] | None) -> tuple[Part, ...]:
    """The parts on one side of a picture."""
    return side if isinstance(side, tuple) else () if side == 0 else (Part("text", side),)
