"""`dittools calibrate`: dense runs measured into a profile, and methods that run from it."""

import json

import pytest
import torch

from dittools import attention_profile as profiles
from dittools.pipelines import loading
from tests.cli.test_bad_input import one_error

SIZE = ("--frames", 17, "--height", 160, "--width", 176)


@pytest.fixture
def calibrated(cli, tiny_weights, tmp_path):
    """A profile of the tiny weights for 5 x 10 x 11 tokens and 2 steps; made once, then copied."""
    if not hasattr(calibrated, "made"):
        (tmp_path / "prompts.txt").write_text("a red circle moves left\n\na blue square moves up\n")
        flags = ("--weights", tiny_weights, *SIZE, "--steps", 2, "--prompts", "prompts.txt", "--output", "p.json")
        result = cli("calibrate", *flags, "--json")
        assert result.code == 0, result.err
        files = {name: (tmp_path / name).read_bytes() for name in ("p.json", "p.safetensors")}
        calibrated.made = result.json, result.err, files
    for name, data in calibrated.made[2].items():
        (tmp_path / name).write_bytes(data)
    return calibrated.made


def run(cli, tiny_weights, method, *flags, steps=2):
    return cli(
        "generate", "--weights", tiny_weights, *SIZE, "--steps", steps, "--method", method, "-o", "o.npy", *flags
    )


def test_a_profile_says_what_it_is_and_what_it_was_made_from(calibrated, tmp_path):
    record, err, _ = calibrated
    found = profiles.load(tmp_path / "p.json")
    assert found.grid.shape == (5, 10, 11) and (found.model.layers, found.model.heads) == (3, 2)
    assert found.model.transformer == "WanTransformer3DModel" and found.model.shift == 3.0
    made = found.made
    assert made.steps == 2 and made.prompts == ("a red circle moves left", "a blue square moves up")
    assert made.seeds == (0, 1) and made.device["type"] == "cpu" and made.dtype == "float32"
    assert made.command[:2] == ("dittools", "calibrate") and made.versions["torch"] and made.seconds > 0
    assert set(found.methods) == set(record["methods"]) == {"paro", "sparse_vdit", "sta", "attention_tile", "svg"}
    assert record["files"].keys() == {"p.json", "p.safetensors"} and record["steps"] == 2
    assert all(value > 0 for value in record["seconds"]["measuring"].values())
    assert "seconds" in err and "measuring paro" in err
    assert found.methods["sta"]["measured_steps"] == [0, 1] and found.methods["paro"]["order_steps"] == [0, 1]


def test_how_long_it_will_take_is_said_from_the_first_step_on(calibrated):
    lines = [line for line in calibrated[1].splitlines() if "step " in line]
    assert "step 1/2" in lines[0] and "left in all" in lines[0]
    assert "step 2/2" in lines[-1] and "left" not in lines[-1]  # of the last round


def test_masses_are_those_of_the_calls(calibrated, tmp_path):
    found = profiles.load(tmp_path / "p.json")
    codes = found.array("paro.mass", (2, 3, 2, 9, 9), torch.uint8)
    assert codes.float().std() > 1  # random weights still attend unevenly
    error, power = found.arrays["sparse_vdit.error"], found.arrays["sparse_vdit.power"]
    habits = found.methods["sparse_vdit"]["habits"]
    full, skip = habits.index(["full", 1.0]), habits.index(["skip", 0.0])
    assert (error[..., full] == 0).all() and torch.equal(error[..., skip], power) and (power > 0).all()


@pytest.mark.parametrize("method", ["paro", "sparse_vdit", "svg"])
def test_methods_run_from_the_profile_and_meet_the_sparsity(cli, tiny_weights, calibrated, method):
    result = run(cli, tiny_weights, method, "--profile", "p.json", "--sparsity", 0.7, "--json")
    assert result.code == 0, result.err
    record = result.json
    assert abs(record["sparsity"]["sparse_calls"] - 0.7) <= 0.02
    assert record["calls"]["sparse"] > 0 and record["fallbacks"] == [] and record["config"]["profile"] == "p.json"


def test_comparing_with_dense_warms_up_within_the_schedule_of_the_profile(cli, tiny_weights, calibrated):
    result = run(cli, tiny_weights, "paro", "--profile", "p.json", "--compare-dense", "--json")
    assert result.code == 0, result.err
    assert result.json["quality"]["psnr"] > 15


def test_a_grid_of_too_few_blocks_is_refused_before_anything_is_measured(cli, tiny_weights, tmp_path):
    size = ("--frames", 9, "--height", 64, "--width", 64)
    line = one_error(cli("calibrate", "--weights", tiny_weights, *size, "--steps", 2, "--output", "small.json"))
    assert "needs at least 4 blocks of 64 tokens" in line and "3 x 4 x 4" in line and "larger size" in line
    assert not (tmp_path / "small.json").exists()


def test_methods_of_videos_are_left_out_of_an_images_profile_unless_one_is_named(cli, tiny_weights, tmp_path):
    flags = ("--weights", tiny_weights, "--frames", 1, "--height", 256, "--width", 256, "--steps", 1)
    result = cli("calibrate", *flags, "--prompts", "builtin:1", "--output", "image.json", "--json")
    assert result.code == 0, result.err
    assert (
        result.json["methods"] == ["paro", "sparse_vdit", "sta"] == list(profiles.load(tmp_path / "image.json").methods)
    )
    assert "note: attention_tile needs a video, and this run has 1 frame: left out of the profile" in result.err
    line = one_error(cli("calibrate", *flags, "--method", "svg", "--output", "other.json"))
    assert "svg needs a video" in line and not (tmp_path / "other.json").exists()


def test_another_step_count_is_refused_before_the_model_is_loaded(cli, tiny_weights, calibrated, monkeypatch):
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    line = one_error(run(cli, tiny_weights, "paro", "--profile", "p.json", steps=3))
    assert "for 2 steps, and this run has 3" in line


def test_another_step_count_is_refused_where_masks_belong_to_steps_and_noted_where_not(cli, tiny_weights, calibrated):
    line = one_error(run(cli, tiny_weights, "paro", "--profile", "p.json", steps=3))
    assert "for 2 steps, and this run has 3" in line and "calibrate --method paro" in line
    result = run(cli, tiny_weights, "sparse_vdit", "--profile", "p.json", "--json", steps=3)
    assert result.code == 0
    assert "measured over 2 steps, this run has 3" in result.json["notes"][0]


def test_another_grid_or_model_is_refused_with_both_named(cli, generate, tiny_weights, calibrated, tmp_path):
    line = one_error(
        generate("--method", "paro", "--profile", "p.json", "--frames", 17, "--height", 160, "--width", 192)
    )
    assert "5 x 10 x 11 tokens" in line and "5 x 10 x 12 tokens" in line
    found = json.loads((tmp_path / "p.json").read_text())
    mine, found["model"]["fingerprint"] = found["model"]["fingerprint"], "f" * 16
    (tmp_path / "p.json").write_text(json.dumps(found))
    line = one_error(run(cli, tiny_weights, "paro", "--profile", "p.json"))
    assert "f" * 16 in line and mine in line


def test_a_profile_for_some_methods_is_refused_by_the_others(cli, tiny_weights, tmp_path):
    flags = ("--weights", tiny_weights, *SIZE, "--steps", 2, "--prompts", "builtin:1", "--guidance", 1)
    result = cli("calibrate", *flags, "--method", "svg", "--output", "svg.json")
    assert result.code == 0 and result.out == "svg.json\n", result.err
    line = one_error(run(cli, tiny_weights, "paro", "--profile", "svg.json"))
    assert "is for svg, and not for method paro" in line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--output", "p.yaml"], ["--output p.yaml", ".json"]),
        (["--output", "gone/p.json"], ["no folder gone"]),
        (["--method", "pari"], ["'pari'", "did you mean paro"]),
        (["--prompts", "gone.txt"], ["--prompts gone.txt", "cannot be read"]),
        (["--prompts", "builtin:0"], ["builtin:0"]),
        (["--steps", "0"], ["--steps must be at least 1"]),
        (["--frames", "16"], ["use 13 or 17"]),
        (["--seed", "-1"], ["--seed"]),
    ],
)
def test_a_wrong_flag_is_one_line_and_nothing_is_written(cli, tiny_weights, tmp_path, flags, said):
    line = one_error(cli("calibrate", "--weights", tiny_weights, *flags))
    assert all(part in line for part in said)
    assert list(tmp_path.iterdir()) == []
