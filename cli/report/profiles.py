"""Profiles that the settings of a report need: each is there and fits, before anything is drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import dittools
from dittools import attention_profile as profile
from dittools import methods
from dittools.cli import request
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
    """Refuse files that no case could use: as `dittools.cli.request.check_files`, with the setting's name."""
    for setting, config in _configs(found):
        with named(setting):
            request.check_files(config, steps)


def check_model(found: Iterable[Setting], pipe: Any, grid: TokenGrid, steps: int, block_size: int) -> None:
    """Refuse profiles that do not fit the loaded model, and settings that need one and have none. Raises BadInput.

    What a method says of the grid itself is left to its cases.
    """
    for setting, config in _configs(found):
        method = methods.create(config.method, config.options)
        takes = method.profile_use == "needed" or (method.profile_use == "given" and config.profile is not None)
        size = block_size if config.block_size == "auto" else int(config.block_size)
        takes = takes and config.plans is None and method.why_not(grid, size) is None
        if not takes and config.cache == "none":
            continue
        with named(setting):
            with dittools.accelerate(pipe, config=config) as fast:  # raises where a cache knows nothing of the model
                identity = fast.runtime.identity
            if takes:
                whole, give = request.beside_text(config, grid), "--sweep profile=FILE"
                profile.choose(config.profile, config.method, True, identity, whole, steps, give=give)


def _configs(found: Iterable[Setting]) -> list[tuple[Setting, Config]]:
    return [(setting, Config.from_dict(setting.config)) for setting in found if setting.config is not None]


@contextlib.contextmanager
def named(setting: Setting) -> Iterator[None]:
    """Errors of a setting under test with its name."""
    try:
        yield
    except ValueError as error:
        raise BadInput(f"{setting.name}: {first_line(error)}") from None
