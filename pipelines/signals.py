"""What caches look at inside a model, where models differ: time embedding, first block, noise level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


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
    return model.time_embedding(model.time_proj(timesteps).to(_dtype(model.time_embedding)))


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

    None for a block that does not do this as FLUX and HunyuanVideo do.
    """
    if type(block).__name__ not in ("FluxTransformerBlock", "HunyuanVideoTransformerBlock"):
        return None
    hidden = first_tensor(args, kwargs)
    embedding = kwargs.get("temb")
    if embedding is None:
        embedding = next((value for value in args[1:] if isinstance(value, torch.Tensor) and value.ndim == 2), None)
    if embedding is None:
        return None
    with torch.no_grad():
        return block.norm1(hidden, emb=embedding)[0]


def first_tensor(args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    """A block's ``hidden_states``, by name or as the first argument."""
    return kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]


def noise_share(scheduler: Any, step: int, steps: int) -> float | None:
    """Share s of noise in the latents of a step, so that they are about (1 - s) picture + s noise.

    None where the scheduler's noise levels are not known.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    timesteps = getattr(scheduler, "timesteps", None)
    if isinstance(sigmas, torch.Tensor) and sigmas.numel() >= steps:
        offset = timesteps.numel() - steps if isinstance(timesteps, torch.Tensor) else 0
        sigma = float(sigmas.flatten()[max(offset, 0) + step])
        flow = getattr(scheduler.config, "use_flow_sigmas", None) or "Flow" in type(scheduler).__name__
        return sigma if flow else sigma / (1 + sigma)
    kept = getattr(scheduler, "alphas_cumprod", None)
    if isinstance(kept, torch.Tensor) and isinstance(timesteps, torch.Tensor) and timesteps.numel() >= steps:
        share = float(kept[int(timesteps.flatten()[timesteps.numel() - steps + step])])
        signal, noise = share**0.5, (1 - share) ** 0.5
        return noise / (signal + noise)
    return None
