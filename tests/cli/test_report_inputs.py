"""`dittools report` of what is given beside text: the same inputs in every case, recorded, shown, and held to."""

import csv
import json

import numpy as np
import pytest

from dittools.pipelines import reading
from tests.cli.tasks_tiny import lora, picture, saved
from tests.cli.test_bad_input import one_error

CLIP = ("--frames", 5, "--height", 48, "--width", 64, "--steps", 2)
STILL = ("--height", 208, "--width", 256, "--steps", 2, "--strength", 1, "--method", "draft", "--sparsity", 0.5)


@pytest.fixture
def report(cli, shelf, tmp_path):
    """Run `dittools report` on a tiny folder, with pictures and a LoRA at hand."""
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", seed=1)
    lora(tmp_path / "l.safetensors")
    return lambda name, *flags: cli("report", "--weights", saved(name, shelf), "--untimed", "-q", "-o", "r", *flags)


def test_every_case_of_a_picture_is_drawn_from_the_same_input_and_another_one_is_refused_by_name(
    report, cli, shelf, tmp_path
):
    done = report("flux", *STILL, "--image", "a.png")
    assert done.code == 0, done.err
    given = json.loads((tmp_path / "r/manifest.json").read_text())["plan"]["task"]["inputs"]["image"]
    assert given["file"] == "a.png"
    records = {p.parent.name: json.loads(p.read_text()) for p in (tmp_path / "r/cases").glob("*/record.json")}
    assert len(records) == 4 and all(record["task"]["inputs"]["image"] == given for record in records.values())
    lines = [line for line in csv.DictReader((tmp_path / "r/summary.csv").open()) if line["setting"] != "dense"]
    assert lines and all(float(line["psnr"]) > 0 and float(line["ssim"]) > 0 for line in lines)
    page = (tmp_path / "r/report.html").read_text()
    assert "--image: a.png (48 x 64, sha256 " in page and "1 x 208 x 256" in page
    assert "a.png" in (tmp_path / "r/report.md").read_text().replace("\\", "")

    lines = csv.DictReader((tmp_path / "r/quality.csv").open())
    case = next(line["case"] for line in lines if "draft" in line["setting"])
    flags = (*STILL, "--image", "a.png", "--prompt", "", "-o", "o.npy")
    assert cli("generate", "--weights", saved("flux", shelf), *flags).code == 0
    drawn = reading.read(next((tmp_path / "r/cases" / case).glob("frames.*"))).frames
    assert np.array_equal(np.load(tmp_path / "o.npy"), drawn)

    (tmp_path / "a.png").rename(tmp_path / "c.png")
    assert report("flux", *STILL, "--image", "c.png").code == 0  # the same picture by another name
    assert records.keys() == {p.name for p in (tmp_path / "r/cases").iterdir()}
    error = one_error(report("flux", *STILL, "--image", "b.png"))
    assert "other settings (--image a.png (48 x 64, sha256 " in error and ", now b.png (48 x 64, sha256 " in error


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "--image"),
        (("--image", "none.png"), "there is no none.png"),
        (("--image", "a.png", "--lora", "no.safetensors"), "there is no file no.safetensors"),
        (("--image", "a.png", "--lora", "l.safetensors:x"), "the scale must be a number"),
        (("--image", "a.png", "--mask", "b.png"), "--mask"),
        (("--image", "a.png", "--strength", "3"), "--strength"),
    ],
)
def test_bad_inputs_are_one_line_as_of_generate_and_leave_no_folder(report, tmp_path, flags, said):
    assert said in one_error(report("wan-i2v", *CLIP, *flags))
    assert not (tmp_path / "r").exists()
