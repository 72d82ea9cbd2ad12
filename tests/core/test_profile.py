"""Profiles: what is written comes back, what does not fit is refused with both named, and files are not trusted."""

import dataclasses
import json
import os
import weakref

import pytest
import torch

from dittools import attention_profile as profiles
from dittools.attention_profile import Made, Model, Profile, choose, fingerprint, harmless, load, misfit
from dittools.files import sha256
from dittools.tokens import TokenGrid
from tests.core.test_files import failing_at

MODEL = Model("WanTransformer3DModel", "0123456789abcdef", 8, 6, 3.0)
GRID = TokenGrid(9, 16, 16)


def some(**changes):
    made = Made("embedded", 16, {"type": "cpu"}, {"torch": "2"}, "0.1", ("dittools", "x"), ("a ø",), (0, 1), 4.0)
    methods = {"paro": {"by_step": True, "groups": [0] * 16}, "svg": {"by_step": False}}
    arrays = {"paro.axes": torch.arange(48, dtype=torch.uint8).view(8, 6)}
    return dataclasses.replace(Profile(MODEL, GRID, made, methods, arrays), **changes)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "p.json"
    some().save(path)
    return path


def test_a_profile_comes_back_as_it_was_written(saved):
    again = load(saved)
    for name in ("model", "grid", "made", "methods"):
        assert getattr(again, name) == getattr(some(), name)
    assert torch.equal(again.arrays["paro.axes"], some().arrays["paro.axes"])
    assert sorted(path.name for path in saved.parent.iterdir()) == ["p.json", "p.safetensors"]
    assert json.loads(saved.read_text())["dittools_profile"] == 1


def test_a_file_is_read_once_until_it_changes(saved):
    first = load(saved)
    assert load(saved) is first and load(saved, "another name") is not first
    changed = some(methods={"svg": {"by_step": False}})
    changed.save(saved)
    assert load(saved) is not first and load(saved).methods == changed.methods
    saved.with_suffix(".safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"damaged|cannot be read"):
        load(saved)


def test_a_large_profile_stays_only_while_it_is_in_use(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "STAYING_BYTES", 10)
    some().save(tmp_path / "p.json")
    used = weakref.ref(load(tmp_path / "p.json"))
    assert used() is None


def test_the_files_of_two_profiles_are_told_apart(saved, tmp_path):
    other = some(arrays={"paro.axes": torch.zeros(8, 6, dtype=torch.uint8)})
    other.save(tmp_path / "other.json")
    (tmp_path / "other.safetensors").replace(saved.with_suffix(".safetensors"))
    with pytest.raises(ValueError, match=r"p.json and p.safetensors do not belong together, as one of the two is of"):
        load(saved)


def test_a_profile_of_before_there_were_digests_is_read(saved):
    edited(saved, lambda found: found.pop("arrays_sha256"))
    assert torch.equal(load(saved).arrays["paro.axes"], some().arrays["paro.axes"])


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("number", [1, 2])
def test_a_profile_that_cannot_be_replaced_stays_whole(tmp_path, monkeypatch, old, number):
    if old:
        some().save(tmp_path / "p.json")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(os, "replace", failing_at(os.replace, number))
    with pytest.raises(OSError):
        some(arrays={"paro.axes": torch.zeros(8, 6, dtype=torch.uint8)}).save(tmp_path / "p.json")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_profile_without_tables_is_one_file(tmp_path):
    assert some(arrays={}).save(tmp_path / "q.json") == [tmp_path / "q.json"]
    assert load(tmp_path / "q.json").arrays == {}


def test_a_fingerprint_is_of_the_settings_and_not_of_where_they_came_from():
    config = {"num_layers": 8, "patch_size": (1, 2, 2), "_name_or_path": "here"}
    assert fingerprint([config]) == fingerprint([dict(reversed((config | {"_name_or_path": "there"}).items()))])
    assert fingerprint([config]) != fingerprint([config | {"num_layers": 9}]) != fingerprint([config, config])
    assert len(fingerprint([config])) == 16


@pytest.mark.parametrize(
    "method, model, grid, steps, says",
    [
        ("paro", {}, GRID, 16, None),
        ("svg", {}, GRID, 4, None),
        ("sta", {}, GRID, 16, ["paro, svg", "not for method sta"]),
        ("paro", {"fingerprint": "f" * 16}, GRID, 16, ["0123456789abcdef", "f" * 16]),
        ("paro", {"transformer": "Flux"}, GRID, 16, ["is of WanTransformer3DModel", "this is Flux"]),
        ("paro", {"layers": 9}, GRID, 16, ["8 layers", "9 layers"]),
        ("paro", {}, TokenGrid(9, 16, 18), 16, ["9 x 16 x 16 tokens", "9 x 16 x 18 tokens"]),
        ("paro", {}, TokenGrid(9, 16, 16, 5, "last"), 16, ["16 x 16 tokens", "and 5 text"]),
        ("paro", {}, GRID, 8, ["for 16 steps", "has 8"]),
    ],
)
def test_what_does_not_fit_is_refused_with_both_named(method, model, grid, steps, says):
    why = misfit(some(), method, dataclasses.replace(MODEL, **model), grid, steps)
    assert (why is None) == (says is None)
    assert all(part in why for part in says or [])


def test_a_harmless_difference_is_noted():
    notes = harmless(some(), "svg", dataclasses.replace(MODEL, shift=5.0), 8)
    assert "over 16 steps, this run has 8" in notes[0] and "shift 3.0, this run has 5.0" in notes[1]
    assert harmless(some(), "svg", MODEL, 16) == []


def test_a_named_profile_is_used_or_refused_and_none_is_looked_for_where_none_is_needed(saved):
    found, notes = choose(str(saved), "paro", True, MODEL, GRID, 16)
    assert found.methods == some().methods and notes == []
    with pytest.raises(ValueError, match="for 16 steps, and this run has 8: make one with dittools calibrate"):
        choose(str(saved), "paro", True, MODEL, GRID, 8)
    assert choose(None, "svg", False, MODEL, GRID, 16) == (None, [])


def test_a_shipped_profile_that_fits_is_found_and_named(saved, monkeypatch):
    monkeypatch.setattr(profiles, "shipped", lambda: {"tiny": saved})
    found, notes = choose(None, "paro", True, MODEL, GRID, 16)
    assert found.grid == GRID and notes == ["using the shipped profile tiny, which fits model and grid"]
    with pytest.raises(ValueError, match=r"none that ships fits \(the shipped profile tiny is for 16 steps"):
        choose(None, "paro", True, MODEL, GRID, 8)
    with pytest.raises(ValueError, match="none that ships fits: make one with dittools calibrate --method paro"):
        choose(None, "paro", True, dataclasses.replace(MODEL, fingerprint="0"), GRID, 16)
    assert load(profiles.find("tiny")).model == MODEL
    with pytest.raises(ValueError, match="did you mean tiny"):
        profiles.find("tinny")
    with pytest.raises(ValueError, match="no profile at"):
        profiles.find("tinny.json")


def edited(path, change):
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda f: f.update(dittools_profile=2), "version 2, and this dittools reads version 1"),
        (lambda f: f.update(kind="cache"), "no profile of attention"),
        (lambda f: f.pop("dittools_profile"), "no profile of attention"),
        (lambda f: f.pop("grid"), "is damaged"),
        (lambda f: f["grid"].update(frames=-1), r"profile .*p.json is damaged \(TokenGrid.frames"),
        (lambda f: f["grid"].update(frames="9"), r"profile .*p.json is damaged \(TokenGrid.frames"),
        (lambda f: f["grid"].update(text_position="left"), r"profile .*p.json is damaged"),
        (lambda f: f.update(arrays_sha256="0" * 64), "do not belong together"),
        (lambda f: f.update(arrays_sha256=3), "do not belong together"),
        (lambda f: f["grid"].update(depth=1), "is damaged"),
        (lambda f: f["model"].update(layers="8"), "whole numbers"),
        (lambda f: f["model"].update(layers=True), "whole numbers"),
        (lambda f: f["model"].update(shift="wide"), "shift must be a number"),
        (lambda f: f["made"].update(steps=0), "whole numbers"),
        (lambda f: f["made"].update(prompts=3), "is damaged"),
        (lambda f: f.update(made=[]), "is damaged"),
        (lambda f: f.update(methods={"paro": 1}), "must be objects"),
        (lambda f: f["arrays"].update({"paro.axes": [8, 7]}), "do not belong together"),
    ],
)
def test_a_file_that_says_what_cannot_be_is_one_line(saved, change, says):
    edited(saved, change)
    with pytest.raises(ValueError, match=says) as error:
        load(saved)
    assert "\n" not in str(error.value)


def test_a_profile_may_begin_with_a_byte_order_mark(saved):
    saved.write_bytes(b"\xef\xbb\xbf" + saved.read_bytes())
    assert load(saved).grid == GRID


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"3", b"[" * 100_000])
def test_a_file_that_is_no_profile_is_one_line(tmp_path, content):
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not JSON|is no profile") as error:
        load(path)
    assert "\n" not in str(error.value)


def test_tables_are_read_from_safetensors_alone_and_never_unpickled(saved):
    tables = saved.with_suffix(".safetensors")
    tables.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match=r"p.safetensors cannot be read"):
        load(saved)
    tables.unlink()
    with pytest.raises(ValueError, match=r"needs p.safetensors beside it"):
        load(saved)


def test_a_table_is_checked_by_whoever_reads_it():
    assert some().array("paro.axes", (8, None), torch.uint8).shape == (8, 6)
    for shape, dtype in (((8, 7), torch.uint8), ((8,), torch.uint8), ((8, 6), torch.float32)):
        with pytest.raises(ValueError, match=r"paro.axes must be"):
            some().array("paro.axes", shape, dtype)


def test_no_file_is_left_when_writing_fails(tmp_path, monkeypatch):
    import dittools.files

    def full(*args):
        raise OSError("disk full")

    monkeypatch.setattr(dittools.files.os, "replace", full)
    with pytest.raises(OSError):
        some().save(tmp_path / "p.json")
    assert list(tmp_path.iterdir()) == []


def test_every_shipped_profile_loads_is_small_and_fits_the_embedded_model_at_its_own_size():
    from dittools.pipelines import embedded

    config = json.loads((embedded.weights_path() / "transformer" / "config.json").read_text())
    assert profiles.shipped()
    for name, path in profiles.shipped().items():
        found = load(path, name)
        assert set(found.methods) == {"paro", "sparse_vdit", "sta", "attention_tile", "svg"}
        assert (found.model.layers, found.model.heads) == (config["num_layers"], config["num_attention_heads"])
        assert found.grid == GRID and found.made.steps == embedded.DEFAULTS["steps"]
        assert all(file.stat().st_size < 1_000_000 for file in (path, path.with_suffix(".safetensors")))
        assert not any(part.startswith("/") for part in found.made.command)
        assert json.loads(path.read_text())["arrays_sha256"] == sha256(path.with_suffix(".safetensors"))
