"""A small Wan of our own, trained on a procedural world, that makes dittools run without any download.

Light to import: words and paths only. `architecture`, `world`, `judge` and `train` hold the rest.
"""

from __future__ import annotations

from pathlib import Path

from dittools.pipelines.embedded.vocabulary import DEFAULT_PROMPT, MAX_TOKENS, too_long, unknown_words

__all__ = ["DEFAULTS", "too_long", "unknown_words", "weights_path"]

DEFAULTS = dict(
    height=256,
    width=256,
    frames=33,
    steps=16,
    guidance=4.0,
    fps=16,
    prompt=DEFAULT_PROMPT,
    negative_prompt="",
    max_sequence_length=MAX_TOKENS,
)
"""Settings the model was trained for; used where the user names none."""


def weights_path() -> Path:
    """The pipeline folder that ships with the package.

    Raises:
        FileNotFoundError: one line, when this installation lacks it.
    """
    folder = Path(__file__).parent / "weights"
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"the embedded model is missing from this installation: no {folder.name} folder")
    return folder
