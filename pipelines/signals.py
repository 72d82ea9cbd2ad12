"""What caches look at inside a model, where models differ: time embedding, first block, noise level."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

OFS = 2.0
"""What CogVideoX 1.5's image-to-video pipeline always gives as ``ofs``; blocks get its embedding beside the time's."""


def time_changes(model: torch.nn.Module, signal: str, timesteps: Sequence[float]) -> list[float] | None:
    """How much the model's time embedding changes from each step to the next: relative L1, first entry 0.

    Args:
        signal: "embedding", or "projection" for what shifts and scales are made of.

    Returns:
        None for a model whose time embedding is not known. Waits for the device once.
    """
    embed = _EMBEDDINGS.get(type(model).__name__)
    if embed is None or not timesteps:
        return None
    place = next((p for p in model.parameters() if p.device.type != "meta"), None)
    device = place.device if place is not None else torch.device("cpu")
    with torch.no_grad():
        embeddings = embed(model, signal, torch.tensor(timesteps, device=device)).float()
        moved = (embeddings[1:] - embeddings[:-1]).abs().mean(1) / embeddings[:-1].abs().mean(1)
    return [0.0, *moved.tolist()]


def _wan(model: torch.nn.Module, signal: str, timesteps: torch.Tensor) -> torch.Tensor:
    embedder = model.condition_embedder
    embedding = embedder.time_embedder(embedder.timesteps_proj(timesteps).to(_dtype(embedder.time_embedder)))
    if signal == "embedding":
        return embedding
    return embedder.time_proj(embedder.act_fn(embedding).to(_dtype(embedder.time_proj)))


def _cogvideox(model: torch.nn.Module, signal: str, timesteps: torch.Tensor) -> torch.Tensor:
    embedding = model.time_embedding(model.time_proj(timesteps).to(_dtype(model.time_embedding)))
    if getattr(model, "ofs_embedding", None) is None:
        return embedding
    ofs = model.ofs_proj(timesteps.new_full((1,), OFS)).to(_dtype(model.ofs_embedding))
    return embedding + model.ofs_embedding(ofs)


def _hidream(model: torch.nn.Module, signal: str, timesteps: torch.Tensor) -> torch.Tensor:
    return model.t_embedder(timesteps, _dtype(model.t_embedder))


def _dtype(module: torch.nn.Module) -> torch.dtype:
    """What a module computes in; weights kept in 8 bits are cast up by whoever keeps them so."""
    dtype = next(iter(module.parameters())).dtype
    return dtype if dtype.itemsize > 1 else torch.bfloat16


_EMBEDDINGS: dict[str, Callable[[torch.nn.Module, str, torch.Tensor], torch.Tensor]] = {
    "WanTransformer3DModel": _wan,
    "CogVideoXTransformer3DModel": _cogvideox,
    "HiDreamImageTransformer2DModel": _hidream,
}


def modulated_input(block: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The first block's input ``[B, S, width]`` after its norm, shifted and scaled for the timestep.

    None for a block of which this is not known.
    """
    read = _INPUTS.get(type(block).__name__)
    if read is None:
        return None
    given = inspect.signature(type(block).forward).bind(block, *args, **kwargs).arguments
    with torch.no_grad():
        return read(block, given)


def knows_input(block: torch.nn.Module) -> bool:
    """Whether `modulated_input` is known of such a block."""
    return type(block).__name__ in _INPUTS


def _ltx(block: torch.nn.Module, given: dict[str, Any]) -> torch.Tensor:
    embedding, table = given["temb"], block.scale_shift_table
    values = table[None, None].to(embedding.device) + embedding.unflatten(-1, (table.shape[0], -1))
    shift, scale = values.unbind(2)[:2]
    return block.norm1(given["hidden_states"]) * (1 + scale) + shift


_INPUTS: dict[str, Callable[[torch.nn.Module, dict[str, Any]], torch.Tensor]] = {
    "FluxTransformerBlock": lambda block, given: block.norm1(given["hidden_states"], emb=given["temb"])[0],
    "HunyuanVideoTransformerBlock": lambda block, given: block.norm1(given["hidden_states"], emb=given["temb"])[0],
    "LTXVideoTransformerBlock": _ltx,
    "MochiTransformerBlock": lambda block, given: block.norm1(given["hidden_states"], given["temb"])[0],
    "CosmosTransformerBlock": lambda block, given: block.norm1(
        given["hidden_states"], given["embedded_timestep"], given.get("temb")
    )[0],
}


def boundary(pipe: Any, scheduler: Any) -> float | None:
    """The timestep below which the second of a pipeline's two transformers runs, as Wan 2.2's; None where none does."""
    share = getattr(getattr(pipe, "config", None), "boundary_ratio", None)
    trained = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
    return None if share is None or trained is None else share * trained


def takes_over(pipe: Any, timesteps: Sequence[float]) -> int | None:
    """The step at which the second of a pipeline's two transformers takes over: below its `boundary`.

    As many as there are steps where it never does; None where there is no boundary, or no schedule.
    """
    below = boundary(pipe, getattr(pipe, "scheduler", None))
    if below is None or not timesteps:
        return None
    return next((step for step, timestep in enumerate(timesteps) if timestep < below), len(timesteps))


def first_tensor(args: tuple, kwargs: dict[str, Any], place: int = 0) -> torch.Tensor:
    """A block's ``hidden_states``, by name or as the argument at this place."""
    return kwargs["hidden_states"] if "hidden_states" in kwargs else args[place]


# Schedulers of rectified flow whose names do not say it.
_RECTIFIED = ("MiniMaxH3Scheduler",)


def noise_share(scheduler: Any, step: int, steps: int) -> float | None:
    """Share s of noise in the latents of a step, so that they are about (1 - s) picture + s noise.

    None where the scheduler's noise levels are not known.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    timesteps = getattr(scheduler, "timesteps", None)
    if isinstance(sigmas, torch.Tensor) and sigmas.numel() >= steps:
        offset = timesteps.numel() - steps if isinstance(timesteps, torch.Tensor) else 0
        sigma = float(sigmas.flatten()[max(offset, 0) + step])
        name = type(scheduler).__name__
        flow = getattr(scheduler.config, "use_flow_sigmas", None) or "Flow" in name or name in _RECTIFIED
        return sigma if flow else sigma / (1 + sigma)
    kept = getattr(scheduler, "alphas_cumprod", None)
    if isinstance(kept, torch.Tensor) and isinstance(timesteps, torch.Tensor) and timesteps.numel() >= steps:
        share = float(kept[int(timesteps.flatten()[timesteps.numel() - steps + step])])
        signal, noise = share**0.5, (1 - share) ** 0.5
        return noise / (signal + noise)
    return None
