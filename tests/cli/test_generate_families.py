"""`dittools generate` beyond Wan: tiny pipelines of each class in a folder, from prompt to file."""

import json

import numpy as np
import pytest
import torch

from dittools.pipelines import stages
from dittools.pipelines.families import FAMILIES, find_family
from tests.pipelines_tiny import PIPELINES, SIZES, pipeline


@pytest.fixture(scope="module")
def pipes():
    return {name: pipeline(name) for name in PIPELINES}


@pytest.mark.parametrize("name", PIPELINES)
def test_stages_give_what_one_call_of_the_pipeline_gives(name, pipes):
    pipe, size = pipes[name], SIZES[name]
    guided = {"negative_prompt": "grey"} if name != "flux" else {}
    call = {"num_inference_steps": 2, "guidance_scale": 3.0, "max_sequence_length": 16, "output_type": "np"}
    whole = pipe("a red circle", **guided, **size, **call, generator=torch.Generator().manual_seed(5))
    whole = whole.images if name == "flux" else whole.frames[0]
    shot = stages.Shot(size.get("num_frames", 1), size["height"], size["width"], 2, 3.0, 5)
    steps = []
    embeds = stages.encode(pipe, "a red circle", "grey", 3.0, 16)
    latents = stages.denoise(pipe, embeds, shot, lambda *step: steps.append(step))
    frames = stages.decode(pipe, latents, shot)
    assert steps == [(1, 2), (2, 2)]
    np.testing.assert_array_equal(frames, whole)


@pytest.mark.parametrize("name", PIPELINES)
def test_generate_draws_with_the_family_and_its_defaults(name, pipes, cli, tmp_path):
    folder, size = tmp_path / "weights", SIZES[name]
    pipes[name].save_pretrained(folder)
    flags = ["--height", size["height"], "--width", size["width"], "--steps", 2, "--weights", folder]
    flags += ["--frames", size["num_frames"]] if "num_frames" in size else []
    output = "out.png" if name == "flux" else "out.mkv"
    method = [] if name == "flux" else ["--method", "svg", "--dense-steps", 0]
    done = cli("generate", "--model", name, *flags, *method, "--output", output, "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    family = find_family(name)
    assert record["model"] == name and record["run"]["fps"] == family.fps
    assert record["run"]["guidance"] == family.guidance
    assert (tmp_path / output).stat().st_size > 0
    grid = record["grid"]
    if name == "flux":
        assert (grid["frames"], grid["height"], grid["width"]) == (1, 16, 17)
        assert record["method"] == "dense" and record["calls"]["sparse"] == 0  # an image this small
    else:
        assert (grid["height"], grid["width"]) == (8, 9) and record["calls"]["sparse"] > 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model", "hunyuan-video"], "cannot generate here: use one of wan, cogvideox, ltx, flux"),
        (["--model", "sana"], "self-attention is linear"),
        (["--model", "flux", "--frames", 5], "generates images: --frames is 1"),
        (["--model", "ltx", "--frames", 12], "--frames 12 does not fit"),
        (["--model", "flux", "--weights", "embedded"], "the embedded model is a wan, not a flux"),
        (["--model", "cogvideox", "--device", "cpu"], "no cogvideox weights at hand"),
    ],
)
def test_what_generate_cannot_draw_is_said_in_one_line(cli, flags, says, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = cli("generate", *flags)
    assert done.code == 2 and says in done.err and done.err.count("error: ") == 1, done.err


def test_every_family_to_draw_with_has_a_way_in_stages_and_defaults():
    from dittools.pipelines.staged import STAGED

    for family in FAMILIES:
        assert set(family.text_to) <= set(STAGED)
        if family.text_to:
            assert None not in (family.repo, family.height, family.frames, family.steps, family.guidance, family.fps)
