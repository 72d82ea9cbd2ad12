"""The tasks of docs/tasks.md: each a command on tiny random weights, its file and its record looked at."""

import json

import numpy as np
import pytest

from tests.cli.tasks_tiny import SIZE, VIDEO, clip, picture, saved
from tests.cli.test_bad_input import one_error


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """The folder that pipelines are saved in."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def draw(cli, shelf, tmp_path):
    """Run `dittools generate` on a tiny folder; the result has frames and record where it drew."""
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", seed=1)
    clip(tmp_path / "v.npy")

    def run(name, *flags, output="out.npy"):
        done = cli("generate", "--weights", saved(name, shelf), *flags, "-o", output)
        assert done.code == 0, done.err
        record = json.loads((tmp_path / output).with_suffix(".json").read_text())
        return (np.load(tmp_path / output) if output.endswith(".npy") else None), record

    return run


@pytest.fixture
def refused(cli, shelf, tmp_path):
    """The one line with which `dittools generate` refuses flags on a tiny folder."""
    picture(tmp_path / "a.png")
    clip(tmp_path / "v.npy")
    return lambda name, *flags: one_error(cli("generate", "--weights", saved(name, shelf), *VIDEO, *flags))


def test_image_to_video(draw):
    frames, record = draw("wan-i2v", *VIDEO, "--image", "a.png")
    assert frames.shape == (5, 48, 64, 3)
    assert record["model"] == "wan" and record["task"]["pipeline"] == "WanImageToVideoPipeline"
    assert record["task"]["inputs"]["image"]["file"] == "a.png"
    assert record["run"] | {"frames": 5, "height": 48, "width": 64} == record["run"]
    assert record["seconds"]["text"] > 0 and record["seconds"]["denoise"] > 0 and record["seconds"]["decode"] > 0
    other, _ = draw("wan-i2v", *VIDEO, "--image", "b.png")
    assert not np.array_equal(frames, other)


def test_first_and_last_frame(draw):
    first, _ = draw("wan-i2v", *VIDEO, "--image", "a.png")
    both, record = draw("wan-i2v", *VIDEO, "--image", "a.png", "--last-image", "b.png")
    assert both.shape == first.shape and not np.array_equal(both, first)
    assert set(record["task"]["inputs"]) == {"image", "last_image"}


def test_video_to_video_with_the_weights_of_text_to_video(draw, capsys):
    frames, record = draw("wan", *SIZE, "--video", "v.npy", "--strength", 1, "--steps", 3)
    assert frames.shape == (9, 48, 64, 3)
    assert record["task"] | {"pipeline": "WanVideoToVideoPipeline", "weights_of": "WanPipeline"} == record["task"]
    weak, _ = draw("wan", *SIZE, "--video", "v.npy", "--strength", 0.4, "--steps", 3)
    assert not np.array_equal(frames, weak)


def test_arguments_of_the_pipelines_own(draw):
    frames, record = draw("wan-i2v", *VIDEO, "--image", "a.png", "--set", "max_sequence_length=64")
    assert record["task"]["set"] == {"max_sequence_length": "64"} and len(frames) == 5


def test_the_call_is_the_pipelines_own(draw, shelf, tmp_path):
    import torch
    from diffusers import WanImageToVideoPipeline
    from PIL import Image

    from dittools.pipelines.saving import to_uint8

    flags = ("--image", "a.png", "--method", "dense", "--guidance", 3, "--negative-prompt", "grey", "--seed", 7)
    frames, _ = draw("wan-i2v", *VIDEO, *flags)
    pipe = WanImageToVideoPipeline.from_pretrained(saved("wan-i2v", shelf))
    pipe.set_progress_bar_config(disable=True)
    given = {"num_frames": 5, "height": 48, "width": 64, "num_inference_steps": 2, "guidance_scale": 3.0}
    start, seed = Image.open(tmp_path / "a.png"), torch.Generator().manual_seed(7)
    wanted = pipe(image=start, prompt="a red circle", negative_prompt="grey", generator=seed, **given).frames[0]
    assert np.array_equal(frames, to_uint8(wanted))


def test_sparse_and_compared_with_dense(draw):
    size = ("--frames", 17, "--height", 96, "--width", 112, "--steps", 3, "--prompt", "a red circle")
    flags = ("--image", "a.png", "--method", "svg", "--sparsity", 0.5, "--compare-dense")
    _, record = draw("wan-i2v", *size, *flags)
    assert record["calls"]["sparse"] > 0 and record["quality"]["psnr"] > 5
    assert record["quality"]["control"]["steps"] == [0]


@pytest.mark.parametrize(
    ("name", "flags", "says"),
    [
        ("wan-i2v", (), "--image is missing: WanImageToVideoPipeline in"),
        ("wan-i2v", ("--last-image", "a.png"), "takes --image (needed), --last-image"),
        ("wan", ("--image", "a.png"), "its weights also take --video, --strength as WanVideoToVideoPipeline"),
        ("wan-i2v", ("--image", "a.png", "--mask", "a.png"), "--mask: WanImageToVideoPipeline in"),
        ("wan-i2v", ("--image", "none.png"), "--image: there is no none.png"),
        ("wan-i2v", ("--image", "v.npy"), "--image v.npy holds 9 frames, and one picture is wanted"),
        ("wan-i2v", ("--image", "a.png", "--set", "steps"), "--set must be NAME=VALUE, got 'steps'"),
        ("wan-i2v", ("--image", "a.png", "--set", "num_inference_steps=3"), "--set num_inference_steps: use --steps"),
        ("wan-i2v", ("--image", "a.png", "--set", "guidance_scale_3=3"), "did you mean guidance_scale_2?"),
        ("wan-i2v", ("--image", "a.png", "--set", "guidance_scale_2=x"), "must be a number, got 'x'"),
        ("wan-i2v", ("--image", "a.png", "--set", "max_sequence_length=2.5"), "must be a whole number, got '2.5'"),
        ("wan-i2v", ("--image", "a.png", "--set", "latents=1"), "no value that a command line can hold"),
        ("wan-i2v", ("--image", "a.png", "--strength", "2"), "--strength must be above 0 and at most 1, got 2"),
        ("wan-i2v", ("--image", "a.png", "--fps", "0"), "--fps must be above 0"),
        ("wan-i2v", ("--image", "a.png", "--gpus", "2"), "leave --gpus and --parallel out"),
    ],
)
def test_what_a_pipeline_does_not_take_is_said_before_weights_are_loaded(refused, monkeypatch, name, flags, says):
    monkeypatch.setattr("dittools.pipelines.loading.load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert says in refused(name, *flags)


def test_a_class_that_dittools_does_not_know_is_refused_by_name(cli, shelf, tmp_path):
    place = tmp_path / "unet"
    place.mkdir()
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (place / "model_index.json").write_text(json.dumps(index))
    (place / "unet").mkdir()
    (place / "unet" / "x.txt").write_text("x")
    assert "is of a StableDiffusionPipeline with UNet2DConditionModel" in one_error(cli("generate", "--weights", place))


def test_a_folder_names_its_family(cli, shelf, tmp_path):
    done = cli("generate", "--weights", saved("flux", shelf), *SIZE, "-o", "a.npy", "--json")
    assert done.code == 0 and done.json["model"] == "flux" and "task" not in done.json, done.err
