"""Tiny random models of ComfyUI's own classes, as its samplers are given them.

Each is a configuration of ComfyUI's `supported_models`, small, with random weights; latents, and what a prompt brings
beside its tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch


@dataclass(frozen=True)
class Tiny:
    """One model.

    Args:
        config: class in `comfy.supported_models`. kind: class of its model.
        unet: the configuration of its model.
        latents: ``[B, C, ...]``, of each stream where there are several.
        width: of the text.
        layers: self-attention layers.
        parts: what is in its sequences beside the picture and no text: kinds with their tokens.
        text: tokens of text in its sequences, for a prompt of `TEXT` tokens; 0 where it has attention of its own.
        extra: what conditionings have beside.
        cfg: of the sampler; 1 draws without the negative prompt.
        forwards: of one step: 2 where a model takes no batch.
        of_2026: whether a ComfyUI of 2025 leaves ``extra`` out.
        refined: whether tokens of the picture have seen each other before the first block.
    """

    config: str
    kind: str
    unet: dict[str, Any]
    latents: tuple[int, ...] | tuple[tuple[int, ...], ...]
    width: int
    layers: int
    parts: tuple[tuple[str, int], ...] = ()
    text: int = 0
    extra: Callable[[], dict[str, Any]] = field(default=dict)
    cfg: float = 3.0
    forwards: int = 1
    refined: bool = False
    of_2026: bool = False


TEXT = 12
_FLUX = {
    "vec_in_dim": 32,
    "context_in_dim": 32,
    "hidden_size": 128,
    "mlp_ratio": 1.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 1,
    "axes_dim": [16, 24, 24],
    "theta": 10_000,
    "qkv_bias": True,
    "guidance_embed": True,
}
_WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 128,
    "ffn_dim": 128,
    "freq_dim": 32,
    "text_dim": 32,
    "num_heads": 2,
    "num_layers": 3,
    "in_dim": 16,
    "out_dim": 16,
}
_LTX = {
    "in_channels": 128,
    "cross_attention_dim": 128,
    "attention_head_dim": 64,
    "num_attention_heads": 2,
    "caption_channels": 32,
    "num_layers": 3,
}


def _drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))


def _references(*shape: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"reference_latents": [_drawn(*shape)]}


MODELS = {
    "Wan 2.1": Tiny("WAN21_T2V", "WanModel", _WAN, (1, 16, 4, 32, 32), 32, 3),
    "Wan 2.1 VACE": Tiny(
        "WAN21_Vace",
        "VaceWanModel",
        {**_WAN, "model_type": "vace", "vace_layers": 1, "vace_in_dim": 96, "in_dim": 16},
        (1, 16, 4, 32, 32),
        32,
        4,
    ),
    "Wan, Phantom": Tiny(
        "WAN21_T2V",
        "WanModel",
        _WAN,
        (1, 16, 4, 32, 32),
        32,
        3,
        (("reference", 256),),
        extra=lambda: {"time_dim_concat": _drawn(1, 16, 1, 32, 32)},
    ),
    "Wan, references in context": Tiny(
        "WAN21_T2V",
        "WanModel",
        _WAN,
        (1, 16, 4, 32, 32),
        32,
        3,
        (("reference", 144),),
        extra=lambda: {"context_latents": [_drawn(1, 16, 1, 24, 24)]},
        of_2026=True,
    ),
    "Wan 2.1 Fun": Tiny(
        "WAN21_T2V",
        "WanModel",
        {**_WAN, "in_dim_ref_conv": 16},
        (1, 16, 4, 32, 32),
        32,
        3,
        (("reference", 256),),
        extra=_references(1, 16, 1, 32, 32),
    ),
    "Wan 2.1 Camera": Tiny(
        "WAN21_Camera",
        "CameraWanModel",
        {**_WAN, "model_type": "t2v", "in_dim_control_adapter": 24},
        (1, 16, 4, 32, 32),
        32,
        3,
    ),
    "Wan 2.2 Animate": Tiny(
        "WAN22_Animate",
        "AnimateWanModel",
        {**_WAN, "model_type": "animate", "in_dim": 36, "num_layers": 5},
        (1, 16, 4, 32, 32),
        32,
        5,
        extra=lambda: {"pose_video_latent": _drawn(1, 16, 3, 32, 32)},
    ),
    "HuMo": Tiny(
        "WAN21_HuMo",
        "HumoWanModel",
        {**_WAN, "model_type": "humo"},
        (1, 16, 4, 32, 32),
        32,
        3,
        (("reference", 256),),
        extra=_references(1, 16, 1, 32, 32),
    ),
    "FLUX.2": Tiny(
        "Flux2",
        "Flux",
        {
            "image_model": "flux2",
            **_FLUX,
            "vec_in_dim": None,
            "in_channels": 128,
            "out_channels": 128,
            "axes_dim": [16, 16, 16, 16],
            "patch_size": 1,
            "txt_ids_dims": [3],
            "qkv_bias": False,
            "global_modulation": True,
            "mlp_silu_act": True,
            "ops_bias": False,
            "default_ref_method": "index",
            "ref_index_scale": 10.0,
        },
        (1, 128, 32, 32),
        32,
        3,
        (("reference", 256),),
        512,  # of which ComfyUI makes the prompt's
        _references(1, 128, 16, 16),
    ),
    "LTX-2": Tiny(
        "LTXAV",
        "LTXAVModel",
        {
            "image_model": "ltxav",
            **_LTX,
            "audio_in_channels": 128,
            "audio_cross_attention_dim": 128,
            "audio_attention_head_dim": 64,
            "audio_num_attention_heads": 2,
            "caption_channels": 128,
            "caption_proj_before_connector": True,
            "caption_projection_first_linear": False,
        },
        ((1, 128, 4, 16, 16), (1, 8, 20, 16)),
        256,
        3,
    ),
    "HiDream": Tiny(
        "HiDream",
        "HiDreamImageTransformer2DModel",
        {
            "image_model": "hidream",
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 2,
            "num_single_layers": 1,
            "attention_head_dim": 64,
            "num_attention_heads": 2,
            "caption_channels": [32, 32],
            "text_emb_dim": 32,
            "num_routed_experts": 2,
            "num_activated_experts": 2,
            "axes_dims_rope": (32, 16, 16),
            "llama_layers": [0, 1, 2],
        },
        (1, 16, 64, 64),
        32,
        3,
        text=TEXT + 8 + 8,
        extra=lambda: {"pooled_output": torch.zeros(1, 32), "conditioning_llama3": _drawn(1, 3, 8, 32)},
    ),
    "FLUX.1": Tiny(
        "Flux",
        "Flux",
        {
            "image_model": "flux",
            **_FLUX,
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "txt_ids_dims": [],
        },
        (1, 16, 64, 64),
        32,
        3,
        text=TEXT,
        extra=lambda: {"pooled_output": torch.zeros(1, 32)},
    ),
    "FLUX.1 Kontext": Tiny(
        "Flux",
        "Flux",
        {
            "image_model": "flux",
            **_FLUX,
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "txt_ids_dims": [],
        },
        (1, 16, 64, 64),
        32,
        3,
        (("reference", 256),),
        TEXT,
        lambda: {"pooled_output": torch.zeros(1, 32), **_references(1, 16, 32, 32)()},
    ),
    "HunyuanVideo": Tiny(
        "HunyuanVideo",
        "HunyuanVideo",
        {
            "image_model": "hunyuan_video",
            **_FLUX,
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": [1, 2, 2],
            "theta": 256,
            "byt5": False,
            "meanflow": False,
            "use_cond_type_embedding": False,
            "vision_in_dim": None,
            "meanflow_sum": False,
        },
        (1, 16, 4, 32, 32),
        32,
        3,
        text=TEXT,
        extra=lambda: {"pooled_output": torch.zeros(1, 32), "attention_mask": (torch.arange(TEXT) < 9).long()[None]},
        cfg=1.0,
    ),
    "LTX-Video": Tiny(
        "LTXV",
        "LTXVModel",
        {"image_model": "ltxv", **_LTX},
        (1, 128, 4, 16, 16),
        32,
        3,
        extra=lambda: {"attention_mask": (torch.arange(TEXT) < 9).long()[None]},
    ),
    "Qwen-Image": Tiny(
        "QwenImage",
        "QwenImageTransformer2DModel",
        {
            "image_model": "qwen_image",
            "in_channels": 64,
            "out_channels": 16,
            "num_layers": 3,
            "attention_head_dim": 64,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "axes_dims_rope": (16, 24, 24),
        },
        (1, 16, 1, 64, 64),
        32,
        3,
        text=TEXT,
    ),
    "Qwen-Image-Edit": Tiny(
        "QwenImage",
        "QwenImageTransformer2DModel",
        {
            "image_model": "qwen_image",
            "in_channels": 64,
            "out_channels": 16,
            "num_layers": 3,
            "attention_head_dim": 64,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "axes_dims_rope": (16, 24, 24),
        },
        (1, 16, 1, 64, 64),
        32,
        3,
        (("reference", 256),),
        TEXT,
        _references(1, 16, 1, 32, 32),
    ),
    "Chroma": Tiny(
        "Chroma",
        "Chroma",
        {
            "image_model": "chroma",
            "in_channels": 64,
            "out_channels": 64,
            "context_in_dim": 32,
            "hidden_size": 128,
            "mlp_ratio": 1.0,
            "num_heads": 2,
            "depth": 2,
            "depth_single_blocks": 1,
            "axes_dim": [16, 24, 24],
            "theta": 10_000,
            "patch_size": 2,
            "qkv_bias": True,
            "in_dim": 64,
            "out_dim": 128,
            "hidden_dim": 64,
            "n_layers": 1,
            "txt_ids_dims": [],
            "vec_in_dim": None,
        },
        (1, 16, 64, 64),
        32,
        3,
        text=TEXT,
        extra=lambda: {"pooled_output": torch.zeros(1, 32)},
    ),
    "Z-Image": Tiny(
        "ZImage",
        "NextDiT",
        {
            "image_model": "lumina2",
            "patch_size": 2,
            "in_channels": 16,
            "dim": 256,
            "cap_feat_dim": 32,
            "n_layers": 3,
            "n_refiner_layers": 1,
            "n_heads": 4,
            "n_kv_heads": 4,
            "qk_norm": True,
            "axes_dims": [16, 24, 24],
            "axes_lens": [512, 256, 256],
            "rope_theta": 256.0,
            "ffn_dim_multiplier": 1.0,
            "z_image_modulation": True,
            "pad_tokens_multiple": 32,
            "time_scale": 1000.0,
        },
        (1, 16, 62, 62),
        32,
        3,
        text=32 + 31,  # text and picture are filled up to groups of 32
        refined=True,
    ),
    "Cosmos Predict 2": Tiny(
        "CosmosT2IPredict2",
        "MiniTrainDIT",
        {
            "image_model": "cosmos_predict2",
            "max_img_h": 240,
            "max_img_w": 240,
            "max_frames": 128,
            "in_channels": 16,
            "out_channels": 16,
            "patch_spatial": 2,
            "patch_temporal": 1,
            "model_channels": 128,
            "num_blocks": 3,
            "num_heads": 2,
            "crossattn_emb_channels": 32,
            "pos_emb_cls": "rope3d",
            "use_adaln_lora": True,
            "adaln_lora_dim": 32,
        },
        (1, 16, 4, 32, 32),
        32,
        3,
    ),
    "Kandinsky 5": Tiny(
        "Kandinsky5",
        "Kandinsky5",
        {
            "image_model": "kandinsky5",
            "in_text_dim": 32,
            "in_text_dim2": 32,
            "time_dim": 64,
            "model_dim": 128,
            "ff_dim": 128,
            "visual_embed_dim": 132,
            "num_text_blocks": 1,
            "num_visual_blocks": 3,
            "axes_dims": (16, 24, 24),
        },
        (1, 16, 4, 32, 32),
        32,
        3,
        extra=lambda: {"pooled_output": torch.zeros(1, 32)},
    ),
    "CogVideoX": Tiny(
        "CogVideoX_T2V",
        "CogVideoXTransformer3DModel",
        {
            "image_model": "cogvideox",
            "num_attention_heads": 2,
            "attention_head_dim": 64,
            "in_channels": 16,
            "out_channels": 16,
            "time_embed_dim": 32,
            "text_embed_dim": 32,
            "num_layers": 3,
            "sample_width": 32,
            "sample_height": 32,
            "sample_frames": 13,
            "max_text_seq_length": TEXT,
            "use_rotary_positional_embeddings": True,
        },
        (1, 16, 4, 32, 32),
        32,
        3,
        text=TEXT,
    ),
    "MiniMax-H3": Tiny(
        "MiniMaxH3",
        "MiniMaxH3Model",
        {
            "image_model": "minimax_h3",
            "hidden_size": 128,
            "num_layers": 3,
            "token_refiner_num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 128,
            "ffn_hidden_size": 128,
            "text_dim": 32,
            "timestep_input_dim": 32,
            "time_embed_hidden_size": 64,
            "time_embed_dim": 32,
        },
        ((1, 24, 4, 32, 32), (1, 32, 2, 10)),
        32,
        3,
        (("sound", 20),),
        TEXT,
        forwards=2,
    ),
}


def _built(tiny: Tiny) -> torch.nn.Module:
    """The model, without what a ComfyUI of some months ago does not know of its configuration."""
    import comfy.supported_models

    kind = getattr(comfy.supported_models, tiny.config, None)
    if tiny.of_2026:
        pytest.importorskip("comfy.nested_tensor")
    if kind is None:
        pytest.skip(f"this ComfyUI has no {tiny.config}")
    given = dict(tiny.unet)
    while True:
        config = kind(given)
        config.set_inference_dtype(torch.float32, None)
        try:
            return config.get_model({})
        except TypeError as error:
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unknown is None or unknown[1] not in given:
                raise
            del given[unknown[1]]


def make(tiny: Tiny) -> Any:
    """ComfyUI's MODEL of a tiny model, on the CPU in fp32."""
    import comfy.model_patcher

    model = _built(tiny)
    draws = torch.Generator().manual_seed(0)
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("inv_freq"):
            weight.copy_(1 / 10_000 ** torch.linspace(0, 1, weight.numel()))
        elif name.startswith("diffusion_model.") and weight.is_floating_point() and weight.numel():
            # A weight of a norm scales: near 1, and larger for queries and keys, so that skipped keys show.
            scale = 2.0 if weight.ndim == 1 and name.endswith(("q.weight", "k.weight", "norm.scale")) else 1.0
            drawn = torch.randn(weight.shape, generator=draws)
            weight.data.copy_(scale + drawn / 10 if weight.ndim == 1 and "norm" in name else drawn / 20)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def prompts_of(tiny: Tiny, seed: int = 1) -> list[Any]:
    """A prompt and a negative one, as ComfyUI has conditionings."""
    drawn = (torch.randn(1, TEXT, tiny.width, generator=torch.Generator().manual_seed(seed + i)) for i in range(2))
    return [[[tokens, tiny.extra()]] for tokens in drawn]


def latents_of(tiny: Tiny) -> Any:
    """Empty latents; several streams in one."""
    if not isinstance(tiny.latents[0], tuple):
        return torch.zeros(tiny.latents)
    import comfy.nested_tensor

    return comfy.nested_tensor.NestedTensor([torch.zeros(shape) for shape in tiny.latents])


def streams(latents: Any) -> list[torch.Tensor]:
    """The picture, and what is beside it."""
    return list(latents.unbind()) if getattr(latents, "is_nested", False) else [latents]


def draw(
    model: Any,
    tiny: Tiny,
    steps: int = 3,
    sampler: str = "euler",
    *,
    prompts: Any = None,
    noise: Any = None,
    **how: Any,
) -> torch.Tensor:
    """What ComfyUI's own sampling gives, all streams in one."""
    import comfy.sample

    latents = latents_of(tiny)
    noise = comfy.sample.prepare_noise(latents, 0) if noise is None else noise
    positive, negative = prompts or prompts_of(tiny)
    given = {"sampler_name": "euler", "scheduler": "simple", "disable_pbar": True, "seed": 0, **how}
    given |= {"positive": positive, "negative": negative, "latent_image": latents}
    with torch.inference_mode():
        out = comfy.sample.sample(model, noise, steps, tiny.cfg, **given)
    return torch.cat([one.flatten() for one in streams(out)]) if len(streams(out)) > 1 else out
