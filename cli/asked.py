"""The flags of a verb that draws as given, and the checks that need nothing heavy to be imported."""

from __future__ import annotations

import contextlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from dittools.naming import name_and_options, unknown
from dittools.pipelines import loading, places, saving, weights
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import FAMILIES, Family, find_family
from dittools.pipelines.limits import check_memory, check_steps
from dittools.pipelines.sizes import size_rule

_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Asked:
    """The flags as given; None where one was not and its default depends on something else.

    A verb that has no such flag leaves a field as it is.
    """

    model: str
    weights: str
    prompt: str | None = None
    method: str | None = None
    sparsity: float | None = None
    dense_steps: str | None = None
    dense_layers: int | None = None
    refresh: int | None = None
    strict: bool = False
    cache: str | None = None
    correction: str | None = None
    profile: str | None = None
    config: str | None = None
    steps: int | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    seed: int = 0
    output: str = ""
    compare_dense: bool = False
    device: str = "auto"
    dtype: str = "auto"
    offload: str = "none"
    compile: bool = False
    overwrite: bool = False

    def check(self) -> saving.Output:
        """Check what needs neither PyTorch nor a model, and give the output. Raises BadInput."""
        self.check_settings()
        frames = 1 if find_family(self.model).draws == "image" else self.frames
        output = saving.plan(self.output, frames)
        output.keep(self.reads(), self.overwrite)
        return output

    def reads(self) -> list[places.Read]:
        """The files that flags name, for what is written to be none of them."""
        named = {"--config": self.config, "--profile": self.profile}
        with contextlib.suppress(ValueError):  # what is wrong with it is told by who reads it
            named["--cache"] = name_and_options(self.cache or "", "cache")[1].get("profile")
        return [(flag, Path(name).expanduser()) for flag, name in named.items() if isinstance(name, str)]

    def check_settings(self) -> None:
        """The same without the output, for a verb that has its own."""
        _choices(self)
        _numbers(self)
        _texts(self)
        family = find_family(self.model)
        _can_draw(self, family)
        folder = weights_folder(self)
        size_rule(family, folder).check(self.frames, self.height, self.width)
        check_steps(self.steps, folder)
        if None not in (self.frames, self.height, self.width):
            check_memory(self.frames, self.height, self.width)

    @property
    def embedded(self) -> bool:
        """Whether the embedded model was asked for by name."""
        return self.weights == weights.EMBEDDED


def weights_folder(asked: Asked) -> Path | None:
    """The folder of weights that flags alone tell, checked; None where the hub's cache has to be asked.

    Raises:
        BadInput: where it holds no whole pipeline.
    """
    if asked.embedded:
        return weights.embedded().folder
    return weights.check_asked(asked.weights, find_family(asked.model).text_to)


def _can_draw(asked: Asked, family: Family) -> None:
    if not family.text_to:
        reason = f" ({family.why_not})" if family.why_not else ""
        able = ", ".join(f.name for f in FAMILIES if f.text_to)
        raise BadInput(
            f"--model {family.name} cannot be drawn with here{reason}: use one of {able}, or its pipeline in Python"
        )
    if family.name != "wan" and asked.weights == weights.EMBEDDED:
        raise BadInput(f"the embedded model is a wan, not a {family.name}: use --model wan, or other --weights")
    if family.draws == "image" and asked.frames not in (None, 1):
        raise BadInput(f"--model {family.name} draws images: --frames is 1, got {asked.frames}")


def _texts(asked: Asked) -> None:
    """Raises BadInput for a prompt that no model can read, and for names of files that are empty."""
    for flag, text in (("--prompt", asked.prompt), ("--negative-prompt", asked.negative_prompt)):
        check_prompt(flag, text)
    for flag, name in (("--config", asked.config), ("--profile", asked.profile)):
        if name == "":
            raise BadInput(f"{flag} is empty: give the name of a file, or leave it out")


def check_prompt(flag: str, text: str | None) -> None:
    """Raises BadInput for what no model can read; None is a prompt that was not given."""
    if text is None or places.is_text(text):
        return
    if "\0" in text:
        raise BadInput(f"{flag} holds a NUL character, which is no text: leave it out")
    encoding = sys.getfilesystemencoding()
    raise BadInput(
        f"{flag} holds bytes that are no text in this system's encoding ({encoding}): give it in that encoding, or use "
        "one of UTF-8 (LC_ALL=C.UTF-8)"
    )


def _choices(asked: Asked) -> None:
    for flag, value, valid in (
        ("--device", asked.device, loading.DEVICES),
        ("--dtype", asked.dtype, loading.DTYPES),
        ("--offload", asked.offload, loading.OFFLOADS),
    ):
        if value not in valid:
            raise BadInput(unknown(flag, value, valid))


def _numbers(asked: Asked) -> None:
    for flag, value, least in (
        ("--frames", asked.frames, 1),
        ("--height", asked.height, 1),
        ("--width", asked.width, 1),
    ):
        if value is not None and value < least:
            raise BadInput(f"{flag} must be at least {least}, got {value}")
    if asked.guidance is not None and not (math.isfinite(asked.guidance) and asked.guidance >= 0):
        raise BadInput(f"--guidance must be a number of at least 0 (1 turns it off), got {asked.guidance:g}")
    check_seed("--seed", asked.seed)


def check_seed(flag: str, seed: int) -> None:
    """Raises BadInput for a seed that no generator takes."""
    if not 0 <= seed <= _LARGEST_SEED:
        raise BadInput(f"{flag} must be from 0 to {_LARGEST_SEED}, got {seed}")
