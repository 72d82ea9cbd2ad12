"""What a user asks for, checked once, with a JSON form that says its version."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from dittools import caches, corrections, methods
from dittools.files import parse_json
from dittools.naming import spelt, unknown
from dittools.numbers import whole_steps

VERSION = 1
BLOCK_SIZES = ("auto", 64, 128)

__all__ = ["Config", "whole_steps"]


@dataclass(frozen=True)
class Config:
    """Settings of one acceleration.

    Args:
        method: a name from `dittools.methods.names()`; "auto" picks one for the model and grid.
        sparsity: share of query-key pairs to skip in sparse calls, in [0, 1). 0.8 skips 80 %.
        dense_steps: steps at the start of a run that stay dense: a share of the run as a float in [0, 1]
            (rounded to whole steps, at least one when above 0), or a count as an int. Mind that 1 is one step
            and 1.0 is all.
        dense_last_steps: the same for the end of a run.
        dense_layers: the first layers of each transformer that stay dense, a count.
        refresh: for how many steps a selection is used before it is made anew.
        share_branches: the guidance branches of a step use one plan, made in the first. Guidance takes their difference
            several times over: what all of them lose alike is not in it, and only one has to be chosen for.
        block_size: tokens in a query or key block, 64 or 128; "auto" is 128 on CUDA and 64 elsewhere.
        strict: raise when a sparse call gives a non-finite result, where the default is to redo it dense.
        seed: fixes what a method draws at random, for example which rows are probed.
        options: settings of the method itself, for example ``{"probe_rows": 64}`` for svg.
        cache: which steps are reused instead of computed, a name from `dittools.caches.names()`; its options may
            follow, as in ``"teacache:threshold=0.1:max_skips=3"``.
        cache_options: the cache's options by name; they win over those in ``cache``.
        correction: what makes up for skipped pairs, a name from `dittools.corrections.names()`. With "none" a method
            that brings a correction along (svg_ear) still has it.
        correction_options: settings of the correction itself, for example ``{"every": 4}`` for rettention.
        profile: file of a profile, or the name of one that ships, for methods that decide from measurements; None
            finds a shipped one that fits where the method needs one.

    Raises:
        ValueError: one line that says what was asked and what would be right.
    """

    method: str = "auto"
    sparsity: float = 0.8
    dense_steps: float | int = 0.2
    dense_last_steps: float | int = 0
    dense_layers: int = 1
    refresh: int = 1
    block_size: str | int = "auto"
    strict: bool = False
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    cache: str = "none"
    cache_options: dict[str, Any] = field(default_factory=dict)
    correction: str = "none"
    correction_options: dict[str, Any] = field(default_factory=dict)
    profile: str | None = None
    share_branches: bool = True

    def __post_init__(self):
        self._set("method", spelt(self.method, methods.names()))
        self._set("correction", spelt(self.correction, corrections.names()))
        if self.method not in methods.names():
            raise ValueError(unknown("method", self.method, methods.names(), listed="dittools methods"))
        self._set("sparsity", _real("sparsity", self.sparsity))
        if not 0 <= self.sparsity < 1:
            raise ValueError(
                f"sparsity is the share of pairs to skip, at least 0 and below 1, got {self.sparsity:g}"
                + (f": did you mean {self.sparsity / 100:g}?" if 10 <= self.sparsity < 100 else "")
            )
        for name in ("dense_steps", "dense_last_steps"):
            self._set(name, _steps(name, getattr(self, name)))
        for name, least in (("dense_layers", 0), ("refresh", 1), ("seed", 0)):
            self._set(name, _count(name, getattr(self, name), least))
        if isinstance(self.block_size, bool) or self.block_size not in BLOCK_SIZES:
            raise ValueError(f"block_size must be 'auto', 64 or 128, got {self.block_size!r}")
        for name in ("strict", "share_branches"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if not isinstance(self.options, Mapping) or not all(isinstance(key, str) for key in self.options):
            raise ValueError(f"options must map names to values, got {self.options!r}")
        self._set("options", dict(self.options))
        # Made to be checked: a misspelt option is an error here and not in the middle of a run.
        method = methods.create(self.method, self.options, also_known=_names())
        if isinstance(self.profile, os.PathLike):
            self._set("profile", os.fspath(self.profile))
        if self.profile is not None and not (isinstance(self.profile, str) and self.profile):
            raise ValueError(f"profile must be the path of a profile or the name of one, got {self.profile!r}")
        if self.profile is not None and method.profile_use == "none":
            takers = ", ".join(n for n, cls in methods.METHODS.items() if cls.profile_use != "none")
            raise ValueError(f"method {self.method} takes no profile: drop it, or use one of {takers}")
        self._check_cache()
        if not isinstance(self.correction_options, Mapping):
            raise ValueError(f"correction_options must map names to values, got {self.correction_options!r}")
        self._set("correction_options", dict(self.correction_options))
        corrections.create(self.correction_of(method), self.correction_options)
        if self.correction != "none" and not method.takes_corrections:
            raise ValueError(
                f"correction {self.correction} makes up for skipped blocks, and method {self.method} takes fewer keys "
                "instead: use correction none"
            )

    def correction_of(self, method: methods.Method) -> str:
        """Name of the correction that runs with a method: the one asked for, else what the method brings along."""
        return method.correction if self.correction == "none" else self.correction

    def _check_cache(self) -> None:
        if not isinstance(self.cache, str):
            raise ValueError(f"cache must be a name such as teacache, got {self.cache!r}")
        if not isinstance(self.cache_options, Mapping) or not all(isinstance(key, str) for key in self.cache_options):
            raise ValueError(f"cache_options must map names to values, got {self.cache_options!r}")
        name, options = caches.read(self.cache)
        self._set("cache", name)
        self._set("cache_options", {**options, **self.cache_options})
        caches.create(name, self.cache_options)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Plain values with a "version", as `from_dict` reads them."""
        return {"version": VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The settings in ``values``; what is missing takes its default.

        Raises:
            ValueError: for an unknown key (naming the nearest), a newer version, or a bad value.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"a config is an object with named settings, got {type(values).__name__}")
        if "config" in values and "dittools" in values:
            raise ValueError("this is the record of a run: give what stands under its 'config', in a file of its own")
        values = dict(values)
        version = values.pop("version", VERSION)
        if version != VERSION:
            raise ValueError(f"this config has version {version!r}, and this dittools reads version {VERSION}")
        for key in values:
            if key not in _names():
                raise ValueError(unknown("config key", key, _names()))
        return cls(**values)

    def to_json(self) -> str:
        """The config as a JSON object."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Config:
        """The config in a JSON object.

        Raises:
            ValueError: when the text is not JSON, and as `from_dict`.
        """
        try:
            values = parse_json(text.removeprefix("\ufeff"))
        except ValueError as error:
            raise ValueError(f"this config is not JSON: {error}") from None
        return cls.from_dict(values)


def _names() -> list[str]:
    return [f.name for f in dataclasses.fields(Config)]


def _real(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return float(value)


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def _steps(name: str, value: Any) -> float | int:
    if isinstance(value, Integral):
        return _count(name, value, 0)
    value = _real(name, value)
    if not 0 <= value <= 1:
        raise ValueError(
            f"{name} is a share of the run as a float in [0, 1], or a count as an int, got {value:g}"
            + (f": did you mean {int(value)}?" if value > 1 and value == int(value) else "")
        )
    return value
