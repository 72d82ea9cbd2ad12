"""Profiles that a report's settings name or need are checked before anything is drawn."""

import json

import pytest

from dittools.pipelines import loading, stages
from tests.cli.conftest import PROMPT
from tests.cli.test_bad_input import one_error

SIZE = ("--frames", 17, "--height", 160, "--width", 176, "--steps", 2)


@pytest.fixture(scope="module")
def profiles(tmp_path_factory, tiny_weights):
    """Profiles of the tiny weights: for methods, and for caches."""
    from dittools.cli.main import main

    folder = tmp_path_factory.mktemp("profiles")
    common = ["calibrate", "--weights", tiny_weights, *SIZE[:6], "--prompts", "builtin:1", "--guidance", 1]
    for name, flags in (("paro", ("--method", "paro", "--steps", 2)), ("cache", ("--cache", "--steps", 4))):
        assert main([str(flag) for flag in (*common, *flags, "--output", folder / f"{name}.json")]) == 0
    return folder


@pytest.fixture
def report(cli, tiny_weights, tmp_path):
    (tmp_path / "prompts.txt").write_text(PROMPT)

    def run(*flags):
        given = ("--weights", tiny_weights, *SIZE, "--fewer-steps", 1, "--prompts", "prompts.txt", "--guidance", 1)
        return cli("report", *given, "--phase", "run", "--output", "report", *flags)

    return run


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(stages, "denoise", lambda *_, **__: pytest.fail("something was drawn"))


@pytest.fixture
def unloaded(monkeypatch):
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("the model was loaded"))


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        (("method=paro,svg2", "profile=nope.json"), ["no profile at nope.json", "paro, sparsity 0.8"]),
        (("profile=nope.json",), ["no method here takes a profile", "paro"]),
        (("method=svg2", "cache=none,teacache:profile=nope.json"), ["nope.json cannot be read", "svg2", "teacache"]),
        (("method=svg2", "cache=none,teacache:profile={paro}"), ["is no cache profile"]),
        (("method=sparse_vdit,svg2", "profile={paro}"), ["is for paro", "sparse_vdit"]),
        (("method=paro,svg2", "profile={cache}"), ["is no profile of attention"]),
    ],
)
def test_a_profile_that_cannot_be_read_or_is_for_others_is_refused_before_loading(
    report, profiles, unloaded, tmp_path, sweep, said
):
    named = [part.format(paro=profiles / "paro.json", cache=profiles / "cache.json") for part in sweep]
    line = one_error(report("--sweep", *named))
    assert all(part in line for part in said)
    assert not (tmp_path / "report").exists()


def test_a_profile_for_another_number_of_steps_is_refused_before_loading(report, profiles, unloaded, tmp_path):
    line = one_error(report("--sweep", "method=svg2,paro", f"profile={profiles / 'paro.json'}", "--steps", 3))
    assert "for 2 steps, and this run has 3" in line and "calibrate --method paro" in line
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--sweep", "method=paro,svg2"), ["needs a profile", "give it with --sweep profile=FILE"]),
        (("--sweep", "method=paro,svg2", "profile={paro}", "--width", 192), ["5 x 10 x 11", "5 x 10 x 12"]),
        (("--sweep", "method=svg2", "cache=none,teacache"), ["teacache has no profile for WanTransformer3DModel"]),
        (("--sweep", "cache=none,taylorseer:schedule={cache}"), ["has no mask for 2 steps (it has 4)"]),
        (("--sweep", "cache=none,magcache:profile={other}"), ["is a profile of", "WanTransformer3DModel"]),
    ],
)
def test_a_profile_that_does_not_fit_the_model_is_refused_before_drawing(
    report, profiles, undrawn, tmp_path, flags, said
):
    other = json.loads((profiles / "cache.json").read_text())
    other["match"]["config"]["num_layers"] = 99
    (tmp_path / "other.json").write_text(json.dumps(other))
    paths = {"paro": profiles / "paro.json", "cache": profiles / "cache.json", "other": tmp_path / "other.json"}
    line = one_error(report(*(str(flag).format(**paths) for flag in flags)))
    assert all(part in line for part in said)
    assert not (tmp_path / "report").exists()


def test_profiles_that_fit_are_drawn_with_and_needed_no_more_then(report, profiles, tmp_path):
    for name in ("paro.json", "paro.safetensors", "cache.json"):
        (tmp_path / name).write_bytes((profiles / name).read_bytes())
    flags = ("--sweep", "method=paro", "profile=paro.json", "cache=none,magcache:profile=cache.json")
    result = report(*flags)
    assert result.code == 0, result.err
    (tmp_path / "paro.json").unlink()
    (tmp_path / "cache.json").unlink()
    assert report(*flags).code == 0
