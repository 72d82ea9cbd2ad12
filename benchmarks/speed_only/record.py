"""What is known of the checkpoints that are timed with random weights, and what one call of them is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import find_family
from dittools.pipelines.family import Family
from dittools.pipelines.limits import SizeRule
from dittools.tokens import Layout, TokenGrid

# Whose counts add up to a model's layers: those with streams of their own for text, and those without.
LAYERS = ("num_layers", "num_single_layers")


@dataclass(frozen=True, kw_only=True)
class Size:
    """One size of a model.

    Args:
        config: arguments of diffusers' class; what is not named has the class's default.
        strides: (frames, pixels) that one latent stands for.
        patch: (frames, height, width) latents in one token.
        height, width, frames: default size in pixels and frames; an image is one frame.
        text_tokens: of one text, in the sequence or beside it.
        family: name of the family; given by the table of sizes.
    """

    config: Mapping[str, Any]
    strides: tuple[int, int]
    height: int
    width: int
    frames: int = 1
    patch: tuple[int, int, int] = (1, 2, 2)
    text_tokens: int = 512
    family: str = ""

    @property
    def layers(self) -> int:
        """Self-attention layers."""
        return sum(self.config.get(name, 0) for name in LAYERS)

    @property
    def heads(self) -> int:
        return self.config["num_attention_heads"]

    @property
    def head_dim(self) -> int:
        return self.config["attention_head_dim"]

    def changed(self, layers: int | None = None, heads: int | None = None) -> Size:
        """This size with other layers, of both kinds in the same proportion, or other heads."""
        config = dict(self.config)
        if layers is not None:
            dual = config["num_layers"]
            if "num_single_layers" in config:
                dual = min(layers, max(1, round(layers * dual / self.layers)))
                config["num_single_layers"] = layers - dual
            config["num_layers"] = dual if "num_single_layers" in config else layers
        if heads is not None:
            config["num_attention_heads"] = heads
            if "cross_attention_dim" in config:
                config["cross_attention_dim"] = heads * self.head_dim
        return dataclasses.replace(self, config=config)

    def latents(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latents along frames, height and width of a picture in frames and pixels.

        Raises:
            BadInput: for a size that the model cannot take, naming the nearest ones that it can.
        """
        family = find_family(self.family)
        if family.draws == "image" and frames != 1:
            raise BadInput(f"{family.name} generates images: --frames is 1, got {frames}")
        time, side = self.strides
        positions = self.config.get("rope_max_seq_len", family.positions)
        SizeRule._of(time, side, self.patch, positions, multiple=1, filled=True).check(frames, height, width)
        deep = (frames - 1) // time + 1
        # Where a token spans frames, the pipeline fills the last one up.
        return -(-deep // self.patch[0]) * self.patch[0], height // side, width // side

    def grid(self, frames: int, height: int, width: int) -> TokenGrid:
        """Tokens of a picture in frames and pixels, with the text where it shares the sequence.

        Raises:
            BadInput: as `latents`.
        """
        family: Family = find_family(self.family)
        tokens = (n // p for n, p in zip(self.latents(frames, height, width), self.patch, strict=True))
        text = {"none": (0, 0), "first": (self.text_tokens, 0), "last": (0, self.text_tokens)}[family.text_position]
        return Layout(*tokens, *text).grid()


@dataclass(frozen=True)
class Call:
    """What the arguments of one call are made from.

    Args:
        size: of the model.
        config: of the transformer that was made.
        latents: along frames, height and width.
        timestep: the scheduler's, a number on the device.
        dtype: of the weights.
    """

    size: Size
    config: Any
    latents: tuple[int, int, int]
    timestep: torch.Tensor
    dtype: torch.dtype
    _generator: torch.Generator = field(repr=False)

    @property
    def device(self) -> torch.device:
        return self.timestep.device

    @property
    def tokens(self) -> tuple[int, int, int]:
        """Tokens along frames, height and width."""
        return tuple(n // p for n, p in zip(self.latents, self.size.patch, strict=True))

    def noise(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype, generator=self._generator)

    def text(self, channels: int) -> torch.Tensor:
        """Features of a text ``[1, tokens, channels]``."""
        return self.noise(1, self.size.text_tokens, channels)

    def shown(self, length: int | None = None) -> torch.Tensor:
        """The padding mask of a text without padding: int64 ``[1, tokens]``."""
        return torch.ones(1, length or self.size.text_tokens, dtype=torch.long, device=self.device)


@dataclass(frozen=True, kw_only=True)
class Record:
    """A family that is timed with random weights.

    Args:
        family: its name in `dittools.pipelines.families`.
        sizes: by name.
        default: which of them is meant when none is named.
        arguments: makes the arguments of one call.
        tables: modules whose tables are computed and not random, by path, made anew from the transformer.
        masked: whether its dense attention always gets a mask of the keys.
        method: the method that is timed when none is named.
    """

    family: str
    sizes: Mapping[str, Size]
    default: str
    arguments: Callable[[Call], dict[str, Any]]
    tables: Callable[[torch.nn.Module], dict[str, torch.nn.Module]] = lambda model: {}
    masked: bool = False
    method: str = "svg"
