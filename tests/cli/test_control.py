"""A speed-up is given only where the steps that both runs do alike took the same time in both."""

import torch

from dittools.cli.control import Control, StepTimes, control, shared_steps
from dittools.cli.record import quality_facts, summary_lines
from dittools.quality import Score


def ran(per_step, **cache):
    return {"sparsity": {"per_step": per_step}, "cache": {"reused_steps": [], **cache}}


def test_shared_steps_are_those_that_were_computed_whole_and_dense():
    assert shared_steps(ran([0.0, 0.0, 0.7, 0.8]), 4) == (0, 1)
    assert shared_steps(ran([0.0, None, 0.0, None], reused_steps=[1, 3]), 4) == (0, 2)
    lanes = {"cond": {"reused_steps": []}, "uncond": {"reused_steps": [1]}}
    assert shared_steps(ran([0.0, 0.0, 0.0], branches=lanes, attention_reused_steps=[2]), 3) == (0,)
    assert shared_steps(ran([0.5, 0.5]), 2) == ()
    assert shared_steps(ran([0.0, 0.0, 0.0]), 2) == ()  # two calls a step: which is which is not known


def test_a_tenth_may_lie_between_the_same_steps_and_no_more():
    for other, fine in ((11.0, True), (11.1, False), (9.1, True), (9.0, False), (0.0, False)):
        assert (Control("shared", (0, 1), 10.0, other).withheld is None) == fine, other


def test_the_control_is_of_its_own_steps_alone():
    found = control([1.0, 2.0, 9.0], [1.1, 2.0, 4.0], (0, 1), "shared")
    assert (found.dense_seconds, found.seconds) == (3.0, 3.1) and found.withheld is None
    assert control([1.0, 2.0, 9.0], [1.1, 2.0, 4.0], (2,), "shared").withheld is not None


def test_a_withheld_speed_up_is_told_with_its_reason_and_the_times_stay():
    score = Score(30.0, [30.0])
    facts = quality_facts(score, score, 28.0, 10.0, Control("shared", (0, 1, 2), 11.0, 3.4))
    assert (
        facts["speedup"] is None
        and "the 3 steps that both runs do dense took 11 s and 3.4 s" in (facts["speedup_withheld"])
    )
    record = {
        "seconds": {"denoise": 10.0, "total": 11.0},
        "sparsity": {"sparse_calls": 0.8, "overall": 0.1, "asked": 0.8},
        "calls": {"dense": 4, "sparse": 2, "reused": 6, "expected": 12},
        "run": {"frames": 5, "height": 48, "width": 64},
        "output": "a.mp4",
        "method": "svg",
        "method_options": {},
        "correction": "none",
        "cache": {"name": "sea", "computed_steps": [0], "reused_steps": [1]},
        "quality": facts,
        "fallbacks": [],
        "notes": [],
    }
    lines = "\n".join(summary_lines(record, "a.json"))
    assert "no speed-up is given: the 3 steps" in lines and "dense 28.0 s" in lines and "as fast (" not in lines
    assert "cache sea: 1 steps computed, 1 reused; 6 of 12 attention calls saved" in lines  # dense, sparse and reused
    again = quality_facts(score, score, 28.0, 10.0, Control("repeated", (0, 1), 1.0, 1.05))
    assert again["speedup"] == 2.8 and again["control"]["kind"] == "repeated" and again["speedup_withheld"] is None


def test_steps_are_timed_one_by_one_from_the_start_of_the_run():
    told, times = [], StepTimes(torch.device("cpu"))
    step = times.around(lambda done, of: told.append((done, of)))
    step(1, 2)
    step(2, 2)
    assert told == [(1, 2), (2, 2)] and len(times.seconds()) == 2 and min(times.seconds()) >= 0


def test_without_a_shared_step_the_dense_run_begins_again_to_judge_the_machine(generate):
    flags = ("--method", "draft", "--sparsity", 0.5, "--dense-steps", 0, "--frames", 17, "--height", 96, "--width", 112)
    quality = generate(*flags, "--compare-dense", "--output", "a.npy", "--json").json["quality"]
    assert (quality["control"]["kind"], quality["control"]["steps"]) == ("repeated", [0, 1])
    assert quality["control"]["dense_seconds"] > 0 and quality["control"]["seconds"] > 0
    assert (quality["speedup"] is None) == (quality["speedup_withheld"] is not None)
