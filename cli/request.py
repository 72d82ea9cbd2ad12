"""What `dittools generate` will do: checked flags, and the defaults of the weights once they are chosen.

All that follows from flags and the configs of the weights (sizes, methods, profiles) is checked before loading them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dittools import attention_profile as profile
from dittools import caches, methods
from dittools.cli._flags import Run, Settings
from dittools.cli.flag_checks import weights_folder
from dittools.cli.prompts import PROMPTS
from dittools.cli.settings import config_of
from dittools.config import Config
from dittools.pipelines import loading, places, saving, stages, weights
from dittools.pipelines.errors import BadInput, first_line
from dittools.pipelines.families import Family, find_family
from dittools.pipelines.limits import check_memory, check_steps
from dittools.pipelines.sizes import size_rule, with_text
from dittools.pipelines.tasks.task import Task
from dittools.plans import manifest
from dittools.tokens import TokenGrid


@dataclass(frozen=True)
class Request:
    """Checked flags. `complete` adds what depends on the weights.

    Args:
        output: None for a verb that has its own.
        notes: what of --config the flags left no room for.
        task: what a whole call of a pipeline is asked for; None where it is run in stages.
        weights: those of `task`.
    """

    flags: Run
    family: Family
    config: Config
    output: saving.Output | None
    notes: tuple[str, ...] = ()
    task: Task | None = None
    weights: weights.Weights | None = None


@dataclass(frozen=True)
class Scene:
    """What is generated, all defaults filled in. `max_text` is in tokens; None leaves it to the pipeline.

    With a `task`, sizes may be None, which leaves them to the pipeline as well.
    """

    prompt: str
    negative_prompt: str
    shot: stages.Shot
    fps: float
    max_text: int | None
    task: Task | None = None

    def of(self, prompt: str, **shot: Any) -> Scene:
        """The same with another prompt, and in these another `dittools.pipelines.stages.Shot`."""
        return dataclasses.replace(self, prompt=prompt, shot=dataclasses.replace(self.shot, **shot))


def check(flags: Run, output: saving.Output | None, also: Callable[[Config], None] = lambda config: None) -> Request:
    """What `flag_checks.check_run` left. Raises BadInput.

    Args:
        also: what else to check of the config before PyTorch, which takes seconds, is asked for the device.
    """
    family = find_family(flags.model)
    config, notes = config_of(flags) if isinstance(flags, Settings) else (Config(method="dense"), ())
    check_files(config)
    if output is not None:
        output.keep(read_by(config), flags.overwrite)
    check_sizes(flags, config)
    also(config)
    loading.check_offload(flags.offload, loading.pick_device(flags.device))
    return Request(flags, family, config, output, notes)


def read_by(config: Config) -> list[places.Read]:
    """The files that a config names."""
    named = {"the config's profile": config.profile, "the cache's profile": config.cache_options.get("profile")}
    named["the config's plans"] = config.plans
    return [(what, Path(name).expanduser()) for what, name in named.items() if name]


def complete(request: Request, chosen: weights.Weights, folder: Path, device: Any) -> Scene:
    """Fill in the defaults of the weights, and check all that their own configs say before they are loaded."""
    flags, family = request.flags, request.family
    defaults = _defaults(family, chosen.embedded)

    def pick(name: str) -> Any:
        given = getattr(flags, name)
        return defaults[name] if given is None else given

    picked = {name: pick(name) for name in ("frames", "height", "width", "steps", "guidance")}
    shot = stages.Shot(**picked, seed=flags.seed)
    check_files(request.config, shot.steps)
    _check_chosen(request.config, family, folder, shot, device)
    return Scene(
        prompt=pick("prompt"),
        negative_prompt=pick("negative_prompt"),
        shot=shot,
        fps=defaults["fps"],
        max_text=defaults["max_sequence_length"],
    )


def check_files(config: Config, steps: int | None = None) -> None:
    """Refuse a file that no run could use before minutes go into loading the model.

    Args:
        steps: of the run; None where they are not known yet.

    Raises:
        BadInput: when a profile cannot be read, or is of another method, cache or number of steps.
    """
    try:
        cache = caches.create(config.cache, config.cache_options)
        if cache is not None:
            cache.check_files(steps)
        if config.profile is None:
            if config.plans is not None and steps is not None:
                _raise(manifest.read(config.plans).misfit_of_steps(steps))
            return
        found = profile.named(config.profile)
        why = profile.misfit_of_run(found, config.method, found.made.steps if steps is None else steps)
    except ValueError as error:
        raise BadInput(first_line(error)) from None
    _raise(why and f"{why}: {profile.remedy_for(config.method)}")


def _raise(why: str | None) -> None:
    if why:
        raise BadInput(why)


def _defaults(family: Family, embedded: bool) -> dict[str, Any]:
    """What a scene is by default with the weights of a family, or with the embedded ones."""
    defaults = dataclasses.asdict(family) | {"prompt": PROMPTS[0], "negative_prompt": "", "max_sequence_length": None}
    if embedded:
        from dittools.pipelines import embedded as model

        defaults |= model.DEFAULTS
    return defaults


def check_sizes(flags: Run, config: Config) -> None:
    """Check what flags say by themselves, where they name the weights: a device is not asked for yet.

    Raises:
        BadInput: for a size or method that cannot run whatever the device is.
    """
    folder = weights_folder(flags)
    if folder is None:
        return
    family = find_family(flags.model)
    defaults = _defaults(family, flags.weights == weights.EMBEDDED)
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


def _check_chosen(config: Config, family: Family, folder: Path, shot: Any, device: Any) -> None:
    """Check a run whose weights and device are chosen.

    Args:
        shot: a `dittools.pipelines.stages.Shot`.

    Raises:
        BadInput: for steps, a size, a method or a profile that do not fit these weights.
    """
    check_steps(shot.steps, folder)
    grid = grid_of(family, folder, shot.frames, shot.height, shot.width)
    check_method(config, grid, block_of(device))
    if config.plans is not None:
        return check_plans(config.plans, family, folder, grid)
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
        from dittools.pipelines.skeleton import identity_of

        identity = identity_of(folder, family)
        if identity is not None:
            profile.choose(config.profile, method.name, needed, identity, beside_text(config, grid), steps)
    except ValueError as error:
        raise BadInput(first_line(error)) from None


def check_plans(path: str, family: Family, folder: Path, grid: TokenGrid) -> None:
    """Refuse plans of another model or size, and files that are damaged. Raises BadInput, naming both sides."""
    from dittools.pipelines.skeleton import identity_of
    from dittools.plans.loaded import LoadedPlans

    _raise(manifest.read(path).misfit_of_picture(grid))
    try:
        LoadedPlans(path, identity_of(folder, family))
    except ValueError as error:
        raise BadInput(first_line(error)) from None


def beside_text(config: Config, grid: TokenGrid) -> TokenGrid:
    """A grid with the text of the config's profile: how much shares the sequence is seen only in a run."""
    if config.profile is None:
        return grid
    text = profile.named(config.profile).grid
    return dataclasses.replace(grid, text=text.text, text_position=text.text_position)
