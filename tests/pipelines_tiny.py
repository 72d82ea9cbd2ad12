"""Tiny random pipelines of the other families that `dittools generate` draws with."""

from __future__ import annotations

import torch

from tests.tiny import tiny_tokenizer


def _t5(vocabulary: int, width: int = 32):
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": width, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    return T5EncoderModel(T5Config(vocab_size=vocabulary, **sizes, dropout_rate=0.0, pad_token_id=0, eos_token_id=1))


def _clip(vocabulary: int, width: int = 32):
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    return CLIPTextModel(CLIPTextConfig(vocab_size=vocabulary, projection_dim=width, **sizes, **ends))


def cogvideox_vae():
    """CogVideoX's VAE with its strides of 4 in time and 8 in space."""
    from diffusers import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )


def ltx_vae():
    """LTX-Video's VAE with its strides of 8 in time and 32 in space."""
    from diffusers import AutoencoderKLLTXVideo

    return AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )


def image_vae(channels: int = 4):
    """The VAE of FLUX and Stable Diffusion 3 with its stride of 8."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        norm_num_groups=2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1,
        scaling_factor=0.4,
    )


def cogvideox():
    """A `CogVideoXPipeline`; its VAE keeps strides of 4 in time and 8 in space."""
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

    tokenizer = tiny_tokenizer()
    vae = cogvideox_vae()
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=32,
        num_layers=2,
        sample_width=16,
        sample_height=16,
        sample_frames=9,
        max_text_seq_length=226,
        use_rotary_positional_embeddings=True,
    )
    return CogVideoXPipeline(tokenizer, _t5(len(tokenizer)), vae, transformer, CogVideoXDDIMScheduler())


def ltx():
    """An `LTXPipeline`; its VAE keeps strides of 8 in time and 32 in space."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel

    tokenizer = tiny_tokenizer()
    vae = ltx_vae()
    transformer = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return LTXPipeline(scheduler, vae, _t5(len(tokenizer)), tokenizer, transformer)


def flux():
    """A `FluxPipeline`; its VAE keeps the stride of 8."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 77  # CLIP's
    vae = image_vae()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(),
        vae,
        _clip(len(tokenizer)),
        tokenizer,
        _t5(len(tokenizer)),
        tiny_tokenizer(),
        transformer,
    )


PIPELINES = {"cogvideox": cogvideox, "ltx": ltx, "flux": flux}
SIZES = {
    "cogvideox": {"num_frames": 9, "height": 128, "width": 144},
    "ltx": {"num_frames": 17, "height": 256, "width": 288},
    "flux": {"height": 256, "width": 272},
}


def pipeline(name: str):
    """The tiny pipeline of a family, its weights fixed by a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = PIPELINES[name]()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
