"""A stand-in for ComfyUI: no more of it than the ways in that a node has, as ComfyUI publishes them.

What is kept to: a MODEL is cloned before it is patched, and clones share the model inside, while their options are
copied deeply; wrappers are called with an
executor (`original`, `class_obj`) that runs what comes next; they are listed in ``transformer_options`` while a run
lasts; attention calls ``optimized_attention_override(func, *args, **kwargs)`` where there is one, and marks what is
inside of it; a forward is told of the schedule, its sigma, and which conditionings its batch has.
"""

from __future__ import annotations

import copy
import itertools
import uuid
from types import SimpleNamespace

import torch
from torch import nn

HEADS, WIDTH = 2, 64


class Executor:
    """What a wrapper is given: calling it runs what comes next."""

    def __init__(self, original, class_obj, wrappers):
        self.original, self.class_obj, self._wrappers = original, class_obj, wrappers

    def __call__(self, *args, **kwargs):
        if not self._wrappers:
            return self.original(*args, **kwargs)
        following = Executor(self.original, self.class_obj, self._wrappers[1:])
        return self._wrappers[0](following, *args, **kwargs)


def wrapped(kind, options, original, class_obj):
    listed = options.get("wrappers", {}).get(kind, {})
    return Executor(original, class_obj, [one for found in listed.values() for one in found])


def plain_attention(q, k, v, heads, mask=None, skip_reshape=False, skip_output_reshape=False, **kwargs):
    if not skip_reshape:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    if mask is not None:
        mask = mask[(None,) * 2] if mask.ndim == 2 else mask[:, None] if mask.ndim == 3 else mask
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=kwargs.get("scale"))
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def attention(*args, **kwargs):
    override = (kwargs.get("transformer_options") or {}).get("optimized_attention_override")
    if override is None or "_inside_attn_wrapper" in kwargs:
        return plain_attention(*args, **kwargs)
    return override(plain_attention, *args, **kwargs, _inside_attn_wrapper=True)


class Block(nn.Module):
    """Self-attention over all tokens, and over other keys where there are some."""

    def __init__(self, cross):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.cross = nn.Linear(WIDTH, WIDTH) if cross else None

    def forward(self, x, context=None, mask=None, transformer_options=None):
        q, k, v = self.qkv(nn.functional.layer_norm(x, x.shape[-1:])).chunk(3, -1)
        if self.cross is not None:
            x = x + self.out(attention(q, 3 * k, v, heads=HEADS, transformer_options=transformer_options))
            return x + attention(self.cross(x), context, context, HEADS, transformer_options=transformer_options)
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, 3 * k, v))
        given = {"mask": mask, "skip_reshape": True, "transformer_options": transformer_options}
        return x + self.out(attention(q, k, v, HEADS, **given))


class WanModel(nn.Module):
    """Video; text has attention of its own."""

    def __init__(self, layers=3):
        super().__init__()
        self.patch_size, self.seen = (1, 2, 2), []
        self.patch_embedding = nn.Conv3d(4, WIDTH, self.patch_size, self.patch_size)
        self.blocks = nn.ModuleList(Block(cross=True) for _ in range(layers))
        self.head = nn.ConvTranspose3d(WIDTH, 4, self.patch_size, self.patch_size)

    def forward(self, x, timestep, context, clip_fea=None, time_dim_concat=None, transformer_options=None, **kwargs):
        if transformer_options is None:
            transformer_options = {}
        run = wrapped("diffusion_model", transformer_options, self._forward, self)
        return run(x, timestep, context, clip_fea, time_dim_concat, transformer_options, **kwargs)

    def _forward(self, x, timestep, context, clip_fea=None, time_dim_concat=None, transformer_options=None, **kwargs):
        if transformer_options is None:
            transformer_options = {}
        self.seen.append(len(x))
        tokens = self.patch_embedding(x)
        size = tokens.shape[2:]
        tokens = tokens.flatten(2).transpose(1, 2) + timestep[:, None, None]
        for block in self.blocks:
            tokens = block(tokens, context, transformer_options=transformer_options)
        return self.head(tokens.transpose(1, 2).unflatten(2, size))


class Flux(nn.Module):
    """Picture, with text in front and references behind; two lists of blocks."""

    def __init__(self, layers=2):
        super().__init__()
        self.patch_size, self.seen = 2, []
        self.img_in = nn.Conv2d(4, WIDTH, 2, 2)
        self.double_blocks = nn.ModuleList(Block(cross=False) for _ in range(layers))
        self.single_blocks = nn.ModuleList(Block(cross=False) for _ in range(1))
        self.final = nn.ConvTranspose2d(WIDTH, 4, 2, 2)

    def forward(self, x, timestep, context, ref_latents=None, transformer_options=None, **kwargs):
        if transformer_options is None:
            transformer_options = {}
        run = wrapped("diffusion_model", transformer_options, self._forward, self)
        return run(x, timestep, context, ref_latents, transformer_options, **kwargs)

    def _forward(self, x, timestep, context, ref_latents=None, transformer_options=None, attention_mask=None, **kwargs):
        if transformer_options is None:
            transformer_options = {}
        self.seen.append(len(x))
        text, (height, width) = context.shape[1], (n // 2 for n in x.shape[2:])
        pictures = [self.img_in(one).flatten(2).transpose(1, 2) for one in (x, *(ref_latents or ()))]
        tokens = torch.cat([context, *pictures], 1) + timestep[:, None, None]
        mask = attention_mask
        if mask is not None:  # bool [B, text]
            mask = torch.cat([mask, mask.new_ones(len(x), tokens.shape[1] - text)], 1)[:, None, None]
        for block in (*self.double_blocks, *self.single_blocks):
            tokens = block(tokens, mask=mask, transformer_options=transformer_options)
        picture = tokens[:, text : text + height * width].transpose(1, 2)
        return self.final(picture.unflatten(2, (height, width)))


class UNetModel(WanModel):
    """A model that dittools knows nothing of."""


class Patcher:
    """A MODEL."""

    def __init__(self, inner):
        self.model = SimpleNamespace(diffusion_model=inner.eval().requires_grad_(False))
        self.model_options, self.wrappers = {"transformer_options": {}}, {}

    def clone(self):
        other = Patcher.__new__(Patcher)
        other.model = self.model
        other.model_options = copy.deepcopy(self.model_options)
        other.wrappers = {kind: {key: [*found] for key, found in by.items()} for kind, by in self.wrappers.items()}
        return other

    def get_model_object(self, name):
        return getattr(self.model, name)

    def add_wrapper_with_key(self, kind, key, wrapper):
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind, key):
        self.wrappers.get(kind, {}).pop(key, None)

    def get_wrappers(self, kind, key):
        return self.wrappers.get(kind, {}).get(key, [])


class Guider:
    """Draws with a MODEL by Euler's steps, from 1 to 0.

    Args:
        patcher: the MODEL.
        conds: by name, what each conditioning gives the model; a list where several are drawn and averaged.
        together: whether conditionings are one batch.
        between: a second call in the middle of each step, as second-order samplers make.
        windows: how many windows of the frames are drawn one after the other.
    """

    def __init__(self, patcher, conds, together=True, between=False, windows=1):
        listed = {name: given if isinstance(given, list) else [given] for name, given in conds.items()}
        self.patcher = patcher
        self.conds = {name: [(uuid.uuid4(), one) for one in given] for name, given in listed.items()}
        self.together, self.between, self.windows = together, between, windows
        self.directions = []  # of every call, in their order

    def draw(self, noise, steps=4):
        sigmas = torch.linspace(1, 0, steps + 1)
        options = {**self.patcher.model_options["transformer_options"], "wrappers": self.patcher.wrappers}
        options["sample_sigmas"] = sigmas
        with torch.inference_mode():
            return wrapped("outer_sample", options, self._sample, self)(noise, sigmas, options)

    def _sample(self, x, sigmas, options):
        for now, then in itertools.pairwise(sigmas):
            direction = self._guided(x, now, options)
            self.directions.append(direction)
            if self.between:
                direction = self._guided(x + direction * (then - now) / 2, (now + then) / 2, options)
            x = x + direction * (then - now)
        return x

    def _guided(self, x, sigma, options):
        if self.windows == 1:
            return self._called(x, sigma, options)
        found, count = [], x.shape[2] // self.windows
        for index, part in enumerate(x.split(count, 2)):
            frames = [*range(index * count, index * count + count)]
            told = {**options, "context_window": SimpleNamespace(index_list=frames)}
            found.append(self._called(part, sigma, told))
        return torch.cat(found, 2)

    def _called(self, x, sigma, options):
        listed = [(number, *one) for number, found in enumerate(self.conds.values()) for one in found]
        outputs = {}
        for group in [listed[::-1]] if self.together else [[one] for one in listed]:
            told = copy.copy(options)
            told.update(
                cond_or_uncond=[number for number, *_ in group], uuids=[id for _, id, _ in group], sigmas=sigma[None]
            )
            given = {
                name: [torch.cat(parts) for parts in zip(*(one[name] for *_, one in group), strict=True)]
                if isinstance(value, list)
                else torch.cat([one[name] for *_, one in group])
                for name, value in group[0][2].items()
            }
            count = len(group)
            out = self.patcher.model.diffusion_model(
                x.repeat(count, *[1] * (x.ndim - 1)), sigma.expand(count * len(x)), transformer_options=told, **given
            )
            for (number, *_), part in zip(group, out.chunk(count), strict=True):
                outputs.setdefault(number, []).append(part.clone())
            out.zero_()  # what a caller is given it may write to
        cond, uncond = (sum(parts) / len(parts) for _, parts in sorted(outputs.items()))
        return uncond + 3 * (cond - uncond)
