"""The main job on the model that ships: the right thing is drawn with 80 % of its attention skipped."""

import json

import numpy as np
import pytest

from dittools.cli.main import main
from dittools.pipelines.embedded import vocabulary as voc
from dittools.training import judge


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One run with few steps: (record, frames)."""
    path = tmp_path_factory.mktemp("embedded") / "out.npy"
    prompt = "a large yellow circle moving left on a dark gradient background"
    asked = ["--weights", "embedded", "--sparsity", "0.8", "--steps", "8", "--prompt", prompt, "--seed", "1"]
    asked += ["--method", "svg"]  # whose heads say what they chose
    assert main(["generate", *asked, "--output", str(path)]) == 0
    return json.loads(path.with_suffix(".json").read_text()), np.load(path)


def test_the_prompt_is_drawn(made):
    thing = voc.Thing(voc.SHAPES.index("circle"), voc.COLOURS.index("yellow"), 2, 0, voc.MOTIONS.index("left"))
    verdict = judge.score(made[1], [thing])
    assert verdict["objects"] == [{"shape": True, "colour": True, "motion": True}]


def test_four_fifths_are_skipped_where_it_runs_sparse(made):
    record = made[0]
    assert record["method"] == "svg" and record["fallbacks"] == []
    assert abs(record["sparsity"]["sparse_calls"] - 0.8) <= 0.02
    assert record["calls"] == {"dense": 8 * 2 * 8 - 6 * 2 * 7, "sparse": 6 * 2 * 7, "reused": 0, "expected": 128}
    # Six heads choose in six steps; the second branch uses the plan of the first.
    assert all(sum(heads.values()) == 6 * 6 for heads in record["heads"][1:])


def test_the_record_says_what_it_ran_on(made):
    record, frames = made
    assert record["weights"] == "embedded"
    assert record["grid"] == {"frames": 9, "height": 16, "width": 16, "text": 0, "tokens": 2304}
    assert frames.shape == (33, 256, 256, 3)
