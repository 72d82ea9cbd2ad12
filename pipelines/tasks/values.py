"""``--set NAME=VALUE``: the arguments of a pipeline's own, checked against the signature of its call."""

from __future__ import annotations

import difflib
import inspect
import json
import re
import types
import typing
from collections.abc import Sequence
from typing import Any

from dittools.pipelines.errors import BadInput
from dittools.pipelines.tasks import media
from dittools.pipelines.tasks.classes import FRAME_COUNTS, PipelineClass
from dittools.pipelines.tasks.inputs import taken

_FLAGS = {
    "prompt": "--prompt",
    "negative_prompt": "--negative-prompt",
    "num_inference_steps": "--steps",
    "height": "--height",
    "width": "--width",
    "guidance_scale": "--guidance",
    **dict.fromkeys(FRAME_COUNTS, "--frames"),
    **dict.fromkeys(("fps", "frame_rate"), "--fps"),
    **dict.fromkeys(("generator", "seed"), "--seed"),
    **dict.fromkeys(("num_videos_per_prompt", "num_images_per_prompt"), "--num-videos"),
    **dict.fromkeys(("output_type", "return_dict"), "--output"),
}
"""Arguments that have a flag of their own."""
_NOT_SAID = re.compile(
    r"(?!.*guidance).*(latents|embeds|embeds_\w+|_mask_2|callback|callback_\w+|_ids|cu_seqlens|attention_mask|"
    r"_projections)$"
)
"""Arguments that are tensors or functions."""
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", dict: "a JSON object"}


def settable(one: PipelineClass) -> dict[str, Any]:
    """Argument -> annotation, of those that --set takes."""
    hints = _hints(one)
    return {
        name: hints.get(name, parameter.annotation)
        for name, parameter in one.parameters.items()
        if _why_not(one, name) is None
    }


def read(one: PipelineClass, given: Sequence[str]) -> dict[str, Any]:
    """The values of ``NAME=VALUE`` texts, of the types that the call takes.

    Raises:
        BadInput: for a name that the call has not, one that has a flag, and a value of another type.
    """
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise BadInput(f"--set must be NAME=VALUE, got {text!r}")
        known = settable(one)
        if name not in known:
            raise BadInput(_unknown(one, name, known))
        if name in found:
            raise BadInput(f"--set {name} is given twice: give it once")
        found[name] = _value(one, name, value.strip(), known[name])
    return found


def _why_not(one: PipelineClass, name: str) -> str | None:
    """What to use in place of --set for an argument; None where --set takes it."""
    flag = next((flag for flag, argument in taken(one).items() if argument == name), None)
    if flag is not None:
        return f"use --{flag.replace('_', '-')}"
    if name in _FLAGS:
        return f"use {_FLAGS[name]}"
    if name == guidance_of(one):
        return "use --guidance"
    return "it is no value that a command line can hold" if _NOT_SAID.match(name) else None


def guidance_of(one: PipelineClass) -> str | None:
    """The argument that --guidance sets: that of classifier-free guidance where it is not the distilled one."""
    names = ("true_cfg_scale", "guidance_scale") if one.family.name == "qwen-image" else ("guidance_scale",)
    return next((name for name in names if name in one.parameters), None)


def _unknown(one: PipelineClass, name: str, known: dict[str, Any]) -> str:
    why = _why_not(one, name) if name in one.parameters else None
    if why is not None:
        return f"--set {name}: {why}"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"--set {name}: {one.name} takes no such argument{hint}; it takes {', '.join(known) or 'none'}"


def _hints(one: PipelineClass) -> dict[str, Any]:
    try:
        return typing.get_type_hints(one.kind.__call__)
    except (NameError, TypeError, AttributeError):
        return {}


def _value(one: PipelineClass, name: str, text: str, annotation: Any) -> Any:
    kinds = _kinds(annotation, one.parameters[name])
    if kinds & {"image", "video"} and not (type(None) in kinds and _none(text)):
        found = media.clip(f"--set {name}", text)
        if "video" in kinds or len(found.frames) > 1:
            return list(found.frames)
        return found.frames[0]
    for kind, reads in _READERS:
        if kind in kinds and not (kind is list and str in kinds and not text.startswith("[")):
            value = reads(text)
            if value is not None:
                return value[0]
    wanted = " or ".join(_KINDS.get(kind, "a list, such as 1,2") for kind in (*_KINDS, list) if kind in kinds)
    raise BadInput(f"--set {name} must be {wanted or 'of another type'}, got {text!r}")


def _kinds(annotation: Any, parameter: inspect.Parameter) -> set[Any]:
    """Types that an argument takes, of those that a text can say; "image" and "video" are files."""
    found: set[Any] = set()
    _collect(annotation, found)
    default = parameter.default
    if default is None or type(None) in found:
        found.add(type(None))
    if not found - {type(None)} and default is not parameter.empty and default is not None:
        found.add(list if isinstance(default, (list, tuple)) else type(default))
    if not found - {type(None)}:
        found |= {bool, int, float, str, list, dict}
    return found


def _collect(annotation: Any, found: set[Any]) -> None:
    if isinstance(annotation, str):  # where hints cannot be had: the words of the annotation
        words = set(re.findall(r"\w+", annotation))
        found |= {kind for kind in (bool, int, float, str, dict) if kind.__name__ in words}
        found |= {list} if words & {"list", "List", "tuple", "Tuple"} else set()
        found |= {"video" if "_video" in annotation else "image"} if words & {"Image", "PipelineImageInput"} else set()
        return
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            _collect(part, found)
    elif origin in (list, tuple, Sequence):
        inner: set[Any] = set()
        for part in typing.get_args(annotation):
            _collect(part, inner)
        found.add("video" if inner & {"image", "video"} else list)
    elif getattr(annotation, "__name__", "") == "Image" and "PIL" in getattr(annotation, "__module__", ""):
        found.add("image")
    elif annotation in (bool, int, float, str, dict, type(None)):
        found.add(annotation)
    elif origin is dict:
        found.add(dict)


def _none(text: str) -> tuple[None] | None:
    return (None,) if text.lower() in ("none", "null") else None


def _bool(text: str) -> tuple[bool] | None:
    return {"true": (True,), "false": (False,)}.get(text.lower())


def _number(kind: type) -> Any:
    def reads(text: str) -> tuple[Any] | None:
        if not re.fullmatch(r"[+-]?(\d+|\d*\.\d+|\d+\.)(e[+-]?\d+)?", text, re.ASCII) or len(text) > 40:
            return None
        try:
            return (kind(text),)
        except (ValueError, OverflowError):
            return None

    return reads


def _list(text: str) -> tuple[list] | None:
    try:
        found = json.loads(text if text.startswith("[") else f"[{text}]")
    except (ValueError, RecursionError):
        return None
    return (found,) if isinstance(found, list) and found else None


def _object(text: str) -> tuple[dict] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return (found,) if isinstance(found, dict) else None


_READERS = (
    (type(None), _none),
    (bool, _bool),
    (int, _number(int)),
    (float, _number(float)),
    (dict, _object),
    (list, _list),
    (str, lambda text: (text,)),
)
