"""The caches by name, how their options are written, and what is refused."""

import json
from pathlib import Path

import pytest

from dittools import Config, caches
from dittools.options import Renamed

PAGE = Path(__file__).parents[2] / "docs" / "caches.md"


def test_every_cache_is_listed_in_one_line_with_its_options():
    assert caches.names() == ["none", *caches.CACHES]
    for _, line, options in caches.describe():
        assert line and "\n" not in line and all(help for _, help in options.values())


def test_every_cache_has_a_row_in_the_page_of_caches():
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in caches.CACHES if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize(
    "text, name, options",
    [
        ("teacache", "teacache", {}),
        ("teacache:threshold=0.1", "teacache", {"threshold": 0.1}),
        ("magcache:max-consecutive-skips=3:reuse=delta", "magcache", {"max_consecutive_skips": 3, "reuse": "delta"}),
        ("teacache:profile=/a/b:c.json:cooldown_steps=2", "teacache", {"profile": "/a/b:c.json", "cooldown_steps": 2}),
    ],
)
def test_options_follow_the_name(text, name, options):
    assert caches.read(text) == (name, options)
    config = Config(cache=text)
    assert (config.cache, config.cache_options) == (name, options)


def test_options_given_apart_win_and_the_config_survives_json():
    config = Config(cache="easycache:threshold=0.1:cooldown_steps=2", cache_options={"threshold": 0.3})
    assert config.cache_options == {"threshold": 0.3, "cooldown_steps": 2}
    assert Config.from_json(config.to_json()) == config
    assert json.loads(config.to_json())["cache"] == "easycache"


@pytest.mark.parametrize(
    "bad, says",
    [
        ({"cache": "teacach"}, "did you mean teacache"),
        ({"cache": "teacache:treshold=1"}, "did you mean threshold"),
        ({"cache": "teacache:threshold"}, "option=value"),
        ({"cache": "none:threshold=1"}, "cache is none, and options of one are given (threshold)"),
        ({"cache": "teacache", "cache_options": {"threshold": -1}}, "at least 0, got -1"),
        ({"cache": "teacache", "cache_options": {"threshold": True}}, "'auto' or a number of at least 0, got True"),
        ({"cache": "easycache", "cache_options": {"threshold": "auto"}}, "threshold must be a number"),
        ({"cache": "teacache", "cache_options": {"reuse": "all"}}, "must be one of delta, output, stack, got 'all'"),
        ({"cache": "sea", "cache_options": {"taylor_order": 9}}, "from 0 to 4"),
        ({"cache": "sea", "cache_options": {"warmup_steps": 1.5}}, "share of the run"),
        ({"cache": "sea", "cache_options": {"max_consecutive_skips": 0.5}}, "whole number"),
        ({"cache": "pab", "cache_options": {"interval": 0}}, "at least 1"),
        ({"cache": None}, "a name such as teacache"),
        ({"cache_options": ["threshold"]}, "cache_options must map"),
    ],
)
def test_a_bad_cache_is_refused_in_one_line_that_says_what_is_right(bad, says):
    with pytest.raises(ValueError) as error:
        Config(**bad)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_options_are_known_by_their_old_names_for_one_release_and_said_to_be_old():
    old = {"first": 2, "last": 0, "max_skips": 3, "order": 1}
    with pytest.warns(Renamed) as said:
        config = Config(cache="sea:first=3", cache_options=old)
    new = {"warmup_steps": 2, "cooldown_steps": 0, "max_consecutive_skips": 3, "taylor_order": 1}
    assert config.cache_options == new and Config.from_json(config.to_json()) == config
    texts = {str(warning.message) for warning in said}
    assert len(texts) == 4 and "option first of cache sea is called warmup_steps now" in "".join(texts)
    with pytest.warns(Renamed):
        assert caches.create("pab", {"first": 2}).warmup_steps == 2


def test_both_names_of_an_option_are_one_too_many():
    with pytest.raises(
        ValueError, match="options first and warmup_steps of cache sea are one: give warmup_steps alone"
    ):
        Config(cache="sea", cache_options={"first": 2, "warmup_steps": 3})
