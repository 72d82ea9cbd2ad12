"""What the embedded world can show, and the words for it.

A scene is one to three objects on a background, sometimes seen by a moving camera. Every choice is an
index into one of the tuples below, so that the renderer, the captions, the tokenizer and the judge
agree by construction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple")
SIZES = ("small", "", "large")
TEXTURES = ("", "striped", "spotted")
MOTIONS = ("left", "right", "up", "down", "bounce", "orbit", "spin", "grow", "shrink", "still")
BACKGROUNDS = ("gradient", "striped", "checkered", "cloudy")
TONES = ("grey", "dark", "pale", "brown", "slate")
CAMERAS = ("", "the camera pans left", "the camera pans right", "the camera zooms in")

MOTION_PHRASES = {
    "left": ("moving left", "going left"),
    "right": ("moving right", "going right"),
    "up": ("moving up", "rising"),
    "down": ("moving down", "falling"),
    "bounce": ("bouncing", "jumping"),
    "orbit": ("orbiting", "circling"),
    "spin": ("spinning", "rotating"),
    "grow": ("growing", "expanding"),
    "shrink": ("shrinking", "contracting"),
    "still": ("standing still", "resting"),
}

MAX_TOKENS = 64
"""Length every prompt is padded to, in training and in use."""

DEFAULT_PROMPT = "a large yellow star bouncing on a dark striped background"

_SPECIAL = ("<pad>", "</s>", "<unk>")
_FILLERS = ("a", "an", "the", "and", "on", "in", "with", "of", "background", "camera", "video", "object", ",", ".")


@dataclass(frozen=True)
class Thing:
    """One object as indices into SHAPES, COLOURS, SIZES, TEXTURES and MOTIONS."""

    shape: int
    colour: int
    size: int
    texture: int
    motion: int


def held_out(shape: int, colour: int, motion: int) -> bool:
    """Whether this (shape, colour, motion) is kept out of training. One combination in seven is.

    Every pair of the three still occurs in training, so a model that binds words to pictures can draw it.
    """
    return (shape + 2 * colour + 3 * motion) % 7 == 0


def can_spin(shape: int) -> bool:
    """A turning circle or ring looks like one that stands still."""
    return SHAPES[shape] not in ("circle", "ring")


def describe(thing: Thing, phrase: int = 0) -> str:
    """Words for one object, for example ``a large striped red star spinning``."""
    words = (SIZES[thing.size], TEXTURES[thing.texture], COLOURS[thing.colour], SHAPES[thing.shape])
    name = " ".join(w for w in words if w)
    article = "an" if name[0] in "aeiou" else "a"
    return f"{article} {name} {MOTION_PHRASES[MOTIONS[thing.motion]][phrase]}"


def caption(
    things: list[Thing],
    background: tuple[int, int] | None = None,
    camera: int = 0,
    phrases: list[int] | None = None,
) -> str:
    """The sentence for a scene; ``background`` is (tone, kind), None leaves it unsaid."""
    phrases = phrases or [0] * len(things)
    text = " and ".join(describe(thing, phrase) for thing, phrase in zip(things, phrases, strict=True))
    if background is not None:
        text += f" on a {TONES[background[0]]} {BACKGROUNDS[background[1]]} background"
    if camera:
        text += f" , {CAMERAS[camera]}"
    return text


def words() -> list[str]:
    """Every word the tokenizer knows, special tokens first, in a fixed order."""
    phrases = [phrase for pair in MOTION_PHRASES.values() for phrase in pair]
    groups = (SHAPES, COLOURS, SIZES, TEXTURES, BACKGROUNDS, TONES, CAMERAS, phrases, _FILLERS)
    known = {word for group in groups for text in group for word in text.split()}
    return [*_SPECIAL, *sorted(known)]


def split_words(text: str) -> list[str]:
    """Lower-case words and punctuation of a text, the way the tokenizer sees them."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def unknown_words(text: str) -> list[str]:
    """Words of a text that the tokenizer does not know, each once, in order."""
    known = set(words())
    return list(dict.fromkeys(word for word in split_words(text) if word not in known))


def too_long(text: str) -> bool:
    """Whether a text has more words than a prompt can hold (one place is kept for the end token)."""
    return len(split_words(text)) > MAX_TOKENS - 1
