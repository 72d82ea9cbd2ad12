"""The JSON of a file of plans: what it belongs to, which settings decided it, and where each plan is used.

See `SHAPE` for its keys. What does not fit a run is refused from here, before a weight or a table is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from dittools.attention_profile import Made, Model, grid_text, model_text
from dittools.files import parse_json, read_text
from dittools.made import MOST_PLANS_BYTES
from dittools.naming import unknown
from dittools.report.schema import misfit
from dittools.tokens import TokenGrid

VERSION = 1
KIND = "plans"
AGAIN = "export a run with these settings by dittools export"

_LANE = {"part": int, "branch": str, "steps": str}
_CACHE = {"reuse": (str, type(None)), "taylor_order": int, "calls": [_LANE]}
_USE = {"layer": int, "branch": str, "call": int, "piece": int, "steps": [list]}
SHAPE = {
    "model": {"transformer": str, "fingerprint": str, "layers": int, "heads": int},
    "grids": [{"frames": int, "height": int, "width": int}],
    "steps": int,
    "config": dict,
    "method": {"name": str, "options": dict},
    "made": {"weights": str, "steps": int},
    "plans": [{"grid": int, "kind": str, "keep": {"table": str, "lanes": list}}],
    "uses": [_USE],
    "dense": [list],
    "tables": {...: {"shape": [int], "dtype": str}},
}
"""Keys of the JSON, beside "dittools_plans" (its version), "kind" and "tables_sha256".

config: of `dittools.Config`, without files. method: the one that decided, as "auto" picked it. plans: entries of
`dittools.plans.form`, each once. uses: for each layer, branch, number of the layer's call in a forward and piece of
that call, groups ``[first step, last step, plan, fresh]``; in place of a number a text says why such calls stayed
dense. dense: ``[step, layer]`` after a result that was not finite. cache: None, or what is carried over and, for each
transformer and branch, a letter a step: C computed, r reused, . not called.
"""


@dataclass(frozen=True, eq=False)
class Manifest:
    """What the JSON of a file of plans says.

    Args:
        path: of the JSON.
        model, made: as of a profile.
        grids: token layouts of the calls.
        steps: of the run.
        config: settings in plain values, as `dittools.Config.from_dict` reads them.
        method: name and options of the method that decided.
        plans, uses, dense, cache: see `SHAPE`.
        tables: shape and dtype of each table. tables_sha256: of the file that holds them; None without one.
    """

    path: Path
    model: Model
    made: Made
    grids: tuple[TokenGrid, ...]
    steps: int
    config: dict[str, Any]
    method: dict[str, Any]
    plans: list[dict[str, Any]]
    uses: list[dict[str, Any]]
    dense: list[list[int]]
    cache: dict[str, Any] | None
    tables: dict[str, dict[str, Any]]
    tables_sha256: str | None = None

    @property
    def name(self) -> str:
        """What errors and notes call it."""
        return f"plans {self.path}"

    @property
    def tables_path(self) -> Path:
        return self.path.with_suffix(".safetensors")

    @cached_property
    def branches(self) -> list[str]:
        """Guidance branches that plans were made for."""
        return sorted({use["branch"] for use in self.uses})

    def to_dict(self, digest: str | None) -> dict[str, Any]:
        """The JSON object; ``digest`` is that of the tables' file."""
        found = {"dittools_plans": VERSION, "kind": KIND}
        named = ("model", "made", "steps", "config", "method", "cache", "dense", "tables", "plans", "uses")
        plain = {name: getattr(self, name) for name in named}
        plain |= {name: dataclasses.asdict(getattr(self, name)) for name in ("model", "made")}
        grids = [dataclasses.asdict(grid) for grid in self.grids]
        return found | {"tables_sha256": digest, "grids": grids} | plain

    # What fits a run

    def misfit_of_model(self, model: Model) -> str | None:
        """Why these plans are of another model, naming both; None where they are of this one."""
        ours, theirs = ((m.transformer, m.fingerprint, m.layers, m.heads) for m in (model, self.model))
        if ours == theirs:
            return None
        return f"{self.name} are of {model_text(self.model)}, and this is {model_text(model)}"

    def misfit_of_steps(self, steps: int) -> str | None:
        """Why they are for another number of steps, in one line."""
        if steps == self.steps:
            return None
        return f"{self.name} are for {self.steps} steps, and this run has {steps}: use {self.steps}, or {AGAIN}"

    def misfit_of_picture(self, grid: TokenGrid) -> str | None:
        """Why they are for another picture: text beside it is known only to a call."""
        if grid.shape in [known.shape for known in self.grids]:
            return None
        known = " or ".join(" x ".join(map(str, known.shape)) for known in self.grids)
        ours = " x ".join(map(str, grid.shape))
        return f"{self.name} are for {known} tokens, and this run has {ours}: use the same size, or {AGAIN}"

    def misfit_of_call(self, number: int, grid: TokenGrid) -> str | None:
        """Why a plan made on grid ``number`` does not hold in a call of this grid; text behind may be of any length."""
        known = self.grids[number]
        bare = [dataclasses.replace(one, text=0, text_position="none") for one in (grid, known)]
        if grid == known or (bare[0] == bare[1] and "first" not in (grid.text_position, known.text_position)):
            return None
        return (
            f"{self.name} are for {grid_text(known)}, and this call has {grid_text(grid)}: "
            + ("give a prompt as long, or " if bare[0] == bare[1] else "")
            + AGAIN
        )

    def other_setting(self, name: str, asked: Any, decided: Any) -> str:
        """The line for a setting that a run with these plans cannot have."""
        return (
            f"{name} {asked!r} was asked for, and {self.name} were decided with {decided!r}: a run with plans decides "
            f"nothing, so leave it out, or {AGAIN}"
        )


def read(path: str | Path) -> Manifest:
    """The manifest of a file of plans, checked; a file that has not changed is not read again.

    Raises:
        ValueError: one line, when it cannot be read, is none, is of another version, or contradicts itself.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        inside = [one for one in sorted(path.glob("*.json")) if one.with_suffix(".safetensors").is_file()]
        hint = f": did you mean {inside[0]}?" if inside else ": give the JSON file that dittools export wrote"
        raise ValueError(f"plans {path} is a folder{hint}")
    try:
        state = path.stat()
    except OSError as error:
        raise ValueError(
            f"plans {path} cannot be read ({error.strerror}): give the JSON file that dittools export wrote"
        ) from None
    return _read(path, (state.st_ino, state.st_mtime_ns, state.st_size))


@lru_cache(4)
def _read(path: Path, state: tuple[int, int, int]) -> Manifest:
    found = _object(path, state[-1])
    if found.get("kind") != KIND or "dittools_plans" not in found:
        raise ValueError(f"plans {path} is no file of plans: give the JSON file that dittools export wrote")
    if found["dittools_plans"] != VERSION:
        has = found["dittools_plans"]
        raise ValueError(f"plans {path} have version {has!r}, and this dittools reads version {VERSION}: {AGAIN}")
    why = misfit(found, SHAPE) or (misfit(found["cache"], _CACHE) if found.get("cache") is not None else None)
    try:
        if why:
            raise TypeError(why)
        model, made = Model(**found["model"]), dict(found["made"])
        for key in ("command", "prompts", "seeds"):
            made[key] = tuple(made.get(key, ()))
        grids = tuple(TokenGrid(**grid) for grid in found["grids"])
        named = ("steps", "config", "method", "plans", "uses", "dense", "cache", "tables", "tables_sha256")
        manifest = Manifest(path, model, Made(**made), grids, **{name: found.get(name) for name in named})
        for problem in _contradictions(manifest):
            raise TypeError(problem)
    except (TypeError, KeyError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"plans {path} are damaged ({error}): {AGAIN}") from None
    return manifest


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """What the JSON says that cannot be, before any table is read."""
    numbers = (manifest.steps, manifest.model.layers, manifest.model.heads)
    if not all(0 < n < 1 << 20 for n in numbers) or (manifest.plans and not manifest.grids):
        yield "steps, layers, heads and grids must be there"
    for entry in manifest.plans:
        if not 0 <= entry["grid"] < len(manifest.grids):
            yield f"there is no grid {entry['grid']}"
        if entry["kind"] not in ("blocks", "clusters"):
            yield unknown("kind of plan", entry["kind"], ("blocks", "clusters"))
    for use in manifest.uses:
        for first, last, plan, fresh in use["steps"]:
            known = isinstance(plan, str) or (type(plan) is int and 0 <= plan < len(manifest.plans))
            whole = type(first) is int and type(last) is int and 0 <= first <= last < manifest.steps
            if not (known and whole and isinstance(fresh, bool) and 0 <= use["layer"] < manifest.model.layers):
                yield f"layer {use['layer']} names steps {first} to {last} and plan {plan!r}"
    for table, about in manifest.tables.items():
        if not about["shape"] or any(size < 1 for size in about["shape"]):
            yield f"table {table} is of shape {about['shape']}"


def _object(path: Path, size: int) -> dict[str, Any]:
    try:
        found = None if size > MOST_PLANS_BYTES else parse_json(read_text(path))
    except OSError as error:
        raise ValueError(f"plans {path} cannot be read ({error.strerror})") from None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"plans {path} is no file of plans: give the JSON file that dittools export wrote")
    return found
