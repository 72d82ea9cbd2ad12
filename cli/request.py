"""What `dittools generate` will do: checked flags, and the defaults of the weights once they are chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dittools import attention_profile as profile
from dittools import caches
from dittools.cli import fits
from dittools.cli._flags import Run, Settings
from dittools.cli.settings import config_of
from dittools.config import Config
from dittools.pipelines import loading, places, saving, stages, weights
from dittools.pipelines.errors import BadInput, first_line
from dittools.pipelines.families import Family, find_family

PROMPT = "A ginger cat plays the piano by a tall window, soft morning light, shallow depth of field"


@dataclass(frozen=True)
class Request:
    """Checked flags. `complete` adds what depends on the weights.

    Args:
        output: None for a verb that has its own.
        notes: what of --config the flags left no room for.
    """

    flags: Run
    family: Family
    config: Config
    output: saving.Output | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """What is generated, all defaults filled in. `max_text` is in tokens; None leaves it to the pipeline."""

    prompt: str
    negative_prompt: str
    shot: stages.Shot
    fps: float
    max_text: int | None


def check(flags: Run, output: saving.Output | None, also: Callable[[Config], None] = lambda config: None) -> Request:
    """What `flag_checks.check_run` left. Raises BadInput.

    Args:
        also: what else to check of the config before PyTorch, which takes seconds, is asked for the device.
    """
    family = find_family(flags.model)
    config, notes = config_of(flags) if isinstance(flags, Settings) else (Config(method="dense"), ())
    _check_files(config)
    if output is not None:
        output.keep(_read_by(config), flags.overwrite)
    fits.of_flags(flags, config)
    also(config)
    loading.check_offload(flags.offload, loading.pick_device(flags.device))
    return Request(flags, family, config, output, notes)


def _read_by(config: Config) -> list[places.Read]:
    """The files that a config names."""
    named = {"the config's profile": config.profile, "the cache's profile": config.cache_options.get("profile")}
    return [(what, Path(name).expanduser()) for what, name in named.items() if name]


def complete(request: Request, chosen: weights.Weights, folder: Path, device: Any) -> Scene:
    """Fill in the defaults of the weights, and check all that their own configs say before they are loaded."""
    flags, family = request.flags, request.family
    defaults = dataclasses.asdict(family) | {
        "prompt": PROMPT,
        "negative_prompt": "",
        "max_sequence_length": None,
    }
    if chosen.embedded:
        from dittools.pipelines import embedded

        defaults |= embedded.DEFAULTS

    def pick(name: str) -> Any:
        given = getattr(flags, name)
        return defaults[name] if given is None else given

    shot = stages.Shot(
        frames=pick("frames"),
        height=pick("height"),
        width=pick("width"),
        steps=pick("steps"),
        guidance=pick("guidance"),
        seed=flags.seed,
    )
    _check_files(request.config, shot.steps)
    fits.check_run(request.config, family, folder, shot, device)
    return Scene(
        prompt=pick("prompt"),
        negative_prompt=pick("negative_prompt"),
        shot=shot,
        fps=defaults["fps"],
        max_text=defaults["max_sequence_length"],
    )


def _check_files(config: Config, steps: int | None = None) -> None:
    """Refuse a file that no run could use before minutes go into loading the model; with ``steps``, what does not fit.

    Raises:
        BadInput: when a profile cannot be read, or is of another method, cache or number of steps.
    """
    try:
        cache = caches.create(config.cache, config.cache_options)
        if cache is not None:
            cache.check_files(steps)
        if config.profile is None:
            return
        found = profile.named(config.profile)
    except ValueError as error:
        raise BadInput(first_line(error)) from None
    why = None if steps is None else profile.misfit_of_run(found, config.method, steps)
    if why:
        raise BadInput(f"{why}: {profile.remedy_for(config.method)}")
