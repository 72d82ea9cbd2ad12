"""Tiny random transformers of every family's own class, and arguments for one forward of each.

Sizes are in tokens: a grid of F x H x W tokens and ``TEXT`` text tokens. Two samples of a batch differ in
their text's length where the family takes a mask of it.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask

from dittools.benchmarks.speed_only import images

TEXT = 7
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Tiny:
    """One row of the table.

    Args:
        config: of the transformer's class.
        arguments: makes a forward's arguments from (grid, batch size).
        axes: of the latents and of the output: b, c, f, h, w, n (tokens); "list" for one ``cfhw``, or ``1cfhw``, a
            sample.
        patch: latents in a token along f, h and w.
        text: names of the arguments that hold text features.
        pools: path of a module that makes a pooled text part of the modulation, beside attention.
        ahead: tokens in front of the picture's in latents and output of axes "bnc".
    """

    config: dict[str, Any]
    arguments: Callable[[Grid, int], dict[str, Any]]
    axes: str
    patch: Grid = (1, 2, 2)
    text: tuple[str, ...] = ("encoder_hidden_states",)
    pools: str | None = None
    ahead: int = 0


def noise(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(hash(shape) % 1000)
    return torch.randn(*shape, generator=generator)


def timestep(batch: int, scale: float = 1.0) -> torch.Tensor:
    return torch.full((batch,), 500.0) * scale


def latents(axes: str, grid: Grid, batch: int, channels: int, patch: Grid) -> torch.Tensor:
    """Noise for latents with these axes."""
    sizes = {"b": batch, "c": channels, "n": grid[0] * grid[1] * grid[2]}
    sizes |= {axis: n * p for axis, n, p in zip("fhw", grid, patch, strict=True)}
    return noise(*(sizes[axis] for axis in axes))


def text(batch: int, channels: int, length: int = TEXT) -> torch.Tensor:
    return noise(batch, length, channels)


def shown(batch: int, length: int = TEXT) -> torch.Tensor:
    """A padding mask ``[batch, length]``: the second sample's text is shorter."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1:, length - 3 :] = 0
    return mask


def image_ids(grid: Grid, columns: int = 3) -> torch.Tensor:
    """(image, row, column, ..) of every token."""
    return images.image_ids(*grid[1:], columns)


def _video(config: dict, *, axes: str = "bcfhw", patch: Grid = (1, 2, 2), channels: int = 4, **more) -> Tiny:
    """A family whose forward takes latents, a timestep and text of ``text_dim`` channels."""
    text_dim = more.pop("text_dim", config.get("text_dim", 16))
    extra = more.pop("extra", lambda grid, batch: {})

    def arguments(grid: Grid, batch: int) -> dict[str, Any]:
        return {
            "hidden_states": latents(axes, grid, batch, channels, patch),
            "timestep": timestep(batch, more.get("clock", 1.0)),
            "encoder_hidden_states": text(batch, text_dim),
            **extra(grid, batch),
        }

    kept = {name: value for name, value in more.items() if name != "clock"}
    return Tiny(config, arguments, axes, patch, **kept)


_WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}


def _without(config: dict, *names: str) -> dict:
    return {name: value for name, value in config.items() if name not in names}


_HUNYUAN = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "patch_size": 2,
    "patch_size_t": 1,
    "text_embed_dim": 16,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (2, 4, 4),
    "guidance_embeds": False,
}

_FLUX = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 4, 8),
}


def _flux(config: dict, columns: int = 3, clock: float = 0.001, **more) -> Tiny:
    def extra(grid: Grid, batch: int) -> dict[str, Any]:
        found = {"img_ids": image_ids(grid, columns), "txt_ids": torch.zeros(TEXT, columns)}
        if config.get("pooled_projection_dim"):
            found["pooled_projections"] = noise(batch, config["pooled_projection_dim"])
        return found | (more["extra"](grid, batch) if "extra" in more else {})

    return _video(
        config,
        axes="bnc",
        patch=(1, 1, 1),
        channels=config["in_channels"],
        text_dim=config["joint_attention_dim"],
        clock=clock,
        extra=extra,
    )


def _framepack(grid: Grid, batch: int) -> dict[str, Any]:
    f, h, w = grid[0], grid[1] * 2, grid[2] * 2
    return {
        "encoder_attention_mask": shown(batch),
        "pooled_projections": noise(batch, 8),
        "image_embeds": noise(batch, 5, 16),
        "indices_latents": torch.arange(f),
        "latents_clean": noise(batch, 4, 2, h, w),
        "indices_latents_clean": torch.arange(2),
        "latents_history_2x": noise(batch, 4, 2, h, w),
        "indices_latents_history_2x": torch.arange(2),
        "latents_history_4x": noise(batch, 4, 5, h, w),
        "indices_latents_history_4x": torch.arange(5),
    }


def _helios(grid: Grid, batch: int) -> dict[str, Any]:
    f, h, w = grid[0], grid[1] * 2, grid[2] * 2
    found = {"indices_hidden_states": torch.arange(f).expand(batch, -1).float()}
    for name, frames in (("short", 1), ("mid", 2), ("long", 4)):
        found[f"latents_history_{name}"] = noise(batch, 4, frames, h, w)
        found[f"indices_latents_history_{name}"] = torch.arange(frames).expand(batch, -1).float()
    return found


def _animate(grid: Grid, batch: int) -> dict[str, Any]:
    f, h, w = grid[0], grid[1] * 2, grid[2] * 2
    return {
        "encoder_hidden_states_image": noise(batch, 5, 16),
        "pose_hidden_states": noise(batch, 4, f - 1, h, w),
        # its face encoder makes a latent of four frames
        "face_pixel_values": noise(batch, 3, 4 * (f - 2) + 1, 16, 16),
    }


_COGVIDEO = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 16,
    "num_layers": 2,
    "sample_width": 18,
    "sample_height": 16,
    "sample_frames": 9,
    "patch_size": 2,
    "temporal_compression_ratio": 4,
    "max_text_seq_length": TEXT,
    "use_rotary_positional_embeddings": True,
}


def _rope(grid: Grid, batch: int) -> dict[str, Any]:
    tokens = grid[0] * grid[1] * grid[2]
    return {"image_rotary_emb": (noise(tokens, 16).cos(), noise(tokens, 16).sin())}


def _sizes(grid: Grid, batch: int) -> dict[str, Any]:
    return {name: torch.tensor([[64.0, 64.0]] * batch) for name in ("original_size", "target_size", "crop_coords")}


def _hunyuan_image(grid: Grid, batch: int) -> dict[str, Any]:
    return {
        "encoder_attention_mask": shown(batch),
        "encoder_hidden_states_2": noise(batch, 4, 8),
        "encoder_attention_mask_2": shown(batch, 4),
    }


def _krea(grid: Grid, batch: int) -> dict[str, Any]:
    return {
        "encoder_hidden_states": noise(batch, TEXT, 3, 16),
        "position_ids": torch.cat((torch.zeros(TEXT, 3), image_ids(grid))),
        "encoder_attention_mask": shown(batch).bool(),
    }


def _allegro_rope(grid: Grid, batch: int) -> dict[str, Any]:
    f, h, w = grid
    tokens = f * h * w
    at = torch.arange(tokens)
    places = tuple(x.view(1, -1) for x in (at // (h * w), at % (h * w) // w, at % w))
    table = tuple((noise(n, 8).cos(), noise(n, 8).sin()) for n in grid)
    return {"image_rotary_emb": (table, places)}


def _z_image(grid: Grid, batch: int) -> dict[str, Any]:
    f, h, w = grid
    return {
        "x": [noise(4, f, h * 2, w * 2) for _ in range(batch)],
        "cap_feats": [noise(TEXT + 40 * i, 16) for i in range(batch)],
        "t": timestep(batch, 0.001),
    }


def _hidream(grid: Grid, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": latents("bchw", grid, batch, 4, (1, 2, 2)),
        "timesteps": timestep(batch),
        "encoder_hidden_states_t5": text(batch, 8),
        "encoder_hidden_states_llama3": noise(2, batch, TEXT, 8),
        "pooled_embeds": noise(batch, 8),
    }


def _ernie(grid: Grid, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": latents("bchw", grid, batch, 8, (1, 1, 1)),
        "timestep": timestep(batch),
        "text_bth": text(batch, 16),
        "text_lens": shown(batch).sum(1),
    }


def minimax_h3(grid: Grid, batch: int, anchors: tuple[str, ...] = (), sound: int = 5) -> dict[str, Any]:
    """Arguments as diffusers' own blocks pack them: text, keyframes, sound in two channels, and the video last."""
    from diffusers.modular_pipelines.minimax_h3 import before_denoise as blocks

    f, h, w = grid
    of = {"patch_size": (1, 2, 2), "audio_channels": 2, "audio_tag": 2, "video_tag": 0, "keyframe_anchors": anchors}
    packed = blocks.MiniMaxH3PrepareLayoutStep.build_packed_sequence(torch.ones(TEXT), f, 2 * h, 2 * w, sound, **of)
    return minimax_h3_rows(batch, *packed)


def minimax_h3_rows(
    batch, position_ids, token_tags, video, audio, text_rows, given_video, given_audio
) -> dict[str, Any]:
    """Arguments of a packed sequence; what is given is nearly clean, and sound is ahead of the video."""
    from diffusers.modular_pipelines.minimax_h3 import before_denoise as blocks

    timesteps = (500.0, 600.0, 999.0, 1000.0)
    values, rows = blocks.MiniMaxH3SetTimestepsStep.build_row_timesteps(
        video, audio, given_video, given_audio, len(text_rows), *timesteps
    )
    return {
        "hidden_states": noise(batch, len(video), 96),
        "audio_hidden_states": noise(batch, len(audio), 32),
        "encoder_hidden_states": noise(batch, len(text_rows), 16),
        "timestep": values,
        "timestep_indices": rows,
        "token_tags": token_tags,
        "position_ids": position_ids,
        "video_indices": video,
        "audio_indices": audio,
        "text_indices": text_rows,
    }


def cosmos_3(grid: Grid, batch: int, beside: tuple[Grid, ...] = (), sound: int = 5, actions: int = 3) -> dict[str, Any]:
    """One packed sample, whatever the batch: text, pictures that are given, the video, sound, and actions."""
    shapes = [*beside, grid]
    sizes = [math.prod(shape) for shape in shapes]
    at = [torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij")).flatten(1) + 20 for shape in shapes]
    lines = [torch.arange(count).expand(3, -1) + start for count, start in ((TEXT, 0), (sound, 20), (actions, 20))]
    ends = list(itertools.accumulate((TEXT, sum(sizes), sound, actions)))
    found = {
        "input_ids": torch.arange(TEXT) * 3,
        "text_indexes": torch.arange(TEXT),
        "position_ids": torch.cat((lines[0], *at, *lines[1:]), 1),
        "und_len": TEXT,
        "sequence_length": ends[-1],
        "vision_tokens": [noise(1, 4, f, 2 * h, 2 * w) for f, h, w in shapes],
        "vision_token_shapes": shapes,
        "vision_sequence_indexes": torch.arange(TEXT, ends[1]),
        "vision_mse_loss_indexes": torch.arange(ends[1] - sizes[-1], ends[1]),
        "vision_timesteps": torch.full((sizes[-1],), 500.0),
        "vision_noisy_frame_indexes": [torch.arange(0)] * len(beside) + [torch.arange(grid[0])],
        "sound_tokens": [noise(4, sound)],
        "action_tokens": [noise(actions, 4)],
        "action_domain_ids": [torch.tensor(1)],
    }
    for name, count, end in (("sound", sound, ends[2]), ("action", actions, ends[3])):
        places = torch.arange(end - count, end)
        found |= {f"{name}_sequence_indexes": places, f"{name}_mse_loss_indexes": places}
        found |= {f"{name}_token_shapes": [(count, 1, 1)], f"{name}_timesteps": torch.full((count,), 500.0)}
        found[f"{name}_noisy_frame_indexes"] = [torch.arange(count)]
    return found


FAR = {"full_chunk_limit": 2, "compressed_patch_size": (1, 4, 4)}


def _far(grid: Grid, batch: int) -> dict[str, Any]:
    """The third chunk of frames: the first is kept coarse, the second, of two frames, as it is."""
    f, h, w = grid

    def kept(*tokens: int) -> torch.Tensor:
        return noise(2, batch, 2, math.prod(tokens), 12)

    return {
        "timestep": torch.full((batch, f), 500.0),
        "r_timestep": torch.full((batch, f), 250.0),
        "chunk_partition": [1, 2, f],
        "kv_cache": [{"full_cache": kept(2, f, h, w), "compressed_cache": kept(3, h, w)} for _ in range(2)],
        "kv_cache_flag": {"num_cached_chunks": 2, "is_cache_step": False},
    }


def _animate_2(grid: Grid, batch: int) -> dict[str, Any]:
    """A denoising call, with the kept keys of a reference video of a frame less."""
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    f, h, w = grid
    cache = WanAnimate2KVCache(2)
    for layer in cache.layer_caches:
        layer.store(noise(batch, (f - 1) * h * w, 2, 16), noise(batch, (f - 1) * h * w, 2, 16) + 1)
    return {
        "hidden_states": [noise(4, f, 2 * h, 2 * w) for _ in range(batch)],
        "condition_latents": [noise(4, f, 2 * h, 2 * w) + 1 for _ in range(batch)],
        "timestep": timestep(batch),
        "encoder_hidden_states": [noise(TEXT - 3 * (i > 0), 16) for i in range(batch)],
        "kv_cache": cache,
        "kv_cache_mode": "cached",
        "seq_len": f * h * w,
        "reference_grid_sizes": torch.tensor([[f - 1, h, w]] * batch),
        "origin_len": 4 * (f - 2) + 1,
        "origin_area": [16 * h, 16 * w],
    }


def _omnigen(grid: Grid, batch: int) -> dict[str, Any]:
    """As its pipeline makes them: an input image of 2 x 2 tokens in the prompts, padding in front of the shorter."""
    from diffusers.pipelines.omnigen.processor_omnigen import OmniGenCollator

    _, h, w = grid
    prompts = [
        {
            "pixel_values": [torch.zeros(3, 32, 32)],
            "image_sizes": [[2, 6]],
            "input_ids": list(range(1, TEXT + 3 - 2 * (i > 0))),
        }
        for i in range(batch)
    ]
    made = OmniGenCollator(0, 32).process_mllm_input(prompts, [[16 * h, 16 * w]] * batch)
    ids, places, mask, _, _, sizes = made
    return {
        "hidden_states": latents("bchw", grid, batch, 4, (1, 2, 2)),
        "timestep": timestep(batch),
        "input_ids": ids,
        "input_img_latents": [noise(1, 4, 4, 4) for _ in range(batch)],
        "input_image_sizes": sizes,
        "attention_mask": mask,
        "position_ids": places,
    }


def _ideogram(grid: Grid, batch: int) -> dict[str, Any]:
    """As its pipeline makes them: padding, text and picture."""
    from diffusers import Ideogram4Pipeline

    _, h, w = grid
    lengths = [TEXT - 3 * (i > 0) for i in range(batch)]
    ids, segments, indicator = Ideogram4Pipeline._prepare_ids(lengths, h, w, TEXT, torch.device("cpu"))
    return {
        "hidden_states": torch.cat((torch.zeros(batch, TEXT, 8), noise(batch, h * w, 8)), 1),
        "timestep": timestep(batch, 0.001),
        "encoder_hidden_states": noise(batch, TEXT + h * w, 16),
        "position_ids": ids,
        "segment_ids": segments,
        "indicator": indicator,
    }


TINY: dict[str, Tiny] = {
    "wan": _video(_WAN),
    "wan-vace": _video(
        _WAN | {"vace_layers": [0], "vace_in_channels": 8},
        extra=lambda grid, batch: {"control_hidden_states": latents("bcfhw", grid, batch, 8, (1, 2, 2))},
    ),
    "wan-animate": _video(
        _WAN
        | {
            "in_channels": 12,
            "latent_channels": 4,
            "image_dim": 16,
            "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16},
            "motion_encoder_size": 16,
            "motion_style_dim": 8,
            "motion_dim": 4,
            "motion_encoder_dim": 16,
            "face_encoder_hidden_dim": 16,
            "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 2,
        },
        channels=12,
        extra=_animate,
    ),
    "chronoedit": _video(_WAN | {"rope_temporal_skip_len": 8}),
    "skyreels-v2": _video(_WAN),
    "anyflow": _video(
        _WAN | {"gate_value": 0.25, "deltatime_type": "r"},
        axes="bfchw",
        extra=lambda grid, batch: {
            "timestep": torch.full((batch, grid[0]), 500.0),
            "r_timestep": torch.full((batch, grid[0]), 250.0),
        },
    ),
    "anyflow-far": _video(_WAN | {"gate_value": 0.25, "deltatime_type": "r"} | FAR, axes="bfchw", extra=_far),
    "wan-animate-2": Tiny(
        {
            "text_len": TEXT,
            "in_dim": 8,
            "dim": 32,
            "ffn_dim": 32,
            "freq_dim": 16,
            "text_dim": 16,
            "out_dim": 4,
            "num_heads": 2,
            "num_layers": 2,
            "use_img_emb": False,
        },
        _animate_2,
        axes="list",
    ),
    "helios": _video(
        _without(_WAN, "rope_max_seq_len")
        | {"rope_dim": (4, 4, 4), "has_multi_term_memory_patch": True, "guidance_cross_attn": True},
        extra=_helios,
    ),
    "hunyuan-video": _video(
        _HUNYUAN,
        extra=lambda grid, batch: {"encoder_attention_mask": shown(batch), "pooled_projections": noise(batch, 8)},
    ),
    "hunyuan-video-1.5": _video(
        _without(_HUNYUAN, "num_single_layers", "pooled_projection_dim", "guidance_embeds")
        | {"patch_size": 1, "text_embed_2_dim": 8, "image_embed_dim": 12, "target_size": 16, "task_type": "t2v"},
        patch=(1, 1, 1),
        extra=lambda grid, batch: {
            "encoder_attention_mask": shown(batch),
            "encoder_hidden_states_2": noise(batch, 4, 8),
            "encoder_attention_mask_2": shown(batch, 4),
            "image_embeds": torch.zeros(batch, 3, 12),
        },
    ),
    "framepack": _video(
        _HUNYUAN | {"has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True},
        extra=_framepack,
    ),
    "cogvideox": _video(_COGVIDEO, axes="bfchw", extra=_rope),
    "consisid": _video(
        _COGVIDEO
        | {
            "cross_attn_interval": 1,
            "is_train_face": True,
            "cross_attn_dim_head": 1,
            "cross_attn_num_heads": 1,
            "LFE_id_dim": 2,
            "LFE_vit_dim": 2,
            "LFE_depth": 5,
            "LFE_dim_head": 8,
            "LFE_num_heads": 2,
            "LFE_num_id_token": 1,
            "LFE_num_querie": 1,
            "LFE_output_dim": 21,
            "LFE_ff_mult": 1,
            "LFE_num_scale": 1,
        },
        axes="bfchw",
        extra=lambda grid, batch: (
            _rope(grid, batch) | {"id_vit_hidden": [noise(batch, 2, 2)], "id_cond": noise(batch, 2)}
        ),
    ),
    "ltx": _video(
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 16,
            "num_layers": 2,
            "caption_channels": 16,
        },
        axes="bnc",
        patch=(1, 1, 1),
        extra=lambda grid, batch: {
            "encoder_attention_mask": shown(batch),
            **dict(zip(("num_frames", "height", "width"), grid, strict=True)),
        },
    ),
    "ltx-2": _video(
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 16,
            "audio_in_channels": 4,
            "audio_out_channels": 4,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 4,
            "audio_cross_attention_dim": 8,
            # one layer: what the sound takes from one frame would come back to all others in the next
            "num_layers": 1,
            "caption_channels": 16,
            "rope_double_precision": False,
        },
        axes="bnc",
        patch=(1, 1, 1),
        extra=lambda grid, batch: {
            "audio_hidden_states": noise(batch, 9, 4),
            "audio_encoder_hidden_states": noise(batch, TEXT, 16),
            "encoder_attention_mask": shown(batch).bool(),
            "audio_num_frames": 9,
            "fps": 25.0,
            **dict(zip(("num_frames", "height", "width"), grid, strict=True)),
        },
    ),
    "mochi": _video(
        {
            "patch_size": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 4,
            "max_sequence_length": TEXT,
        },
        extra=lambda grid, batch: {"encoder_attention_mask": shown(batch).bool()},
        pools="time_embed",
    ),
    "allegro": _video(
        {
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "cross_attention_dim": 48,
            "sample_width": 18,
            "sample_height": 16,
            "sample_frames": 3,
            "caption_channels": 16,
        },
        extra=lambda grid, batch: (
            _allegro_rope(grid, batch)
            | {
                "attention_mask": torch.ones(batch, grid[0], grid[1] * 2, grid[2] * 2),
                "encoder_attention_mask": shown(batch),
            }
        ),
    ),
    "easyanimate": _video(
        {
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "in_channels": 4,
            "mmdit_layers": 1,
            "num_layers": 2,
            "out_channels": 4,
            "patch_size": 2,
            "sample_height": 60,
            "sample_width": 90,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
        },
    ),
    "cosmos": _video(
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 2,
            "mlp_ratio": 2,
            "text_embed_dim": 16,
            "adaln_lora_dim": 4,
            "max_size": (4, 64, 64),
            "patch_size": (1, 2, 2),
            "concat_padding_mask": False,
            "extra_pos_embed_type": "learnable",
        },
        extra=lambda grid, batch: {"fps": 30, "padding_mask": torch.zeros(1, 1, grid[1] * 2, grid[2] * 2)},
    ),
    "kandinsky-5": _video(
        {
            "in_visual_dim": 4,
            "in_text_dim": 16,
            "in_text_dim2": 8,
            "time_dim": 16,
            "out_visual_dim": 4,
            "model_dim": 64,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "axes_dims": (8, 12, 12),
        },
        axes="bfhwc",
        extra=lambda grid, batch: {
            "pooled_projections": noise(batch, 8),
            "visual_rope_pos": tuple(torch.arange(n) for n in grid),
            "text_rope_pos": torch.arange(TEXT),
        },
    ),
    "motif-video": _video(
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_decoder_layers": 0,
            "patch_size": 2,
            "text_embed_dim": 16,
            "image_embed_dim": 4,
            "rope_axes_dim": (4, 4, 4),
            "enable_text_cross_attention_dual": False,
            "enable_text_cross_attention_single": False,
        },
        extra=lambda grid, batch: {"encoder_attention_mask": shown(batch)},
    ),
    "flux": _flux(_FLUX | {"pooled_projection_dim": 8}),
    "flux-2": _flux(
        _FLUX | {"axes_dims_rope": (4, 4, 4, 4), "timestep_guidance_channels": 256, "guidance_embeds": False}, columns=4
    ),
    "chroma": _flux(
        _FLUX | {"approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1},
        extra=lambda grid, batch: {
            "attention_mask": torch.cat(
                (shown(batch), torch.ones(batch, grid[0] * grid[1] * grid[2], dtype=torch.long)), 1
            ).bool()
        },
    ),
    "bria": _flux(
        _FLUX | {"attention_head_dim": 8, "axes_dims_rope": (0, 4, 4), "pooled_projection_dim": None}, clock=1.0
    ),
    "bria-fibo": _flux(
        _FLUX
        | {"attention_head_dim": 8, "axes_dims_rope": (0, 4, 4), "pooled_projection_dim": None, "text_encoder_dim": 8},
        clock=1.0,
        extra=lambda grid, batch: {"text_encoder_layers": [noise(batch, TEXT, 8), noise(batch, TEXT, 8)]},
    ),
    "longcat-image": _flux(_FLUX),
    "ovis-image": _flux(_FLUX | {"out_channels": 4}),
    "sd3": _video(
        {
            "sample_size": 32,
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 3,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "caption_projection_dim": 32,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 8,
            "out_channels": 4,
            "pos_embed_max_size": 96,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
        axes="bchw",
        extra=lambda grid, batch: {"pooled_projections": noise(batch, 8)},
    ),
    "qwen-image": _video(
        {
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (8, 4, 4),
        },
        axes="bnc",
        patch=(1, 1, 1),
        channels=16,
        clock=0.001,
        extra=lambda grid, batch: {"img_shapes": [[grid]] * batch, "encoder_hidden_states_mask": shown(batch)},
    ),
    "z-image": Tiny(
        {
            "all_patch_size": (2,),
            "all_f_patch_size": (1,),
            "in_channels": 4,
            "dim": 32,
            "n_layers": 1,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 16,
            "axes_dims": [8, 4, 4],
            "axes_lens": [256, 64, 64],
        },
        _z_image,
        axes="list",
        text=("cap_feats",),
    ),
    "lumina-2": _video(
        {
            "sample_size": 32,
            "patch_size": 2,
            "in_channels": 4,
            "hidden_size": 48,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 6,
            "num_kv_heads": 2,
            "multiple_of": 2,
            "axes_dim_rope": (4, 2, 2),
            "axes_lens": (128, 128, 128),
            "cap_feat_dim": 16,
        },
        axes="bchw",
        clock=0.001,
        # texts of one length: it packs every text and its image together, so others shift the image
        extra=lambda grid, batch: {"encoder_attention_mask": shown(1).bool().expand(batch, -1)},
    ),
    "hidream": Tiny(
        {
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "caption_channels": [8, 8],
            "text_emb_dim": 8,
            "num_routed_experts": 2,
            "num_activated_experts": 2,
            "axes_dims_rope": (4, 2, 2),
            "max_resolution": (32, 32),
            "llama_layers": (0, 1),
            "force_inference_output": True,
        },
        _hidream,
        axes="bchw",
        text=("encoder_hidden_states_t5", "encoder_hidden_states_llama3"),
    ),
    "hunyuan-image": _video(
        _without(_HUNYUAN, "patch_size_t", "pooled_projection_dim")
        | {"patch_size": (1, 1), "rope_axes_dim": (4, 6), "text_embed_2_dim": 8},
        axes="bchw",
        patch=(1, 1, 1),
        extra=_hunyuan_image,
    ),
    "pixart": _video(
        {
            "sample_size": 32,
            "num_layers": 2,
            "patch_size": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "in_channels": 4,
            "cross_attention_dim": 16,
            "out_channels": 4,
            "use_additional_conditions": False,
            "caption_channels": None,
        },
        axes="bchw",
        extra=lambda grid, batch: {"encoder_attention_mask": shown(batch)},
    ),
    "cogview-4": _video(
        {
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "out_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "condition_dim": 4,
        },
        axes="bchw",
        extra=_sizes,
    ),
    "cogview-3-plus": _video(
        {
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "out_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "condition_dim": 4,
            "pos_embed_max_size": 32,
            "sample_size": 32,
        },
        axes="bchw",
        extra=_sizes,
    ),
    "glm-image": _video(
        {
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "text_embed_dim": 16,
            "time_embed_dim": 16,
            "condition_dim": 8,
            "prior_vq_quantizer_codebook_size": 64,
        },
        axes="bchw",
        extra=lambda grid, batch: {
            "prior_token_id": torch.zeros(batch, grid[1] * grid[2], dtype=torch.long),
            "prior_token_drop": torch.zeros(batch, grid[1] * grid[2], dtype=torch.bool),
            **{name: value for name, value in _sizes(grid, batch).items() if name != "original_size"},
        },
    ),
    "auraflow": _video(
        {
            "sample_size": 32,
            "patch_size": 2,
            "in_channels": 4,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "caption_projection_dim": 32,
            "joint_attention_dim": 16,
            "out_channels": 4,
            "pos_embed_max_size": 1024,
        },
        axes="bchw",
        clock=0.001,
    ),
    "krea-2": _video(
        {
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "timestep_embed_dim": 8,
            "text_hidden_dim": 16,
            "num_text_layers": 3,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 1,
            "text_intermediate_size": 16,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 2, 2),
        },
        axes="bnc",
        patch=(1, 1, 1),
        clock=0.001,
        extra=_krea,
    ),
    "ernie-image": Tiny(
        {
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_layers": 2,
            "ffn_hidden_size": 16,
            "in_channels": 8,
            "out_channels": 8,
            "patch_size": 1,
            "text_in_dim": 16,
            "rope_axes_dim": (8, 4, 4),
        },
        _ernie,
        axes="bchw",
        patch=(1, 1, 1),
        text=("text_bth",),
    ),
    "joyimage": _video(
        {
            "patch_size": [1, 2, 2],
            "in_channels": 4,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "text_dim": 16,
            "num_layers": 2,
            "rope_dim_list": [4, 6, 6],
            "theta": 256,
        },
    ),
    "minimax-h3": Tiny(
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "hidden_size": 32,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "ffn_dim": 32,
            "in_channels": 24,
            "audio_in_channels": 32,
            "text_dim": 16,
            "freq_dim": 16,
            "time_embed_hidden_dim": 16,
            "time_embed_dim": 16,
            "rope_freq_dim": 2,
        },
        minimax_h3,
        axes="bnc",
        patch=(1, 1, 1),
    ),
    "cosmos-3": Tiny(
        {
            "head_dim": 16,
            "hidden_size": 32,
            "intermediate_size": 32,
            "latent_channel": 4,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "patch_latent_dim": 16,
            "sound_dim": 4,
            "sound_gen": True,
            "action_dim": 4,
            "action_gen": True,
            "num_embodiment_domains": 2,
            "vocab_size": 64,
            "rope_axes_dim": (4, 2, 2),
        },
        cosmos_3,
        axes="list",
        text=("input_ids",),
    ),
    "nucleus-image": _video(
        {
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (8, 4, 4),
            "mlp_ratio": 12.0,
            # experts choose among all tokens, so that a change of some would reach others beside attention
            "moe_enabled": False,
        },
        axes="bnc",
        patch=(1, 1, 1),
        channels=16,
        clock=0.001,
        extra=lambda grid, batch: {"img_shapes": [grid] * batch, "encoder_hidden_states_mask": shown(batch)},
    ),
    "prx": _video(
        {
            "in_channels": 4,
            "patch_size": 2,
            "context_in_dim": 16,
            "hidden_size": 32,
            "num_heads": 4,
            "depth": 2,
            "axes_dim": [4, 4],
        },
        axes="bchw",
        clock=0.001,
        extra=lambda grid, batch: {"attention_mask": shown(batch).bool()},
    ),
    "omnigen": Tiny(
        {
            "in_channels": 4,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "num_layers": 2,
            "pad_token_id": 0,
            "vocab_size": 32,
            "rope_scaling": {"short_factor": [1.0] * 8, "long_factor": [1.0] * 8},
            "pos_embed_max_size": 64,
            "time_step_dim": 16,
        },
        _omnigen,
        axes="bchw",
        text=("input_img_latents",),
    ),
    "ideogram-4": Tiny(
        {
            "in_channels": 8,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "adaln_dim": 8,
            "llm_features_dim": 16,
            "mrope_section": (4, 2, 2),
        },
        _ideogram,
        axes="bnc",
        patch=(1, 1, 1),
        ahead=TEXT,
    ),
}


def transformer(name: str, class_name: str) -> torch.nn.Module:
    """The tiny transformer of a family, its weights fixed by a seed."""
    import diffusers

    kind = getattr(diffusers, class_name)
    if hasattr(kind, "create_mask"):  # its block mask would be made by a compiler, which takes longer than the model
        made = sys.modules[kind.__module__]
        made.create_block_mask = lambda *args, _compile=False, **named: create_block_mask(*args, **named)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(**TINY[name].config)
        # Fresh weights may be zero where a model starts as the identity, and its attention nearly uniform.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    return model.eval().requires_grad_(False)
