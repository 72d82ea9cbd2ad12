"""How large the model of a weights folder is, from its configs alone: no weight is read."""

from __future__ import annotations

import json
from pathlib import Path

from dittools.pipelines import loading
from dittools.pipelines.family import Family


def layers_and_heads(folder: Path, family: Family) -> tuple[int, int] | None:
    """Self-attention layers over all transformers, and heads in each, as the loaded pipeline has them.

    None where the configs make no such model: loading it says why.
    """
    import diffusers
    from accelerate import init_empty_weights

    loading.quiet_loading()
    found = []
    try:
        for component in family.components:
            path = folder / component / "config.json"
            if path.is_file():
                config = json.loads(path.read_text(encoding="utf-8"))
                with init_empty_weights():
                    model = getattr(diffusers, config["_class_name"]).from_config(config)
                found += [module for name, module in model.named_modules() if family.is_self_attention(name)]
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError):
        return None
    return (len(found), getattr(found[0], "heads", 0)) if found else None
