"""Checks of flags that need nothing heavy to be imported: what they rule out is answered at once."""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path
from typing import Any

from dittools.cli._flags import Run
from dittools.naming import name_and_options, unknown
from dittools.pipelines import loading, places, weights
from dittools.pipelines.compiler import why_not_compiled
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import FAMILIES, Family, find_family
from dittools.pipelines.limits import check_memory, check_steps
from dittools.pipelines.sizes import size_rule

_LARGEST_SEED = 2**63 - 1
_COUNTED = {"--at": "steps", "--layers": "layers", "--heads": "heads"}


def check_run(flags: Run) -> None:
    """Raise BadInput for flags that no run could go by, whatever the machine."""
    check_flags(flags)
    family = find_family(flags.model)
    _can_generate(flags, family)
    folder = weights_folder(flags)
    size_rule(family, folder).check(flags.frames, flags.height, flags.width)
    check_steps(flags.steps, folder)
    if None not in (flags.frames, flags.height, flags.width):
        check_memory(flags.frames, flags.height, flags.width)


def check_flags(flags: Run) -> None:
    """Raise BadInput for flags that are wrong whatever the model is."""
    check_place(flags.device, flags.dtype)
    if flags.offload not in loading.OFFLOADS:
        raise BadInput(unknown("--offload", flags.offload, loading.OFFLOADS))
    check_compile(flags.compile)
    _numbers(flags)
    _texts(flags)


def check_place(device: str, dtype: str) -> None:
    """Raise BadInput for a device or dtype that there is none of."""
    if not loading.is_device(device):
        raise BadInput(unknown("--device", device, (*loading.DEVICES, "cuda:1")))
    if dtype not in loading.DTYPES:
        raise BadInput(unknown("--dtype", dtype, loading.DTYPES))


def check_compile(asked: bool | None) -> None:
    """Raise BadInput where compiled blocks are asked for and this PyTorch cannot compile them."""
    if asked and (why := why_not_compiled()):
        raise BadInput(f"--compile: {why}")


def reads(flags: Any) -> list[places.Read]:
    """The files that flags name, for what is written to be none of them."""
    named = {"--config": flags.config, "--profile": flags.profile, "--plans": flags.plans}
    with contextlib.suppress(ValueError):  # what is wrong with it is told by who reads it
        named["--cache"] = name_and_options(flags.cache or "", "cache")[1].get("profile")
    return [(flag, Path(name).expanduser()) for flag, name in named.items() if isinstance(name, str)]


def weights_folder(flags: Run) -> Path | None:
    """The folder of weights that flags alone tell, checked; None where the hub's cache has to be asked.

    Raises:
        BadInput: where it holds no whole pipeline.
    """
    if flags.weights == weights.EMBEDDED:
        return weights.embedded().folder
    return weights.check_asked(flags.weights, find_family(flags.model).text_to)


def _can_generate(flags: Run, family: Family) -> None:
    if not family.text_to:
        reason = f" ({family.why_not})" if family.why_not else ""
        able = ", ".join(f.name for f in FAMILIES if f.text_to)
        raise BadInput(
            f"--model {family.name} cannot generate here{reason}: use one of {able}, or its pipeline in Python"
        )
    if family.name != "wan" and flags.weights == weights.EMBEDDED:
        raise BadInput(f"the embedded model is a wan, not a {family.name}: use --model wan, or other --weights")
    if family.draws == "image" and flags.frames not in (None, 1):
        raise BadInput(f"--model {family.name} generates images: --frames is 1, got {flags.frames}")


def _texts(flags: Run) -> None:
    """Raises BadInput for a prompt that no model can read, and for names of files that are empty."""
    for flag, text in (("--prompt", flags.prompt), ("--negative-prompt", flags.negative_prompt)):
        check_prompt(flag, text)
    for name in ("config", "profile", "plans"):
        if getattr(flags, name, None) == "":
            raise BadInput(f"--{name} is empty: give the name of a file, or leave it out")


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


def _numbers(flags: Run) -> None:
    for name in ("frames", "height", "width"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise BadInput(f"--{name} must be at least 1, got {value}")
    if flags.guidance is not None and not (math.isfinite(flags.guidance) and flags.guidance >= 0):
        raise BadInput(f"--guidance must be a number of at least 0 (1 turns it off), got {flags.guidance:g}")
    check_seed("--seed", flags.seed)


def check_seed(flag: str, seed: int) -> None:
    """Raises BadInput for a seed that no generator takes."""
    if not 0 <= seed <= _LARGEST_SEED:
        raise BadInput(f"{flag} must be from 0 to {_LARGEST_SEED}, got {seed}")


def check_numbers(flag: str, given: tuple[int, ...], count: int) -> None:
    """Raises BadInput for a number of a step, layer or head that is beyond the last one."""
    if given and max(given) >= count:
        raise BadInput(f"{flag} {max(given)}: there are {count} {_COUNTED[flag]}, 0 to {count - 1}")


def numbers(flag: str, given: list[str] | None) -> tuple[int, ...] | None:
    """Whole numbers from 0, each once. Raises BadInput."""
    if given is None:
        return None
    if not all(part.isascii() and part.isdigit() and len(part) < 7 for part in given):
        raise BadInput(f"{flag} must be whole numbers with commas between, such as 0,3, got {','.join(given)!r}")
    return tuple(sorted({int(part) for part in given}))
