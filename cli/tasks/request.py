"""What flags ask of a pipeline folder of any class: checked against its call before anything of it is loaded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from dittools.cli import request as requests
from dittools.cli.flag_checks import check_flags
from dittools.cli.prompts import PROMPTS
from dittools.cli.request import Request, Scene
from dittools.cli.settings import config_of
from dittools.cli.tasks.flags import INPUTS, NAMES
from dittools.config import Config
from dittools.naming import unknown
from dittools.pipelines import components, loading, places, quantizing, saving, stages, strides, weights
from dittools.pipelines.components import INDEX, listed
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import Family, find_family
from dittools.pipelines.folder import read_index
from dittools.pipelines.limits import check_memory, check_steps
from dittools.pipelines.sizes import size_rule
from dittools.pipelines.staged import STAGED
from dittools.pipelines.tasks import adapters, classes, media, values
from dittools.pipelines.tasks import inputs as known
from dittools.pipelines.tasks.classes import PipelineClass
from dittools.pipelines.tasks.presets import defaults_of
from dittools.pipelines.tasks.task import Held, Inputs, Task, shift_of
from dittools.pipelines.tasks.task import check as check_inputs

MORE = (*NAMES,)
"""Flags beyond those of a video from text alone, which the pipelines run in stages take."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """Weights and class of a folder, as far as they are known before anything is fetched."""

    weights: weights.Weights
    folder: Path
    one: PipelineClass


def routed(flags: Any, given: Collection[str], listed_videos: bool = True) -> tuple[Any, bool]:
    """Flags with the model that a folder names, and whether a whole call of its pipeline draws, not one in stages.

    Args:
        given: names of the flags that the command line holds.
        listed_videos: whether a list of prompts or seeds asks for whole calls.
    """
    more = any(_is_given(getattr(flags, name, None)) for name in (MORE if listed_videos else INPUTS))
    index = _index(flags.weights)
    family = None if index is None else classes.family_in(index)
    if family is None:
        return flags, more or (index is not None and classes.class_named(classes.name_in(index)) is not None)
    if "model" in given and find_family(flags.model) is not family:
        return flags, False  # where it is told that these weights are of another model
    flags = dataclasses.replace(flags, model=family.name)
    return flags, more or classes.name_in(index) not in family.text_to


def _is_given(value: Any) -> bool:
    return not (value is None or value is False or value in ([], quantizing.NONE))


def _index(asked: str) -> dict[str, Any] | None:
    """The model_index.json of a folder, or of a repo that is in the local cache; None where there is none to read."""
    if asked in (weights.AUTO, weights.EMBEDDED) or not asked:
        return None
    folder = Path(asked).expanduser()
    if not weights.looks_like_folder(asked):
        folder = weights.index_of(asked) or folder
    try:
        return read_index(folder)
    except (BadInput, OSError, ValueError):
        return None


def check(
    flags: Any,
    given: Collection[str],
    reads: list[places.Read],
    note: Any,
    listed_videos: bool = False,
    also: Callable[[Config], None] = lambda config: None,
) -> Request:
    """A request that is drawn by whole calls. Raises BadInput.

    Args:
        given: names of the flags that the command line holds.
        reads: files of this run's flags.
        note: told what is worth knowing.
        listed_videos: whether the output's name is that of a list, and no file's.
        also: what else to check of the config before PyTorch is asked for the device.
    """
    check_flags(flags)
    _numbers(flags)
    asked = _asked(flags, note)
    family = asked.one.family
    if "model" in given and find_family(flags.model) is not family:
        which = "the embedded model" if asked.weights.embedded else asked.weights.name
        raise BadInput(
            f"{which} is a {family.name}, not a {find_family(flags.model).name}: give --weights of that model"
        )
    inputs = _inputs_named(flags)
    one = known.choose(asked.one, inputs, asked.folder)
    _texts_taken(flags, one)
    said = tuple(flags.set or ())
    held = _held(flags, one, asked.folder)
    task = Task(one, asked.one, _read(flags), values.read(one, said), said, held)
    check_inputs(task)
    if one is not asked.one:
        note(f"drawn as {one.name}, which takes {known.told(one)}, with the weights of {asked.one.name}")
    check_steps(flags.steps, asked.folder)
    if one.draws == "image" and flags.frames not in (None, 1):
        raise BadInput(f"{one.name} draws images: --frames is 1, got {flags.frames}")
    config, notes = config_of(flags) if hasattr(flags, "method") else (Config(method="dense"), ())
    _check_sparse(family, flags, config, note)
    requests.check_files(config)
    also(config)
    output = None
    if hasattr(flags, "overwrite"):
        output = saving.plan(_output_name(flags, given, one), 1 if one.draws == "image" else flags.frames)
        if not listed_videos:
            output.keep([*reads, *files_of(flags), *requests.read_by(config)], flags.overwrite, one.sounds)
    device = loading.pick_device(flags.device)
    loading.check_offload(flags.offload, device)
    quantizing.check(flags.quantize, device)
    flags = dataclasses.replace(flags, model=family.name)
    return Request(flags, family, config, output, notes, task, asked.weights)


def _asked(flags: Any, note: Any) -> Asked:
    """The weights and their class. Raises BadInput."""
    if flags.weights == weights.EMBEDDED:
        chosen = weights.embedded()
    elif (folder := weights.check_asked(flags.weights)) is not None:
        chosen = weights.Weights(flags.weights, folder)
    elif flags.weights == weights.AUTO:
        family = find_family(flags.model)
        if not family.text_to:
            raise BadInput(f"--model {family.name} has no default weights: give --weights a pipeline folder or repo")
        cuda = loading.pick_device(flags.device).type == "cuda"
        chosen = weights.choose(weights.AUTO, family.repo, cuda=cuda, classes=family.text_to, note=note)
    else:
        chosen = weights.cached(flags.weights) or weights.remote(flags.weights)
    folder = chosen.folder or weights.index_of(flags.weights if flags.weights != weights.AUTO else chosen.name)
    if folder is None:
        raise BadInput(f"{chosen.name} has no {INDEX}: it is no diffusers pipeline (look for one ending in -Diffusers)")
    one = classes.class_in(folder)
    return Asked(chosen, folder, one)


def _held(flags: Any, one: PipelineClass, folder: Path) -> Held:
    """How the weights are held. Raises BadInput for what this class or its parts have not."""
    if flags.quantize not in quantizing.KINDS:
        raise BadInput(unknown("--quantize", flags.quantize, quantizing.KINDS))
    loras = adapters.read(flags.lora or [])
    adapters.check_class(one, loras, pair=bool(listed(read_index(folder)).get(adapters.SECOND, ("", ""))[1]))
    if flags.vae_tiling:
        name = listed(read_index(folder)).get("vae", ("", ""))[1]
        if not hasattr(classes.part_named(name), "enable_tiling"):
            raise BadInput(f"--vae-tiling: {name or 'this model'} decodes no tiles: leave it out")
    if flags.shift is not None:
        if not (math.isfinite(flags.shift) and flags.shift > 0):
            raise BadInput(f"--shift must be above 0, got {flags.shift:g}")
        config = components.config_of(folder / "scheduler")
        if config and shift_of(config) is None:
            raise BadInput(f"--shift: the scheduler of {folder} ({config.get('_class_name')}) has none")
    return Held(loras, flags.quantize, flags.vae_tiling, flags.shift)


def _numbers(flags: Any) -> None:
    strength = flags.strength
    if strength is not None and not 0 < strength <= 1:
        raise BadInput(f"--strength must be above 0 and at most 1, got {strength:g}")
    if flags.fps is not None and not (math.isfinite(flags.fps) and 0 < flags.fps <= 1000):
        raise BadInput(f"--fps must be above 0 and at most 1000, got {flags.fps:g}")


def _inputs_named(flags: Any) -> tuple[str, ...]:
    """Flags of inputs that were given."""
    return tuple(name for name in known.FLAGS if getattr(flags, name) not in (None, []))


def _texts_taken(flags: Any, one: PipelineClass) -> None:
    """Raises BadInput for a text or number that a class has no argument for."""
    wanted = {
        "prompt": ("prompt", one.parameters),
        "negative_prompt": ("negative_prompt", one.parameters),
        "steps": ("num_inference_steps", one.parameters),
        "height": ("height", one.parameters),
        "width": ("width", one.parameters),
    }
    for name, (argument, there) in wanted.items():
        if getattr(flags, name, None) is not None and argument not in there:
            own = ", ".join(values.settable(one))
            raise BadInput(
                f"--{name.replace('_', '-')}: {one.name} takes none; with --set it takes {own or 'nothing more'}"
            )
    if flags.guidance is not None and values.guidance_of(one) is None and "guider" not in one.components:
        raise BadInput(f"--guidance: {one.name} takes none")


def _check_sparse(family: Family, flags: Any, config: Config, note: Any) -> None:
    """Raises BadInput where a method or cache is asked for that the model's attention has no place for."""
    if family.why_not is None:
        return
    named = config.method not in ("auto", "dense") or config.cache != "none" or config.names_correction
    if named:
        raise BadInput(f"{family.name} draws densely alone, since {family.why_not}: leave --method and --cache out")
    if getattr(flags, "compare_dense", False):
        raise BadInput(f"--compare-dense: {family.name} draws densely anyway, since {family.why_not}")
    note(f"drawn densely: {family.why_not}")


def _read(flags: Any) -> Inputs:
    """The files that flags name. Raises BadInput."""

    def one(name: str, reads: Any) -> Any:
        value = getattr(flags, name)
        return None if value is None else reads(f"--{name.replace('_', '-')}", value)

    return Inputs(
        image=one("image", media.picture),
        last_image=one("last_image", media.picture),
        references=tuple(media.picture("--reference", name) for name in flags.reference or ()),
        video=one("video", media.clip),
        control=one("control", media.clip),
        mask=one("mask", lambda flag, name: media.clip(flag, name, "L")),
        strength=flags.strength,
    )


def files_of(flags: Any) -> list[places.Read]:
    """Files that flags of inputs name."""
    found = [(f"--{name.replace('_', '-')}", getattr(flags, name)) for name in known.FLAGS if name != "strength"]
    single = [(flag, value) for flag, value in found if isinstance(value, str)]
    many = [(flag, each) for flag, value in found if isinstance(value, list) for each in value]
    named = [*single, *many, ("--prompts", getattr(flags, "prompts", None))]
    loras = [("--lora", each) for text in flags.lora or () for each in adapters.paths(text)]
    return [(flag, Path(value).expanduser()) for flag, value in (*named, *loras) if value]


def _output_name(flags: Any, given: Collection[str], one: PipelineClass) -> str:
    return "out.png" if one.draws == "image" and "output" not in given else flags.output


def complete(request: Request, folder: Path, device: Any) -> Scene:
    """Fill in what the flags leave open, by the inputs, the class's preset and the folder's own configs.

    Raises:
        BadInput: for a size, steps or a method that do not fit these weights.
    """
    flags, family, task = request.flags, request.family, request.task
    embedded = request.weights.embedded
    defaults = defaults_of(task.one.name, family) | {"prompt": None, "max_sequence_length": None}
    if task.one.name in STAGED:  # as it is drawn in stages
        defaults["negative_prompt"] = ""
    if embedded:
        from dittools.pipelines import embedded as model

        defaults |= model.DEFAULTS
    rule = size_rule(family, folder) if family.name in strides.READ else None
    size = _size(flags, task, defaults, (rule.height, rule.width) if rule else (16, 16))
    frames = _frames(flags, task, defaults, rule)
    guidance = defaults["guidance"] if flags.guidance is None else flags.guidance
    steps = defaults["steps"] if flags.steps is None else flags.steps
    if steps is None:
        steps = task.one.default("num_inference_steps")
    seed = getattr(flags, "seed", 0)
    shot = stages.Shot(frames=frames, **size, steps=steps, guidance=guidance, seed=seed)
    check_steps(shot.steps, folder)
    requests.check_files(request.config, shot.steps)
    if None not in (shot.height, shot.width):
        check_memory(shot.frames or 1, shot.height, shot.width)
    if rule is not None and task.one.draws == family.draws:
        rule.check(None if family.draws == "image" else shot.frames, shot.height, shot.width)
        if None not in (shot.height, shot.width):
            check_method(request, request.config, folder, shot, device)
    prompt = getattr(flags, "prompt", None)
    if prompt is None:
        prompt = defaults["prompt"] or ("" if task.inputs.given else PROMPTS[0])
    negative = flags.negative_prompt if flags.negative_prompt is not None else defaults["negative_prompt"]
    return Scene(prompt, negative or "", shot, _fps(flags, task, defaults), defaults["max_sequence_length"], task)


def check_method(request: Request, config: Config, folder: Path, shot: stages.Shot, device: Any) -> None:
    """Raises BadInput for a method or profile that does not fit the size; one that only the pipeline knows passes."""
    if request.family.name not in strides.READ or None in (shot.height, shot.width):
        return
    frames = shot.frames or 1
    grid = requests.grid_of(request.family, folder, frames, shot.height, shot.width)
    requests.check_method(config, grid, requests.block_of(device))
    requests.check_profile(config, request.family, folder, grid, shot.steps)


def _size(flags: Any, task: Task, defaults: dict[str, Any], multiples: tuple[int, int]) -> dict[str, int | None]:
    """Height and width: as asked; else as large as the class draws, in the proportions of what it is given."""
    if "height" not in task.one.parameters:
        return {"height": None, "width": None}
    height, width, lead = flags.height, flags.width, task.inputs.leading
    if lead is None or None not in (height, width):
        return {"height": height or defaults["height"], "width": width or defaults["width"]}
    if task.one.name in SIZED_BY_INPUT and height is None and width is None:
        return {"height": None, "width": None}
    high, wide = lead.size
    if height is None and width is None:
        default = [defaults[name] or task.one.default(name) for name in ("height", "width")]
        area = default[0] * default[1] if None not in default else high * wide
        height = math.sqrt(area * high / wide)
        width = height * wide / high
    elif height is None:
        height = width * high / wide
    else:
        width = height * wide / high
    sized = (
        max(1, round(side / multiple)) * multiple for side, multiple in zip((height, width), multiples, strict=True)
    )
    return dict(zip(("height", "width"), sized, strict=True))


SIZED_BY_INPUT = frozenset(
    (
        *("FluxKontextPipeline", "FluxKontextInpaintPipeline", "QwenImageEditPipeline", "QwenImageEditPlusPipeline"),
        *("QwenImageEditInpaintPipeline", "Flux2Pipeline", "Flux2KleinPipeline", "Flux2KleinKVPipeline"),
        *("LongCatImageEditPipeline", "BriaFiboEditPipeline", "JoyImageEditPipeline", "GlmImagePipeline"),
        *("Kandinsky5I2IPipeline", "OmniGenPipeline"),
    )
)
"""Classes that take their size from the picture by themselves."""


def _frames(flags: Any, task: Task, defaults: dict[str, Any], rule: Any) -> int | None:
    """How many frames are drawn: as asked, as many as a video has that is drawn over, or the class's own number."""
    if task.one.draws == "image":
        return None
    if not task.follows:
        if task.one.frames is None:
            return flags.frames
        return flags.frames or defaults["frames"] or task.one.default(task.one.frames)
    there = len(task.inputs.followed.frames)
    asked = flags.frames
    if asked is not None and asked > there:
        flag = "--video" if task.inputs.video is task.inputs.followed else "--control"
        raise BadInput(f"--frames {asked}: {flag} {task.inputs.followed.name} has {there}: give a longer one, or fewer")
    count = asked or there
    step, first = (rule.frames, rule.first) if rule else (4, 1)
    return count if asked else max(first, (count - first) // step * step + first)


def _fps(flags: Any, task: Task, defaults: dict[str, Any]) -> float:
    """Frames in a second: as asked, as a video has that is drawn over, as the class draws."""
    if flags.fps is not None:
        return flags.fps
    if task.follows and task.inputs.followed.fps:
        return task.inputs.followed.fps
    own = task.one.default("fps") or task.one.default("frame_rate")
    return defaults["fps"] or own or (1 if task.one.draws == "image" else 16)
