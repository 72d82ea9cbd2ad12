"""Profiles: which model one is of, and what is refused."""

import json

import pytest

from dittools import caches
from dittools.caches import Model
from dittools.profiles import caches as profiles


def wan(layers=40, heads=40, channels=16, **more):
    config = {"num_layers": layers, "num_attention_heads": heads, "in_channels": channels}
    return Model("WanTransformer3DModel", config, **more)


@pytest.mark.parametrize(
    "model, cache, name",
    [
        (wan(30, 12), "teacache", "Wan2.1-T2V-1.3B"),
        (wan(), "teacache", "Wan2.1-T2V-14B"),
        (wan(channels=36, frame_tokens=1560), "teacache", "Wan2.1-I2V-14B-480P"),
        (wan(channels=36, frame_tokens=3600), "magcache", "Wan2.1-I2V-14B-720P"),
        (wan(experts=2), "magcache", "Wan2.2-T2V-A14B"),
        (wan(30, 24, 48), "magcache", "Wan2.2-TI2V-5B"),
    ],
)
def test_a_model_is_known_by_its_class_size_and_resolution(model, cache, name):
    assert caches.create(cache, {}).bind(model).entry["model"] == name


@pytest.mark.parametrize("model", [wan(7, 3), wan(experts=2), Model("OtherModel")], ids=str)
def test_a_model_without_a_profile_is_an_error_that_says_what_to_do(model):
    with pytest.raises(ValueError, match=r"teacache has no profile for .*dittools calibrate --cache"):
        caches.create("teacache", {}).bind(model)


def test_a_threshold_of_zero_needs_no_profile():
    for name in ("teacache", "magcache"):
        assert caches.create(name, {"threshold": 0}).bind(Model("OtherModel")).never()


def test_the_profiles_defaults_hold_unless_something_else_is_asked():
    bound = caches.create("magcache", {"max_skips": 7}).bind(wan(30, 12))
    assert (bound.threshold, bound.max_skips, bound.first) == (0.12, 7, 0.2)


@pytest.fixture
def profile(tmp_path):
    def write(**changes):
        found = {
            "schema": 1,
            "kind": "cache",
            "model": "small",
            "match": {"transformer": "WanTransformer3DModel", "experts": 1, "config": {"num_layers": 30}},
            "steps": 6,
            "magcache": {"ratios": [1.0] * 6, "threshold": 0.1, "max_skips": 2, "first": 1},
            "masks": {"6": {"mask": "110101"}},
            **changes,
        }
        path = tmp_path / "profile.json"
        path.write_text(json.dumps(found))
        return str(path)

    return write


def run(steps, model):
    return caches.Trajectory(steps, tuple(range(steps, 0, -1)), (True, *[False] * (steps - 1)), model)


def test_a_profile_of_another_model_is_refused_naming_both(profile):
    with pytest.raises(ValueError, match=r"profile of small, and this is WanTransformer3DModel \(num_layers 40"):
        caches.create("magcache", {"profile": profile()}).bind(wan())
    with pytest.raises(ValueError, match="profile of small"):
        caches.create("taylorseer", {"schedule": profile()}).mask(run(6, wan()))


@pytest.mark.parametrize(
    "changes, says", [({"schema": 2}, "schema 2"), ({"kind": "heads"}, "no cache profile"), ({"magcache": None}, "")]
)
def test_a_file_of_another_kind_or_schema_is_refused(profile, changes, says):
    path = profile(**changes)
    if says:
        with pytest.raises(ValueError, match=says):
            profiles.read(path)
    else:
        with pytest.raises(ValueError, match="holds nothing for teacache"):
            caches.create("teacache", {"profile": path}).bind(wan(30))


@pytest.mark.parametrize("text, says", [(None, "cannot be read"), ("{", "is no JSON"), ("[1]", "no cache profile")])
def test_a_file_that_is_no_profile_is_refused(tmp_path, text, says):
    path = tmp_path / "p.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=says):
        profiles.read(str(path))


def test_a_mask_is_refused_for_another_number_of_steps_and_ratios_are_resampled_with_a_note(profile):
    path, model = profile(), wan(30)
    with pytest.raises(ValueError, match="no mask for 8 steps"):
        caches.create("taylorseer", {"schedule": path}).mask(run(8, model))
    assert caches.create("taylorseer", {"schedule": path}).mask(run(6, model)) == [True, True, False, True, False, True]
    bound = caches.create("magcache", {"profile": path}).bind(model)
    assert len(bound.mask(run(8, model))) == 8
    assert bound.why_not(run(6, model)) == []
    assert "is of 6 steps, and this run has 8" in bound.why_not(run(8, model))[0]


@pytest.mark.parametrize("table", ["teacache", "magcache", "masks"])
def test_what_ships_names_its_source(table):
    assert len(profiles.builtin(table)["source"]) > 20
