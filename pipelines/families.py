"""What is known of each model family, as data. A new family is a record here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from dittools.naming import unknown
from dittools.pipelines.errors import BadInput
from dittools.tokens import TokenGrid


@dataclass(frozen=True)
class Family:
    """A family of models that share a transformer class.

    Args:
        name: what users call it; ``aliases`` are other names they may use.
        title: one line for a list of models.
        transformer: class name of its transformer. Pipelines are recognised by it, since one transformer
            serves text-, image- and video-to-video pipelines alike.
        pipelines: prefix of its pipelines' class names.
        components: pipeline components that may hold the transformers, in the order of the layers.
        self_attention: path of a self-attention module in the transformer; ``*`` is one part of a path.
        text_position: where text tokens sit in the self-attention sequence.
        latents, timestep: names of the transformer's arguments; latents are ``[B, C, F, H, W]``.
        repo: the checkpoint meant when only the family is named.
        height, width, frames: default size in pixels and frames.
        steps, guidance, fps: defaults of a run and of its video.
    """

    name: str
    aliases: tuple[str, ...]
    title: str
    transformer: str
    pipelines: str
    components: tuple[str, ...]
    self_attention: str
    text_position: str
    latents: str
    timestep: str
    repo: str
    height: int
    width: int
    frames: int
    steps: int
    guidance: float
    fps: int

    def is_self_attention(self, path: str) -> bool:
        """Whether the module at this path of the transformer is a self-attention."""
        pattern = re.escape(self.self_attention).replace(r"\*", r"[^.]+")
        return re.fullmatch(pattern, path) is not None

    def grid(self, config: Any, latents_shape: tuple[int, ...]) -> TokenGrid:
        """Token grid of latents ``[B, C, F, H, W]``, given the transformer's config."""
        if len(latents_shape) != 5:
            raise BadInput(f"{self.name} latents are [batch, channels, frames, height, width], got {latents_shape}")
        frames, height, width = (n // p for n, p in zip(latents_shape[2:], config.patch_size, strict=True))
        return TokenGrid(frames, height, width)


FAMILIES = (
    Family(
        name="wan",
        aliases=("wan2.1", "wan2.2", "wan-t2v"),
        title="Wan 2.1 and 2.2, text, image or video to video",
        transformer="WanTransformer3DModel",
        pipelines="Wan",
        components=("transformer", "transformer_2"),
        self_attention="blocks.*.attn1",
        text_position="none",
        latents="hidden_states",
        timestep="timestep",
        repo="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        height=480,
        width=832,
        frames=81,
        steps=50,
        guidance=5.0,
        fps=16,
    ),
)


def find_family(name: str) -> Family:
    """The family with this name or alias, in any case.

    Raises:
        BadInput: for an unknown name, naming the nearest.
    """
    for family in FAMILIES:
        if name.lower() in (family.name, *family.aliases):
            return family
    raise BadInput(unknown("model", name, (n for family in FAMILIES for n in (family.name, *family.aliases))))


def family_of(pipe: Any) -> Family:
    """The family of a diffusers pipeline.

    Raises:
        BadInput: when its transformer is of no known class.
    """
    for family in FAMILIES:
        if any(type(model).__name__ == family.transformer for _, model in transformers_of(pipe, family)):
            return family
    known = ", ".join(f"{family.name} ({family.transformer})" for family in FAMILIES)
    model = getattr(pipe, "transformer", None)
    found = type(pipe).__name__ + (f" with {type(model).__name__}" if model is not None else "")
    raise BadInput(f"cannot accelerate {found}: known families are {known}")


def transformers_of(pipe: Any, family: Family) -> list[tuple[str, Any]]:
    """(component name, transformer) of a pipeline, each once, without the wrapper of `torch.compile`."""
    found: dict[int, tuple[str, Any]] = {}
    for component in family.components:
        model = getattr(pipe, component, None)
        model = getattr(model, "_orig_mod", model)
        if model is not None:
            found.setdefault(id(model), (component, model))
    return list(found.values())


def vae_strides(vae: Any) -> tuple[int, int]:
    """(frames, pixels) that one latent stands for, from the VAE's config."""
    return vae.config.scale_factor_temporal, vae.config.scale_factor_spatial
