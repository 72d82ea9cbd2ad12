"""What a user asks for, checked once, with a JSON form that says its version."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dittools.files import parse_json
from dittools.json_numbers import whole_steps
from dittools.naming import unknown
from dittools.options import Options, option, options_of

if TYPE_CHECKING:
    from dittools import methods
    from dittools.registry import Registry

VERSION = 1
BLOCK_SIZES = ("auto", 64, 128)
ROWS_OF_BOUND = 128
FREE = ("plans", "strict", "error_rows")
"""What a run may have of its own that goes by the plans of another."""

__all__ = ["Config", "whole_steps"]


@dataclass(frozen=True)
class Config(Options):
    """Settings of one acceleration.

    Options may follow the name of a method, cache or correction, as in ``"svg2:iterations=2:scope=head"``; those given
    apart win.

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
        cache: which steps are reused instead of computed, a name from `dittools.caches.names()`.
        cache_options: settings of the cache itself.
        correction: what makes up for skipped pairs, a name from `dittools.corrections.names()`. "auto" is what the
            method brings along, and "sampled" where the method is auto too. With "none" svg_ear still has its own, a
            part of it.
        correction_options: settings of the correction itself, for example ``{"every": 4}`` for rettention.
        profile: file of a profile, or the name of one that ships, for methods that decide from measurements; None
            finds a shipped one that fits where the method needs one.
        plans: file of `Acceleration.export` or `dittools export`, which decides in place of the method: all settings
            but ``strict`` and ``error_rows`` are those of the run that was exported, and others are refused.
        error_rows: query rows of each sparse call that are computed over all keys as well: the record then has the
            relative error of what attention gives, by layer and step, with its uncertainty. 64 of them cost
            64 / S of a dense call.
        max_error: relative error of the attention's output that no sparse call may exceed, by exact rows (128 where
            ``error_rows`` is 0): a call above it runs dense and its layer keeps more pairs from then on, and where
            the error is small it skips more. A choice is used for as long as its error stays, whatever ``refresh``
            says. ``sparsity`` is where layers begin. The host waits for each sparse call.

    Raises:
        ValueError: one line that says what was asked and what would be right.
    """

    method: str = option("auto", "how to choose what is skipped", kind="text")
    sparsity: float = option(0.8, "share of attention to skip in sparse calls", min=0, below=1)
    dense_steps: float | int = option(0.2, "dense steps at the start: 0.2 is a share, 5 a count", kind="steps")
    dense_last_steps: float | int = option(0, "dense steps at the end, the same way", kind="steps")
    dense_layers: int = option(1, "first layers that stay dense", min=0)
    refresh: int = option(1, "steps for which a choice is used", min=1)
    block_size: str | int = option("auto", "tokens in a block", choices=BLOCK_SIZES)
    strict: bool = option(False, "stop at a non-finite sparse result, not redo it dense")
    seed: int = option(0, "what a method draws at random", min=0)
    options: dict[str, Any] = option({}, "options of the method", kind="mapping")
    cache: str = option("none", "reuse steps", kind="text")
    cache_options: dict[str, Any] = option({}, "options of the cache", kind="mapping")
    correction: str = option("auto", "what makes up for what is skipped", kind="text")
    correction_options: dict[str, Any] = option({}, "options of the correction", kind="mapping")
    profile: str | None = option(None, "of dittools calibrate, or a name that ships", kind="file")
    share_branches: bool = option(True, "one choice for both guidance branches of a step")
    plans: str | None = option(None, "of dittools export; the run decides nothing", kind="path")
    error_rows: int = option(0, "rows of each sparse call computed exactly, to tell its error; 0: none", min=0)
    max_error: float | None = option(
        None, "relative error of attention that no sparse call may exceed", kind="number", above=0, below=1
    )

    def __post_init__(self):
        # These import PyTorch, which the table of options does not need.
        from dittools import caches, corrections, methods

        for name, registry, options in (
            ("method", methods.METHODS, "options"),
            ("cache", caches.CACHES, "cache_options"),
            ("correction", corrections.CORRECTIONS, "correction_options"),
        ):
            self._split(name, registry, options)
        if self.plans is not None:
            self._decided()
        super().__post_init__()
        # Made to be checked: a misspelt option is an error here and not in the middle of a run.
        method = methods.create(self.method, self.options, also_known=_names())
        caches.create(self.cache, self.cache_options)
        if self.profile is not None and method.profile_use == "none":
            takers = ", ".join(n for n, cls in methods.METHODS.items() if cls.profile_use != "none")  # type: ignore
            raise ValueError(f"method {self.method} takes no profile: drop it, or use one of {takers}")
        corrections.CORRECTIONS.check(self.correction)
        corrections.create(self.correction_of(method), self.correction_options)
        if self.names_correction and not method.takes_corrections:
            raise ValueError(
                f"correction {self.correction} makes up for skipped blocks, and method {self.method} takes fewer keys "
                "instead: use correction none"
            )

    def _decided(self) -> None:
        """Take the settings of the run whose plans these are. Raises ValueError for another one that was asked for."""
        from dittools.plans import manifest

        plans = manifest.read(options_of(Config)["plans"].read("plans", self.plans))
        decided = Config.from_dict(plans.config)
        for name, about in options_of(Config).items():
            value = getattr(self, name)
            if name in FREE or value == getattr(decided, name):
                continue
            if value != about.default:
                raise ValueError(plans.other_setting(name, value, getattr(decided, name)))
            object.__setattr__(self, name, getattr(decided, name))

    def _split(self, name: str, registry: Registry, options: str) -> None:
        """Take the options that follow a name, as in ``svg2:iterations=2``, apart; those given apart win."""
        found, inline = registry.read(getattr(self, name))
        object.__setattr__(self, name, found)
        if isinstance(apart := getattr(self, options), Mapping):
            given = {**registry.renewed(found, inline), **registry.renewed(found, apart)}
            object.__setattr__(self, options, given)

    @property
    def exact_rows(self) -> int:
        """Query rows of a sparse call that are computed exactly."""
        return self.error_rows or (0 if self.max_error is None else ROWS_OF_BOUND)

    def correction_of(self, method: methods.Method) -> str:
        """Name of the correction that runs with a method: the one asked for, else what the method brings along."""
        if self.names_correction:
            return self.correction
        from dittools.methods import auto

        return auto.CORRECTION if self.picks_correction else method.correction

    @property
    def names_correction(self) -> bool:
        """Whether a correction is asked for by its name."""
        return self.correction not in ("none", "auto")

    @property
    def picks_correction(self) -> bool:
        """Whether the correction is that of method auto, which may do without."""
        return self.method == self.correction == "auto"

    def to_dict(self) -> dict[str, Any]:
        """Plain values with a "version", as `from_dict` reads them."""
        return {"version": VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The settings in ``values``, or those of the run whose record they are; what is missing takes its default.

        Raises:
            ValueError: for an unknown key (naming the nearest), a newer version, or a bad value.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"a config is an object with named settings, got {type(values).__name__}")
        if isinstance(values.get("config"), Mapping) and "dittools" in values:  # the record of a run
            values = values["config"]
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
