"""Where each token sits in the picture: frames x height x width of video tokens, and where the text is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from numbers import Integral
from typing import NamedTuple

import torch

TEXT_POSITIONS = ("none", "first", "last")
KINDS = ("text", "reference", "history", "picture", "sound")


@dataclass(frozen=True)
class Part:
    """A run of tokens of one kind in a sequence.

    Args:
        kind: one of `KINDS`.
        tokens: how many; None where only the attention call knows.
        shape: (frames, height, width) where it is a grid of its own; without one it stays dense.

    Raises:
        ValueError: for an unknown kind, or a shape that is not that of so many tokens.
    """

    kind: str
    tokens: int | None
    shape: tuple[int, int, int] | None = None

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
        found, start = [], 0
        for part in listed:
            found.append(Placed(part, slice(start, start + part.tokens)))
            start += part.tokens
        return found

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


@dataclass(frozen=True)
class Layout:
    """Where the picture is in a sequence whose length only the attention call knows.

    Args:
        frames, height, width: tokens of the picture along each axis.
        before, after: other tokens (text, history, reference images) in front of it and behind it. One of them
            may be None: all that the sequence has beyond the rest. It may differ from call to call, as the
            text of two prompts does.
    """

    frames: int
    height: int
    width: int
    before: int | None = 0
    after: int | None = 0

    def around(self, tokens: int) -> tuple[int, int]:
        """(tokens in front, tokens behind) in a sequence of this length.

        Raises:
            ValueError: when the picture does not fit into it.
        """
        others = tokens - self.frames * self.height * self.width
        before = others - (self.after or 0) if self.before is None else self.before
        after = others - before
        if before < 0 or after < 0 or self.after not in (None, after):
            raise ValueError(f"attention over {tokens} tokens, where the grid has {tokens - others}")
        return before, after

    def grid(self, before: int, after: int) -> TokenGrid:
        """The grid once the others are on one side: behind the picture when there are any behind it."""
        others = before + after
        return TokenGrid(
            self.frames,
            self.height,
            self.width,
            others,
            "none" if not others else "first" if not after else "last",
        )
