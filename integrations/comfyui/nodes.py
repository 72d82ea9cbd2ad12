"""The nodes: one that patches a MODEL, and one that tells what the latest run with it did."""

from __future__ import annotations

import json
from typing import Any

from dittools import corrections, methods
from dittools.config import Config

from .patch import Patch, patch_of

CACHES = ("none", "easycache", "sea", "taylorseer", "pab", "fastercache")
"""Those that look at nothing inside of a model and need no table of it; others can be asked for in ``settings``."""


def _share(default: float, tooltip: str) -> tuple[str, dict[str, Any]]:
    return "FLOAT", {"default": default, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": tooltip}


class SparseAttention:
    """Patches a MODEL: sparse attention, and step reuse, in what is sampled with it."""

    CATEGORY = "model_patches/dittools"
    DESCRIPTION = (
        "Attends sparsely: of the pairs of the picture with itself a share is skipped, chosen by a method. Gives a "
        "patched clone; the MODEL that goes in stays as it is. What cannot run sparse runs as before, and the summary "
        "says why."
    )
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "method": (
                    ["auto", *(name for name in methods.names() if name != "auto")],
                    {"default": "auto", "tooltip": "How pairs are chosen; auto picks a method, or stays dense."},
                ),
                "sparsity": (
                    "FLOAT",
                    {
                        "default": 0.8,
                        "min": 0.0,
                        "max": 0.99,
                        "step": 0.01,
                        "tooltip": "Share of the picture's pairs that sparse calls skip.",
                    },
                ),
                "dense_steps": _share(0.2, "Share of the steps, at the start of the run, that stay dense."),
                "dense_last_steps": _share(0.0, "The same at its end."),
                "dense_layers": ("INT", {"default": 1, "min": 0, "tooltip": "First layers that stay dense."}),
                "correction": (
                    corrections.names(),
                    {"default": corrections.AUTO, "tooltip": "What makes up for skipped pairs."},
                ),
                "cache": (
                    list(CACHES),
                    {"default": "none", "tooltip": "Which steps take the output of an earlier one."},
                ),
            },
            "optional": {
                "settings": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": 'Any setting of dittools.Config as JSON, before the others: {"dense_steps": 4, '
                        '"cache_options": {"threshold": 0.05}, "options": {"probe_rows": 64}}',
                    },
                ),
            },
        }

    def patch(self, model: Any, settings: str = "", **asked: Any) -> tuple[Any]:
        """A clone of ``model`` with what was asked on it. Shares of steps are shares, also where they are whole.

        Raises:
            ValueError: one line, when a setting is wrong or asks for what ComfyUI cannot do.
        """
        asked |= {name: float(asked[name]) for name in ("dense_steps", "dense_last_steps") if name in asked}
        inner = model.get_model_object("diffusion_model")
        return (Patch(read_settings(asked, settings), inner).put_on(model),)


class Summary:
    """Tells what the latest run with a patched MODEL did, once its samples are there."""

    CATEGORY = "model_patches/dittools"
    DESCRIPTION = (
        "What the latest sampling run with a patched MODEL skipped, by step and layer, and what ran dense, why."
    )
    RETURN_TYPES = ("STRING", "LATENT")
    RETURN_NAMES = ("summary", "samples")
    FUNCTION = "tell"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The patched one, as the sampler has it."}),
                "samples": ("LATENT", {"tooltip": "Of the sampler, so that this comes after it; passed on."}),
            }
        }

    def tell(self, model: Any, samples: Any) -> dict[str, Any]:
        """The summary, and the samples as they came.

        Raises:
            ValueError: when no patch of dittools is on ``model``.
        """
        patch = patch_of(model)
        if patch is None:
            raise ValueError("this MODEL has no sparse attention of dittools on it: give the one that the sampler has")
        text = patch.summary()
        return {"ui": {"text": (text,)}, "result": (text, samples)}


def read_settings(asked: dict[str, Any], text: str) -> Config:
    """The settings of the widgets, and before them those in a JSON object.

    Raises:
        ValueError: one line, for what is no such object, and as `dittools.Config`.
    """
    try:
        given = json.loads(text) if text.strip() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f'settings are a JSON object, such as {{"seed": 1}}, and this is none: {error}') from None
    if not isinstance(given, dict):
        raise ValueError(f'settings are a JSON object, such as {{"seed": 1}}, got {type(given).__name__}')
    return Config.from_dict({**asked, **given})


NODE_CLASS_MAPPINGS = {"DittoolsSparseAttention": SparseAttention, "DittoolsSummary": Summary}
NODE_DISPLAY_NAME_MAPPINGS = {
    "DittoolsSparseAttention": "Sparse attention (dittools)",
    "DittoolsSummary": "Sparse attention summary (dittools)",
}
