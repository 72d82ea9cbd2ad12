"""How large the model of a weights folder is, and what a profile of it has to fit: configs are read, and no weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dittools.attention_profile import Model, fingerprint
from dittools.pipelines import loading
from dittools.pipelines.components import config_of
from dittools.pipelines.family import Family


def layers_and_heads(folder: Path, family: Family) -> tuple[int, int] | None:
    """Self-attention layers over all transformers, and heads in each, as the loaded pipeline has them.

    None where the configs make no such model: loading it says why.
    """
    found = _attention(_models(folder, family), family)
    return (len(found), getattr(found[0], "heads", 0)) if found else None


def identity_of(folder: Path, family: Family) -> Model | None:
    """What a profile of this model has to fit; None where the configs make no such model."""
    models = _models(folder, family)
    found = _attention(models, family)
    if not found:
        return None
    schedule = config_of(folder / "scheduler")
    shift = schedule.get("flow_shift", schedule.get("shift"))
    return Model(
        transformer=type(models[0]).__name__,
        fingerprint=fingerprint([dict(model.config) for model in models]),
        layers=len(found),
        heads=getattr(found[0], "heads", 0),
        shift=float(shift) if type(shift) in (int, float) else None,
    )


def _models(folder: Path, family: Family) -> list[Any]:
    """The transformers with weights that are nowhere."""
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
                    found.append(getattr(diffusers, config["_class_name"]).from_config(config))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError):
        return []
    return found


def _attention(models: list[Any], family: Family) -> list[Any]:
    return [part for model in models for name, part in model.named_modules() if family.is_self_attention(name)]
