"""A tiny random Wan text-to-video pipeline made of diffusers' own classes, for tests on a CPU.

Nothing is downloaded: the weights are random but fixed by a seed, and the tokenizer is built in memory. The
VAE keeps Wan's strides (4 in time, 8 in space), so `frames=9, height=48, width=64` gives a token grid of 3 x
3 x 4.
"""

from __future__ import annotations

import pytest
import torch

from dittools.pipelines.compiler import why_not_compiled

COMPILES = pytest.mark.skipif(why_not_compiled() is not None, reason=str(why_not_compiled()))
WORDS = ("a", "red", "green", "blue", "circle", "square", "moves", "left", "right", "up", "down", "grey")


def tiny_tokenizer():
    """A word-level fast tokenizer over `WORDS` that ends every text with </s>, as T5's does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def tiny_transformer(*, layers: int = 3, heads: int = 2, head_dim: int = 64, seed: int = 0):
    """A random `WanTransformer3DModel` whose output depends on every layer."""
    from diffusers import WanTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            in_channels=16,
            out_channels=16,
            text_dim=32,
            freq_dim=32,
            ffn_dim=128,
            num_layers=layers,
            rope_max_seq_len=256,
        )
        # Fresh weights give nearly uniform attention; stretch q and k so that dropping keys shows in the
        # output.
        for block in model.blocks:
            block.attn1.norm_q.weight.data.fill_(2.0)
            block.attn1.norm_k.weight.data.fill_(2.0)
    return model.eval().requires_grad_(False)


def tiny_pipeline(*, layers: int = 3, heads: int = 2, head_dim: int = 64, seed: int = 0, experts: int = 1):
    """A random `WanPipeline` on the CPU in fp32.

    Args:
        layers, heads, head_dim: size of the transformer.
        seed: fixes the weights.
        experts: 2 gives Wan 2.2's pair of transformers, the second taking the low-noise half of the run.
    """
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1000)
        vae = AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
        text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer),
                d_model=32,
                d_kv=8,
                d_ff=64,
                num_layers=1,
                num_heads=4,
                dropout_rate=0.0,
                pad_token_id=0,
                eos_token_id=1,
            )
        )
    size = {"layers": layers, "heads": heads, "head_dim": head_dim}
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval().requires_grad_(False),
        vae=vae.eval().requires_grad_(False),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=tiny_transformer(seed=seed, **size),
        transformer_2=tiny_transformer(seed=seed + 1, **size) if experts == 2 else None,
        boundary_ratio=0.8 if experts == 2 else None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, *, seed: int = 0, steps: int = 4, frames: int = 17, height: int = 160, width: int = 176, **options):
    """Latents `[B, 16, F, H, W]` of one run; the default grid is 5 x 10 x 11 = 550 tokens.

    Pass `output_type="pt"` or another for decoded frames.
    """
    options = {
        "prompt": "a red circle moves left",
        "negative_prompt": "grey",
        "guidance_scale": 4.0,
        "max_sequence_length": 16,
        "output_type": "latent",
        **options,
    }
    return pipe(
        num_frames=frames,
        height=height,
        width=width,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
        **options,
    ).frames


def svg(pipe, **settings):
    """`dittools.accelerate` with svg at 0.7 after one dense step, and other settings as given."""
    import dittools

    return dittools.accelerate(pipe, **{"method": "svg", "sparsity": 0.7, "dense_steps": 1, **settings})
