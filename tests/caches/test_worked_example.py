"""The step cache that docs/architecture.md shows is a cache like any other."""

import importlib.util

import pytest

from dittools import caches
from tests.methods.test_worked_example import example
from tests.pipelines import test_caches as every
from tests.tiny import tiny_pipeline

NAME = "alternate"


@pytest.fixture(scope="module")
def shared():
    return tiny_pipeline()


@pytest.fixture(autouse=True)
def rows(tmp_path, monkeypatch):
    """The page's one file imported; gives its two rows, and enters the first."""
    path = tmp_path / f"{NAME}.py"
    path.write_text(example("cache"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"dittools.caches.{NAME}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(caches.CACHES, NAME, module.Alternate)
    found = {"NOTHING": {}, "SCHEDULES": []}
    exec(example("cache rows"), found)
    monkeypatch.setattr(every, "NOTHING", found["NOTHING"])
    return found


def test_it_is_listed_with_its_options_and_those_of_its_kind():
    assert NAME in caches.names()
    assert {"interval", "warmup_steps", "cooldown_steps", "reuse"} <= set(caches.options(NAME))
    with pytest.raises(ValueError, match="interval"):
        caches.create(NAME, {"interval": 0})


@pytest.mark.parametrize("guidance", [1.0, 4.0], ids=["alone", "guided"])
def test_it_computes_the_steps_that_the_page_says(shared, rows, guidance):
    ((name, options, schedule),) = rows["SCHEDULES"]
    every.test_a_cache_saves_the_steps_its_schedule_says(shared, name, options, schedule, guidance)


@pytest.mark.parametrize("family", ["wan", "flux"])
def test_without_reuse_it_is_bit_identical_to_no_cache(family):
    every.test_a_cache_that_reuses_nothing_is_bit_identical_to_none_in_every_family(family)
