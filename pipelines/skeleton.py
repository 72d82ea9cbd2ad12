"""What a profile of a model has to fit. Of a weights folder, configs tell it, and no weight is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dittools.attention_profile import Model, fingerprint
from dittools.pipelines import loading
from dittools.pipelines.components import config_of
from dittools.pipelines.family import Family


def identity(models: Sequence[Any], attention: Sequence[Any], schedule: Mapping[str, Any]) -> Model:
    """What a profile has to fit.

    Args:
        models: transformers of a pipeline.
        attention: all self-attention modules in them.
        schedule: config of its scheduler.
    """
    shift = schedule.get("flow_shift", schedule.get("shift"))
    return Model(
        transformer=type(models[0]).__name__,
        fingerprint=fingerprint([dict(model.config) for model in models]),
        layers=len(attention),
        heads=getattr(attention[0], "heads", 0),
        shift=float(shift) if type(shift) in (int, float) else None,
    )


def identity_of(folder: Path, family: Family) -> Model | None:
    """The `identity` of a weights folder, as the loaded pipeline has it.

    None where the configs make no such model: loading it says why.
    """
    models = _models(folder, family)
    attention = [module for model in models for _, module in family.attention_in(model)]
    return identity(models, attention, config_of(folder / "scheduler")) if attention else None


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
