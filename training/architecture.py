"""The embedded model's parts, built from diffusers' and transformers' own classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dittools.pipelines.embedded import vocabulary as voc

FLOW_SHIFT = 3.0


@dataclass(frozen=True)
class Sizes:
    """Settings of the three networks; ``FULL`` is what ships, ``TINY`` is for tests of the training path."""

    vae: dict[str, Any]
    transformer: dict[str, Any]
    text: dict[str, Any]


def _sizes(vae_dim: int, decoder_dim: int, heads: int, layers: int, ffn: int, text_dim: int) -> Sizes:
    return Sizes(
        # Pixels are first folded 2 x 2 into channels (as in Wan 2.2's VAE), then halved twice.
        vae=dict(
            base_dim=vae_dim,
            decoder_base_dim=decoder_dim,
            z_dim=16,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=8,
            scale_factor_temporal=4,
            latents_mean=[0.0] * 16,
            latents_std=[1.0] * 16,
        ),
        transformer=dict(
            patch_size=[1, 2, 2],
            num_attention_heads=heads,
            attention_head_dim=64,
            in_channels=16,
            out_channels=16,
            text_dim=text_dim,
            freq_dim=256,
            ffn_dim=ffn,
            num_layers=layers,
            cross_attn_norm=True,
            rope_max_seq_len=256,
        ),
        text=dict(
            d_model=text_dim,
            d_kv=text_dim // 4,
            d_ff=2 * text_dim,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=32,
            dropout_rate=0.0,
        ),
    )


FULL = _sizes(vae_dim=32, decoder_dim=40, heads=6, layers=8, ffn=768, text_dim=128)
TINY = _sizes(vae_dim=8, decoder_dim=8, heads=2, layers=2, ffn=128, text_dim=32)


def build_tokenizer() -> Any:
    """A fast word-level tokenizer of the world's own words, ending every prompt with ``</s>``."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = {word: i for i, word in enumerate(voc.words())}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", known["</s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=voc.MAX_TOKENS,
    )


def build_text_encoder(sizes: Sizes) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(vocab_size=len(voc.words()), pad_token_id=0, eos_token_id=1, **sizes.text)
    return UMT5EncoderModel(config)


def build_transformer(sizes: Sizes) -> Any:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(**sizes.transformer)


def build_vae(sizes: Sizes) -> Any:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(**sizes.vae)


def build_scheduler() -> Any:
    """Wan's own solver for flow matching."""
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        num_train_timesteps=1000,
        flow_shift=FLOW_SHIFT,
    )


def build_pipeline(sizes: Sizes = FULL) -> Any:
    """A ``WanPipeline`` with random weights."""
    from diffusers import WanPipeline

    return WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=build_text_encoder(sizes).eval(),
        vae=build_vae(sizes).eval(),
        transformer=build_transformer(sizes).eval(),
        scheduler=build_scheduler(),
    )
