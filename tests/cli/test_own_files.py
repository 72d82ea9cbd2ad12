"""No verb loses a file of the user's, and none waits for the end to say that it would."""

import json
import os

import numpy as np
import pytest

from dittools.attention_profile import Made, Model, Profile
from dittools.pipelines import loading
from dittools.tokens import TokenGrid
from tests.cli.test_bad_input import one_error

FOREIGN = json.dumps({"name": "not of dittools", "dittools": {"method": "svg"}})


@pytest.fixture
def nothing_loads(monkeypatch):
    def load(*arguments, **named):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(loading, "load", load)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(run, folder, *arguments):
    """The error of a command that is to change nothing."""
    before = contents(folder)
    line = one_error(run(*arguments))
    assert contents(folder) == before
    return line


def test_an_earlier_run_is_replaced_and_a_file_that_was_changed_since_is_not(generate, tmp_path):
    for _ in range(2):
        assert generate("--method", "dense", "--output", "a.npy").code == 0
    np.save(tmp_path / "a.npy", np.zeros(3))
    line = refused(generate, tmp_path, "--method", "dense", "--output", "a.npy")
    assert "--output would replace a.npy" in line and "--overwrite" in line
    assert generate("--method", "dense", "--output", "a.npy", "--overwrite").code == 0
    assert np.load(tmp_path / "a.npy").shape == (5, 48, 64, 3)


def test_a_link_stays_one_and_its_target_gets_the_video(generate, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "a.npy").symlink_to("disk/a.npy")
    for _ in range(2):
        assert generate("--method", "dense", "--output", "a.npy").code == 0
        assert (tmp_path / "a.npy").is_symlink() and np.load(tmp_path / "disk" / "a.npy").shape == (5, 48, 64, 3)
    assert sorted(contents(tmp_path)) == ["a.json", "a.npy", "disk/a.npy"]


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_files_that_a_run_reads_are_never_its_outputs(generate, tmp_path, nothing_loads, overwrite):
    (tmp_path / "a.json").write_text('{"method": "dense"}')
    (tmp_path / "b.json").symlink_to("a.json")
    os.link(tmp_path / "a.json", tmp_path / "c.json")
    profile = Profile(Model("Tiny", "0" * 16, 2, 2), TokenGrid(3, 4, 4), Made("tiny", 4), {"svg": {"by_step": False}})
    profile.save(tmp_path / "p.json")
    (tmp_path / "cache.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"method": "svg", "profile": "p.json"}')
    for name, flags, flag in (
        ("a.npy", ("--config", "a.json"), "--config"),
        ("./b.npy", ("--config", "a.json"), "--config"),
        (f"../{tmp_path.name}/c.npy", ("--config", "a.json"), "--config"),
        ("p.mkv", ("--method", "svg", "--profile", "p.json"), "--profile"),
        ("cache.gif", ("--cache", "teacache:profile=cache.json"), "--cache"),
    ):
        line = refused(generate, tmp_path, *flags, "--output", name, *overwrite)
        assert f"which is the file of {flag}: use another name" in line
    line = refused(generate, tmp_path, "--config", "config.json", "--output", "p.npy", *overwrite)
    assert ("the config's profile" if overwrite else "not a record of p.npy") in line


def test_foreign_json_is_kept(generate, tmp_path, nothing_loads):
    (tmp_path / "package.json").write_text(FOREIGN)
    for name in ("package.npy", "package.mp4", "package/"):
        assert "package.json, which is not a record of package" in refused(generate, tmp_path, "--output", name)


@pytest.mark.parametrize("name", ["-", ".mp4", "", "x" * 300 + ".npy", "/dev/null", "/proc/x", "no/such/a.mp4"])
def test_names_that_cannot_be_written_are_told_at_once(cli, generate, tmp_path, nothing_loads, name):
    assert "--output" in refused(generate, tmp_path, "--output", name)
    calibrate = {".mp4": ".json", "": "", "-": "-", "/dev/null": name}.get(name, f"{name}.json")
    assert "--output" in refused(cli, tmp_path, "calibrate", "--weights", "embedded", "--output", calibrate)
    if name != ".mp4":  # a folder may be called so
        for verb in ("inspect", "report"):
            if (verb, name) != ("report", "no/such/a.mp4"):  # which makes folders
                assert "--output" in refused(cli, tmp_path, verb, "--weights", "embedded", "--output", name)


def test_calibrate_replaces_profiles_alone(cli, tmp_path, nothing_loads):
    def run(*flags):
        return cli("calibrate", "--weights", "embedded", *flags)

    (tmp_path / "package.json").write_text(FOREIGN)
    assert "package.json, which is not a profile" in refused(run, tmp_path, "--output", "package.json")
    (tmp_path / "lora.safetensors").write_bytes(b"weights")
    assert "lora.safetensors, which is not the tables" in refused(run, tmp_path, "--output", "lora.json")
    assert "package.json, which is not a profile" in refused(run, tmp_path, "--cache", "--output", "package.json")
    (tmp_path / "prompts.json").write_text("a red circle\n")
    flags = ("--prompts", "prompts.json", "--output", "./prompts.json", "--overwrite")
    assert "the file of --prompts" in refused(run, tmp_path, *flags)


def test_a_manifest_of_another_program_makes_no_report(cli, tmp_path, nothing_loads):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "manifest.json").write_text('{"name": "a web app", "icons": []}')
    (tmp_path / "site" / ".a.part.txt").write_text("mine")
    for flags in ((), ("--phase", "render")):
        line = refused(
            cli, tmp_path, "report", *(() if flags else ("--weights", "embedded")), "--output", "site", *flags
        )
        assert "other files in it" in line or "holds no report" in line


def test_bench_goes_on_from_its_own_files_alone(cli, tmp_path):
    (tmp_path / "package.json").write_text(FOREIGN)
    flags = ("bench", "kernel", "--device", "cpu", "--shape", "2x300", "--rows", "uniform", "--json")
    assert "not a file of kernels" in refused(cli, tmp_path, *flags, "package.json")
    assert "--output" in refused(cli, tmp_path, *flags, "/proc/x.json")
    assert "--output is empty" in refused(cli, tmp_path, *flags, "")


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xff\xfe"])
def test_marks_of_an_encoding_are_no_part_of_configs_prompts_and_plans(generate, cli, tmp_path, mark):
    encoding = "utf-8" if mark[0] == 0xEF else "utf-16-le"

    def write(name, text):
        (tmp_path / name).write_bytes(mark + text.encode(encoding))

    write("config.json", '{"method": "dense"}\r\n')
    assert generate("--config", "config.json", "--output", "a.npy").code == 0
    write("plan.yaml", "seeds: [0]\nmethod: nope\n")
    assert "unknown method 'nope'" in one_error(cli("report", "--plan", "plan.yaml", "--weights", "embedded"))
    write("prompts.txt", "a red circle\r\na blue square\r\n")
    from dittools.cli.prompts import prompts_of

    assert prompts_of("prompts.txt") == (("a red circle", "a blue square"), None)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--prompt", "a red \udcff circle"), "--prompt holds bytes that are no text"),
        (("--negative-prompt", "gr\udce9y"), "--negative-prompt holds bytes that are no text"),
        (("--prompt", "a\0b"), "--prompt holds a NUL"),
        (("--config", ""), "--config is empty"),
        (("--profile", ""), "--profile is empty"),
    ],
)
def test_what_is_no_text_and_no_name_is_told_at_once(generate, tmp_path, nothing_loads, flags, said):
    assert said in refused(generate, tmp_path, *flags, "--output", "a.npy")


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ('prompts: ["a\\0b"]', "prompt 1 holds a NUL"),
        ('prompts: [a, "b\\uD800"]', "prompt 2 holds bytes that are no text"),
        ("prompts: [[a, b]]", "prompts must be texts"),
        ("prompts: [a, 3]", "prompts must be texts"),
        ("negative_prompt: [a]", "negative_prompt must be a text"),
        ('negative_prompt: "a\\0b"', "--negative-prompt holds a NUL"),
        ('config: ""', "--config is empty"),
        ("[" * 20_000, "is no YAML"),
    ],
)
def test_plans_hold_prompts_that_are_text(cli, tmp_path, nothing_loads, plan, said):
    (tmp_path / "plan.yaml").write_text(plan)
    assert said in refused(cli, tmp_path, "report", "--plan", "plan.yaml", "--weights", "embedded", "--output", "r")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"options":' * 100_000])
def test_a_config_that_is_nested_too_deeply_is_named(generate, tmp_path, nothing_loads, text):
    (tmp_path / "config.json").write_text(text)
    line = refused(generate, tmp_path, "--config", "config.json", "--output", "a.npy")
    assert "--config config.json" in line and "nested too deeply" in line
