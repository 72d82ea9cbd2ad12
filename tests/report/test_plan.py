"""Which cases a report draws, and in which order."""

import dataclasses

import pytest

from dittools.config import Config
from dittools.report import schedule
from dittools.report.plan import Decided, Plan, case_of, equal_time_steps, read_sweeps, rows, settings, swept

PLAN = Plan(
    model="wan",
    weights="embedded",
    prompts=("a red circle", "a blue square"),
    negative_prompt="",
    seeds=(0, 1),
    base=Config().to_dict(),
    sweep={"method": ["svg"], "sparsity": [0.5, 0.8]},
    frames=17,
    height=96,
    width=112,
    steps=4,
    guidance=4.0,
    fps=16,
    dtype="float32",
    device="cpu",
)
KNOWN = Decided("flash", "math", 3)


def planned(**changes):
    return dataclasses.replace(PLAN, **changes)


def test_cases_are_the_product_of_the_sweeps_and_every_baseline():
    assert [setting.name for setting in settings(PLAN, KNOWN)] == [
        "dense",
        "svg, sparsity 0.5",
        "svg, sparsity 0.8",
        "dense, math kernel",
        "dense, another seed",
        "dense, 3 steps",
    ]
    assert len(rows(PLAN, settings(PLAN, KNOWN))) == 6 * 2 * 2


def test_a_plan_survives_json():
    assert Plan.from_dict(PLAN.to_dict()) == PLAN
    assert PLAN.difference(planned(seeds=(0, 2), steps=5)) == ["seeds", "steps"]


def test_an_id_says_what_is_drawn_and_nothing_of_the_prompt_is_in_it():
    ids = {row.case.id for row in rows(PLAN, settings(PLAN, KNOWN))}
    assert all(len(case_id) == 12 and int(case_id, 16) >= 0 for case_id in ids)
    other = planned(prompts=("../../etc/passwd", "a blue square"))
    assert case_of(other, settings(other, KNOWN)[0], 0, 0).id not in ids
    # the videos of another seed are there already when several seeds are asked for
    assert len(ids) == 5 * 2 * 2


def test_another_seed_is_the_next_one_asked_for_or_one_more():
    assert [PLAN.other_seed(seed) for seed in (0, 1)] == [1, 0]
    assert planned(seeds=(7,)).other_seed(7) == 8
    assert planned(seeds=(2**63 - 1,)).other_seed(2**63 - 1) == 2**63 - 2


def test_dense_is_not_drawn_twice_and_equal_settings_are_one():
    found, notes = swept(PLAN.base, {"method": ["dense", "svg"], "sparsity": [0.8, 0.8]}, 4)
    assert [setting.name for setting in found] == ["svg, sparsity 0.8"]
    assert len(notes) == 1 and "dense" in notes[0]


def test_an_option_goes_to_the_methods_that_have_it():
    found, _ = swept(PLAN.base, {"method": ["svg"], "probe_rows": [16, 32]}, 4)
    assert [setting.config["options"] for setting in found] == [{"probe_rows": 16}, {"probe_rows": 32}]
    assert found[0].name == "svg, sparsity 0.8, probe_rows 16"


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"sparsty": [0.5]}, "did you mean sparsity"),
        ({"method": ["svgg"]}, "did you mean svg"),
        ({"sparsity": [2]}, "below 1"),
        ({"cache": ["teacach"]}, "teacache"),
        ({"seed": [1]}, "seed"),
        ({"correction": ["centroid"]}, "did you mean centroids"),
        ({"correction": ["rettention"], "correction_evry": [4]}, "did you mean correction_every"),
        ({"correction_options": [1]}, "unknown setting to sweep"),
    ],
)
def test_an_impossible_sweep_is_refused_by_name(sweep, said):
    with pytest.raises(ValueError, match=said):
        swept(PLAN.base, sweep, 4)


def test_corrections_are_swept_each_with_its_options_alone_and_only_where_blocks_are_skipped():
    base = Config(cache="easycache", correction="rettention", correction_options={"every": 4}).to_dict()
    sweep = {
        "method": ["dense", "svg", "todo"],
        "correction": ["none", "centroids", "rettention"],
        "correction_ramp": [0.1],
    }
    found, _ = swept(base, sweep, 4)
    assert [(s.name, s.config["correction_options"]) for s in found] == [
        ("dense, easycache", {}),
        ("svg, sparsity 0.8, easycache", {}),
        ("svg, sparsity 0.8, easycache, centroids", {}),
        ("svg, sparsity 0.8, easycache, rettention every 4 ramp 0.1", {"every": 4, "ramp": 0.1}),
        ("todo, sparsity 0.8, easycache", {}),
    ]


def test_a_swept_profile_goes_only_to_methods_that_take_one():
    found, _ = swept(Config().to_dict(), {"method": ["svg2", "paro"], "profile": ["folder/a.json"]}, 4)
    assert [(s.name, s.config["profile"]) for s in found] == [
        ("svg2, sparsity 0.8", None),
        ("paro, sparsity 0.8, profile a.json", "folder/a.json"),
    ]


def test_sweeps_are_read_as_numbers_where_they_are():
    assert read_sweeps(["sparsity=0.5,0.8", "method=svg", "dense-steps=1", "sparsity=0.9"]) == {
        "sparsity": [0.5, 0.8, 0.9],
        "method": ["svg"],
        "dense_steps": [1],
    }
    for text in ("sparsity", "=1", "sparsity=", "sparsity=0.5,,1"):
        with pytest.raises(ValueError, match="--sweep must be"):
            read_sweeps([text])


@pytest.mark.parametrize(
    ("steps", "dense", "fastest", "expected"),
    [(16, 8.0, 4.0, 8), (16, 8.0, 0.1, 1), (16, 8.0, 9.0, 15), (1, 8.0, 4.0, None), (2, 1.0, 1.0, 1)],
)
def test_equal_time_is_a_whole_number_of_steps_below_the_full_run(steps, dense, fastest, expected):
    assert equal_time_steps(steps, dense, fastest) == expected


def test_settings_take_turns_and_every_other_group_runs_backwards():
    drawn = list(schedule.units(planned(seeds=(5,)), lambda: KNOWN))
    names = [unit.case.setting.key for unit in drawn]
    assert names[:6] == ["dense", "sweep-1", "sweep-2", "kernel", "seed", "steps"]
    assert names[6:] == ["steps", "seed", "kernel", "sweep-2", "sweep-1", "dense"]
    assert [unit.case.prompt for unit in drawn] == [0] * 6 + [1] * 6


def test_repeats_come_after_everything_was_drawn_once():
    drawn = list(schedule.units(planned(repeats=3), lambda: KNOWN))
    assert [unit.repeat for unit in drawn] == sorted(unit.repeat for unit in drawn)
    assert len({(unit.case.id, unit.repeat) for unit in drawn}) == len(drawn) == 3 * 20
    assert schedule.count(planned(repeats=3), Decided("flash", "math")) == 60


def test_a_baseline_that_is_decided_late_catches_up():
    told = []

    def decided():
        return KNOWN if len(told) > 14 else Decided("flash", "math")

    for unit in schedule.units(PLAN, decided):
        told.append((unit.case.setting.key, unit.case.prompt, unit.case.seed))
    assert sum(key == "steps" for key, *_ in told) == 4
    assert len(told) == len(set(told)) == 20


def test_the_estimate_is_what_was_seen_times_what_is_left():
    estimate = schedule.Estimate(5)
    drawn = list(schedule.units(PLAN, lambda: KNOWN))
    assert estimate.seconds() is None
    estimate.done(drawn[0], 10)
    estimate.done(drawn[1], 20)
    estimate.done(drawn[2], None)
    assert estimate.seconds() == 30
    assert [schedule.spoken(s) for s in (0.2, 40, 400, 7500)] == ["1 s", "40 s", "7 min", "2 h 5 min"]


def test_settings_of_dense_that_differ_in_nothing_it_does_are_one():
    sweep = {
        **{"method": ["dense", "svg"], "cache": ["easycache"], "cache_threshold": [0.05, 0.1]},
        **{"sparsity": [0.5, 0.8], "refresh": [1, 2], "probe_rows": [16]},
    }
    found, _ = swept(PLAN.base, sweep, 4)
    assert [s.name for s in found if s.config["method"] == "dense"] == [
        *("dense, easycache threshold 0.05", "dense, easycache threshold 0.1"),
    ]
    assert len(found) == 2 + 8 and len({s.name for s in found}) == len({s.key for s in found}) == 10


def test_a_swept_name_may_carry_its_options():
    base = Config(method="svg", sparsity=0.8).to_dict()
    sweep = {"method": ["SVG2:iterations=3", "svg2:iterations=4"], "correction": ["none", "rettention:every=4"]}
    found, _ = swept(base, sweep, 4)
    assert [setting.name for setting in found][:2] == [
        "svg2 iterations 3, sparsity 0.8", "svg2 iterations 3, sparsity 0.8, rettention every 4",
    ]  # fmt: skip
    assert [setting.config["options"]["iterations"] for setting in found] == [3, 3, 4, 4]
    assert [setting.config["correction_options"] for setting in found] == [{}, {"every": 4}] * 2


def test_a_cache_option_is_swept_by_its_old_name_too():
    found, _ = swept(Config(method="svg", cache="sea").to_dict(), {"cache_max_skips": [1, 2]}, 4)
    assert [setting.config["cache_options"] for setting in found] == [{"max_consecutive_skips": k} for k in (1, 2)]


@pytest.mark.parametrize(("strength", "fewest", "steps"), [(None, 1, 3), (1, 1, 3), (0.3, 4, 4), (0.2, 5, 5)])
def test_fewer_steps_are_no_fewer_than_a_strength_leaves(strength, fewest, steps):
    inputs = {} if strength is None else {"strength": strength}
    plan = dataclasses.replace(PLAN, task={"inputs": inputs})
    assert plan.fewest_steps == fewest
    assert equal_time_steps(10, 10.0, 3.0, plan.fewest_steps) == steps
    assert equal_time_steps(fewest, 10.0, 3.0, plan.fewest_steps) is None
