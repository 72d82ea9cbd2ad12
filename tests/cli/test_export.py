"""`dittools export`, and `generate` from what it wrote: the same file to the bit, and what does not fit is refused."""

import json

import numpy as np
import pytest
import torch

import dittools
from dittools.cli.settings import read_config
from dittools.pipelines import loading
from tests.cli.test_bad_input import one_error
from tests.tiny import tiny_pipeline

SIZE = ("--frames", 17, "--height", 96, "--width", 112, "--steps", 4)
CACHED = ("--method", "svg2", "--sparsity", 0.6, "--cache", "easycache:threshold=9:warmup_steps=1", "--dense-steps", 1)


@pytest.fixture
def plans(cli, tiny_weights, tmp_path):
    """Plans of the tiny weights for 5 x 6 x 7 tokens and 4 steps; made once, then copied."""
    if not hasattr(plans, "made"):
        result = cli("export", "--weights", tiny_weights, *SIZE, *CACHED, "--output", "p.json", "--json")
        assert result.code == 0, result.err
        plans.made = result, {name: (tmp_path / name).read_bytes() for name in ("p.json", "p.safetensors")}
    for name, data in plans.made[1].items():
        (tmp_path / name).write_bytes(data)
    return plans.made[0]


def test_what_was_written_is_said_with_its_sizes(plans, tmp_path):
    record = plans.json
    assert record["output"] == "p.json" and record["files"].keys() == {"p.json", "p.safetensors"}
    assert record["plans"] == record["sparse_calls"] / 2 > 0 and record["method"] == "svg2"
    assert record["table_bytes"].keys() == {"masks", "clusters"} and all(record["table_bytes"].values())
    assert record["cache"] == {"name": "easycache", "reused_steps": [2]}
    made = json.loads((tmp_path / "p.json").read_text())["made"]
    assert made["weights"].endswith("tiny") and made["prompts"] and made["device"]["type"] == "cpu"
    assert f"{record['plans']} plans for" in plans.err and "kB (masks" in plans.err
    assert "cache easycache: 1 of 4 steps" in plans.err


def test_a_run_from_plans_is_the_exported_one_to_the_bit(cli, tiny_weights, plans, tmp_path):
    drawn = ("generate", "--weights", tiny_weights, *SIZE, "--json")
    assert cli(*drawn, *CACHED, "-o", "a.npy").code == 0
    result = cli(*drawn, "--plans", "p.json", "-o", "b.npy", "--compare-dense")
    assert result.code == 0, result.err
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert two["config"] == one["config"] | {"plans": "p.json", "block_size": 64, "correction": "none"}
    assert any(note.startswith("plans p.json, which method svg2 made with") for note in two["notes"])
    assert two["sparsity"] == one["sparsity"] and two["method"] == "svg2"
    assert [one["cache"][key] for key in ("name", "reused_steps")] == [
        two["cache"][key] for key in ("name", "reused_steps")
    ]
    assert result.json["quality"]["psnr"] > 10 and two["sparsity"]["asked"] == 0.6
    assert read_config("b.json").plans == "p.json"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--steps", 5), "plans p.json are for 4 steps, and this run has 5: use 4"),
        (("--height", 112), "plans p.json are for 5 x 6 x 7 tokens, and this run has 5 x 7 x 7"),
        (("--weights", "embedded"), "plans p.json are of WanTransformer3DModel"),
        (("--sparsity", 0.8), "--sparsity 0.8 was asked for, and plans p.json were decided with 0.6"),
        (("--block-size", 128), "--block_size 128 was asked for, and plans p.json were decided with 64"),
        (("--method", "draft"), "--method 'draft' was asked for, and plans p.json were decided with 'svg2'"),
        (("--cache", "none"), "--cache 'none' was asked for, and plans p.json were decided with 'easycache'"),
        (("--plans", "q.json"), "plans q.json cannot be read (No such file or directory)"),
        (("--plans", ""), "--plans is empty"),
        (("--output", "p.json/x.npy"), "--output"),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_loaded(cli, tiny_weights, plans, monkeypatch, flags, said):
    monkeypatch.setattr(loading, "load", lambda *args, **kwargs: pytest.fail("loaded"))
    given = ("--weights", tiny_weights, *SIZE, "--plans", "p.json", "--output", "o.npy", *flags)
    assert said in one_error(cli("generate", *given)).replace("block-size", "block_size")


def test_files_are_kept_apart_and_foreign_ones_are_not_replaced(cli, tiny_weights, plans, tmp_path):
    given = ("export", "--weights", tiny_weights, *SIZE)
    (tmp_path / "mine.json").write_text("{}")
    assert "is not plans of dittools export" in one_error(cli(*given, "--output", "mine.json"))
    assert "must end in .json: the tables of plans go into" in one_error(cli(*given, "--output", "p.bin"))
    assert "the file of --plans" in one_error(cli(*given, "--plans", "p.json", "--output", "p.json"))
    assert "decides nothing to export" in one_error(cli(*given, "--method", "dense", "--output", "n.json"))
    failed = cli(*given, "--method", "svg", "--dense-steps", "1.0", "--output", "n.json")
    assert failed.code == 1 and "the run decided nothing: every step is dense" in failed.err
    assert not (tmp_path / "n.json").exists()


def test_a_pipeline_exports_and_loads_in_python(tmp_path):
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    size = {"num_frames": 17, "height": 96, "width": 112, "num_inference_steps": 3, "output_type": "latent"}

    def draw():
        return pipe("a red circle", generator=torch.Generator().manual_seed(0), **size).frames

    with dittools.accelerate(pipe, method="svg", sparsity=0.6) as fast:
        with pytest.raises(ValueError, match=r"plans are a .json file"):
            fast.export(tmp_path / "plans")
        fast.keep_plans()
        one = draw()
        written = fast.export(tmp_path / "plans.json")
    with dittools.accelerate(pipe, plans=tmp_path / "plans.json") as again:
        assert torch.equal(draw(), one) and "this run decides nothing" in again.summary()
    assert written.calls == again.record()["calls"]["sparse"] > 0
    with pytest.raises(ValueError, match=r"sparsity 0.5 was asked for"):
        dittools.accelerate(pipe, sparsity=0.5, plans=tmp_path / "plans.json")
