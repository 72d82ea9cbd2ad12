"""The tasks of docs/tasks.md: each a command on tiny random weights, its file and its record looked at."""

import copy
import json
import re
import shlex
import subprocess
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dittools.cli.app import command
from dittools.pipelines import saving
from dittools.pipelines.tasks import adapters, whole
from tests.cli.tasks_tiny import SIZE, VIDEO, clip, lora, mask, picture, saved
from tests.cli.test_bad_input import one_error

ROOT = Path(__file__).parents[2]
FAST = ("--method", "dense", "--guidance", "1")
QUIET = ("stg_scale=0", "modality_scale=1", "audio_stg_scale=0", "audio_modality_scale=1", "audio_guidance_scale=1")


@pytest.fixture
def draw(cli, shelf, tmp_path):
    """Run `dittools generate` on a tiny folder; the result has frames and record where it drew."""
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", seed=1)
    clip(tmp_path / "v.npy")
    mask(tmp_path / "m.png")

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


def test_control_video_with_references_and_a_mask(draw):
    led, record = draw("wan-vace", *VIDEO, *FAST, "--control", "v.npy")
    assert led.shape == (5, 48, 64, 3) and record["model"] == "wan-vace"
    flags = ("--control", "v.npy", "--mask", "m.png", "--reference", "a.png", "b.png")
    masked, record = draw("wan-vace", *VIDEO, *FAST, *flags)
    assert masked.shape == led.shape and not np.array_equal(masked, led)
    assert [one["file"] for one in record["task"]["inputs"]["reference"]] == ["a.png", "b.png"]
    assert record["task"]["inputs"]["mask"]["frames"] == 1


def test_first_and_last_frame_among_frames_to_draw(draw):
    frames, _ = draw("wan-vace", *VIDEO, *FAST, "--image", "a.png", "--last-image", "b.png")
    assert frames.shape == (5, 48, 64, 3)


def test_first_and_last_frame_as_conditions(draw):
    flags = ("--frames", 9, "--height", 64, "--width", 64, "--image", "a.png", "--last-image", "b.png")
    frames, record = draw("ltx-conditions", *SIZE, *flags)
    assert frames.shape == (9, 64, 64, 3) and record["task"]["pipeline"] == "LTXConditionPipeline"


def test_image_to_video_with_weights_that_serve_both(draw):
    frames, record = draw("ltx", *SIZE, "--frames", 9, "--height", 64, "--width", 64, "--image", "a.png")
    assert len(frames) == 9 and record["task"]["pipeline"] == "LTXImageToVideoPipeline"


def test_image_edit_in_the_size_that_the_pipeline_takes_from_it(draw):
    flags = ("--prompt", "a red circle", "--steps", 2, "--image", "a.png", "--set", "max_area=4096")
    frames, record = draw("flux-kontext", *flags, "_auto_resize=false")
    assert len(frames) == 1 and record["run"]["height"] * record["run"]["width"] <= 4096
    assert record["task"]["set"] == {"max_area": "4096", "_auto_resize": "false"}


def test_image_to_image_and_inpaint_with_the_weights_of_text_to_image(draw, tmp_path):
    flags = (*SIZE, "--image", "a.png", "--strength", 0.9)
    _, record = draw("flux", *flags, output="out.png")
    assert record["task"]["pipeline"] == "FluxImg2ImgPipeline" and Image.open(tmp_path / "out.png").size == (64, 48)
    _, record = draw("flux", *flags, "--mask", "m.png")
    assert record["task"]["pipeline"] == "FluxInpaintPipeline" and record["task"]["inputs"]["strength"] == 0.9


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("flux-fill", ("--image", "a.png", "--mask", "m.png")),
        ("flux-control", ("--control", "a.png")),
        ("cogvideox-control", ("--control", "v.npy", "--height", 64)),
    ],
)
def test_fill_and_control_by_weights_of_their_own(draw, name, flags):
    frames, record = draw(name, *SIZE, *flags)
    assert len(frames) == (9 if name == "cogvideox-control" else 1)
    assert set(record["task"]["inputs"]) == {flag[2:] for flag in flags[::2]} - {"height"}


SOUND = ("--frames", 9, "--height", 64, "--width", 64, "--method", "dense", "--guidance", 1, "--set", *QUIET)


def test_sound_is_kept_in_the_video_where_it_holds_any_else_beside_it(draw, tmp_path):
    _, record = draw("ltx-2", *SIZE, *SOUND, output="out.mp4")
    assert record["task"]["sound"] | {"rate": 16000, "channels": 2, "file": None} == record["task"]["sound"]
    said = subprocess.run([saving.ffmpeg(), "-i", tmp_path / "out.mp4"], capture_output=True, text=True).stderr
    assert "Audio: aac" in said and "Video: h264" in said and "24 fps" in said
    _, record = draw("ltx-2", *SIZE, *SOUND, output="out.npy")
    assert record["task"]["sound"]["file"] == "out.wav" and "in out.wav: out.npy holds none" in record["notes"][0]
    with wave.open(str(tmp_path / "out.wav")) as file:
        assert file.getframerate() == 16000 and file.getnchannels() == 2 and file.getnframes() > 0
    assert (tmp_path / "out.wav").stat().st_size < (tmp_path / "out.npy").stat().st_size


def test_a_sound_that_dittools_did_not_write_stays(refused, tmp_path):
    (tmp_path / "out.wav").write_text("mine")
    assert "which is not the sound of out.npy" in refused("ltx-2", "-o", "out.npy", "--frames", "9")


def test_several_loras_each_at_its_scale(draw, tmp_path):
    lora(tmp_path / "one.safetensors")
    lora(tmp_path / "two.safetensors", seed=5)
    flags = (*VIDEO, *FAST, "--image", "a.png")
    none, _ = draw("wan-i2v", *flags)
    one, record = draw("wan-i2v", *flags, "--lora", "one.safetensors")
    both, record = draw("wan-i2v", *flags, "--lora", "one.safetensors:0.5", "two.safetensors")
    assert not np.array_equal(none, one) and not np.array_equal(one, both)
    assert [(one["file"], one["scale"]) for one in record["task"]["lora"]] == [
        ("one.safetensors", 0.5),
        ("two.safetensors", 1.0),
    ]
    nothing, _ = draw("wan-i2v", *flags, "--lora", "one.safetensors:0")
    assert np.abs(nothing.astype(int) - none).max() <= 1


def test_weights_in_fewer_bits_decoded_in_tiles(draw):
    flags = (*VIDEO, *FAST, "--image", "a.png", "--vae-tiling", "--shift", 7)
    frames, record = draw("wan-i2v", *flags, "--quantize", "fp8")
    assert record["task"] | {"quantize": "fp8", "vae_tiling": True, "shift": 7} == record["task"]
    other, _ = draw("wan-i2v", *flags, "--quantize", "int8")
    assert frames.shape == other.shape and not np.array_equal(frames, other)


def test_arguments_of_the_pipelines_own(draw):
    frames, record = draw("wan-i2v", *VIDEO, *FAST, "--image", "a.png", "--set", "max_sequence_length=64")
    assert record["task"]["set"] == {"max_sequence_length": "64"} and len(frames) == 5


@pytest.fixture
def listed(cli, shelf, tmp_path):
    """Run a list of two prompts by two seeds on a tiny Wan."""
    (tmp_path / "prompts.txt").write_text("a red circle\n\na blue square\n")
    size = ("--frames", 5, "--height", 48, "--width", 64, "--steps", 1, *FAST)
    lists = ("--prompts", "prompts.txt", "--seeds", 0, 1, "-o", "out.npy")
    return lambda *flags: cli("generate", "--weights", saved("wan", shelf), *size, *lists, *flags)


NAMES = ["out_001_seed0.npy", "out_001_seed1.npy", "out_002_seed0.npy", "out_002_seed1.npy"]


def test_a_list_that_was_stopped_goes_on_where_it_was(listed, tmp_path, monkeypatch):
    draw, drawn = whole.draw, []

    def stopped(pipe, arguments, seed, listener):
        drawn.append((arguments["prompt"], seed))
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw(pipe, arguments, seed, listener)

    monkeypatch.setattr(whole, "draw", stopped)
    assert listed().code == 130
    assert sorted(path.name for path in tmp_path.glob("out*.npy")) == NAMES[:2]
    first = (tmp_path / NAMES[0]).stat().st_mtime_ns
    done = listed("--json")
    assert done.code == 0 and "2 of 4 are there already" in done.err
    assert drawn[2:] == [("a blue square", 0), ("a blue square", 0), ("a blue square", 1)]
    assert [one["output"] for one in done.json["videos"]] == NAMES
    assert [one["seed"] for one in done.json["videos"]] == [0, 1, 0, 1]
    assert (tmp_path / NAMES[0]).stat().st_mtime_ns == first
    frames = [np.load(tmp_path / name) for name in NAMES]
    assert not any(np.array_equal(a, b) for n, a in enumerate(frames) for b in frames[:n])

    assert "guidance was 1.0, is now 2.0" in one_error(listed("--guidance", 2))
    (tmp_path / NAMES[3]).write_bytes(b"damaged")
    again = listed()  # which keeps what it did not write
    assert again.code == 2 and f"would replace {NAMES[3]}" in again.err
    (tmp_path / NAMES[3]).unlink()
    again = listed()
    assert again.code == 0 and len(drawn) == 6 and again.out.split() == NAMES
    assert np.array_equal(np.load(tmp_path / NAMES[3]), frames[3])


def test_several_videos_of_one_prompt(cli, shelf, tmp_path):
    size = ("--frames", 5, "--height", 48, "--width", 64, "--steps", 1, *FAST)
    flags = ("--num-videos", 2, "--seed", 3, "--fps", 12, "-o", "out.gif")
    done = cli("generate", "--weights", saved("wan", shelf), *size, "--prompt", "a red circle", *flags)
    assert done.code == 0 and done.out.split() == ["out_001_seed3.gif", "out_001_seed4.gif"], done.err
    assert Image.open(tmp_path / "out_001_seed4.gif").n_frames == 5
    assert json.loads((tmp_path / "out_001_seed4.json").read_text())["run"]["fps"] == 12


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--prompts", "builtin:1", "--prompt", "a"), "--prompt and --prompts both say what to show"),
        (("--seeds", "0", "--num-videos", "2"), "--seeds says which seeds are drawn: leave --num-videos out"),
        (("--seeds", "0", "--seed", "2"), "leave --seed out"),
        (("--seeds", "1", "1"), "--seeds: 1 is given twice"),
        (("--num-videos", "0"), "--num-videos must be from 1"),
        (("--lora", "none.safetensors"), "--lora: there is no file none.safetensors"),
        (("--lora", "v.npy"), "is no .safetensors file"),
        (("--lora", "one.safetensors:x"), "the scale must be a number, got 'x'"),
        (("--lora", "plain.safetensors"), "holds the tensors of no LoRA"),
        (("--lora", "one.safetensors", "one.safetensors"), "is given twice"),
        (("--lora", "one.safetensors@transformer_3"), "there is no file one.safetensors@transformer_3"),
        (("--lora", "one.safetensors@transformer_2:0.5"), "this folder has one transformer: leave @transformer_2 out"),
        (("--quantize", "int9"), "'int9'"),
        (("--quantize", "nf4"), "--quantize nf4 runs on a CUDA GPU"),
        (("--shift", "0"), "--shift must be above 0"),
        (("--shift", "3", "--weights", "embedded", "--model", "flux"), "the embedded model is a wan, not a flux"),
        (("--guidance", "nan"), "--guidance must be a number"),
    ],
)
def test_what_cannot_be_said_together_is_one_line(cli, shelf, tmp_path, monkeypatch, flags, says):
    monkeypatch.setattr("dittools.pipelines.loading.load", lambda *_, **__: pytest.fail("a model was loaded"))
    clip(tmp_path / "v.npy")
    lora(tmp_path / "one.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "plain.safetensors")
    assert says in one_error(cli("generate", "--weights", saved("wan", shelf), *flags))


@pytest.mark.parametrize(
    ("made", "says"), [({"width": 40}, "size mismatch"), ({"block": "block.7.attn"}, "does not fit this model")]
)
def test_a_lora_of_another_model_is_one_line(cli, shelf, tmp_path, made, says):
    lora(tmp_path / "other.safetensors", **made)
    done = cli("generate", "--weights", saved("wan", shelf), *VIDEO, "--lora", "other.safetensors", "-q")
    assert done.code == 2 and says in one_error(done) and done.err.count("\n") == 1


def test_loras_for_either_transformer_of_a_pair(shelf, tmp_path):
    from diffusers import WanPipeline

    one, two = (lora(tmp_path / f"{name}.safetensors", seed, width=128) for name, seed in (("one", 0), ("two", 5)))
    asked = adapters.read([f"{one}:0.5", f"{two}@transformer_2:0.25", f"{one}@transformer_2", f"{two}@transformer:2"])
    assert [lora.facts().get("onto") for lora in asked] == [None, "transformer_2", "transformer_2", None]
    pipe, notes = WanPipeline.from_pretrained(saved("wan", shelf)), []
    pipe.register_modules(transformer_2=copy.deepcopy(pipe.transformer))
    adapters.put_on(pipe, asked, notes.append)
    assert not notes
    held = [part.blocks[0].attn1.to_q for part in (pipe.transformer, pipe.transformer_2)]
    assert [dict(sorted(layer.scaling.items())) for layer in held] == [
        {"lora_0": 0.5, "lora_3": 2.0},
        {"lora_1": 0.25, "lora_2": 1.0},
    ]
    assert [sorted(layer.active_adapters) for layer in held] == [["lora_0", "lora_3"], ["lora_1", "lora_2"]]
    alone = WanPipeline.from_pretrained(saved("wan", shelf))
    alone.register_modules(transformer_2=copy.deepcopy(alone.transformer))
    adapters.put_on(alone, asked[:1], notes.append)
    assert notes == ["--lora is on the first transformer (high noise) of two: PATH@transformer_2 puts one on the other"]
    assert not hasattr(alone.transformer_2.blocks[0].attn1.to_q, "scaling")


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
        ("wan-i2v", ("--image", "words.txt"), "words.txt can be read neither as a picture nor as a video"),
        ("wan-i2v", ("--image", "v.npy"), "--image v.npy holds 9 frames, and one picture is wanted"),
        ("wan-i2v", ("--image", "a.png", "--set", "steps"), "--set must be NAME=VALUE, got 'steps'"),
        ("wan-i2v", ("--image", "a.png", "--set", "num_inference_steps=3"), "--set num_inference_steps: use --steps"),
        ("wan-i2v", ("--image", "a.png", "--set", "guidance_scale_3=3"), "did you mean guidance_scale_2?"),
        ("wan-i2v", ("--image", "a.png", "--set", "guidance_scale_2=x"), "must be a number, got 'x'"),
        ("wan-i2v", ("--image", "a.png", "--set", "max_sequence_length=2.5"), "must be a whole number, got '2.5'"),
        ("wan-i2v", ("--image", "a.png", "--set", "latents=1"), "no value that a command line can hold"),
        ("wan-i2v", ("--image", "a.png", "--strength", "2"), "--strength must be above 0 and at most 1, got 2"),
        ("wan-i2v", ("--image", "a.png", "--fps", "0"), "--fps must be above 0"),
        ("wan-i2v", ("--image", "a.png", "--gpus", "2", "--seeds", "1", "2"), "several GPUs share one video"),
        ("wan-i2v", ("--image", "a.png", "--gpus", "7", "--parallel", "ulysses:7"), "at most ulysses:"),
        ("wan-i2v", ("--image", "a.png", "--gpus", "2", "--max-error", "0.1"), "max_error 0.1 is held on one device"),
    ],
)
def test_what_a_pipeline_does_not_take_is_said_before_weights_are_loaded(
    refused, monkeypatch, tmp_path, name, flags, says
):
    (tmp_path / "words.txt").write_text("no picture")
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


def test_the_table_of_tasks_is_of_twenty_commands_that_are_tested():
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| `(--[^`]+)` \| `(test_\w+)` \|$", page, re.MULTILINE)
    assert len(rows) == 20 == len({task for task, _, _ in rows})
    known = {name for parameter in command().commands["generate"].params for name in parameter.opts}
    for _, line, test in rows:
        assert {part for part in shlex.split(line) if part.startswith("--")} <= known
        assert callable(globals().get(test)), test
