"""Encoded clips with their captions, kept on the GPU and slowly replaced by fresh ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dittools.pipelines.embedded import vocabulary as voc
from dittools.training import vae_sequence, world


@dataclass(frozen=True)
class ClipShape:
    """A kind of training clip: its size in pixels, clips a batch, clips kept, and how often it is drawn.

    It takes part from the share ``since`` of the stage's budget on, until ``until``.
    """

    frames: int
    height: int
    width: int
    batch: int
    kept: int
    weight: float
    since: float = 0.0
    until: float = 1.0

    @property
    def latent(self) -> tuple[int, int, int]:
        return 1 + (self.frames - 1) // 4, self.height // 8, self.width // 8


def tokenise(tokenizer: object, texts: list[str]) -> torch.Tensor:
    """Token ids ``[N, MAX_TOKENS]``, padded with 0."""
    return tokenizer(
        texts, padding="max_length", max_length=voc.MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


@torch.no_grad()
def encode_scenes(vae: nn.Module, scenes: world.Scenes, shape: ClipShape) -> torch.Tensor:
    """Posterior means ``[N, 16, t, h, w]``, fp32, not normalised, a few clips at a time."""
    device = scenes.count.device
    pixels = shape.frames * shape.height * shape.width
    at_once = max(1, 16 * 33 * 256 * 256 // pixels)
    parts = []
    for i in range(0, len(scenes), at_once):
        video = world.render(scenes.select(slice(i, i + at_once)), shape.frames, shape.height, shape.width)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            parts.append(vae_sequence.encode(vae, video)[0].float())
    return torch.cat(parts)


class LatentBuffer:
    """Normalised latents of one clip shape; ``refresh`` replaces the oldest."""

    def __init__(self, shape: ClipShape, vae: nn.Module, tokenizer: object, scale: torch.Tensor, seed: int):
        self.shape, self.vae, self.tokenizer, self.scale = shape, vae, tokenizer, scale
        self.generator = torch.Generator().manual_seed(seed)
        device = scale.device
        self.clips = torch.empty(shape.kept, 16, *shape.latent, dtype=torch.float16, device=device)
        self.ids = torch.empty(shape.kept, voc.MAX_TOKENS, dtype=torch.long, device=device)
        self.next = 0
        for start in range(0, shape.kept, 64):
            self.refresh(min(64, shape.kept - start))

    def refresh(self, n: int) -> None:
        scenes = world.sample(n, self.generator)
        ids = tokenise(self.tokenizer, world.captions(scenes, self.generator))
        latents = encode_scenes(self.vae, scenes.to(self.scale.device), self.shape)
        mean, std = self.scale
        latents = (latents - mean.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1)
        at = (torch.arange(n) + self.next) % self.shape.kept
        self.clips[at], self.ids[at] = latents.half(), ids.to(self.ids.device)
        self.next = (self.next + n) % self.shape.kept

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A random batch: latents ``[B, 16, t, h, w]`` fp32 and token ids ``[B, MAX_TOKENS]``."""
        at = torch.randint(self.shape.kept, (self.shape.batch,), device=self.clips.device)
        return self.clips[at].float(), self.ids[at]


def latent_scale(vae: nn.Module, device: torch.device, shape: ClipShape, clips: int = 256) -> torch.Tensor:
    """Mean and standard deviation a channel ``[2, 16]`` over world clips."""
    scenes = world.sample(clips, torch.Generator().manual_seed(77)).to(device)
    latents = encode_scenes(vae, scenes, shape).transpose(0, 1).flatten(1)
    return torch.stack((latents.mean(1), latents.std(1)))
