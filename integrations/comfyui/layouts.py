"""Where the picture is in the sequences of the models that ComfyUI runs, as data. A new model is a record here.

A reader gets ComfyUI's model and what gives an argument of its forward by name; it answers with all that a
self-attention sequence holds, in its order. Counts that a model adds to by itself (patches of other nodes) do not fit
what a record says: such calls run dense, counted with both numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dittools.tokens import Layout, Part

Arguments = Callable[[str], Any]
Reader = Callable[[torch.nn.Module, Arguments], Layout]


@dataclass(frozen=True)
class Known:
    """What is known of one model.

    Args:
        blocks: lists of its blocks, each with one self-attention, which is the first attention of the block.
        read: gives the layout of a forward.
        share: whether sigma is the share of noise in the latents, as in flow matching; else noise is added to the
            picture, sigma times.
    """

    blocks: tuple[str, ...]
    read: Reader
    share: bool = True


def _patches(size: Sequence[int], patch: Sequence[int]) -> tuple[int, int, int]:
    """(frames, height, width) in tokens; what is no whole patch is filled up, as ComfyUI does."""
    found = [-(-n // p) for n, p in zip(size, patch, strict=True)]
    return (1, *found) if len(found) == 2 else tuple(found)


def _size(latents: torch.Tensor, patch: Sequence[int]) -> tuple[int, int, int]:
    """Tokens of latents ``[B, C, H, W]`` or ``[B, C, F, H, W]``."""
    size = tuple(latents.shape[2:])
    return _patches(size if len(size) == len(patch) else (1, *size), patch)


def _references(latents: Any, patch: Sequence[int]) -> tuple[Part, ...]:
    """Reference pictures, each a grid of its own; a tensor is one, None none."""
    given = [latents] if isinstance(latents, torch.Tensor) else latents or ()
    return tuple(Part.of("reference", *_size(one, patch)) for one in given)


def _text(arguments: Arguments, *names: str) -> tuple[Part, ...]:
    """Tokens ``[B, n, width]`` of these arguments, where they are given."""
    count = sum(found.shape[1] for name in names if isinstance(found := arguments(name), torch.Tensor))
    return (Part("text", count),) if count else ()


def wan(model: torch.nn.Module, arguments: Arguments) -> Layout:
    """Wan: text has its own attention. A first reference is in front; frames and contexts that are added, behind."""
    patch = tuple(model.patch_size)
    before = ()
    if getattr(model, "ref_conv", None) is not None:
        before = _references(arguments("reference_latent"), patch[1:])
    added, contexts = (_references(arguments(name), patch) for name in ("time_dim_concat", "context_latents"))
    return Layout(*_size(arguments("x"), patch), before, (*added, *contexts))


def wan_references_behind(model: torch.nn.Module, arguments: Arguments) -> Layout:
    """HuMo: reference pictures are behind the video."""
    patch = tuple(model.patch_size)
    return Layout(*_size(arguments("x"), patch), (), _references(arguments("reference_latent"), patch))


def flux(model: torch.nn.Module, arguments: Arguments) -> Layout:
    """FLUX and FLUX.2: text, picture, reference pictures."""
    patch = (model.patch_size,) * 2
    references = _references(arguments("ref_latents"), patch)
    return Layout(*_size(arguments("x"), patch), _text(arguments, "context"), references)


def hunyuan(model: torch.nn.Module, arguments: Arguments) -> Layout:
    """HunyuanVideo and HunyuanImage: all that was read of prompts and pictures, a reference, the picture.

    ComfyUI up to autumn of 2025 has the text behind the picture.
    """
    patch = tuple(model.patch_size)
    named = ["context"]
    named += [name for name, way in (("txt_byt5", "byt5_in"), ("clip_fea", "vision_in")) if getattr(model, way, None)]
    text, references = _text(arguments, *named), _references(arguments("ref_latent"), patch)
    picture = _size(arguments("x"), patch)
    if getattr(model.double_blocks[0], "flipped_img_txt", False):
        return Layout(*picture, references, text)
    return Layout(*picture, (*text, *references))


def qwen(model: torch.nn.Module, arguments: Arguments) -> Layout:
    """Qwen-Image: text, picture, pictures to edit."""
    patch = (1, model.patch_size, model.patch_size)
    references = _references(arguments("ref_latents"), patch)
    return Layout(*_size(arguments("x"), patch), _text(arguments, "context"), references)


def ltx(model: torch.nn.Module, arguments: Arguments) -> Layout:
    """LTX: a latent is a token. Guides are frames at the end; sound, where there is some, has its own attention."""
    given = arguments("x")
    frames, height, width = (given[0] if isinstance(given, (list, tuple)) else given).shape[2:]
    guides = arguments("keyframe_idxs")
    count = 0 if guides is None else guides.shape[2] // (height * width)
    if not 0 < count < frames:
        return Layout(frames, height, width)
    return Layout(frames - count, height, width, (), (Part.of("reference", count, height, width),))


def cogvideo(model: torch.nn.Module, arguments: Arguments) -> Layout:
    """CogVideoX: text, video."""
    patch = (model.patch_size_t or 1, model.patch_size, model.patch_size)
    return Layout(*_size(arguments("x"), patch), _text(arguments, "context"))


def cosmos(model: torch.nn.Module, arguments: Arguments) -> Layout:
    """Cosmos Predict 2 and Anima: text has its own attention."""
    return Layout(*_size(arguments("x"), (model.patch_temporal, model.patch_spatial, model.patch_spatial)))


def kandinsky(model: torch.nn.Module, arguments: Arguments) -> Layout:
    """Kandinsky 5: text has its own attention."""
    return Layout(*_size(arguments("x"), tuple(model.patch_size)))


def lumina(model: torch.nn.Module, arguments: Arguments) -> Layout:
    """Lumina 2 and Z-Image: text, picture; both are filled up to whole groups of tokens where the model has such."""
    picture = _size(arguments("x"), (model.patch_size,) * 2)
    group = getattr(model, "pad_tokens_multiple", None) or 1
    text = arguments("context").shape[1]
    spare = -(picture[1] * picture[2]) % group
    return Layout(*picture, (Part("text", text + -text % group),), (Part("text", spare),) if spare else ())


def hidream(model: torch.nn.Module, arguments: Arguments) -> Layout:
    """HiDream: the picture, beside it in each row the one to edit; then text, of which blocks have more and less."""
    given, edited = arguments("x"), arguments("image_cond")
    height, width = given.shape[-2], given.shape[-1] + (0 if edited is None else edited.shape[-1])
    return Layout(*_patches((height, width), (model.patch_size,) * 2), (), (Part("text", None),))


def minimax(model: torch.nn.Module, arguments: Arguments) -> Layout:
    """MiniMax-H3: text, keyframes, references and their sound, sound, video; all in one sequence."""
    video, sound = arguments("x")[:2]
    patch, payload = tuple(model.patch_size), arguments("minimax_payload") or {}
    frames, height, width = _size(video, patch)
    segments = getattr(payload.get("layout"), "segments", None)
    if segments is None:  # the model makes them of these alone
        text = arguments("context").shape[1]
        return Layout(frames, height, width, (Part("text", text), Part("sound", 2 * sound.shape[-1])))
    shapes = [
        _patches((block.get("latent_t", 1), block["latent_h"], block["latent_w"]), patch)
        for block in payload.get("refs") or ()
        if block["kind"] != "audio"
    ]
    parts = []
    for start, stop, kind in segments[:-1]:
        count, shape = stop - start, None
        if kind == "ref_img":
            shape = shapes.pop(0) if shapes else None
        elif kind == "cond" and not count % (height * width):
            shape = count // (height * width), height, width
        said = {"text": "text", "cond": "reference", "ref_img": "reference"}.get(kind, "sound")
        parts.append(Part(said, count, shape))
    return Layout(frames, height, width, tuple(parts))


MODELS: dict[str, Known] = {
    "WanModel": Known(("blocks",), wan),
    "VaceWanModel": Known(("blocks", "vace_blocks"), wan),
    "CameraWanModel": Known(("blocks",), wan),
    "AnimateWanModel": Known(("blocks",), wan),
    "HumoWanModel": Known(("blocks",), wan_references_behind),
    "HunyuanVideo": Known(("double_blocks", "single_blocks"), hunyuan),
    "Flux": Known(("double_blocks", "single_blocks"), flux),
    "Chroma": Known(("double_blocks", "single_blocks"), flux),
    "QwenImageTransformer2DModel": Known(("transformer_blocks",), qwen),
    "LTXVModel": Known(("transformer_blocks",), ltx),
    "LTXAVModel": Known(("transformer_blocks",), ltx),
    "MiniMaxH3Model": Known(("blocks",), minimax),
    "CogVideoXTransformer3DModel": Known(("blocks",), cogvideo, share=False),
    "MiniTrainDIT": Known(("blocks",), cosmos, share=False),
    "Anima": Known(("blocks",), cosmos),
    "Kandinsky5": Known(("visual_transformer_blocks",), kandinsky),
    "NextDiT": Known(("layers",), lumina),
    "HiDreamImageTransformer2DModel": Known(("double_stream_blocks", "single_stream_blocks"), hidream),
}
"""By class of ComfyUI's ``diffusion_model``. A class derived from one of these is another model."""


def known(model: torch.nn.Module) -> Known | None:
    """The record of a model; None for one that nothing is known of."""
    return MODELS.get(type(model).__name__)


def blocks_in(model: torch.nn.Module, record: Known) -> list[tuple[str, torch.nn.Module]]:
    """(name, block) of every block with a self-attention, in the order in which layers are counted."""
    lists = [(name, getattr(model, name, ())) for name in record.blocks]
    return [(f"{name}.{index}", block) for name, blocks in lists for index, block in enumerate(blocks)]
