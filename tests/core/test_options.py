"""The one table of options: every setting stands in it, and what it may be is decided there alone."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest

import dittools
from dittools import Config
from dittools.caches import CACHES
from dittools.corrections import CORRECTIONS
from dittools.methods import METHODS
from dittools.options import KINDS, Options, option, options_of

CLASSES = [Config, *METHODS.values(), *CACHES.values(), *CORRECTIONS.values()]
REFUSED = {  # of each kind, whatever its bounds
    "switch": (1, "yes", None),
    "count": (True, 2.0, "3", -(10**9)),
    "number": (True, "0.5", float("nan"), float("inf"), [0.5]),
    "steps": (True, -1, 1.5, "2", float("nan")),
    "choice": (True, "spiral", [], -7),
    "axes": (0, True, "2x", [1, 2], [1, 2, 0], 2.5, "1x2x3x4"),
    "shares": (0.2, [2.0], "0.2", [True]),
    "file": (3, b"a.json", ["a.json"]),
    "path": (3, b"a.json", ["a.json"]),
    "text": (3,),
    "mapping": (["a"], {1: 2}),
}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_setting_stands_in_the_table_with_a_default_that_is_valid(cls):
    table = options_of(cls)
    assert list(table) == [f.name for f in dataclasses.fields(cls)]
    for name, about in table.items():
        again = about.read(name, about.default)
        assert about.read(name, again) == again and about.text and "\n" not in about.text


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kind_is_not_is_refused_in_one_line_with_what_was_found(kind):
    tables = {cls: options_of(cls) for cls in CLASSES}
    found = [(name, about) for table in tables.values() for name, about in table.items() if about.kind == kind]
    assert found
    for name, about in found:
        for value in REFUSED[kind]:
            if value is None and about.default is None:
                continue
            with pytest.raises(ValueError) as error:
                about.read(name, value)
            said = str(error.value)
            assert said.startswith(f"{name} must ") and f"got {value!r}" in said and "\n" not in said


@dataclass(frozen=True)
class Example(Options):
    closed: int = option(2, "", min=1, max=4)
    half_open: float = option(0.5, "", above=0, max=1)
    below: float = option(0.8, "", min=0, below=1)
    axes: object = option("auto", "", kind="axes")
    some: object = option({}, "", kind="mapping")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"closed": 0}, "closed must be a whole number from 1 to 4, got 0"),
        ({"closed": 5}, "closed must be a whole number from 1 to 4, got 5"),
        ({"half_open": 0}, "half_open must be a number above 0 and at most 1, got 0"),
        ({"half_open": 1.01}, "half_open must be a number above 0 and at most 1, got 1.01"),
        ({"below": 1}, "below must be a number of at least 0 and below 1, got 1"),
        ({"below": 80}, "below must be a number of at least 0 and below 1, got 80: did you mean 0.8?"),
        ({"axes": "wide"}, "axes must be 'auto' or a whole number of at least 1, or three of them for frames, rows"),
    ],
)
def test_bounds_are_kept_and_said(given, says):
    with pytest.raises(ValueError) as error:
        Example(**given)
    assert str(error.value).startswith(says)


def test_values_come_out_in_their_own_types():
    mine = {"a": 1}
    made = Example(closed=4, half_open=1, below=0, axes=[1, 2, 3], some=mine)
    mine["b"] = 2
    assert made == Example(4, 1.0, 0.0, (1, 2, 3), {"a": 1})
    assert type(made.half_open) is type(made.below) is float
    assert Example(axes=3).axes == Example(axes="3x3x3").axes == Example(axes="3").axes == (3, 3, 3)
    assert Example().some is not Example().some


def test_a_default_that_is_no_valid_value_is_refused_where_it_is_declared():
    with pytest.raises(ValueError, match="a default must be a whole number of at least 1, got 0"):
        option(0, "", min=1)


@pytest.mark.parametrize("package", ["methods", "caches", "corrections"])
def test_kinds_of_numbers_are_told_apart_in_the_table_alone(package):
    for path in (Path(dittools.__file__).parent / package).glob("*.py"):
        assert "from numbers import" not in path.read_text(encoding="utf-8"), path
