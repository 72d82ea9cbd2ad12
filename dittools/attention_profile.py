"""Profiles: what `dittools calibrate` measured of one model on one token grid, for the methods that decide ahead.

A profile is a JSON file that says what it is and what it was made from, and beside it a safetensors file of the same
name with the tables that are too large for text. The JSON holds a digest of that file: the two belong together. One
profile may serve several methods.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch

from dittools.files import parse_json, read_text, sha256, together
from dittools.naming import unknown
from dittools.scoped_cache import ScopedCache
from dittools.tokens import TokenGrid

VERSION = 1
KIND = "attention"
# Far above any profile, and far below what would fill a machine: a file from elsewhere may say anything.
MOST_JSON_BYTES = 64 << 20


@dataclass(frozen=True)
class Model:
    """What a profile has to fit: the transformers of a pipeline, and how its schedule is bent.

    Args:
        transformer: class name.
        fingerprint: of the configs of its transformers; see `fingerprint`.
        layers, heads: self-attention layers over all transformers, and heads in each.
        shift: flow shift of the scheduler, None where it has none.
    """

    transformer: str
    fingerprint: str
    layers: int
    heads: int
    shift: float | None = None


@dataclass(frozen=True)
class Made:
    """How a profile came about, for whoever has to judge it.

    Args:
        weights: name of the weights.
        steps: denoising steps of the runs it was measured in.
        device, versions: as in a run record.
        dittools, command: what was run.
        prompts, seeds: what was drawn.
        guidance, dtype: how.
        seconds: what calibration took.
    """

    weights: str
    steps: int
    device: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    dittools: str = "unknown"
    command: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    guidance: float = 1.0
    dtype: str = "float32"
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Profile:
    """Measured tables for methods.

    Args:
        model, grid, made: what it belongs to, and how it came about.
        methods: by method, plain values; ``"by_step": true`` where they differ from step to step.
        arrays: tables on the CPU, named "method.table".
        name: what notes call it.
        cache: what methods made of it on the CPU, for later runs; see `AttentionCall.profile_cache`.
    """

    model: Model
    grid: TokenGrid
    made: Made
    methods: dict[str, dict[str, Any]]
    arrays: dict[str, torch.Tensor] = field(default_factory=dict)
    name: str = "this profile"
    cache: ScopedCache = field(default_factory=ScopedCache, init=False, repr=False)

    def array(self, name: str, shape: tuple[int | None, ...], dtype: torch.dtype) -> torch.Tensor:
        """A table, checked: whoever reads a profile says what it must look like. None in ``shape`` is any size.

        Raises:
            ValueError: when the table is missing or another.
        """
        found = self.arrays.get(name)
        fits = found is not None and found.ndim == len(shape) and found.dtype == dtype
        if not fits or any(want not in (None, have) for want, have in zip(shape, found.shape, strict=True)):
            what = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise ValueError(
                f"{self.name} is damaged: {name} must be {dtype} {['any' if n is None else n for n in shape]}, "
                f"found {what}; make it again with dittools calibrate"
            )
        return found

    def save(self, path: Path) -> list[Path]:
        """Write ``path`` (JSON) and the tables beside it, both whole or neither; gives the files. Raises OSError."""
        from safetensors.torch import save

        path = Path(path)
        named = [_tables(path), path] if self.arrays else [path]
        with together(*named) as parts:
            digest = None
            if self.arrays:
                parts[0].write_bytes(save({key: value.contiguous() for key, value in self.arrays.items()}))
                digest = sha256(parts[0])
            text = json.dumps(self._to_dict(digest), indent=1, ensure_ascii=False, allow_nan=False)
            parts[-1].write_text(text + "\n", encoding="utf-8")
        return named[::-1]

    def _to_dict(self, digest: str | None) -> dict[str, Any]:
        return {
            "dittools_profile": VERSION,
            "kind": KIND,
            "model": dataclasses.asdict(self.model),
            "grid": dataclasses.asdict(self.grid),
            "made": dataclasses.asdict(self.made),
            "methods": self.methods,
            "arrays": {name: list(value.shape) for name, value in self.arrays.items()},
            "arrays_sha256": digest,
        }


def fingerprint(configs: list[Mapping[str, Any]]) -> str:
    """16 hex digits that stand for the configs of a pipeline's transformers; names with a leading _ do not count."""
    import hashlib

    plain = [{key: value for key, value in config.items() if not key.startswith("_")} for config in configs]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]


def shipped() -> dict[str, Path]:
    """Profiles that come with dittools, by name."""
    folder = Path(str(resources.files("dittools.profiles")))
    return {path.stem: path for path in sorted(folder.glob("*.json")) if _kind(path) == KIND}


def find(asked: str) -> Path:
    """The file that a path or the name of a shipped profile stands for.

    Raises:
        ValueError: when there is neither.
    """
    path = Path(asked).expanduser()
    if path.is_file():
        return path
    if asked in shipped():
        return shipped()[asked]
    if path.suffix or "/" in asked or not shipped():
        raise ValueError(f"no profile at {asked}: give the JSON file that dittools calibrate wrote")
    raise ValueError(unknown("profile", asked, shipped()))


# What methods made of a profile is worth keeping: one that somebody uses is not read again, and of those that are not
# too large the latest stay for the next acceleration.
_LOADED: WeakValueDictionary[tuple, Profile] = WeakValueDictionary()
_LATEST: deque[Profile] = deque(maxlen=2)
STAYING_BYTES = 256 << 20


def load(path: Path, name: str | None = None) -> Profile:
    """Read a profile and check all that can be checked without its model.

    A file that has not changed gives the same profile again while that is in use, or is one of the latest.

    Raises:
        ValueError: one line, when it cannot be read, is none, or is of another version.
    """
    name = name or f"profile {path}"
    key = name, _state(path), _state(_tables(path))
    profile = _LOADED.get(key)
    if profile is None:
        profile = _LOADED[key] = _load(path, name)
        if sum(table.nbytes for table in profile.arrays.values()) <= STAYING_BYTES:
            _LATEST.append(profile)
    return profile


def _state(path: Path) -> tuple:
    """What changes when a file does; the path alone where it cannot be asked."""
    try:
        found = path.stat()
    except OSError:
        return (path,)
    return path.resolve(), found.st_ino, found.st_mtime_ns, found.st_size


def _load(path: Path, name: str) -> Profile:
    found = _read(path, name)
    if found.get("kind") != KIND or "dittools_profile" not in found:
        raise ValueError(f"{name} is no profile of attention: give the JSON file that dittools calibrate wrote")
    if found["dittools_profile"] != VERSION:
        has = found["dittools_profile"]
        raise ValueError(f"{name} has version {has!r}, and this dittools reads version {VERSION}: make it again")
    try:
        model, grid, made = Model(**found["model"]), TokenGrid(**found["grid"]), dict(found["made"])
        for key in ("command", "prompts", "seeds"):
            made[key] = tuple(made.get(key, ()))
        made = Made(**made)
        methods, listed = found["methods"], found["arrays"]
        numbers = (made.steps, model.layers, model.heads)
        if not all(type(n) is int and 0 < n < 1 << 20 for n in numbers) or not isinstance(methods, dict):
            raise TypeError("steps, layers and heads must be whole numbers above 0")
        if model.shift is not None and not (type(model.shift) in (int, float) and math.isfinite(model.shift)):
            raise TypeError("shift must be a number")
        if not all(isinstance(section, dict) for section in methods.values()) or not isinstance(listed, dict):
            raise TypeError("methods and arrays must be objects")
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{name} is damaged ({error}): make it again with dittools calibrate") from None
    tables = _read_tables(path, listed, found.get("arrays_sha256"), name)
    return Profile(model, grid, made, methods, tables, name)


def named(asked: str) -> Profile:
    """The profile that a path or the name of a shipped one stands for, called as it was asked for. Raises as `find`
    and `load`.
    """
    return load(find(asked), f"profile {asked}")


def misfit(profile: Profile, method: str, model: Model, grid: TokenGrid, steps: int) -> str | None:
    """Why a method cannot use a profile in this run, naming both sides; None when it can."""
    why = misfit_of_model(profile, method, model)
    if why is None and profile.grid != grid:
        why = f"{profile.name} is for {grid_text(profile.grid)}, and this run has {grid_text(grid)}"
    return why or misfit_of_run(profile, method, steps)


def misfit_of_call(profile: Profile, grid: TokenGrid) -> str | None:
    """Why what a profile says of blocks does not hold in a call of this grid; None when it does.

    Text behind everything else may be longer or shorter: padding that a mask hides is no part of a call, and no block
    before it is another one.
    """
    ours, theirs = (dataclasses.replace(g, text=0, text_position="none") for g in (grid, profile.grid))
    if grid == profile.grid or (ours == theirs and "first" not in (grid.text_position, profile.grid.text_position)):
        return None
    return f"{profile.name} is for {grid_text(profile.grid)}, and this call has {grid_text(grid)}"


def misfit_of_model(profile: Profile, method: str, model: Model) -> str | None:
    """What of `misfit` is known before a run: method and model."""
    if method not in profile.methods:
        return _not_for(profile, method)
    ours, theirs = ((m.transformer, m.fingerprint, m.layers, m.heads) for m in (model, profile.model))
    if ours != theirs:
        return f"{profile.name} is of {model_text(profile.model)}, and this is {model_text(model)}"
    return None


def misfit_of_run(profile: Profile, method: str, steps: int) -> str | None:
    """What of `misfit` is known before a model is loaded: method and number of steps."""
    if method not in profile.methods:
        return _not_for(profile, method)
    if profile.methods[method].get("by_step", True) and profile.made.steps != steps:
        return f"{profile.name} is for {profile.made.steps} steps, and this run has {steps}"
    return None


def harmless(profile: Profile, method: str, model: Model, steps: int) -> list[str]:
    """Differences that do not stop a run, a line each."""
    notes = []
    if profile.made.steps != steps:
        notes.append(f"{profile.name} was measured over {profile.made.steps} steps, this run has {steps}")
    if profile.model.shift != model.shift:
        notes.append(f"{profile.name} was measured at flow shift {profile.model.shift}, this run has {model.shift}")
    return notes


def remedy_for(method: str) -> str:
    """What to do where a profile does not fit."""
    return f"make one with dittools calibrate --method {method}"


def choose(
    asked: str | None,
    method: str,
    needed: bool,
    model: Model | None,
    grid: TokenGrid,
    steps: int,
    *,
    give: str = "--profile or profile=",
) -> tuple[Profile | None, list[str]]:
    """The profile of a run, with notes.

    Args:
        asked: what the user named; None looks among the shipped ones when the method needs a profile.
        give: how the user would name one here, for the error.

    Raises:
        ValueError: when the named one does not fit, or a method needs one and none does.
    """
    remedy = remedy_for(method)
    if asked is not None:
        profile = named(asked)
        why = "the model is not known" if model is None else misfit(profile, method, model, grid, steps)
        if why:
            raise ValueError(f"{why}: {remedy}")
        return profile, harmless(profile, method, model, steps)
    if not needed:
        return None, []
    near = None
    for name, path in shipped().items() if model is not None else ():
        profile = load(path, f"the shipped profile {name}")
        why = misfit(profile, method, model, grid, steps)
        if why is None:
            return profile, [
                f"using {profile.name}, which fits model and grid",
                *harmless(profile, method, model, steps),
            ]
        if profile.model.fingerprint == model.fingerprint:
            near = why
    what = f"{grid_text(grid)} and {steps} steps"
    raise ValueError(
        f"method {method} needs a profile of this model for {what}, and none that ships fits"
        + (f" ({near})" if near else "")
        + f": {remedy} and give it with {give}"
    )


def _not_for(profile: Profile, method: str) -> str:
    holds = ", ".join(sorted(profile.methods)) or "nothing"
    return f"{profile.name} is for {holds}, and not for method {method}"


def model_text(model: Model) -> str:
    """A model for an error."""
    return f"{model.transformer} {model.fingerprint} ({model.layers} layers, {model.heads} heads)"


def grid_text(grid: TokenGrid) -> str:
    """A token grid for an error."""
    others = "".join(f", {part.tokens} of {part.kind}" for part in grid.parts)
    text = f" and {grid.text} text{' in front' * (grid.text_position == 'first')}" if grid.text else ""
    return f"{grid.frames} x {grid.height} x {grid.width} tokens{others}{text}"


def _tables(path: Path) -> Path:
    return path.with_suffix(".safetensors")


def _kind(path: Path) -> str | None:
    """The kind a JSON file in the folder of profiles says it is; other kinds share that folder."""
    try:
        found = parse_json(read_text(path))
    except (OSError, ValueError):
        return None
    return found.get("kind") if isinstance(found, dict) else None


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        large = path.stat().st_size > MOST_JSON_BYTES
        found = None if large else parse_json(read_text(path))
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror}): give the JSON file of a profile") from None
    except ValueError:
        raise ValueError(f"{name} is not JSON: give the JSON file that dittools calibrate wrote") from None
    if large:
        raise ValueError(f"{name} is larger than {MOST_JSON_BYTES >> 20} MB: it is no profile")
    if not isinstance(found, dict):
        raise ValueError(f"{name} is no profile: it must be a JSON object")
    return found


def _read_tables(path: Path, listed: dict[str, Any], digest: Any, name: str) -> dict[str, torch.Tensor]:
    """The tables that the JSON lists, in the shapes it says. Safetensors alone: nothing in it can run code.

    digest: of the file as the JSON says it; None in a profile of an older version.
    """
    if not listed:
        return {}
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    beside = _tables(path)
    try:
        arrays = load_file(str(beside))
        same = digest is None or digest == sha256(beside)
    except FileNotFoundError:
        raise ValueError(f"{name} needs {beside.name} beside it: keep the two files together") from None
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{name}: {beside.name} cannot be read ({error}): make it again") from None
    if not same or {key: list(value.shape) for key, value in arrays.items()} != listed:
        raise ValueError(
            f"{name} and {beside.name} do not belong together, as one of the two is of another calibration: keep files "
            "of one run together, or make the profile again with dittools calibrate"
        )
    return arrays
