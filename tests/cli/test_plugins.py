"""Methods, caches and corrections of other packages and of the user: known like those that ship, or named as broken."""

import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest

import dittools
from dittools import Config, caches, corrections, methods
from dittools.caches.base import Cache
from dittools.methods import METHODS, Method
from dittools.methods.options import order_option
from dittools.plugins import REGISTRIES

MODULE = """
from dataclasses import dataclass
from dittools.caches.pab import PyramidAttentionBroadcast
from dittools.corrections.centroids import Centroids
from dittools.methods.draft import Draft
from dittools.options import option

@dataclass(frozen=True)
class Far(Draft):
    name, summary = "far", "blocks that are far away"
    reach: int = option(3, "blocks", min=1)

@dataclass(frozen=True)
class Echo(PyramidAttentionBroadcast):
    name, summary = "echo", "reuse like an echo"

@dataclass(frozen=True)
class Mend(Centroids):
    name, summary = "mend", "mends"

@dataclass(frozen=True)
class Own(Draft):
    name, summary = "svg", "a name that is taken"
"""
POINTS = """
[dittools.methods]
far = acme_dit:Far
other = acme_dit:Far
svg = acme_dit:Own
gone = acme_dit:Gone
broken = acme_broken
bare = acme_dit:dataclass

[dittools.caches]
echo = acme_dit:Echo

[dittools.corrections]
mend = acme_dit:Mend
"""


@pytest.fixture(autouse=True)
def apart(monkeypatch):
    """Registries as they ship, for one test."""
    for registry in REGISTRIES:
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
        monkeypatch.setitem(vars(registry), "_foreign", {})


@pytest.fixture
def acme(apart, tmp_path, monkeypatch):
    """A package on the path that brings some, good and bad."""
    info = tmp_path / "acme_dit-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-dit\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(POINTS)
    (tmp_path / "acme_dit.py").write_text(MODULE)
    (tmp_path / "acme_broken.py").write_text("raise RuntimeError('no licence\\nfound')")
    monkeypatch.syspath_prepend(tmp_path)
    for registry in REGISTRIES:
        del vars(registry)["_foreign"]
    yield tmp_path
    for registry in REGISTRIES:
        vars(registry).pop("_foreign", None)
    sys.modules.pop("acme_dit", None)


def test_an_installed_package_brings_its_own(acme):
    assert {"far"} <= set(methods.names()) and "echo" in caches.names() and "mend" in corrections.names()
    config = Config(method="far:reach=5:order=curve", cache="echo:interval=3", correction="mend")
    assert methods.create(config.method, config.options).reach == 5
    assert Config.from_json(config.to_json()) == config
    assert METHODS.source("far") == "acme-dit 1.2" and METHODS.source("svg") == "dittools"
    with pytest.raises(ValueError, match="reach must be a whole number of at least 1, got 0"):
        Config(method="far:reach=0")


def test_what_is_broken_is_named_when_it_is_asked_for_and_keeps_nothing_else_from_working(acme):
    listed = {name for name, _, _ in methods.describe()}
    assert "far" in listed and not listed & {"gone", "broken", "other", "bare"}
    assert Config(method="svg").method == "svg" and METHODS["svg"].__module__ == "dittools.methods.svg"
    for name, says in {
        "gone": r"method gone of acme-dit 1\.2 cannot be used \(AttributeError: ",
        "broken": r"method broken of acme-dit 1\.2 cannot be used \(RuntimeError: no licence found\)",
        "other": r"method other of acme-dit 1\.2 calls itself far",
        "bare": "a method is a class derived from Method, got dataclass",
    }.items():
        with pytest.raises(ValueError, match=says) as error:
            Config(method=name)
        assert "\n" not in str(error.value)
    problems = METHODS.problems()
    assert len(problems) == 5 and any("method svg of acme-dit 1.2 is left out" in line for line in problems)


def test_two_packages_with_one_name_are_both_named(acme):
    info = acme / "zeta-3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: zeta\nVersion: 3\n")
    (info / "entry_points.txt").write_text("[dittools.methods]\nfar = acme_dit:Far\n")
    with pytest.raises(ValueError, match=r"method far is in acme-dit 1\.2 and zeta 3: uninstall one of them"):
        Config(method="far")


def test_a_listing_shows_where_a_foreign_one_comes_from(acme, cli):
    entries = {entry["name"]: entry for entry in cli("methods", "--json").json["methods"]}
    assert entries["far"]["source"] == "acme-dit 1.2" and entries["svg"]["source"] == "dittools"
    shown = cli("methods")
    assert "blocks that are far away (acme-dit 1.2)" in shown.out
    assert "note: method broken of acme-dit 1.2 cannot be used" in shown.err and shown.code == 0
    assert "reuse like an echo (acme-dit 1.2)" in cli("caches").out


def make(name, **more):
    """A class as a user writes it."""
    given = {"name": name, "summary": "mine", "__annotations__": {"name": "ClassVar[str]", "summary": "ClassVar[str]"}}
    return dataclass(frozen=True)(type("Mine", (Method,), {**given, **more, "ClassVar": ClassVar}))


def test_a_class_is_registered_under_its_own_name_and_may_be_defined_anew():
    def cell():  # of a notebook
        @dittools.register
        @dataclass(frozen=True)
        class Mine(Method):
            name: ClassVar[str] = "mine"
            summary: ClassVar[str] = "mine"
            order: str = order_option("raster")

        return Mine

    cell()
    assert Config(method="mine:order=curve").options == {"order": "curve"}
    assert METHODS.source("mine") == __name__ and "mine" in methods.names()
    assert cell() is METHODS["mine"]


@pytest.mark.parametrize(
    ("cls", "says"),
    [
        (make("svg"), r"method svg exists already \(dittools\.methods\.svg\.SVG\): give Mine another name"),
        (make("auto"), r"Mine\.name must be small letters"),
        (make("My Method"), r"Mine\.name must be small letters"),
        (make("mine", summary=""), r"Mine\.summary must say in one line"),
        (type("Bare", (Method,), {"name": "bare", "summary": "bare"}), "Bare is no dataclass: put @dataclass"),
        (type("Still", (Cache,), {"name": "still", "summary": "still"}), "Still is no dataclass: put @dataclass"),
        (int, "register takes a class derived from Method, Cache or Correction, got int"),
        ("svg", "got 'svg'"),
    ],
)
def test_what_cannot_be_registered_is_said_in_one_line(cls, says):
    with pytest.raises(ValueError, match=says) as error:
        dittools.register(cls)
    assert "\n" not in str(error.value)
