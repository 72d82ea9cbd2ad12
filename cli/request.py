"""What `dittools generate` will do: checked flags, and the defaults of the weights once they are chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dittools import caches, corrections, files, methods, profile
from dittools.cli import fits
from dittools.cli.asked import Asked
from dittools.config import Config
from dittools.naming import spelt, with_options
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

    asked: Asked
    family: Family
    config: Config
    output: saving.Output | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """What is drawn, all defaults filled in. `max_text` is in tokens; None leaves it to the pipeline."""

    prompt: str
    negative_prompt: str
    shot: stages.Shot
    fps: float
    max_text: int | None


def check(asked: Asked, output: saving.Output | None, also: Callable[[Config], None] = lambda config: None) -> Request:
    """What `Asked.check` left. Raises BadInput.

    Args:
        also: what else to check of the config before PyTorch, which takes seconds, is asked for the device.
    """
    family = find_family(asked.model)
    config, notes = _config(asked)
    if output is not None:
        output.keep(_read_by(config), asked.overwrite)
    fits.of_flags(asked, config)
    also(config)
    loading.check_offload(asked.offload, loading.pick_device(asked.device))
    return Request(asked, family, config, output, notes)


def _read_by(config: Config) -> list[places.Read]:
    """The files that a config names."""
    named = {"the config's profile": config.profile, "the cache's profile": config.cache_options.get("profile")}
    return [(what, Path(name).expanduser()) for what, name in named.items() if name]


def complete(request: Request, chosen: weights.Weights, folder: Path, device: Any) -> Scene:
    """Fill in the defaults of the weights, and check all that their own configs say before they are loaded."""
    asked, family = request.asked, request.family
    defaults = dataclasses.asdict(family) | {
        "prompt": PROMPT,
        "negative_prompt": "",
        "max_sequence_length": None,
    }
    if chosen.embedded:
        from dittools.pipelines import embedded

        defaults |= embedded.DEFAULTS

    def pick(name: str) -> Any:
        given = getattr(asked, name)
        return defaults[name] if given is None else given

    shot = stages.Shot(
        frames=pick("frames"),
        height=pick("height"),
        width=pick("width"),
        steps=pick("steps"),
        guidance=pick("guidance"),
        seed=asked.seed,
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


def _config(asked: Asked) -> tuple[Config, tuple[str, ...]]:
    """--config's file with the single flags laid over it, and notes on what they left no room for."""
    try:
        base = _read_config(asked.config) if asked.config is not None else Config()
        given = {
            "sparsity": asked.sparsity,
            "dense_steps": None if asked.dense_steps is None else _share_or_count(asked.dense_steps),
            "dense_layers": asked.dense_layers,
            "refresh": asked.refresh,
            "strict": asked.strict or None,
            "profile": asked.profile,
        }
        given = {name: value for name, value in given.items() if value is not None}
        parts, notes = _parts(asked, base)
        config = _config_of(lambda: dataclasses.replace(base, **(parts | given)), given)
        _check_files(config)
        return config, tuple(notes)
    except BadInput:
        raise
    except (ValueError, TypeError) as error:
        raise BadInput(first_line(error)) from None


def _config_of(make: Callable[[], Config], given: Collection[str]) -> Config:
    """A config of flags: an error that begins with the name of a setting begins with that of its flag.

    Args:
        given: the settings that flags gave.

    Raises:
        BadInput: where the config is none.
    """
    try:
        return make()
    except (ValueError, TypeError) as error:
        text = first_line(error)
        name = text.partition(" ")[0]
        raise BadInput(f"--{name.replace('_', '-')}{text[len(name) :]}" if name in given else text) from None


def _parts(asked: Asked, base: Config) -> tuple[dict[str, Any], list[str]]:
    """Method, cache and correction of the flags with their options, and a note where options of the file do not fit.

    The file's options are those of what it names: a flag that names another leaves them out.
    """
    cache, cache_options = (None, {}) if asked.cache is None else caches.read(asked.cache)
    parts, notes = {}, []
    for part, name, options in (
        ("method", spelt(asked.method, methods.names()), {}),
        ("cache", cache, cache_options),
        ("correction", spelt(asked.correction, corrections.names()), {}),
    ):
        key = "options" if part == "method" else f"{part}_options"
        before, left_out = getattr(base, part), dict(getattr(base, key))
        if name is None:
            continue
        if name == before:
            parts |= {key: left_out | options}
            continue
        parts |= {part: name, key: options}
        if part == "method" and asked.profile is None and base.profile is not None and not _takes_profile(name):
            parts["profile"], left_out = None, left_out | {"profile": base.profile}
        if left_out:
            told = with_options(before, left_out)
            notes.append(
                f"{part} {name} takes the place of {told} in --config {asked.config}: its options are left out"
            )
    return parts, notes


def _takes_profile(method: str) -> bool:
    return method in methods.METHODS and methods.METHODS[method].profile_use != "none"


def config_of(*, dense_steps: str, **settings: Any) -> Config:
    """A config of single flags, for a verb that takes few. Raises BadInput."""
    settings["dense_steps"] = _share_or_count(dense_steps)
    return _config_of(lambda: Config(**settings), settings)


def _read_config(name: str) -> Config:
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


def _share_or_count(text: str) -> float | int:
    """A share of the run ("0.2") or a count of steps ("5")."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise BadInput(f"--dense-steps must be a share such as 0.2 or a count such as 5, got {text!r}") from None
