"""The node pack, loaded as ComfyUI loads it: a folder, by its path, under a name of ComfyUI's own."""

import importlib.util
import sys
from functools import cache
from pathlib import Path

PACK = Path(__file__).parents[2] / "integrations" / "comfyui"
DEFAULTS = {
    "method": "draft",
    "sparsity": 0.5,
    "dense_steps": 0.0,
    "dense_last_steps": 0.0,
    "dense_layers": 0,
    "correction": "none",
    "cache": "none",
}


@cache
def pack():
    name = "a_custom_node"
    spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def part(name):
    """A module of the pack."""
    return sys.modules[f"{pack().__name__}.{name}"]


def node(name):
    """A node, as ComfyUI makes and calls it."""
    kind = pack().NODE_CLASS_MAPPINGS[name]
    return getattr(kind(), kind.FUNCTION)


def patched(model, **asked):
    return node("DittoolsSparseAttention")(model=model, **{**DEFAULTS, **asked})[0]


def told(model):
    """(text, samples as they came) of the summary node."""
    return node("DittoolsSummary")(model=model, samples=None)["result"][0]


def record(model):
    from dittools import summary

    return summary.record(part("patch").patch_of(model).latest.runtime)
