"""What the JSON files of a report must hold for others to read on."""

from __future__ import annotations

import json
from typing import Any

NUMBER, TEXT = (int, float), (str,)
NONE = type(None)

PLAN = {
    **dict.fromkeys(("model", "weights", "negative_prompt", "dtype", "device"), TEXT),
    **dict.fromkeys(("frames", "height", "width"), (int, NONE)),
    "steps": int,
    "guidance": (*NUMBER, NONE),
    "fps": NUMBER,
    "prompts": [TEXT],
    "seeds": [int],
    "base": dict,
    "sweep": {...: list},
}
MANIFEST = {
    "command": [TEXT],
    "dittools": TEXT,
    "commit": (str, NONE),
    "versions": dict,
    "device": {"type": TEXT, "name": TEXT},
    "plan": PLAN,
    "notes": [TEXT],
}
BASELINES = {"dense_kernel": TEXT, "other_kernel": (str, NONE), "fewer_steps": (int, NONE), "notes": [TEXT]}
FAILURES = [
    {"phase": TEXT, "case": TEXT, "repeat": int, "setting": TEXT, "prompt": int, "seed": int, "error": TEXT},
]
RECORD = {
    "seconds": {"text": NUMBER, "denoise": NUMBER, "decode": NUMBER},
    "sparsity": {"sparse_calls": (*NUMBER, NONE), "overall": (*NUMBER, NONE)},
    "method": TEXT,
    "case": {"skipped": list},
}
REPEAT = {"seconds": {"denoise": NUMBER}}
SCORES = {"scores": {...: {"mean": object, "per_frame": list}}, "left_out": dict}
JUDGED = dict


def misfit(value: Any, shape: Any, place: str = "") -> str | None:
    """Where a value is not of a shape, in a few words; None where it is.

    Args:
        shape: one type or several; a list of one shape, for a list of such values; a dict of shapes by key, for an
            object that has at least these. The key ``...`` stands for every key there is.
    """
    if isinstance(shape, dict):
        return _object(value, shape, place)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _found(value, place)
        found = (misfit(one, shape[0], f"{place}[{number}]") for number, one in enumerate(value))
        return next((why for why in found if why), None)
    kinds = shape if isinstance(shape, tuple) else (shape,)
    number = isinstance(value, bool) and int in kinds  # JSON's true is no number
    return _found(value, place) if number or not isinstance(value, kinds) else None


def _object(value: Any, shape: dict, place: str) -> str | None:
    if not isinstance(value, dict):
        return _found(value, place)
    for key in list(value) if ... in shape else list(shape):
        where = f"{place}.{key}" if place else str(key)
        if key not in value:
            return f"{where} is missing"
        why = misfit(value[key], shape.get(..., shape.get(key)), where)
        if why:
            return why
    return None


def _found(value: Any, place: str) -> str:
    text = json.dumps(value)
    return f"{place or 'it'} is {text if len(text) <= 40 else text[:37] + '...'}"
