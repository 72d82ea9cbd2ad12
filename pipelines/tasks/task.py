"""What one class is asked for: its inputs from files, its own arguments, and the call that comes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dittools.pipelines.errors import BadInput
from dittools.pipelines.tasks import adapters, media
from dittools.pipelines.tasks.classes import PipelineClass
from dittools.pipelines.tasks.inputs import CONDITIONS, MANY, VACE, argument_of
from dittools.pipelines.tasks.values import guidance_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from dittools.pipelines.stages import Shot

FOLLOWS = frozenset(
    (
        *(VACE, "LucyEditPipeline", "EasyAnimateInpaintPipeline", "EasyAnimateControlPipeline"),
        *("LTX2InContextPipeline", "Cosmos2_5_TransferPipeline"),
    )
)
"""Classes that draw a frame for each one of a video they are given, though their call counts frames too."""
_GREY = (128, 128, 128)
"""Of frames that WanVACE is to draw: half of what pixels can be, as in the example of diffusers."""


@dataclass(frozen=True)
class Inputs:
    """What was given beside text, read from its files."""

    image: media.Clip | None = None
    last_image: media.Clip | None = None
    references: tuple[media.Clip, ...] = ()
    video: media.Clip | None = None
    control: media.Clip | None = None
    mask: media.Clip | None = None
    strength: float | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """The flags that gave them."""
        one = {name: getattr(self, name) for name in ("image", "last_image", "video", "control", "mask", "strength")}
        found = tuple(name for name, value in one.items() if value is not None)
        return (*found, "reference") if self.references else found

    @property
    def leading(self) -> media.Clip | None:
        """What the picture's proportions are taken from."""
        first = self.references[0] if self.references else None
        return next((one for one in (self.image, self.video, self.control, self.last_image, first) if one), None)

    @property
    def followed(self) -> media.Clip | None:
        """A video that is drawn over or led by."""
        return next((one for one in (self.video, self.control) if one is not None and len(one.frames) > 1), None)

    def facts(self) -> dict[str, Any]:
        """As a record has them; what was not given is left out."""
        clips = {name: getattr(self, name) for name in ("image", "last_image", "video", "control", "mask")}
        found: dict[str, Any] = {name: one.facts() for name, one in clips.items() if one is not None}
        if self.references:
            found["reference"] = [one.facts() for one in self.references]
        return found | ({} if self.strength is None else {"strength": self.strength})


@dataclass(frozen=True)
class Held:
    """How weights are held, and what is laid over them.

    Args:
        quantize: of `dittools.pipelines.quantizing.KINDS`.
        shift: of the noise schedule; None leaves it to the folder.
    """

    loras: tuple[adapters.Lora, ...] = ()
    quantize: str = "none"
    vae_tiling: bool = False
    shift: float | None = None

    def facts(self) -> dict[str, Any]:
        """As a record has it."""
        own = {"quantize": self.quantize, "vae_tiling": self.vae_tiling, "shift": self.shift}
        return {"lora": [one.facts() for one in self.loras], **own}


def shift_of(scheduler: Mapping[str, Any]) -> str | None:
    """The name that a scheduler's config has for the shift of its noise levels."""
    return next((name for name in ("flow_shift", "shift") if name in scheduler), None)


@dataclass(frozen=True)
class Task:
    """A class and all that its call is given beside text and sizes.

    Args:
        asked: the class of the folder; `one` is that which draws.
        settings: arguments of its own, by --set, and `said`, how they were given.
        held: how its weights are held.
    """

    one: PipelineClass
    asked: PipelineClass
    inputs: Inputs = field(default_factory=Inputs)
    settings: Mapping[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    held: Held = field(default_factory=Held)

    def facts(self) -> dict[str, Any]:
        """As a record has it."""
        said = dict(text.split("=", 1) for text in self.said)
        return {
            "pipeline": self.one.name,
            "weights_of": self.asked.name,
            "inputs": self.inputs.facts(),
            "set": {name.strip(): value.strip() for name, value in said.items()},
            **self.held.facts(),
        }

    def asked_for(self, scene: Any, request: Any, dtype: str) -> dict[str, Any]:
        """All that decides what is drawn, for a list that goes on to know its own videos again.

        Args:
            scene, request: of `dittools.cli.request`.
        """
        shot = {name: getattr(scene.shot, name) for name in scene.shot.__dataclass_fields__}
        return {
            "weights": request.weights.name,
            "prompt": scene.prompt,
            "negative_prompt": scene.negative_prompt,
            **shot,
            "fps": scene.fps,
            "dtype": dtype,
            **content(self.facts()),
            "config": request.config.to_dict(),
        }

    @property
    def follows(self) -> bool:
        """Whether a video that was given says how many frames are drawn."""
        return self.inputs.followed is not None and (self.one.frames is None or self.one.name in FOLLOWS)

    def prepare(self, pipe: Any, guidance: float | None, note: Callable[[str], None]) -> None:
        """What is set on the pipeline itself, once it is loaded. Raises BadInput for a LoRA that does not fit."""
        if self.held.vae_tiling:
            pipe.vae.enable_tiling()
        if self.held.shift is not None:
            name = shift_of(pipe.scheduler.config)
            pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **{name: self.held.shift})
        adapters.put_on(pipe, self.held.loras, note)
        guider = getattr(pipe, "guider", None)
        if guidance is not None and guider is not None and guidance_of(self.one) is None:
            pipe.guider = guider.new(guidance_scale=guidance)

    def arguments(self, prompt: str, negative_prompt: str, shot: Shot, fps: float, max_text: int | None) -> dict:
        """Keyword arguments of the call, but for generator and output; what it does not take is left out.

        Args:
            shot: sizes and steps, None where the pipeline decides.
            max_text: tokens of a prompt that are read; None leaves it to the pipeline.
        """
        sizes = {
            "prompt": prompt,
            "negative_prompt": negative_prompt or None,
            "height": shot.height,
            "width": shot.width,
            "num_inference_steps": shot.steps,
            "max_sequence_length": max_text,
            "fps": _whole(fps),
            "frame_rate": _whole(fps),
            **({self.one.frames: shot.frames} if self.one.frames else {}),
        }
        guidance = guidance_of(self.one)
        if guidance is not None:
            sizes[guidance] = shot.guidance
        found = {name: value for name, value in sizes.items() if value is not None and name in self.one.parameters}
        return found | self._media(shot) | dict(self.settings)

    def _media(self, shot: Shot) -> dict[str, Any]:
        """Arguments that take what files hold."""
        name, inputs = self.one.name, self.inputs
        if name in CONDITIONS:
            found = _conditions(self.one, inputs, shot)
        elif name == VACE:
            found = _vace(inputs, shot)
        elif name == "EasyAnimateInpaintPipeline":
            found = _easy_inpaint(inputs, shot)
        else:
            found = self._by_name(shot)
        if inputs.strength is not None:
            found[_argument(self.one, "strength")] = inputs.strength
        return found

    def _by_name(self, shot: Shot) -> dict[str, Any]:
        inputs, one = self.inputs, self.one
        found: dict[str, Any] = {}
        if inputs.image is not None:
            found[_argument(one, "image")] = _first(inputs.image)
        if one.name in MANY and (inputs.image or inputs.references):
            clips = ((inputs.image,) if inputs.image else ()) + inputs.references
            pictures = [_first(clip) for clip in clips]
            alone = len(pictures) == 1 and one.name not in ("OmniGenPipeline", "JoyImageEditPipeline")
            found[_argument(one, "image")] = pictures[0] if alone else pictures
        elif inputs.references:
            argument = _argument(one, "reference")
            pictures = [_first(clip) for clip in inputs.references]
            found[argument] = pictures if argument.endswith("s") else pictures[0]
        if inputs.last_image is not None:
            found[_argument(one, "last_image")] = _first(inputs.last_image)
        for flag, clip in (("video", inputs.video), ("control", inputs.control), ("mask", inputs.mask)):
            if clip is not None:
                argument = _argument(one, flag)
                found[argument] = _shaped(one, argument, clip, shot)
        return found


def content(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Of a task's facts, what does not change with the names of files."""
    inputs = {flag: _digests(value) for flag, value in facts["inputs"].items()}
    loras = [[one["sha256"], one["scale"]] for one in facts["lora"]]
    return {**facts, "inputs": inputs, "lora": loras}


def _digests(value: Any) -> Any:
    """Of an input's facts, what does not change with the name of its file."""
    if isinstance(value, list):
        return [_digests(one) for one in value]
    return value["sha256"] if isinstance(value, dict) else value


def check(task: Task) -> None:
    """Raises BadInput for a still where frames are wanted, frames where a still is, and several where one is."""
    one, inputs = task.one, task.inputs
    uncompressed = task.settings.get("image_crf") == 0
    if one.name.startswith("LTX2") and (inputs.image or inputs.last_image) and not uncompressed and not find_spec("av"):
        other = ", or --set image_crf=0 to leave that out" if "image_crf" in one.parameters else ""
        raise BadInput(f"{one.name} compresses its pictures first, by PyAV: pip install av{other}")
    if len(inputs.references) > 1 and one.name not in MANY:
        argument = _argument(one, "reference")
        if not argument.endswith("s"):
            raise BadInput(f"--reference is given {len(inputs.references)} times, and {one.name} takes one")
    for flag, clip in (("control", inputs.control), ("mask", inputs.mask), ("video", inputs.video)):
        if clip is None:
            continue
        argument, count = _argument(one, flag), len(clip.frames)
        moving = _moving(one, argument)
        if not moving and count > 1:
            raise BadInput(f"--{flag} {clip.name} holds {count} frames, and {one.name} takes one picture ({argument})")
        if moving and count == 1 and flag != "mask":
            raise BadInput(f"--{flag} {clip.name} is one picture, and {one.name} takes a video ({argument})")
    if one.name == "EasyAnimateInpaintPipeline" and inputs.video and (inputs.image or inputs.last_image):
        raise BadInput(f"{one.name} draws from --image or over --video, not both: drop one of them")
    if one.name == VACE:
        _check_vace(inputs)


def _check_vace(inputs: Inputs) -> None:
    if inputs.video is not None and inputs.control is not None:
        raise BadInput(f"--video and --control are the same input of {VACE}, its control video: give one of them")
    if (inputs.video or inputs.control) and (inputs.image or inputs.last_image):
        raise BadInput(
            f"{VACE} takes frames to keep as --image and --last-image, or a whole --control video, not both: drop one"
        )
    if inputs.mask is not None and not (inputs.video or inputs.control):
        raise BadInput(f"--mask says which part of a video {VACE} draws anew: give --video as well")


_MOVING = ("video", "control_video", "pose_video", "mask_video", "controls", "reference_conditions", "conditions")
"""Arguments that take frames; so does the mask of a class that draws videos."""


def _moving(one: PipelineClass, argument: str) -> bool:
    return argument in _MOVING or (argument in ("mask", "mask_video") and one.draws == "video")


def _argument(one: PipelineClass, flag: str) -> str:
    """The argument of a flag that the class is known to take."""
    found = argument_of(one, flag)
    assert found is not None, (one.name, flag)
    return found


def _first(clip: media.Clip) -> Image:
    return clip.frames[0]


def _whole(fps: float) -> float | int:
    return int(fps) if float(fps).is_integer() else fps


def _over(clip: media.Clip, count: int | None) -> list[Image]:
    """As many frames as are drawn: the first ones, or one picture again and again."""
    frames = list(clip.frames)
    if count is None:
        return frames
    return frames * count if len(frames) == 1 else frames[:count]


def _shaped(one: PipelineClass, argument: str, clip: media.Clip, shot: Shot) -> Any:
    """Frames in the form that an argument takes."""
    if not _moving(one, argument):
        return _first(clip)
    frames = _over(clip, shot.frames if one.frames is None or one.name in FOLLOWS else None)
    if "FloatTensor" in str(one.parameters[argument].annotation):
        return _tensor(frames, shot)
    if argument == "reference_conditions":
        from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition

        return [LTX2ReferenceCondition(frames=frames, strength=1.0)]
    return frames


def _tensor(frames: list[Image], shot: Shot) -> Any:
    """Frames of the size that is drawn, ``[1, C, T, H, W]`` in [0, 1]."""
    import numpy as np
    import torch

    size = (shot.width, shot.height) if shot.height and shot.width else frames[0].size
    levels = np.stack([np.atleast_3d(np.asarray(frame.resize(size))) for frame in frames])
    return torch.from_numpy(levels).permute(3, 0, 1, 2)[None].float() / 255


def _conditions(one: PipelineClass, inputs: Inputs, shot: Shot) -> dict[str, Any]:
    """Frames with their places, as LTX-Video and LTX-2 take them."""
    last = (shot.frames or one.default("num_frames") or 121) - 1
    placed = [
        (clip, place)
        for clip, place in ((inputs.image, 0), (inputs.video, 0), (inputs.last_image, last))
        if clip is not None
    ]
    found: dict[str, Any] = {}
    if inputs.control is not None:
        argument = _argument(one, "control")
        found[argument] = _shaped(one, argument, inputs.control, shot)
    if not placed:
        return found
    if one.name == "LTXConditionPipeline":
        from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

        made = [
            LTXVideoCondition(video=list(clip.frames), frame_index=place)
            if len(clip.frames) > 1
            else LTXVideoCondition(image=_first(clip), frame_index=place)
            for clip, place in placed
        ]
    else:
        from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

        made = [
            LTX2VideoCondition(
                frames=list(clip.frames) if len(clip.frames) > 1 else _first(clip), index=-1 if place else 0
            )
            for clip, place in placed
        ]
    return found | {"conditions": made}


def _vace(inputs: Inputs, shot: Shot) -> dict[str, Any]:
    """A control video, or frames to keep among grey ones with a mask of what is drawn, as in diffusers' example."""
    found: dict[str, Any] = {}
    if inputs.references:
        found["reference_images"] = [_first(clip) for clip in inputs.references]
    clip = inputs.video or inputs.control
    if clip is not None:
        found["video"] = _over(clip, shot.frames)
        if inputs.mask is not None:
            found["mask"] = _over(inputs.mask, len(found["video"]))
        return found
    if inputs.image is None and inputs.last_image is None:
        return found
    from PIL import Image

    kept = {0: inputs.image, shot.frames - 1: inputs.last_image}
    size = (shot.width, shot.height)
    frames, mask = [], []
    for number in range(shot.frames):
        clip = kept.get(number)
        frames.append(Image.new("RGB", size, _GREY) if clip is None else _first(clip).resize(size))
        mask.append(Image.new("L", size, 255 if clip is None else 0))
    return found | {"video": frames, "mask": mask}


def _easy_inpaint(inputs: Inputs, shot: Shot) -> dict[str, Any]:
    """A video and what of it is drawn, white: as tensors, the mask in levels from 0 to 255."""
    from diffusers.pipelines.easyanimate.pipeline_easyanimate_inpaint import get_image_to_video_latent

    if inputs.video is None:
        start = None if inputs.image is None else [_first(inputs.image)]
        end = None if inputs.last_image is None else [_first(inputs.last_image)]
        video, mask = get_image_to_video_latent(start, end, shot.frames, (shot.height, shot.width))
        return {"video": video, "mask_video": mask}
    import torch

    video = _tensor(_over(inputs.video, shot.frames), shot)
    if inputs.mask is None:
        return {"video": video, "mask_video": torch.full_like(video[:, :1], 255)}
    return {"video": video, "mask_video": _tensor(_over(inputs.mask, video.shape[2]), shot) * 255}
