"""Settings: what is accepted, what is refused and how, and the JSON form."""

import dataclasses
import json

import pytest

from dittools import Config, methods
from dittools.config import whole_steps


def test_json_round_trip_keeps_every_setting():
    one = ("teacache", {"threshold": 0.3}, "rettention", {"every": 4}, "p.json", False)
    config = Config("svg", 0.75, 3, 1.0, 2, 4, 64, True, 7, {"probe_rows": 40}, *one, None, 32, 0.2)
    names = {f.name for f in dataclasses.fields(Config)} - {"plans"}  # which bring all others: tests/plans
    assert all(getattr(config, name) != getattr(Config(), name) for name in names)
    again = Config.from_json(config.to_json())
    assert again == config
    assert json.loads(config.to_json())["version"] == 1


def test_an_unknown_option_is_told_with_the_options_there_are_and_a_setting_that_may_have_been_meant():
    with pytest.raises(ValueError, match="'sparsty': did you mean sparsity") as error:
        Config(method="svg", options={"sparsty": 0.5})
    assert set(str(error.value).split("known: ")[1].split(", ")) == set(methods.options("svg"))


def test_json_round_trip_keeps_the_difference_between_one_step_and_all_steps():
    for asked in (1, 1.0):
        assert type(Config.from_json(Config(dense_steps=asked).to_json()).dense_steps) is type(asked)


@pytest.mark.parametrize(
    "asked, steps, whole",
    [
        (0.2, 50, 10),
        (0.2, 4, 1),
        (0.01, 4, 1),
        (0.0, 4, 0),
        (0, 4, 0),
        (1, 4, 1),
        (1.0, 4, 4),
        (9, 4, 4),
        (0.5, 5, 3),
    ],
)
def test_a_share_is_rounded_to_whole_steps_and_a_count_is_a_count(asked, steps, whole):
    assert whole_steps(asked, steps) == whole


@pytest.mark.parametrize(
    "bad, says",
    [
        ({"sparsity": 1.0}, "below 1, got 1"),
        ({"sparsity": -0.1}, "at least 0"),
        ({"sparsity": float("nan")}, "got nan"),
        ({"sparsity": 80}, "did you mean 0.8"),
        ({"sparsity": "0.8"}, "must be a number"),
        ({"sparsity": True}, "must be a number"),
        ({"dense_steps": 1.5}, "share of the run"),
        ({"dense_steps": 5.0}, "did you mean 5?"),
        ({"dense_steps": -1}, "at least 0"),
        ({"dense_last_steps": "2"}, "must be a number"),
        ({"dense_layers": 0.5}, "whole number"),
        ({"refresh": 0}, "at least 1"),
        ({"block_size": 96}, "one of auto, 64, 128, got 96"),
        ({"strict": 1}, "True or False"),
        ({"method": "sgv"}, "did you mean svg"),
        ({"method": "svg", "options": {"probe_row": 3}}, "did you mean probe_rows"),
        ({"method": "svg", "options": {"sparsty": 0.3}}, "did you mean sparsity"),
        ({"method": "svg", "options": {"probe_rows": 0}}, "probe_rows must be"),
        ({"method": "svg", "options": {"sink": "no"}}, "sink must be"),
        ({"options": ["probe_rows"]}, "options must map"),
        ({"method": "svg", "profile": 3}, "profile must be the path"),
        ({"method": "svg", "profile": ""}, "profile must be the path"),
        ({"method": "dense", "profile": "p.json"}, "method dense takes no profile"),
    ],
)
def test_a_bad_setting_is_refused_in_one_line_that_says_what_is_right(bad, says):
    with pytest.raises(ValueError) as error:
        Config(**bad)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, says",
    [
        ('{"sparsty": 0.5}', "did you mean sparsity"),
        ('{"version": 2}', "version 2"),
        ("[1]", "an object"),
        ("{", "not JSON"),
    ],
)
def test_a_bad_config_file_is_refused(text, says):
    with pytest.raises(ValueError, match=says):
        Config.from_json(text)


def test_a_config_does_not_share_its_options_with_the_caller():
    options = {"probe_rows": 40}
    config = Config(method="svg", options=options)
    options["probe_rows"] = -1
    assert config.options == {"probe_rows": 40}
