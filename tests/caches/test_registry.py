"""The caches by name, how their options are written, and what is refused."""

import json

import pytest

from dittools import Config, caches

NAMES = ["none", "teacache", "first_block", "magcache", "taylorseer", "easycache", "pab", "fastercache", "sea"]


def test_every_cache_is_listed_in_one_line_with_its_options():
    assert caches.names() == NAMES
    for _, line, options in caches.describe():
        assert line and "\n" not in line and all(help for _, help in options.values())


@pytest.mark.parametrize(
    "text, name, options",
    [
        ("teacache", "teacache", {}),
        ("teacache:threshold=0.1", "teacache", {"threshold": 0.1}),
        ("magcache:max-skips=3:reuse=delta", "magcache", {"max_skips": 3, "reuse": "delta"}),
        ("teacache:profile=/a/b:c.json:last=2", "teacache", {"profile": "/a/b:c.json", "last": 2}),
    ],
)
def test_options_follow_the_name(text, name, options):
    assert caches.read(text) == (name, options)
    config = Config(cache=text)
    assert (config.cache, config.cache_options) == (name, options)


def test_options_given_apart_win_and_the_config_survives_json():
    config = Config(cache="easycache:threshold=0.1:last=2", cache_options={"threshold": 0.3})
    assert config.cache_options == {"threshold": 0.3, "last": 2}
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
        ({"cache": "teacache", "cache_options": {"threshold": True}}, "threshold must be a number"),
        ({"cache": "easycache", "cache_options": {"threshold": "auto"}}, "threshold must be a number"),
        ({"cache": "teacache", "cache_options": {"reuse": "all"}}, "delta, output or stack"),
        ({"cache": "sea", "cache_options": {"order": 9}}, "from 0 to 4"),
        ({"cache": "sea", "cache_options": {"first": 1.5}}, "share of the run"),
        ({"cache": "sea", "cache_options": {"max_skips": 0.5}}, "whole number"),
        ({"cache": "pab", "cache_options": {"interval": 0}}, "at least 1"),
        ({"cache": None}, "a name such as teacache"),
        ({"cache_options": ["threshold"]}, "cache_options must map"),
    ],
)
def test_a_bad_cache_is_refused_in_one_line_that_says_what_is_right(bad, says):
    with pytest.raises(ValueError) as error:
        Config(**bad)
    assert says in str(error.value) and "\n" not in str(error.value)
