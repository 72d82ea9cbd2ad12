"""`dittools plan`: what it says is what a run of that size would find."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dittools.config import Config
from dittools.estimate import estimate
from dittools.pipelines.families import FAMILIES
from dittools.pipelines.sizes import grid_of
from dittools.tokens import TokenGrid


def plan(cli, *flags):
    return json.loads(cli("plan", *flags, "--json").out)


def test_wan_at_720p_has_the_tokens_of_its_grid_and_the_kernel_of_the_device(cli):
    facts = plan(cli, "--model", "wan", "--height", "720", "--width", "1280", "--device", "cpu")
    assert facts["grid"] == {"frames": 21, "height": 45, "width": 80, "text": 0, "tokens": 75_600}
    assert facts["blocks"] == 1182 and facts["block_size"] == 64  # 75,600 / 64 = 1181.25
    assert (facts["kernel"], facts["why_dense"]) == ("portable", None)
    assert facts["density"] == pytest.approx(1 - 0.8 * 40 / 50 * 29 / 30)
    human = cli("plan", "--height", "720", "--width", "1280").out
    assert "21 x 45 x 80 = 75600" in human and "at most 2." in human


@pytest.mark.parametrize(
    ("flags", "method", "options", "said"),
    [
        (
            ["--device", "cpu"],
            "adaspa",
            {"rows": 8, "order": "cubes"},
            "adaspa (rows=8, order=cubes), which auto takes here",
        ),
        (["--device", "cuda"], "adaspa", {"order": "cubes"}, "adaspa (order=cubes), which auto takes here"),
        (["--device", "cuda", "--steps", 4], "svg", {}, "svg, which auto takes here"),
        (["--device", "cuda", "--method", "draft"], "draft", {}, "draft"),
    ],
)
def test_the_method_that_auto_takes_is_said_with_its_options(cli, flags, method, options, said):
    facts = plan(cli, *flags)
    assert (facts["method"], facts["method_options"]) == (method, options)
    assert f"method     {said}\n" in cli("plan", *flags).out


@pytest.mark.parametrize(("method", "needs"), [("paro", True), ("sparse_vdit", True), ("sta", False)])
def test_a_method_that_cannot_run_without_a_profile_says_so(cli, method, needs):
    assert plan(cli, "--method", method)["needs_profile"] is needs
    assert (
        f"profile    needed, of this model and size: dittools calibrate --method {method}\n"
        in (cli("plan", "--method", method).out)
    ) is needs


def test_a_short_sequence_stays_dense_with_a_reason_and_a_cache_is_named(cli):
    facts = plan(cli, "--model", "flux", "--device", "cuda")
    assert facts["grid"]["tokens"] == 4608 and facts["grid"]["text"] == 512
    assert (facts["method"], facts["method_options"]) == ("dense", {})
    assert "too few" in facts["why_dense"] and facts["gain"] == facts["density"] == 1.0
    assert "a step cache may still help" in cli("plan", "--model", "flux", "--device", "cuda").out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model", "sana"], "self-attention is linear"),
        (["--model", "helios"], "no sizes of a checkpoint"),
        (["--height", "730"], "use 720 or 736"),
        (["--model", "flux", "--frames", "5"], "flux generates images"),
        (["--model", "hunyan-video"], "did you mean hunyuan-video"),
        (["--model", "minimax-h3", "--frames", "121"], "17n + 124: use 124"),
        (["--model", "minimax-h3", "--frames", "130"], "17n + 124: use 124 or 141"),
        (["--model", "minimax-h3", "--frames", "379"], "up to 362: use 362"),
        (["--sparsity", "80"], "did you mean 0.8"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--device", "tpu"], "known: auto, cpu, cuda, cuda:1"),
    ],
)
def test_what_cannot_be_planned_is_one_line(cli, flags, says):
    done = cli("plan", *flags)
    assert done.code == 2 and says in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.layers is not None], ids=lambda f: f.name)
def test_default_sizes_of_a_record_fit_its_own_checkpoint(family):
    grid = grid_of(family, frames=family.frames, height=family.height, width=family.width)
    assert grid.text == family.text_tokens and (grid.frames == 1) == (family.draws == "image")


# Tokens at the default size, counted by hand from each pipeline's defaults and its VAE's strides.
@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("wan", 32_760),
        ("hunyuan-video", 118_800),
        ("hunyuan-video-1.5", 49_290),
        ("cogvideox", 17_550),
        ("ltx", 7_392),
        ("ltx-2", 6_144),
        ("mochi", 44_520),
        ("allegro", 79_200),
        ("kandinsky-5", 47_616),
        ("skyreels-v2", 51_000),
        ("minimax-h3", 37_296),
    ],
)
def test_default_sizes_come_to_the_tokens_that_are_known(name, video):
    family = next(f for f in FAMILIES if f.name == name)
    assert grid_of(family, frames=family.frames, height=family.height, width=family.width).video == video


def test_the_estimate_counts_what_a_matrix_product_counts():
    grid, config = TokenGrid(4, 8, 8), Config(method="svg", sparsity=0.5, dense_steps=0, dense_layers=0)
    width = 64
    with FlopCounterMode(display=False) as counter:
        x = torch.randn(256, width)
        for _ in range(4):  # queries, keys, values, output
            x @ torch.randn(width, width)
        x @ torch.randn(width, 4 * width) @ torch.randn(4 * width, width)
        (x @ x.T) @ x
    attention = 2 * 2 * 256 * 256 * width
    found = estimate(grid, config, steps=10, layers=2, width=width, cross_attention=False, block_size=64)
    assert found.attention_share == pytest.approx(attention / counter.get_total_flops())
    assert found.density == 0.5 and found.blocks == 4
    assert found.gain == pytest.approx(1 / (1 - 0.5 * found.attention_share))


def test_several_gpus_are_planned_from_a_measured_call_and_said_to_be_an_estimate(cli):
    facts = plan(cli, "--model", "wan", "--gpus", "64")
    assert facts["estimate"] is True and facts["card"] == "NVIDIA H200" and facts["tokens"] == 75_600
    assert [row["gpus"] for row in facts["rows"]] == [1, 2, 4, 8, 16, 32, 64]
    assert facts["rows"][0]["speedup"] == 1 and facts["rows"][0]["exchange_seconds"] == 0
    assert facts["bandwidth_gb_s"] == {"inside": 300, "between": 50} and facts["gpus_a_machine"] == 8
    human = cli("plan", "--model", "wan", "--gpus", "64").out
    assert "An estimate from one NVIDIA H200, not measured on several" in human and "It pays to " in human
    assert max(map(len, human.splitlines())) <= 80


@pytest.mark.parametrize("model", ["wan", "hunyuan-video", "cogvideox", "ltx", "flux", "qwen-image"])
def test_every_family_that_was_measured_is_split_at_its_real_shape(cli, model):
    facts = plan(cli, "--model", model, "--gpus", "8")
    assert facts["tokens"] == facts["measured_tokens"] and len(facts["rows"]) == 4
    assert max(map(len, cli("plan", "--model", model, "--gpus", "64").out.splitlines())) <= 80


def test_machines_and_bandwidths_change_the_exchange_alone(cli):
    near = plan(cli, "--gpus", "16", "--nodes", "1", "--bandwidth", "400")
    far = plan(cli, "--gpus", "16", "--nodes", "4", "--bandwidth", "400,25")
    assert (near["gpus_a_machine"], far["gpus_a_machine"]) == (16, 4)
    assert near["bandwidth_gb_s"] == {"inside": 400, "between": 400}
    assert far["rows"][-1]["step_seconds"] > near["rows"][-1]["step_seconds"]
    assert near["rows"][0] == far["rows"][0]


def test_a_dense_call_and_another_size_are_split_too(cli):
    dense, sparse = plan(cli, "--gpus", "2", "--method", "dense"), plan(cli, "--gpus", "2")
    assert dense["call_seconds"] > 2 * sparse["call_seconds"] and dense["method"] == "dense"
    small = plan(cli, "--gpus", "2", "--height", "480", "--width", "832")
    assert small["tokens"] == 32_760 and small["call_seconds"] < sparse["call_seconds"] * 32_760 / 75_600
    assert "scaled from 75,600 tokens" in " ".join(
        cli("plan", "--gpus", "2", "--height", "480", "--width", "832").out.split()
    )
    assert "not of draft" in cli("plan", "--gpus", "2", "--method", "draft").out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--gpus", "0"], "--gpus must be from 1 to 64, got 0"),
        (["--gpus", "65"], "--gpus must be from 1 to 64, got 65"),
        (["--gpus", "8", "--nodes", "3"], "--nodes must be machines that share --gpus 8 evenly, got 3"),
        (["--gpus", "8", "--bandwidth", "fast"], "--bandwidth must be GB/s"),
        (["--gpus", "8", "--bandwidth", "0"], "--bandwidth must be GB/s"),
        (["--nodes", "2"], "--nodes is for several GPUs: give --gpus too"),
        (["--bandwidth", "300"], "--bandwidth is for several GPUs: give --gpus too"),
        (["--gpus", "8", "--model", "mochi"], "no call of mochi was measured"),
        (["--gpus", "8", "--height", "730"], "use 720 or 736"),
        (["--gpus", "8", "--model", "cogvideox", "--height", "480"], "known at 81 x 768 x 1360 alone"),
    ],
)
def test_what_cannot_be_split_is_one_line(cli, flags, says):
    done = cli("plan", *flags)
    assert done.code == 2 and says in done.err and done.err.count("\n") == 1
