"""Flags over files: every setting has a flag, a name may carry its options, and a record is a config."""

import dataclasses
import json

import pytest

from dittools import Config
from dittools.cli.app import command
from dittools.cli.generate import Flags
from dittools.cli.settings import FLAGS, config_of
from tests.cli.test_bad_input import one_error
from tests.plans.drive import exported

GIVEN = {
    "method": ("svg2:iterations=3", "svg2"),
    "options": ("iterations=3:scope=head", {"iterations": 3, "scope": "head"}),
    "sparsity": (0.7, 0.7),
    "dense_steps": ("0.3", 0.3),
    "dense_last_steps": ("2", 2),
    "dense_layers": (3, 3),
    "refresh": (4, 4),
    "block_size": ("64", 64),
    "strict": (True, True),
    "seed": (7, 7),
    "cache": ("pab:interval=3", "pab"),
    "cache_options": ("interval=3", {"interval": 3}),
    "correction": ("rettention:every=4", "rettention"),
    "correction_options": ("every=4", {"every": 4}),
    "profile": ("p.json", "p.json"),
    "share_branches": (False, False),
    "plans": ("plans.json", "plans.json"),
    "error_rows": (64, 64),
    "max_error": (0.05, 0.05),
}
BESIDE = {"options": {"method": "svg2"}, "cache_options": {"cache": "pab"}, "profile": {"method": "paro"}}
BESIDE["correction_options"] = {"correction": "rettention"}
TAKERS = ("generate", "report", "inspect", "plan")


@pytest.mark.parametrize("verb", TAKERS)
def test_every_setting_has_a_flag_in_every_verb_that_takes_settings(verb):
    known = {one.name for one in command().commands[verb].params}
    assert {FLAGS.get(field.name, field.name) for field in dataclasses.fields(Config)} <= known


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Config)])
def test_a_flag_sets_its_setting(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "plans":
        exported("plans.json", method="draft")
    given, expected = GIVEN[name]
    config, notes = config_of(Flags(**{FLAGS.get(name, name): given}, **BESIDE.get(name, {})))
    assert getattr(config, name) == expected != getattr(Config(), name) and notes == ()


def test_options_behind_a_name_and_apart_are_one_and_the_latter_win():
    flags = Flags(method="svg2:iterations=3:scope=head", options="iterations=5", cache="PAB:interval=3")
    config, _ = config_of(flags)
    assert (config.method, config.options) == ("svg2", {"iterations": 5, "scope": "head"})
    assert (config.cache, config.cache_options) == ("pab", {"interval": 3})


def test_options_of_a_file_are_beneath_those_behind_the_same_name_and_these_beneath_those_apart(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(Config(method="svg2", options={"scope": "layer", "iterations": 2, "min_share": 0.2}).to_json())
    config, notes = config_of(Flags(config=str(path), method="svg2:iterations=3:scope=head", options="iterations=5"))
    assert config.options == {"scope": "head", "iterations": 5, "min_share": 0.2} and notes == ()


def test_the_record_of_a_run_is_a_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config(method="gna:window=3x5x3", sparsity=0.6, cache="easycache", share_branches=False)
    record = {"dittools": "0.1.0", "model": "wan", "config": config.to_dict(), "output": "out.mp4"}
    (tmp_path / "out.json").write_text(json.dumps(record))
    assert config_of(Flags(config="out.json"))[0] == config == Config.from_dict(record)
    assert config_of(Flags(config="out.json", sparsity=0.9))[0] == dataclasses.replace(config, sparsity=0.9)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--options", "iterations"), "--options must be options as OPTION=VALUE:OPTION=VALUE, got 'iterations'"),
        (("--block-size", "96"), "--block-size must be one of auto, 64, 128, got 96"),
        (("--method-seed", "-1"), "--method-seed must be a whole number of at least 0, got -1"),
        (("--dense-last-steps", "some"), "--dense-last-steps must be a number: a share of the run"),
        (("--method", "svg2:iterations=0"), "iterations must be a whole number of at least 1, got 0"),
        (("--cache-options", "interval=3"), "cache is none, and options of one are given (interval)"),
        (("--device", "gpu:1"), "unknown --device 'gpu:1'"),
    ],
)
def test_a_bad_setting_is_told_by_the_name_of_its_flag(cli, flags, says):
    assert says in one_error(cli("plan", *flags))


def test_quiet_says_the_result_alone_and_verbose_says_every_step(generate):
    assert generate("--quiet", "--method", "dense").err == ""
    said = generate("-v", "--method", "dense", "-o", "b.npy", "--num-inference-steps", 3).err
    assert all(f"denoising: step {step}/3" in said for step in (1, 2, 3))


def test_help_has_sections_and_fits_eighty_columns(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for verb in (("generate",), ("report",), ("calibrate",), ("inspect",), ("bench", "kernel"), ("bench", "model"), ()):
        shown = cli(*verb, "--help").out
        assert max(map(len, shown.splitlines())) <= 80, verb
    shown = cli("generate", "--help").out
    titles = [f"\n{title}:\n" for title in ("Video", "Acceleration", "Model and device", "Output", "Other")]
    assert [shown.index(title) for title in titles] == sorted(shown.index(title) for title in titles)
    assert "--out " not in shown and "--num-frames" not in shown


def test_an_old_name_of_an_option_is_a_note(cli):
    shown = cli("plan", "--cache", "teacache:max-skips=3", "--json")
    assert shown.json["config"]["cache_options"] == {"max_consecutive_skips": 3}
    assert shown.err == (
        "note: option max_skips of cache teacache is called max_consecutive_skips now; "
        "the next release knows max_consecutive_skips alone\n"
    )
