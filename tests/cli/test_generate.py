"""What `dittools generate` leaves: a video, its record, and clean output streams."""

import json
import socket

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from dittools.cli.control import StepTimes
from dittools.pipelines.saving import to_uint8

# DESIGN's contract, then what the acceleration adds
KEYS = {
    "dittools": None,
    "versions": {"python", "torch", "triton", "diffusers", "transformers"},
    "command": None,
    "device": {"type", "name", "memory_gb"},
    "model": None,
    "weights": None,
    "grid": {"frames", "height", "width", "text", "tokens"},
    "config": {"version", "method", "sparsity", "dense_steps", "dense_layers", "refresh", "seed", "options"},
    "prompt": None,
    "negative_prompt": None,
    "seed": None,
    "steps": None,
    "seconds": {"load", "text", "denoise", "decode", "save", "total"},
    "step_seconds": None,
    "sparsity": {"asked", "sparse_calls", "overall", "per_step", "per_layer", "by_parts", "pairs_by_parts"},
    "calls": {"dense", "sparse", "reused", "expected"},
    "kernels": None,
    "kernel_reasons": None,
    "cache": {"name", "computed_steps", "reused_steps"},
    "fallbacks": None,
    "attention_error": None,
    "quality": {
        *("psnr", "ssim", "psnr_per_frame", "dense_denoise_seconds", "speedup"),
        *("speedup_withheld", "control"),
    },
    "output": None,
    "output_sha256": None,
    "method": None,
    "method_options": None,
    "correction": None,
    "run": {"frames", "height", "width", "fps", "guidance", "dtype", "offload", "compile"},
    "parallel": None,
    "heads": None,
    "notes": None,
}
SPARSE = ("--method", "svg", "--frames", 17, "--height", 96, "--width", 112, "--steps", 3)


@pytest.fixture(scope="module")
def sparse_run(tmp_path_factory, tiny_weights):
    """One sparse run with everything on; its folder, exit code aside."""
    from dittools.cli.main import main

    folder = tmp_path_factory.mktemp("sparse")
    arguments = [*SPARSE, "--compare-dense", "--prompt", "a red circle", "--output", folder / "out.npy"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepTimes, "seconds", lambda self: [0.5] * 3)  # a machine that is always equally fast
        code = main([str(part) for part in ("generate", "--weights", tiny_weights, *arguments)])
    assert code == 0
    return folder


def test_the_record_has_exactly_the_keys_of_the_contract(sparse_run):
    record = json.loads((sparse_run / "out.json").read_text())
    assert list(record) == list(KEYS)
    for key, inner in KEYS.items():
        if key == "config":
            assert inner <= set(record[key])
        elif inner is not None:
            assert set(record[key]) == inner, key


def test_the_record_tells_what_ran(sparse_run, tiny_weights):
    record = json.loads((sparse_run / "out.json").read_text())
    assert record["command"][:2] == ["dittools", "generate"]
    assert record["model"] == "wan" and record["weights"] == str(tiny_weights)
    assert record["grid"] == {"frames": 5, "height": 6, "width": 7, "text": 0, "tokens": 210}
    assert (record["prompt"], record["steps"], record["seed"]) == ("a red circle", 3, 0)
    assert record["run"]["dtype"] == "float32" and record["run"]["fps"] == 16
    assert len(record["step_seconds"]) == len(record["sparsity"]["per_step"]) == 3
    assert len(record["sparsity"]["per_layer"]) == len(record["heads"]) == 3
    assert record["calls"]["sparse"] > 0 and record["calls"]["dense"] > 0
    assert 0 < record["sparsity"]["overall"] < record["sparsity"]["sparse_calls"] <= 0.82
    seconds = record["seconds"]
    assert seconds["total"] >= sum(seconds[stage] for stage in ("load", "text", "denoise", "decode", "save")) - 0.01


def test_comparing_tells_quality_and_both_times(sparse_run):
    record = json.loads((sparse_run / "out.json").read_text())
    quality = record["quality"]
    assert len(quality["psnr_per_frame"]) == 17
    assert 5 < quality["psnr"] < 100 and 0 < quality["ssim"] < 1
    assert quality["speedup"] == pytest.approx(
        quality["dense_denoise_seconds"] / record["seconds"]["denoise"], rel=0.01
    )
    assert quality["control"] == {"kind": "shared", "steps": [0], "dense_seconds": 0.5, "seconds": 0.5}
    assert quality["speedup_withheld"] is None


def test_comparing_does_not_change_the_video(sparse_run, generate, tmp_path):
    assert generate(*SPARSE, "--prompt", "a red circle", "--output", "alone.npy").code == 0
    assert np.array_equal(np.load(tmp_path / "alone.npy"), np.load(sparse_run / "out.npy"))


def test_dense_frames_are_the_untouched_pipelines_own(generate, tiny_weights, tmp_path):
    from diffusers import WanPipeline

    asked = (
        "--method",
        "dense",
        "--prompt",
        "a red circle",
        "--negative-prompt",
        "grey",
        "--guidance",
        3,
        "--seed",
        7,
    )
    assert generate(*asked, "--output", "out.npy").code == 0
    pipe = WanPipeline.from_pretrained(tiny_weights, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(
        "a red circle",
        "grey",
        num_frames=5,
        height=48,
        width=64,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(7),
    ).frames[0]
    assert np.array_equal(np.load(tmp_path / "out.npy"), to_uint8(frames))


def test_dense_against_dense_is_identical_and_still_json(generate):
    quality = generate("--method", "dense", "--compare-dense", "--json", "--output", "a.npy").json["quality"]
    assert quality["psnr"] == "inf" and set(quality["psnr_per_frame"]) == {"inf"}
    assert quality["ssim"] == pytest.approx(1)


def test_a_seed_means_one_video(generate, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert generate("--seed", seed, "--output", f"{name}.npy").code == 0
    a, b, c = (np.load(tmp_path / f"{name}.npy") for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_json_is_the_record_alone_on_stdout(generate, tmp_path):
    result = generate("--json", "--output", "a.npy")
    assert result.code == 0
    assert result.json == json.loads((tmp_path / "a.json").read_text())
    assert result.json["quality"] is None
    assert "denoising: step 2/2" in result.err


def test_people_get_the_path_on_stdout_and_the_rest_on_stderr(generate):
    result = generate("--output", "a.npy")
    assert result.out == "a.npy\n"
    last = result.err.splitlines()
    for stage in ("loading weights", "encoding the prompt", "denoising", "decoding frames", "saving"):
        assert any(line.startswith(stage) for line in last)
    assert any("5 frames of 48 x 64; record a.json" in line for line in last)
    assert any(line.startswith("seconds ") for line in last)
    assert any(line.startswith("fallback: ") and "too few" in line for line in last)  # auto says why it is dense


def test_the_options_that_auto_chose_are_in_the_record_and_in_the_last_lines(generate):
    result = generate("--frames", 17, "--height", 288, "--width", 288, "--json", "--output", "a.npy")
    record = result.json
    assert (record["config"]["method"], record["config"]["options"]) == ("auto", {})
    assert (record["method"], record["method_options"]) == ("adaspa", {"rows": 8})
    assert (record["config"]["correction"], record["correction"]) == ("auto", "sampled")
    assert "method adaspa (rows=8) with sampled: skipped " in result.err


def test_every_suffix_holds_every_frame(generate, tmp_path):
    for name in ("out.mp4", "out.gif", "out.webp", "out.npy", "frames/"):
        assert generate("--output", name).code == 0
        assert json.loads((tmp_path / f"{name.split('.')[0].rstrip('/')}.json").read_text())["output"] == str(
            tmp_path.joinpath(name).relative_to(tmp_path)
        )
    exact = np.load(tmp_path / "out.npy")
    assert exact.shape == (5, 48, 64, 3) and exact.dtype == np.uint8
    files = sorted((tmp_path / "frames").iterdir())
    assert np.array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), exact)
    for name in ("out.gif", "out.webp"):
        image = Image.open(tmp_path / name)
        assert (image.n_frames, image.size) == (5, (64, 48))
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "out.mp4"))
    assert next(reader)["size"] == (64, 48) and len(list(reader)) == 5


def test_one_frame_makes_a_png(generate, tmp_path):
    assert generate("--frames", 1, "--output", "still.png").code == 0
    assert Image.open(tmp_path / "still.png").size == (64, 48)


def test_guidance_off_runs_one_lane(generate):
    on = generate("--output", "a.npy", "--json").json["calls"]["dense"]
    off = generate("--guidance", 1, "--output", "a.npy", "--json").json["calls"]["dense"]
    assert on == 2 * off > 0


def test_an_empty_prompt_runs_with_a_note(generate):
    result = generate("--prompt", "", "--output", "a.npy", "--json")
    assert result.code == 0 and result.err.count("note: the prompt is empty") == 1
    assert (
        "the prompt is empty: the model generates what it likes" in result.json["notes"]
    )  # read later, without stderr


def test_a_very_long_prompt_runs_with_a_note_on_one_line(generate):
    result = generate("--prompt", "a red\n[bold]circle " * 2000, "--output", "a.npy")
    assert result.code == 0
    assert "model reads 512: the end is cut off" in result.err
    assert max(map(len, result.err.splitlines())) < 400


def test_the_embedded_model_brings_its_defaults_and_names_unknown_words(generate, cli, embedded_model):
    record = cli("generate", "--weights", "embedded", "--output", "a.npy", "--json").json
    assert record["weights"] == "embedded" and record["prompt"] == "a red circle moves left"
    assert (record["run"]["frames"], record["steps"], record["run"]["guidance"]) == (5, 2, 4.0)
    result = cli("generate", "--weights", "embedded", "--output", "a.npy", "--prompt", "a red unicorn")
    assert result.code == 0 and "note: the embedded model does not know: unicorn" in result.err


def test_the_embedded_model_never_touches_the_network(cli, embedded_model, monkeypatch):
    def blocked(*arguments, **keywords):
        raise AssertionError(f"network: {arguments}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, blocked)
    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    assert cli("generate", "--weights", "embedded", "--output", "a.npy").code == 0


def test_auto_without_weights_or_gpu_falls_back_with_a_notice(cli, embedded_model, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    result = cli("generate", "--output", "a.npy", "--device", "cpu")
    assert result.code == 0
    assert "Wan-AI/Wan2.1-T2V-1.3B-Diffusers is not in the local cache" in result.err
    assert "using the small embedded model instead" in result.err


def test_compile_is_passed_on(generate, monkeypatch):
    from dittools.pipelines import loading

    seen = []
    monkeypatch.setattr(loading, "compile_blocks", seen.append)
    assert generate("--compile", "--output", "a.npy").code == 0
    assert len(seen) == 1


def test_strict_reaches_the_config(generate):
    assert generate("--strict", "--output", "a.npy", "--json").json["config"]["strict"] is True
