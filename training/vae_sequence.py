"""Encode and decode whole clips at once with an ``AutoencoderKLWan``.

The class walks over a clip four frames at a time and carries the last frames of every convolution along,
which launches thousands of small kernels. Its convolutions are causal, so a single pass over all frames
computes the same numbers; only the resampling in time, which treats the first frame apart, has to be
written out. Training uses this; the tests hold it against the class's own walk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn


def _resample(layer: nn.Module, x: torch.Tensor, feat_cache: object = None, feat_idx: object = None) -> torch.Tensor:
    """``WanResample.forward`` for a whole clip ``[B, C, T, H, W]`` that starts with its first frame."""
    b, c, t, h, w = x.shape
    if layer.mode == "upsample3d" and t > 1:
        later = layer.time_conv(x[:, :, 1:])  # the first frame is no history for the others
        later = later.reshape(b, 2, c, t - 1, h, w).permute(0, 2, 3, 1, 4, 5).reshape(b, c, 2 * (t - 1), h, w)
        x = torch.cat((x[:, :, :1], later), 2)
    frames = x.permute(0, 2, 1, 3, 4).flatten(0, 1)
    frames = layer.resample(frames)
    x = frames.unflatten(0, (b, -1)).permute(0, 2, 1, 3, 4)
    if layer.mode == "downsample3d" and t > 1:
        x = torch.cat((x[:, :, :1], layer.time_conv(x)), 2)
    return x


@contextmanager
def whole_clips(vae: nn.Module) -> Iterator[None]:
    """Within the context the VAE's encoder and decoder take whole clips without a feature cache."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample

    layers = [m for m in vae.modules() if isinstance(m, WanResample)]
    for layer in layers:
        layer.forward = partial(_resample, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def encode(vae: nn.Module, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log-variance ``[B, z, 1 + (T-1)/4, H/8, W/8]`` of clips ``[B, 3, T, H, W]`` in [-1, 1]."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

    hidden = vae.encoder(patchify(video, vae.config.patch_size or 1))
    mean, log_variance = vae.quant_conv(hidden).chunk(2, 1)
    return mean, log_variance.clamp(-30.0, 20.0)


def decode(vae: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Clips ``[B, 3, T, H, W]`` of latents ``[B, z, t, h, w]``, not clamped."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    return unpatchify(vae.decoder(vae.post_quant_conv(latents), first_chunk=True), vae.config.patch_size or 1)
