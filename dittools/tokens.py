"""Where each token sits in the picture: frames x height x width of video tokens, and where the text is."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch

TEXT_POSITIONS = ("none", "first", "last")


@dataclass(frozen=True)
class TokenGrid:
    """The layout of one self-attention sequence, in tokens (after the VAE and the patch embedding).

    Video tokens run frame by frame, then row by row (raster): video token ``i`` is in frame
    ``i // (height * width)``, and its patch is ``i % (height * width)``. An image is a grid of one frame.

    Args:
        frames, height, width: tokens along each axis, at least 1.
        text: text tokens that share the sequence; 0 where the text has its own cross-attention.
        text_position: "first" or "last" in the sequence, "none" when ``text`` is 0.

    Raises:
        ValueError: for a size below its minimum, or a text position that does not go with ``text``.
    """

    frames: int
    height: int
    width: int
    text: int = 0
    text_position: str = "none"

    def __post_init__(self):
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
        return self.video + self.text

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
        start = 0 if self.text_position == "first" else self.video
        return slice(start, start + self.text)

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
