"""Caches on the command line: generate, calibrate, caches, and the sweeps of a report."""

import json
from pathlib import Path

import pytest

from dittools.cli.request import check
from dittools.config import Config
from dittools.report.plan import swept

SMALL = ("--frames", 5, "--height", 48, "--width", 64, "--guidance", 1)


def test_caches_lists_each_with_its_options(cli):
    found = {entry["name"]: entry for entry in cli("caches", "--json").json["caches"]}
    assert {"none", "teacache", "magcache", "pab"} <= set(found)
    assert found["easycache"]["options"]["threshold"]["default"] == 0.05
    assert "max_consecutive_skips" in cli("caches").out


def test_generate_with_a_cache_records_what_was_reused(generate):
    result = generate(
        "--method", "dense", "--cache", "taylorseer:interval=3:first=1:start=0", "--steps", 7, *SMALL, "--json"
    )
    assert result.code == 0, result.err
    cache = result.json["cache"]
    assert cache["name"] == "taylorseer" and cache["computed_steps"] == [0, 3, 6]
    assert cache["reused_steps"] == [1, 2, 4, 5] and result.json["calls"]["reused"] == 12
    assert result.json["config"]["cache_options"] == {"interval": 3, "warmup_steps": 1, "start": 0}
    assert "each one matters" in " ".join(result.json["notes"])


@pytest.mark.parametrize(
    "cache, says",
    [
        ("teacach", "did you mean teacache"),
        ("teacache:treshold=1", "did you mean threshold"),
        ("teacache", "teacache has no profile for WanTransformer3DModel"),
        ("magcache:profile=none.json", "cannot be read"),
    ],
)
def test_a_cache_that_cannot_be_is_bad_input(generate, cache, says):
    result = generate("--cache", cache, *SMALL)
    assert result.code == 2 and says in result.err and result.err.count("error:") == 1


def test_a_profile_is_made_and_used(cli, generate, tiny_weights):
    made = cli(
        "calibrate",
        "--cache",
        "--weights",
        tiny_weights,
        "--steps",
        8,
        *SMALL,
        "--output",
        "p.json",
        "--prompts",
        "builtin:2",
    )
    assert made.code == 0, made.err
    assert made.out.strip() == "p.json"
    profile = json.loads(Path("p.json").read_text())
    assert (profile["schema"], profile["kind"], profile["steps"]) == (1, "cache", 8)
    assert profile["scheduler"] == "UniPCMultistepScheduler" and profile["shift"] == 3.0
    assert len(profile["magcache"]["ratios"]) == 8 and profile["masks"]["8"]["computed"] == 4
    assert len(profile["teacache"]["coefficients"]) == 5
    for cache in ("teacache:profile=p.json", "magcache:profile=p.json", "taylorseer:schedule=p.json:first=1"):
        drawn = generate("--method", "dense", "--cache", cache, "--steps", 8, *SMALL, "--json", "--output", "o.gif")
        assert drawn.code == 0, drawn.err
        assert drawn.json["cache"]["reused_steps"], cache


@pytest.mark.parametrize(
    "flags, says",
    [
        (("--computed", 0.5), "add --cache"),
        (("--cache", "--method", "paro"), "drop --cache"),
        (("--cache", "--output", "p.txt"), "must end in .json"),
        (("--cache", "--computed", 0), "--computed is a share"),
        (("--cache", "--reuse", "stack"), "output or delta"),
        (("--cache", "--prompts", "builtin:0"), "at least 1"),
        (("--cache", "--steps", 3), "at least 4"),
    ],
)
def test_what_cannot_be_calibrated_is_bad_input(cli, tiny_weights, flags, says):
    result = cli("calibrate", "--weights", tiny_weights, *SMALL, *flags)
    assert result.code == 2 and says in result.err


def test_a_cache_flag_replaces_that_of_a_config_file_with_its_options(tmp_path):
    from dittools.cli.generate import Flags

    path = tmp_path / "c.json"
    path.write_text(Config(cache="teacache:threshold=0.3").to_json())
    given = {"model": "wan", "weights": "embedded", "config": str(path)}
    assert check(Flags(**given), None).config.cache_options == {"threshold": 0.3}
    found = check(Flags(**given | {"cache": "pab:interval=3"}), None).config
    assert (found.cache, found.cache_options) == ("pab", {"interval": 3})


def test_a_correction_flag_replaces_that_of_a_config_file_with_its_options(tmp_path):
    from dittools.cli.generate import Flags

    path = tmp_path / "c.json"
    path.write_text(Config(correction="rettention", correction_options={"every": 3}).to_json())
    given = {"model": "wan", "weights": "embedded", "config": str(path)}
    assert check(Flags(**given | {"correction": "rettention"}), None).config.correction_options == {"every": 3}
    assert check(Flags(**given | {"correction": "centroids"}), None).config.correction_options == {}


def names(sweep, **base):
    found, notes = swept(Config(**base).to_dict(), sweep, 16)
    return [(s.name, s.config["cache"], s.config["cache_options"]) for s in found], notes


def test_caches_are_swept_each_with_its_options_alone_and_with_a_method():
    found, notes = names({"method": ["dense", "svg"], "cache": ["none", "easycache:threshold=0.1", "sea"]})
    assert found == [
        ("dense, easycache threshold 0.1", "easycache", {"threshold": 0.1}),
        ("dense, sea", "sea", {}),
        ("svg, sparsity 0.8", "none", {}),
        ("svg, sparsity 0.8, easycache threshold 0.1", "easycache", {"threshold": 0.1}),
        ("svg, sparsity 0.8, sea", "sea", {}),
    ]
    assert notes == ["method dense is in every report as its reference: not drawn a second time"]


def test_an_option_swept_apart_goes_only_to_caches_that_have_it_and_equal_settings_are_drawn_once():
    found, _ = names({"cache": ["none", "easycache", "pab"], "cache_threshold": [0.1, 0.2]}, method="svg")
    assert [(cache, options) for _, cache, options in found] == [
        ("none", {}),
        ("easycache", {"threshold": 0.1}),
        ("easycache", {"threshold": 0.2}),
        ("pab", {}),
    ]


@pytest.mark.parametrize(
    "sweep, says",
    [
        ({"cache": ["teacach"]}, "did you mean teacache"),
        ({"cache": ["pab"], "cache_treshold": [1]}, "unknown setting to sweep"),
        ({"cache": ["easycache"], "cache_treshold": [1]}, "did you mean cache_threshold"),
        ({"cache": ["easycache:threshold=-1"]}, "at least 0"),
    ],
)
def test_an_impossible_sweep_is_refused(sweep, says):
    with pytest.raises(ValueError, match=says):
        names(sweep)
