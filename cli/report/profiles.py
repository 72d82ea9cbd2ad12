"""Profiles that the settings of a report need: each is there and fits, before anything is drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import dittools
from dittools import attention_profile as profile
from dittools import caches, methods
from dittools.config import Config
from dittools.pipelines.errors import BadInput, first_line
from dittools.report.plan import Setting
from dittools.tokens import TokenGrid


def check_swept(profiles: Iterable[Any], found: Iterable[Setting]) -> None:
    """Refuse swept profiles that no setting under test takes. Raises BadInput."""
    taken = {(setting.config or {}).get("profile") for setting in found}
    for name in profiles:
        if name not in taken:
            takers = ", ".join(n for n, cls in methods.METHODS.items() if cls.profile_use != "none")
            raise BadInput(
                f"--sweep profile={name}: no method here takes a profile; add --sweep method= one of {takers}"
            )


def check_files(found: Iterable[Setting], steps: int | None = None) -> None:
    """Refuse profiles that cannot be read, or are for another method or number of steps. Raises BadInput.

    steps: of a run; None where they are not known yet.
    """
    for setting, config in _configs(found):
        try:
            if config.profile is not None:
                known = profile.named(config.profile)
                why = profile.misfit_of_run(known, config.method, known.made.steps if steps is None else steps)
                if why:
                    raise ValueError(f"{why}: {profile.remedy_for(config.method)}")
            cache = caches.create(config.cache, config.cache_options)
            if cache is not None:
                cache.check_files(steps)
        except ValueError as error:
            raise _refused(setting, error) from None


def check_model(found: Iterable[Setting], pipe: Any, grid: TokenGrid, steps: int, block_size: int) -> None:
    """Refuse profiles that do not fit the loaded model, and settings that need one and have none. Raises BadInput.

    What a method says of the grid itself is left to its cases.
    """
    for setting, config in _configs(found):
        method = methods.create(config.method, config.options)
        takes = method.profile_use == "needed" or (method.profile_use == "given" and config.profile is not None)
        size = block_size if config.block_size == "auto" else int(config.block_size)
        takes = takes and method.why_not(grid, size) is None
        if not takes and config.cache == "none":
            continue
        try:
            with dittools.accelerate(pipe, config=config) as fast:  # raises where a cache knows nothing of the model
                identity = fast.runtime.identity
            if takes:
                _fits(config, identity, grid, steps)
        except ValueError as error:
            raise _refused(setting, error) from None


def _fits(config: Config, identity: profile.Model, grid: TokenGrid, steps: int) -> None:
    """Raises ValueError. How much text shares the sequence is seen only in a run, and not compared."""
    if config.profile is not None:
        text = profile.named(config.profile).grid
        grid = dataclasses.replace(grid, text=text.text, text_position=text.text_position)
    profile.choose(config.profile, config.method, True, identity, grid, steps, give="--sweep profile=FILE")


def _configs(found: Iterable[Setting]) -> list[tuple[Setting, Config]]:
    return [(setting, Config.from_dict(setting.config)) for setting in found if setting.config is not None]


def _refused(setting: Setting, error: Exception) -> BadInput:
    return BadInput(f"{setting.name}: {first_line(error)}")
