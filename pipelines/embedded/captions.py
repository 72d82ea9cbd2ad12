"""A caption of the embedded world back to the objects it asks for, so that the judge can look for them."""

from __future__ import annotations

from . import vocabulary as voc

_SIZES = {word: i for i, word in enumerate(voc.SIZES) if word}
_TEXTURES = {word: i for i, word in enumerate(voc.TEXTURES) if word}
_COLOURS = {word: i for i, word in enumerate(voc.COLOURS)}
_SHAPES = {word: i for i, word in enumerate(voc.SHAPES)}
_MOTIONS = {
    tuple(phrase.split()): voc.MOTIONS.index(name) for name, both in voc.MOTION_PHRASES.items() for phrase in both
}
_ARTICLES = ("a", "an", "the")

BUILTIN = (
    "a large yellow circle moving left on a dark gradient background",
    "a large red star spinning and a blue circle moving left on a dark checkered background",
    "a green triangle growing on a pale cloudy background",
    "a large yellow ring orbiting on a slate striped background",
    "a cyan cross bouncing on a brown gradient background",
    "an orange square rising and a purple circle resting on a grey cloudy background",
    "a large striped blue star rotating on a pale gradient background",
    "a small purple triangle moving right and a large green square falling on a dark cloudy background",
)
"""Prompts of a report that names none."""

CALIBRATION = (
    "a red star falling on a pale striped background",
    "a small blue square moving right and a large orange ring jumping on a dark cloudy background",
    "a striped green cross shrinking on a grey gradient background",
)
"""Prompts that profiles of this model are measured on; none is one of a report's."""


def parse(text: str) -> list[voc.Thing] | None:
    """The objects of a caption, or None when the text is no caption of this world.

    Understood are one to three objects, "a [size] [texture] colour shape motion", joined by "and", with or without
    a background at the end. A moving camera is none: the judge cannot tell it from moving objects.
    """
    words = [word for word in voc.split_words(text) if word != "."]
    scene = _without_background(words)
    if not scene:
        return None
    things, start = [], 0
    for end in [*(i for i, word in enumerate(scene) if word == "and"), len(scene)]:
        thing = _thing(scene[start:end])
        if thing is None:
            return None
        things.append(thing)
        start = end + 1
    return things if len(things) <= 3 else None


def _without_background(words: list[str]) -> list[str]:
    """The words before "on a TONE KIND background"; all of them where nothing is said of it."""
    if words[-1:] == ["background"] and len(words) > 5:
        on, article, tone, kind = words[-5:-1]
        if on == "on" and article in _ARTICLES and tone in voc.TONES and kind in voc.BACKGROUNDS:
            return words[:-5]
    return words


def _thing(words: list[str]) -> voc.Thing | None:
    rest = list(words)
    if rest and rest[0] in _ARTICLES:
        rest.pop(0)
    size = _SIZES[rest.pop(0)] if rest and rest[0] in _SIZES else voc.SIZES.index("")
    texture = _TEXTURES[rest.pop(0)] if rest and rest[0] in _TEXTURES else voc.TEXTURES.index("")
    if len(rest) < 3 or rest[0] not in _COLOURS or rest[1] not in _SHAPES or tuple(rest[2:]) not in _MOTIONS:
        return None
    return voc.Thing(_SHAPES[rest[1]], _COLOURS[rest[0]], size, texture, _MOTIONS[tuple(rest[2:])])
