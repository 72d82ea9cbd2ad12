"""Names in errors: what is near, in a line that stays short."""

import doctest

import pytest

import dittools
from dittools import Config, caches, naming
from dittools.methods import create
from dittools.pipelines.families import FAMILIES, find_family

NAMES = sorted({name for family in FAMILIES for name in (family.name, *family.aliases)})


def test_examples_hold():
    assert doctest.testmod(naming).failed == 0


@pytest.mark.parametrize(
    ("call", "near"),
    [
        (lambda: find_family("wann"), "wan"),
        (lambda: find_family("flx"), "flux"),
        (lambda: find_family(""), "`dittools models` lists all"),
        (lambda: find_family("x" * 10_000), "`dittools models` lists all"),
        (lambda: find_family(None), "`dittools models` lists all"),
        (lambda: Config(method="svgg"), "svg"),
        (lambda: Config(method=["svg"]), "a name such as dense, got"),
        (lambda: Config(cache="teacach"), "teacache"),
        (lambda: Config(correction="centroid"), "centroids"),
        (lambda: Config.from_dict({"sparsty": 1}), "sparsity"),
        (lambda: Config.from_dict({"zzz": 1}), "known: block_size"),
        (lambda: create("gna", {"windw": 3}), "window"),
        (lambda: dittools.accelerate(None), "`dittools models` lists them"),
    ],
)
def test_an_unknown_name_is_answered_shortly(call, near):
    with pytest.raises(ValueError) as error:
        call()
    said = str(error.value)
    assert near in said and len(said) <= 200 and "\n" not in said


def test_every_name_with_a_letter_missing_finds_itself():
    for name in (name for name in NAMES if len(name) > 5):
        with pytest.raises(ValueError) as error:
            find_family(name[:2] + name[3:] + "!")
        assert name in str(error.value).split("? ")[0]


def test_names_are_known_in_any_case():
    assert find_family("WAN").name == find_family("Wan2.1").name == "wan"
    config = Config(method="SVG", cache="EasyCache:threshold=0.2", correction="Centroids")
    assert (config.method, config.cache, config.correction) == ("svg", "easycache", "centroids")
    assert Config.from_json(config.to_json()) == config


def test_a_value_that_is_given_twice_is_named():
    with pytest.raises(ValueError, match="option threshold is given twice in 'sea:threshold=1:threshold=1'"):
        caches.read("sea:threshold=1:threshold=1")
    with pytest.raises(ValueError, match="option max_consecutive_skips is given twice"):
        caches.read("easycache:max-consecutive-skips=1:max_consecutive_skips=2")
