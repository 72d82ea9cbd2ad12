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
        (["--device", "cpu"], "adaspa", {"rows": 8}, "adaspa (rows=8), which auto takes here"),
        (["--device", "cuda"], "adaspa", {}, "adaspa, which auto takes here"),
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
