"""What a record of a model family says."""

from __future__ import annotations

import functools
import re
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a record alone answers without PyTorch
    from dittools.pipelines.grids import Arguments
    from dittools.tokens import Layout, TokenGrid

# How a transformer's timestep comes from the scheduler's.
CLOCKS = {
    "same": lambda t: t,
    "thousandths": lambda t: t * 1000,  # t / 1000
    "reversed": lambda t: (1 - t) * 1000,  # 1 - t / 1000
    "pipeline": lambda t: t,  # by formulas that differ: the pipeline itself is asked, where it knows
}

_CHANNELS = {
    "frames_first": 2,
    "chunks": 2,
    "channels_last": -1,
    **dict.fromkeys(("packed", "position_ids", "joint_ids", "segments", "shapes", "document"), 2),
    "two_streams": -4,
}


# What many records say.
ATTN1 = ("transformer_blocks.*.attn1",)
DUAL_AND_SINGLE = ("transformer_blocks.*.attn", "single_transformer_blocks.*.attn")
TEXT = ("encoder_hidden_states",)
LINEAR = "its self-attention is linear: there are no query-key pairs to skip"


def checkpoint(
    picture: tuple[int, int, int], strides: tuple[int, int], model: tuple[int, int, int], **others: Any
) -> dict[str, Any]:
    """The fields of a record that say the sizes of its default checkpoint.

    Args:
        picture: default frames, height and width.
        strides: see `Family`, as ``others``: ``patch``, ``multiple``, ``text_tokens``...
        model: layers, heads and head_dim.
    """
    sizes = dict(zip(("frames", "height", "width", "layers", "heads", "head_dim"), (*picture, *model), strict=True))
    return {**sizes, "strides": strides, **others}


def matches(path: str, pattern: str) -> bool:
    """Whether a module's path is one of a pattern, in which ``*`` is one part."""
    return _expression(pattern).fullmatch(path) is not None


@functools.cache
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\*", r"[^.]+"))


@dataclass(frozen=True)
class Family:
    """A family of models that share a transformer class.

    Args:
        name: what users call it; ``aliases`` are other names they may use.
        title: one line for a list of models.
        draws: "video" or "image".
        transformer: class name of its transformer. Pipelines are recognised by it, since one transformer
            serves text-, image- and video-to-video pipelines alike.
        components: pipeline components that may hold the transformers, in the order of the layers.
        self_attention: paths of its self-attention modules in the transformer; ``*`` is one part of a path.
        way: how its attention is entered: "backend", where processors name a backend of diffusers'
            dispatcher, or "call", where they call attention without naming one.
        grid: the name in `dittools.pipelines.grids.GRIDS` of what reads the token grid.
        text_position: where text tokens sit in the self-attention sequence: "none", where they do not, "first" or
            "last"; "keys first" or "keys last" where they are keys that the picture attends to, without queries.
        text: arguments of the transformer whose dimension 1 is text in that sequence, where they tell it.
        latents, timestep: names of the transformer's arguments.
        timestep_rows: where a call has several timesteps, the arguments with each row's index among them, and with
            the rows that are pictures; the last of these is of the picture that is drawn.
        latents_beside: arguments with what else is denoised, in the order of what the transformer gives.
        block_input, block_output: which of the tensors that its first block takes and gives is the picture's; None
            where it gives one.
        tokens_first: whether tokens are the first axis inside its blocks, before the batch.
        clock: the name in `CLOCKS` of how the timestep leads back to the scheduler's.
        guidance_passes: how classifier-free guidance runs: "two calls", "one batch", "none" or "guider".
        why_not: why its attention cannot be block-sparse; None where it can.
        notes: what a user should know.
        text_to: class names of its pipelines that draw from a prompt alone, which `generate` can run; empty
            where it has no settings for them.
        repo: the checkpoint meant when only the family is named.
        height, width, frames: default size in pixels and frames; an image is one frame.
        steps, guidance, fps: defaults of a run and of its video.
        strides: (frames, pixels) that one latent stands for, of the default checkpoint.
        patch: (frames, height, width) latents in one token, of the default checkpoint.
        fills_frames: whether its pipelines fill up the last token along the frames, where one spans several.
        groups: ((frames, latents) of a group, (frames, latents) beside all groups), where latents stand for so many
            frames together; the first number of ``strides`` does not count then.
        span: fewest and most frames that its pipelines draw; None: any.
        multiple: of pixels, that its pipelines ask height and width to be, beside what latents and tokens need.
        positions: most tokens along one axis of the default checkpoint, where its position embedding ends; None: any.
        layers, heads, head_dim: of the default checkpoint; for plans made without weights.
        text_tokens: most text tokens in the sequence, by default.
    """

    name: str
    title: str
    transformer: str
    _: KW_ONLY
    draws: str
    self_attention: tuple[str, ...]
    grid: str
    aliases: tuple[str, ...] = ()
    components: tuple[str, ...] = ("transformer", "transformer_2")
    way: str = "backend"
    text_position: str = "none"
    text: tuple[str, ...] = ()
    latents: str = "hidden_states"
    latents_beside: tuple[str, ...] = ()
    block_input: int = 0
    block_output: int | None = None
    tokens_first: bool = False
    timestep: str = "timestep"
    timestep_rows: tuple[str, str] | None = None
    clock: str = "same"
    guidance_passes: str = "two calls"
    why_not: str | None = None
    notes: str = ""
    text_to: tuple[str, ...] = ()
    repo: str | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    steps: int | None = None
    guidance: float | None = None
    fps: int | None = None
    strides: tuple[int, int] | None = None
    patch: tuple[int, int, int] = (1, 2, 2)
    fills_frames: bool = False
    groups: tuple[tuple[int, int], tuple[int, int]] | None = None
    span: tuple[int, int] | None = None
    multiple: int = 1
    positions: int | None = None
    layers: int | None = None
    heads: int | None = None
    head_dim: int | None = None
    text_tokens: int = 0

    @property
    def text_has_queries(self) -> bool:
        """Whether text in the self-attention sequence attends too."""
        return self.text_position in ("first", "last")

    @property
    def channels(self) -> int:
        """The axis of the latents, a list of them brought together in a batch, that holds their channels."""
        return _CHANNELS.get(self.grid, 1)

    def is_self_attention(self, path: str) -> bool:
        """Whether the module at this path of the transformer is a self-attention."""
        return any(matches(path, pattern) for pattern in self.self_attention)

    def attention_in(self, model: Any) -> list[tuple[str, Any]]:
        """(path, module) of each self-attention of a transformer."""
        return [(path, module) for path, module in model.named_modules() if self.is_self_attention(path)]

    def layout(self, config: Any, arguments: Arguments) -> Layout:
        """Where the picture is in the attention sequences of one forward.

        Args:
            config: the transformer's.
            arguments: gives an argument of the forward by its name, None where it is not given.

        Raises:
            BadInput: when the arguments are not those of this family.
        """
        from dittools.pipelines.errors import BadInput
        from dittools.pipelines.grids import GRIDS
        from dittools.tokens import Layout

        try:
            found = GRIDS[self.grid](config, arguments, self.latents)
        except BadInput:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise BadInput(f"the arguments are not those of {self.name}: {error}") from error
        layout = found if isinstance(found, Layout) else Layout(*found)
        if self.text_position == "none" or any(part.kind == "text" for part in layout.parts):
            return layout
        return layout.beside_text(self.text_position.removeprefix("keys "), queries=self.text_has_queries)

    def token_grid(self, layout: Layout, arguments: Arguments) -> TokenGrid:
        """The grid of one forward with as much text as its arguments tell."""
        return layout.grid(sum(value.shape[1] for value in map(arguments, self.text) if hasattr(value, "shape")))

    def timestep_of(self, arguments: Arguments) -> Any:
        """The timestep of the picture that is drawn, as one forward is given it."""
        given = arguments(self.timestep)
        if self.timestep_rows is None or given is None:
            return given
        index, rows = map(arguments, self.timestep_rows)
        return given.index_select(0, index.index_select(0, rows[-1:]))

    def scheduled(self, timestep: Any) -> Any:
        """The scheduler's timestep that a transformer's stands for."""
        return CLOCKS[self.clock](timestep)
