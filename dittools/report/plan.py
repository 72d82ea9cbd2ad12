"""Which videos a report draws: settings from sweeps, the baselines beside them, and cases of prompts and seeds."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dittools import caches, corrections, methods
from dittools.config import Config
from dittools.naming import shortened, unknown, value_of

DENSE, SWEEP, KERNEL, STEPS, SEED = "dense", "sweep", "kernel", "steps", "seed"
KINDS = {
    DENSE: "the reference",
    SWEEP: "a setting under test",
    KERNEL: "baseline: the noise floor",
    STEPS: "baseline: equal time",
    SEED: "baseline: another video, equally good",
}
_NOT_SWEPT = ("options", "cache_options", "correction_options", "seed", "strict")
_DENSE = ("method", "cache", "cache_options")
"""All that makes a difference to method dense, which chooses nothing: its sparsity and the like say nothing."""
_CACHE = "cache_"
_PARTS = {
    "method": (methods.METHODS, ""),
    "cache": (caches.CACHES, _CACHE),
    "correction": (corrections.CORRECTIONS, "correction_"),
}
"""What has options of its own, with what stands before their names in a sweep."""


@dataclass(frozen=True)
class Plan:
    """What a report asks for, every default filled in; the same plan gives the same cases.

    Args:
        model, weights: as the run record names them.
        prompts, negative_prompt, seeds: every prompt is drawn with every seed.
        base: the `Config` that the sweeps start from, as its `to_dict`.
        sweep: setting or option of a method -> its values; the product is taken.
        frames, height, width, steps, guidance, fps: of every video.
        dtype, device, offload, compile: how the model runs; device is its type.
        repeats: how often every case is timed.
        fewer_steps: steps of the equal-time baseline; None takes the time of the fastest setting.
        timed: whether times count: not where the device did other work as well.
        task: what a whole call of a pipeline is given, as the run record has it; None where it is run in stages.
            Then sizes, steps and guidance that are left to the pipeline are None.
    """

    model: str
    weights: str
    prompts: tuple[str, ...]
    negative_prompt: str
    seeds: tuple[int, ...]
    base: dict[str, Any]
    sweep: dict[str, list]
    frames: int | None
    height: int | None
    width: int | None
    steps: int
    guidance: float | None
    fps: float
    dtype: str
    device: str
    offload: str = "none"
    compile: bool = False
    repeats: int = 1
    fewer_steps: int | None = None
    timed: bool = True
    task: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """The plan in ``values``. Raises ValueError for keys that do not belong there."""
        names = {field.name for field in dataclasses.fields(cls)}
        for key in values:
            if key not in names:
                raise ValueError(unknown("key of a report's plan", key, names))
        return cls(**{**values, "prompts": tuple(values["prompts"]), "seeds": tuple(values["seeds"])})

    def difference(self, other: Plan) -> list[str]:
        """Names of the fields in which two plans differ; files that were given are known by what is in them."""
        mine, theirs = ({**plan.to_dict(), "task": _content(plan.task)} for plan in (self, other))
        return [name for name in mine if mine[name] != theirs[name]]

    @property
    def fewest_steps(self) -> int:
        """Steps of the shortest run: of those asked for, a pipeline takes the share that --strength says."""
        strength = (self.task or {}).get("inputs", {}).get("strength", 1)
        return math.ceil(1 / strength - 1e-9)

    def other_seed(self, seed: int) -> int:
        """The seed whose dense video shows how far apart two equally good videos are: the next one asked for."""
        if len(self.seeds) == 1:
            return seed - 1 if seed == 2**63 - 1 else seed + 1
        return self.seeds[(self.seeds.index(seed) + 1) % len(self.seeds)]


class Decided(NamedTuple):
    """What is known only once a report runs: kernels by name, the equal-time baseline's steps, and why not more."""

    dense_kernel: str
    other_kernel: str | None = None
    fewer_steps: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """One way to draw. `config` is None for the untouched pipeline; `key` is its name in files."""

    key: str
    name: str
    kind: str
    steps: int
    config: dict[str, Any] | None = None
    kernel: str | None = None


class Case(NamedTuple):
    """One video to draw. Its id is a hash of all that decides its frames, so equal cases are drawn once."""

    id: str
    prompt: int
    seed: int
    setting: Setting


class Row(NamedTuple):
    """A case as one setting's answer to a prompt and seed, and the dense case it is compared with."""

    setting: Setting
    prompt: int
    seed: int
    case: Case
    reference: Case


def swept(base: Mapping[str, Any], sweep: Mapping[str, list], steps: int) -> tuple[list[Setting], list[str]]:
    """The settings under test, and notes on what was left out. Raises ValueError for an impossible one."""
    old = {_CACHE + before: _CACHE + now for before, now in caches.Cache.renamed.items()}
    sweep = {old.get(key, key): values for key, values in sweep.items()}
    known = {field.name for field in dataclasses.fields(Config)} - set(_NOT_SWEPT)
    for part, (registry, prefix) in _PARTS.items():
        known |= {prefix + option for name in _named(part, base, sweep) for option in registry.options(name)}
    for key in sweep:
        if key not in known:
            raise ValueError(unknown("setting to sweep", key, known))
    found: dict[str, Setting] = {}
    notes: dict[str, None] = {}
    for values in itertools.product(*sweep.values()):
        chosen = dict(zip(sweep, values, strict=True))
        config = _config(base, chosen)
        if config.method == "dense" and config.cache == caches.NONE:
            notes["method dense is in every report as its reference: not drawn a second time"] = None
            continue
        asked = config.to_dict()
        content = _hash({key: asked[key] for key in _DENSE} if config.method == "dense" else asked)
        if content not in found:
            found[content] = Setting(f"sweep-{len(found) + 1}", _name(config, chosen), SWEEP, steps, asked)
    return list(found.values()), list(notes)


def _named(part: str, base: Mapping[str, Any], sweep: Mapping[str, list]) -> list[str]:
    """Names of methods, caches or corrections that a sweep may come to. Raises ValueError for an unknown one."""
    registry = _PARTS[part][0]
    values = [base.get(part, registry.default), *sweep.get(part, ())]
    found = [registry.read(str(value))[0] for value in values]
    for name in found:
        registry.check(name)
    return found


def _config(base: Mapping[str, Any], chosen: Mapping[str, Any]) -> Config:
    """The base with chosen settings; an option or a profile goes only to a method that takes it."""
    fields = {field.name for field in dataclasses.fields(Config)}
    single = {key: value for key, value in chosen.items() if key in fields}
    method, options = _part("method", base, chosen)
    kind = methods.create(method, {})
    if kind.profile_use == "none":
        single["profile"] = None
    skips = method != "dense" and kind.takes_corrections  # else there are no blocks to make up for
    correction, correction_options = _part("correction", base, chosen) if skips else (corrections.AUTO, {})
    cache, cache_options = _part("cache", base, chosen)
    parts = {"method": method, "cache": cache, "correction": correction}
    of_parts = {"options": options, "cache_options": cache_options, "correction_options": correction_options}
    return Config.from_dict({**base, **single, **parts, **of_parts})


def _part(part: str, base: Mapping[str, Any], chosen: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The chosen method, cache or correction with its options; one that was swept apart goes to what has it alone."""
    registry, prefix = _PARTS[part]
    before = base.get(part, registry.default)
    name, inline = registry.read(str(chosen.get(part, before)))
    known = registry.options(name)
    held = base.get("options" if part == "method" else f"{part}_options", {})
    options = {key: value for key, value in held.items() if name == before or (part == "method" and key in known)}
    apart = {key.removeprefix(prefix): value for key, value in chosen.items() if key.startswith(prefix)}
    return name, options | inline | {key: value for key, value in apart.items() if key in known}


def _name(config: Config, chosen: Mapping[str, Any]) -> str:
    """For people: the method, its sparsity, and what else was swept."""
    inline = methods.METHODS.read(str(chosen.get("method", "")))[1]
    parts = [" ".join((config.method, *(f"{key} {_short(value)}" for key, value in inline.items())))]
    parts += [f"sparsity {config.sparsity:g}"] if config.method != "dense" else []
    if config.cache != caches.NONE:
        parts.append(" ".join((config.cache, *(f"{k} {_short(v)}" for k, v in config.cache_options.items()))))
    if config.names_correction:
        parts.append(" ".join((config.correction, *(f"{k} {_short(v)}" for k, v in config.correction_options.items()))))
    elif config.correction == "none" and config.method == "auto":
        parts.append("no correction")
    if "profile" in chosen and config.profile is not None:
        parts.append(f"profile {_short(config.profile)}")
    known = methods.options(config.method)
    for key, value in chosen.items():
        if key.startswith(("cache", "correction")) or key == "profile" or config.method == "dense":
            continue
        if key not in ("method", "sparsity") and (key not in known or key in config.options):
            parts.append(f"{key.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{key} {value}")
    return ", ".join(parts)


def _short(value: Any) -> str:
    """A profile by its name, without its folder."""
    return f"{value:g}" if isinstance(value, float) else str(value).rsplit("/", 1)[-1]


def settings(plan: Plan, decided: Decided) -> list[Setting]:
    """All settings: dense, those under test, and the baselines that are known by now."""
    found = [Setting("dense", "dense", DENSE, plan.steps), *swept(plan.base, plan.sweep, plan.steps)[0]]
    if decided.other_kernel is not None:
        name = f"dense, {decided.other_kernel} kernel"
        found.append(Setting("kernel", name, KERNEL, plan.steps, kernel=decided.other_kernel))
    found.append(Setting("seed", "dense, another seed", SEED, plan.steps))
    if decided.fewer_steps is not None:
        name = f"dense, {decided.fewer_steps} step{'s' if decided.fewer_steps > 1 else ''}"
        found.append(Setting("steps", name, STEPS, decided.fewer_steps))
    return found


def case_of(plan: Plan, setting: Setting, prompt: int, seed: int) -> Case:
    """The case that answers a prompt (by number) and seed in a setting."""
    drawn = plan.other_seed(seed) if setting.kind == SEED else seed
    content = {
        "prompt": plan.prompts[prompt],
        "negative_prompt": plan.negative_prompt,
        "seed": drawn,
        "size": [plan.frames, plan.height, plan.width],
        "guidance": plan.guidance,
        "steps": setting.steps,
        "config": setting.config,
        "kernel": setting.kernel,
        **({} if plan.task is None else {"task": _content(plan.task)}),
    }
    return Case(_hash(content), prompt, drawn, setting)


def rows(plan: Plan, found: Iterable[Setting]) -> list[Row]:
    """Every prompt and seed in every setting, in the order of the tables."""
    found = list(found)
    dense = next(setting for setting in found if setting.kind == DENSE)
    return [
        Row(setting, prompt, seed, case_of(plan, setting, prompt, seed), case_of(plan, dense, prompt, seed))
        for setting in found
        for prompt in range(len(plan.prompts))
        for seed in plan.seeds
    ]


def equal_time_steps(steps: int, dense_seconds: float, fastest_seconds: float, fewest: int = 1) -> int | None:
    """How many dense steps fit into the time of the fastest setting; None when a run has only one step.

    At most one step less than the full run: what is no faster than dense is compared with the nearest there is.

    Args:
        fewest: steps that a run has at least.
    """
    if steps <= fewest or dense_seconds <= 0:
        return None
    return max(fewest, min(steps - 1, round(steps * fastest_seconds / dense_seconds)))


def read_sweeps(texts: Sequence[str]) -> dict[str, list]:
    """``["sparsity=0.5,0.8", "method=svg"]`` -> values by name. Raises ValueError."""
    found: dict[str, list] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        parts = [part.strip() for part in values.split(",")]
        if not (name.strip() and equals and all(parts)):
            raise ValueError(f"--sweep must be name=value,value,... such as sparsity=0.5,0.8, got {text!r}")
        values = found.setdefault(name.strip().replace("-", "_"), [])
        for part in parts:
            if value_of(part) in values:
                raise ValueError(f"--sweep {name.strip()}: {shortened(part)} is given twice: give it once")
            values.append(value_of(part))
    return found


def _content(given: Any) -> Any:
    """What was given, without the names of its files."""
    if isinstance(given, dict):
        return {key: _content(value) for key, value in given.items() if not (key == "file" and "sha256" in given)}
    return [_content(one) for one in given] if isinstance(given, list | tuple) else given


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
