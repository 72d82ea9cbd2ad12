"""Presets: what pipeline classes draw by default, as data with its source."""

import pytest

from dittools.pipelines.families import FAMILIES, find_family
from dittools.pipelines.staged import STAGED
from dittools.pipelines.tasks import classes
from dittools.pipelines.tasks.presets import defaults_of, preset_of, presets
from dittools.pipelines.tasks.values import guidance_of

WITHOUT = {"wan-animate-2", "minimax-h3"}  # which diffusers draws with no pipeline class of its own here


def test_every_family_has_presets_of_classes_around_its_transformer():
    assert {one.family for one in presets()} == {family.name for family in FAMILIES} - WITHOUT
    assert len({one.pipeline for one in presets()}) == len(presets()) > 100


@pytest.mark.parametrize("one", presets(), ids=lambda one: one.pipeline)
def test_a_preset_is_of_a_class_and_of_arguments_that_it_takes(one):
    kind = classes.class_named(one.pipeline)
    if kind is None:
        pytest.skip("this diffusers has no such class")
    family = find_family(one.family)
    known = classes.PipelineClass(kind, family)
    assert classes._takes_transformer(kind, family) and one.pipeline not in classes.REFUSED
    assert one.source and (one.repo is None or one.repo.count("/") == 1)
    for name, argument in (("height", "height"), ("width", "width"), ("steps", "num_inference_steps")):
        assert getattr(one, name) is None or argument in known.parameters, name
    assert one.guidance is None or guidance_of(known) is not None
    assert one.negative_prompt is None or "negative_prompt" in known.parameters
    if known.draws == "image":
        assert one.frames is None and one.fps is None
    else:
        assert one.frames is None or known.frames is not None
        assert one.fps is None or 1 <= one.fps <= 60
    for side in (one.height, one.width):
        assert side is None or side % 8 == 0


def test_a_whole_call_draws_by_default_what_stages_draw():
    for name in STAGED:
        family = find_family(preset_of(name).family)
        found = defaults_of(name, family)
        for setting in ("height", "width", "steps", "guidance"):
            assert found[setting] == getattr(family, setting), (name, setting)


def test_a_class_without_a_preset_draws_what_its_family_does():
    found = defaults_of("OfNoOne", find_family("mochi"))
    assert (found["frames"], found["height"], found["negative_prompt"]) == (163, 480, None)
