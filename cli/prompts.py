"""Prompts of a verb that takes many: a file of them, or those that come along."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dittools import files
from dittools.cli.flag_checks import check_prompt
from dittools.pipelines.errors import BadInput

BUILTIN = "builtin"
_LONGEST_PROMPT = 100_000
PROMPTS = (
    "A ginger cat plays the piano by a tall window, soft morning light, shallow depth of field",
    "A red bus crosses a stone bridge in the rain, reflections on wet asphalt, seen from above",
    "Waves break over black rocks at dusk, spray in the wind, slow motion",
    "A potter shapes a bowl on a turning wheel, close-up of wet hands and clay",
    "A flock of starlings turns over a field of barley, wide shot, evening sun",
    "A paper boat drifts down a gutter past fallen leaves, low camera",
    "A chef tosses vegetables in a pan, flames, steam, handheld camera",
    "Snow falls on a small wooden station while a green train pulls in",
)
"""The builtin prompts of models that are not the embedded one."""
CALIBRATION = (PROMPTS[0], "A red car drives along a mountain road at dusk, seen from above")
"""Those of profiles."""


def prompts_of(asked: Any) -> tuple[tuple[str, ...] | None, int | None]:
    """Prompts, each once; or None and how many of the builtin ones."""
    if isinstance(asked, str):
        builtin = re.fullmatch(rf"{BUILTIN}(?::(\d+))?", asked)
        if builtin:
            count = int(builtin[1]) if builtin[1] else None
            if count == 0:
                raise BadInput("--prompts builtin:0 asks for none: give at least 1")
            return None, count
        if asked.startswith(f"{BUILTIN}:") and not Path(asked).exists():
            raise BadInput(f"--prompts {asked}: how many of the builtin prompts is a number, such as {BUILTIN}:2")
        if not asked:
            raise BadInput("--prompts is empty: give a text file, one prompt a line, or builtin")
        asked = _prompt_file(asked)
    if not isinstance(asked, list) or not all(isinstance(text, str) for text in asked):
        raise BadInput(
            "prompts must be texts, a file name, or builtin; in YAML put quotes around a prompt that is a number"
        )
    prompts = tuple(dict.fromkeys(asked))
    if not prompts:
        raise BadInput("there are no prompts: give at least one")
    for number, text in enumerate(prompts, 1):
        check_prompt(f"prompt {number}", text)
    long = next((text for text in prompts if len(text) > _LONGEST_PROMPT), None)
    if long is not None:
        raise BadInput(f"a prompt has {len(long)} characters, and at most {_LONGEST_PROMPT} make sense")
    return prompts, None


def builtin_prompts(embedded: bool, count: int | None, calibration: bool = False) -> tuple[str, ...]:
    """The first ``count`` builtin prompts, or all. Raises BadInput where there are not so many."""
    known: Sequence[str] = CALIBRATION if calibration else PROMPTS
    if embedded:
        from dittools.pipelines.embedded import captions

        known = captions.CALIBRATION if calibration else captions.BUILTIN
    if count is not None and count > len(known):
        raise BadInput(f"--prompts {BUILTIN}:{count}: there are {len(known)} builtin prompts: ask for at most so many")
    return tuple(known[:count])


def _prompt_file(name: str) -> list[str]:
    try:
        text = files.read_text(Path(name).expanduser())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise BadInput(
            f"--prompts {name} cannot be read ({why}): give a text file, one prompt a line, or builtin"
        ) from None
    return [line.strip() for line in text.splitlines() if line.strip()]
