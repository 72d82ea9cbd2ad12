"""Whole clips through the autoencoder give what its own frame-by-frame walk gives."""

import pytest
import torch

from dittools.training import architecture, vae_sequence


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return architecture.build_vae(architecture.TINY).eval()


@pytest.mark.parametrize("frames", [1, 5, 13])
@torch.no_grad()
def test_encoding_a_whole_clip_equals_the_walk(vae, frames):
    video = torch.rand(2, 3, frames, 48, 32) * 2 - 1
    walked = vae.encode(video).latent_dist
    with vae_sequence.whole_clips(vae):
        mean, log_variance = vae_sequence.encode(vae, video)
    torch.testing.assert_close(mean, walked.mean)
    torch.testing.assert_close(log_variance, walked.logvar)


@pytest.mark.parametrize("frames", [1, 2, 4])
@torch.no_grad()
def test_decoding_a_whole_clip_equals_the_walk(vae, frames):
    latents = torch.randn(2, 16, frames, 6, 4)
    walked = vae.decode(latents).sample
    with vae_sequence.whole_clips(vae):
        video = vae_sequence.decode(vae, latents)
    assert video.shape == (2, 3, 1 + 4 * (frames - 1), 48, 32)
    torch.testing.assert_close(video.clamp(-1, 1), walked)


@torch.no_grad()
def test_outside_the_context_the_class_is_as_it_was(vae):
    latents = torch.randn(1, 16, 3, 6, 4)
    before = vae.decode(latents).sample
    with vae_sequence.whole_clips(vae):
        pass
    assert torch.equal(vae.decode(latents).sample, before)
