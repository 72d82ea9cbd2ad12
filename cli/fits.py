"""What follows from a request and the configs of its weights, before these are loaded: sizes, methods, profiles."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from dittools import attention_profile as profile
from dittools import methods
from dittools.cli._flags import Run
from dittools.cli.flag_checks import weights_folder
from dittools.config import Config
from dittools.pipelines import weights
from dittools.pipelines.errors import BadInput, first_line
from dittools.pipelines.families import Family, find_family
from dittools.pipelines.limits import check_memory, check_steps
from dittools.pipelines.sizes import size_rule, with_text
from dittools.tokens import TokenGrid


def of_flags(flags: Run, config: Config) -> None:
    """Check what flags say by themselves, where they name the weights: a device is not asked for yet.

    Raises:
        BadInput: for a size or method that cannot run whatever the device is.
    """
    folder = weights_folder(flags)
    if folder is None:
        return
    family = find_family(flags.model)
    defaults = dataclasses.asdict(family)
    if flags.weights == weights.EMBEDDED:
        from dittools.pipelines import embedded

        defaults |= embedded.DEFAULTS
    names = ("frames", "height", "width")
    size = {name: defaults[name] if getattr(flags, name) is None else getattr(flags, name) for name in names}
    check_method(config, grid_of(family, folder, **size), 64)


def grid_of(family: Family, folder: Path, frames: int, height: int, width: int) -> TokenGrid:
    """Tokens of a run, once its size is known to fit. Raises BadInput where it does not."""
    rule = size_rule(family, folder)
    rule.check(frames, height, width)
    check_memory(frames, height, width)
    return with_text(family, rule.layout(frames, height, width))


def check_method(config: Config, grid: TokenGrid, block_size: int) -> None:
    """Refuse a method that was asked for by name and cannot run on the grid.

    Args:
        block_size: of a run whose config leaves it open.

    Raises:
        BadInput: with what to do.
    """
    if config.method == "auto":
        return
    size = block_size if config.block_size == "auto" else int(config.block_size)
    why = methods.create(config.method, config.options).why_not(grid, size)
    if why:
        raise BadInput(f"{why}; use more frames, a larger size or method 'auto'")


def check_run(config: Config, family: Family, folder: Path, shot: Any, device: Any) -> None:
    """Check a run whose weights and device are chosen.

    Args:
        shot: a `dittools.pipelines.stages.Shot`.

    Raises:
        BadInput: for steps, a size, a method or a profile that do not fit these weights.
    """
    check_steps(shot.steps, folder)
    grid = grid_of(family, folder, shot.frames, shot.height, shot.width)
    check_method(config, grid, block_of(device))
    check_profile(config, family, folder, grid, shot.steps)


def block_of(device: Any) -> int:
    """Tokens in a block where the config leaves it open."""
    return 128 if device.type == "cuda" else 64


def check_profile(config: Config, family: Family, folder: Path, grid: TokenGrid, steps: int) -> None:
    """Refuse a profile of another model, grid or number of steps, and a method that needs one and has none.

    Raises:
        BadInput: naming both sides.
    """
    method = methods.create(config.method, config.options)
    needed = method.profile_use == "needed"
    if config.method == "auto" or not (needed or (config.profile is not None and method.profile_use == "given")):
        return
    try:
        if config.profile is not None:
            # How much text shares the sequence is seen only in a run, and not compared.
            text = profile.named(config.profile).grid
            grid = dataclasses.replace(grid, text=text.text, text_position=text.text_position)

        from dittools.pipelines.skeleton import identity_of

        identity = identity_of(folder, family)
        if identity is not None:
            profile.choose(config.profile, method.name, needed, identity, grid, steps)
    except ValueError as error:
        raise BadInput(first_line(error)) from None
