"""Reads what is known of a model's step caches: tables that ship here, and files of `dittools calibrate --cache`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from dittools.files import parse_json, read_text

SCHEMA = 1
KIND = "cache"


@lru_cache(maxsize=8)
def builtin(name: str) -> Mapping[str, Any]:
    """A table that ships: "teacache", "magcache" or "masks"."""
    return read(str(Path(__file__).parent / f"{name}.json"))


def read(path: str) -> dict[str, Any]:
    """A profile's JSON.

    Raises:
        ValueError: one line, when it cannot be read or is no cache profile of this schema.
    """
    try:
        found = parse_json(read_text(Path(path).expanduser()))
    except OSError as error:
        raise ValueError(f"cache profile {path} cannot be read ({error.strerror}): give a JSON file") from None
    except ValueError:
        raise ValueError(f"cache profile {path} is no JSON: give a file of dittools calibrate --cache") from None
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise ValueError(f"{path} is no cache profile: give a file of dittools calibrate --cache")
    if found.get("schema") != SCHEMA:
        raise ValueError(f"cache profile {path} has schema {found.get('schema')!r}, and this dittools reads {SCHEMA}")
    return found


def read_one(path: str) -> dict[str, Any]:
    """As `read`, a file of one model, as dittools calibrate --cache writes it."""
    found = read(path)
    if not all(name in found for name in ("model", "match", "steps")):
        raise ValueError(f"{path} is no profile of one model: give a file of dittools calibrate --cache")
    return found


def read_for(cache: str, path: str) -> dict[str, Any]:
    """As `read_one`, a file that has something for this cache."""
    found = read_one(path)
    if cache not in found:
        raise ValueError(f"{path} holds nothing for {cache}: run dittools calibrate --cache again")
    return found


def entry(cache: str, model: Any, path: str) -> Mapping[str, Any]:
    """What is known of a cache on a model: from the profile at ``path``, else from the tables that ship.

    Args:
        model: a `dittools.caches.Model`.

    Raises:
        ValueError: when nothing is known of this model, or the profile is of another one.
    """
    if path:
        profile = read_for(cache, path)
        check_model(profile, model, path)
        return profile[cache] | {"steps": profile["steps"], "named": path}
    fitting = [known for known in builtin(cache)["models"] if _fits(known["match"], model)]
    if not fitting:
        where = f" in {model.pipeline}" if model.pipeline else ""
        raise ValueError(
            f"{cache} has no profile for {model}{where}: make one with dittools calibrate --cache, "
            "or use a cache that needs none (easycache, sea, taylorseer, first_block)"
        )
    best = min(fitting, key=lambda known: abs(known.get("frame_tokens", model.frame_tokens) - model.frame_tokens))
    return {**best, "named": best["model"]}


def check_model(profile: Mapping[str, Any], model: Any, name: str) -> None:
    """Raises ValueError when a profile is of another model."""
    if not _fits(profile["match"], model):
        raise ValueError(f"{name} is a profile of {profile['model']}, and this is {model}: calibrate this model")


def match_of(model: Any) -> dict[str, Any]:
    """What a profile of this model is recognised by later."""
    names = ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels")
    config = {name: model.config[name] for name in names if isinstance(model.config.get(name), int)}
    return {"transformer": model.transformer, "experts": model.experts, "config": config}


def differences(known: Mapping[str, Any], steps: int, model: Any) -> list[str]:
    """Notes on a run that is not the one a profile was made of."""
    notes = []
    if known.get("steps") not in (None, steps):
        notes.append(f"the cache profile of {known['named']} is of {known['steps']} steps, and this run has {steps}")
    tokens = known.get("frame_tokens")
    if tokens and model.frame_tokens and not 0.8 <= model.frame_tokens / tokens <= 1.25:
        notes.append(
            f"the cache profile of {known['named']} is of frames of {tokens} tokens, "
            f"and these have {model.frame_tokens}"
        )
    return notes


def _fits(match: Mapping[str, Any], model: Any) -> bool:
    if match["transformer"] != model.transformer or match.get("experts", 1) != model.experts:
        return False
    if match.get("pipelines") and not model.pipeline.startswith(tuple(match["pipelines"])):
        return False
    if model.pipeline.startswith(tuple(match.get("other_pipelines", ()))):
        return False
    found = ((model.config.get(name), asked) for name, asked in match.get("config", {}).items())
    return all(value in asked if isinstance(asked, list) else value == asked for value, asked in found)
