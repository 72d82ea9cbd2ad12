"""Step caches of diffusers' own on a transformer: two caches would each reuse what the other did."""

from __future__ import annotations

from collections.abc import Iterable

import torch

# Modules of `diffusers.hooks` whose hooks let a block or its attention not run.
_CACHES = (
    "faster_cache",
    "first_block_cache",
    "mag_cache",
    "pyramid_attention_broadcast",
    "sea_cache",
    "taylorseer_cache",
    "text_kv_cache",
)


def other_cache(model: torch.nn.Module, inside: Iterable[torch.nn.Module]) -> str | None:
    """The name of a cache of diffusers' that is on: put on by ``enable_cache`` or by a function of its own.

    Args:
        model: the transformer.
        inside: its modules that such a cache would hang hooks on: blocks and attention.
    """
    if getattr(model, "is_cache_enabled", False):
        return type(model._cache_config).__name__
    for module in (model, *inside):
        registry = module.__dict__.get("_diffusers_hook")
        for hook in getattr(registry, "hooks", {}).values():
            home = type(hook).__module__.rpartition(".")[2]
            if home in _CACHES and type(hook).__module__.startswith("diffusers."):
                return home
    return None
