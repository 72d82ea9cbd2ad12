"""Captions of the embedded world back to their objects."""

import pytest
import torch

from dittools.pipelines.embedded import captions
from dittools.pipelines.embedded import vocabulary as voc
from dittools.training import evaluation, world


def test_every_caption_of_the_evaluation_is_read_as_its_objects():
    for text, things in evaluation.evaluation_captions(n=120):
        assert captions.parse(text) == things


def test_every_caption_of_the_world_without_camera_is_read_as_its_objects():
    generator = torch.Generator().manual_seed(0)
    scenes = world.sample(200, generator)
    for i, text in enumerate(world.captions(scenes, generator)):
        moving = bool(scenes.camera[i])
        assert captions.parse(text) == (None if moving else scenes.things(i))


def test_the_builtin_prompts_are_captions_of_known_words():
    assert len(set(captions.BUILTIN)) == len(captions.BUILTIN) == 8
    for text in captions.BUILTIN:
        assert captions.parse(text) and not voc.unknown_words(text) and not voc.too_long(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "and", "a cat", "a red star", "a red star moving", "red red star spinning", "<script>"),
        *("a red star spinning on a table", "a red star spinning and"),
        "a red star spinning and " * 4 + "a red star spinning",
    ],
)
def test_anything_else_is_no_caption(text):
    assert captions.parse(text) is None
