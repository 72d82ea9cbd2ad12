"""The `Config` of a command line: --config's file, or the record of a run, with the flags laid over it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

from dittools import files
from dittools.caches import CACHES
from dittools.cli._flags import Settings
from dittools.config import Config
from dittools.corrections import CORRECTIONS
from dittools.methods import METHODS
from dittools.naming import name_and_options, value_of, with_options
from dittools.options import Renamed, options_of
from dittools.pipelines.errors import BadInput, first_line
from dittools.plans import manifest
from dittools.registry import Registry

FLAGS = {"seed": "method_seed"}
"""Flags of settings that have another name than their setting."""
PARTS: dict[str, tuple[Registry, str]] = {
    "method": (METHODS, "options"),
    "cache": (CACHES, "cache_options"),
    "correction": (CORRECTIONS, "correction_options"),
}
"""What has a name and options of its own, with the setting that holds these."""


def config_of(flags: Settings) -> tuple[Config, tuple[str, ...]]:
    """The config, and notes on what of the file the flags left no room for.

    Raises:
        BadInput: for a file that is none, and for settings that are none.
    """
    base = read_config(flags.config) if flags.config is not None else Config()
    given, notes = _given(flags), []
    asked = set(given)
    for part in PARTS:
        notes += _lay_over(part, given, base, flags.config)
    try:
        with warnings.catch_warnings(record=True) as renamed:
            warnings.simplefilter("always", Renamed)
            config = dataclasses.replace(base, **given)
        _check_decided(config, {name: given[name] for name in asked})
        notes += [str(warning.message) for warning in renamed if issubclass(warning.category, Renamed)]
        return config, tuple(dict.fromkeys(notes))
    except (ValueError, TypeError) as error:
        raise _of_flag(first_line(error), given) from None


def _check_decided(config: Config, given: dict[str, Any]) -> None:
    """Raises ValueError for a flag that plans leave no room for, though it asks for what is the default elsewhere."""
    for name, value in given.items():
        if config.plans is not None and name != "plans" and getattr(config, name) != value:
            raise ValueError(manifest.read(config.plans).other_setting(name, value, getattr(config, name)))


def _given(flags: Settings) -> dict[str, Any]:
    """The settings that flags give, in their own types."""
    found = {}
    for name, about in options_of(Config).items():
        value = getattr(flags, FLAGS.get(name, name))
        if value is None:
            continue
        if about.kind == "mapping":
            value = options_in(flag_of(name), value)
        elif about.kind in ("steps", "choice") and isinstance(value, str):
            value = value_of(value)
        found[name] = value
    return found


def _lay_over(part: str, given: dict[str, Any], base: Config, file: str | None) -> list[str]:
    """Put the options of a method, cache or correction beside its name, those of the file where it is the same one."""
    registry, key = PARTS[part]
    before, held = getattr(base, part), dict(getattr(base, key))
    try:
        name, inline = (before, {}) if part not in given else registry.read(given[part])
    except ValueError as error:
        raise BadInput(first_line(error)) from None
    apart = given.get(key, {})
    if name == before:
        given |= {part: name, key: held | inline | apart}
        return []
    given |= {part: name, key: inline | apart}
    if part == "method" and "profile" not in given and base.profile is not None and not _takes_profile(name):
        given["profile"], held = None, held | {"profile": base.profile}
    if not held:
        return []
    told = with_options(before, held)
    return [f"{part} {name} takes the place of {told} in --config {file}: its options are left out"]


def _takes_profile(method: str) -> bool:
    return method in METHODS and METHODS[method].profile_use != "none"


def options_in(flag: str, text: Any) -> dict[str, Any]:
    """``"iterations=2:scope=head"`` as a mapping. Raises BadInput."""
    if not isinstance(text, str):
        return text
    try:
        name, options = name_and_options(f":{text}", "flag")
    except ValueError:
        name, options = text, {}
    if name or not options:
        raise BadInput(f"{flag} must be options as OPTION=VALUE:OPTION=VALUE, got {text!r}")
    return options


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return f"--{FLAGS.get(name, name).replace('_', '-')}"


def _of_flag(text: str, given: Collection[str]) -> BadInput:
    """An error of a setting, which begins with the name of its flag where a flag gave it."""
    name = text.partition(" ")[0]
    return BadInput(f"{flag_of(name)}{text[len(name) :]}" if name in given else text)


def read_config(name: str) -> Config:
    """The settings in a file: of a `Config`, or of the record of a run. Raises BadInput."""
    try:
        text = files.read_text(Path(name).expanduser())
    except OSError as error:
        raise BadInput(f"--config {name} cannot be read ({error.strerror}): give a JSON file") from None
    except UnicodeDecodeError:
        raise BadInput(f"--config {name} is no text: give a JSON file") from None
    try:
        return Config.from_json(text)
    except ValueError as error:
        raise BadInput(f"--config {name}: {first_line(error)}") from None
