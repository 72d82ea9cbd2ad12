"""A report of which a part is missing compares nothing on other prompts and seeds, and says what is not there."""

import dataclasses
import shutil

import pytest

from dittools.report import page, text
from dittools.report.coverage import common, notes
from dittools.report.folder import Folder
from dittools.report.plan import rows, settings
from dittools.report.results import gather
from dittools.report.tables import summary
from tests.report.test_page import write
from tests.report.test_plan import KNOWN, PLAN

A, B, C, D = ((prompt, seed) for prompt in (0, 1) for seed in (0, 1))
WEAK, STRONG, STEPS = "svg, sparsity 0.5", "svg, sparsity 0.8", "dense, 3 steps"


def without(folder, missing, plan=PLAN):
    """The report again, after some cases were removed: of each setting by name, those of these pairs."""
    for row in rows(plan, settings(plan, KNOWN)):
        if (row.prompt, row.seed) in missing.get(row.setting.name, ()):
            shutil.rmtree(folder.case(row.case.id), ignore_errors=True)
    return gather(folder)


@pytest.fixture
def folder(tmp_path):
    found = Folder(tmp_path / "report")
    write(found, PLAN)
    return found


def lines_of(results):
    return {line["setting"]: line for line in summary(results)}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], []),
        ([[]], []),
        ([[A, B], [A, B]], [A, B]),
        ([[A, B, C], [A, B, C], [A, B]], [A, B]),  # as many settings and pairs as in three on two
        ([[A, B, C, D], [A, B, C, D], [D]], [A, B, C, D]),  # one that nearly always failed does not take the rest along
        ([[A], [B], [B]], [B]),
        ([[A], [B]], [A]),
        ([[A, B], [B, C], []], [B]),
    ],
)
def test_settings_are_compared_on_as_many_pairs_as_many_have(found, expected):
    assert common(map(frozenset, found)) == frozenset(expected)


def test_a_whole_report_says_nothing_of_it(folder):
    results = gather(folder)
    assert results.whole and notes(results) == [] and "drawn" not in text.heads(text.columns(results))
    assert "2 prompts x 2 seeds" in text.subject(results) and "asked for" not in text.subject(results)
    assert any("over 4 pairs" in line for line in text.explained(results))
    assert {line["compared"] for line in summary(results)} == {4}


def test_an_interrupted_report_compares_what_all_settings_have(folder):
    before = lines_of(gather(folder))
    results = without(folder, {name: [D] for name in (STRONG, "dense, math kernel", STEPS)})
    assert sorted(results.pairs) == [A, B, C]
    found = lines_of(results)
    assert {line["compared"] for line in found.values()} == {3}
    assert (found[WEAK]["drawn"], found[STRONG]["drawn"]) == (4, 3)
    assert found[WEAK]["psnr"] == pytest.approx(35) and before[WEAK]["psnr"] == pytest.approx(34.5)
    said = " ".join(text.explained(results))
    assert "over 3 pairs of prompt and seed." in said
    assert "asked for 2 prompts x 2 seeds, compared over 3 of 4 pairs" in text.subject(results)
    assert "over the same 3 of 4 pairs" in text.headline(results)[-1]
    told = results.left_out()
    assert f"drawn for 3 of 4 pairs of prompt and seed: {STRONG}; dense, math kernel; {STEPS}" in told
    for made in (page.markdown(results), page.page(results, {})):
        assert "3 of 4" in made and "4 of 4" in made


def test_a_setting_that_mostly_failed_is_neither_fastest_nor_on_the_front(folder):
    weak = {row.case.id: row for row in rows(PLAN, settings(PLAN, KNOWN)) if row.setting.name == WEAK}
    for case_id, row in weak.items():
        if (row.prompt, row.seed) != A:
            scores = {"scores": {"psnr": {"mean": 25.0, "per_frame": [25.0]}}, "left_out": {}}
            folder.write_scores(case_id, row.reference.id, scores)
    results = without(folder, {STRONG: [B, C, D]})
    found = lines_of(results)
    assert found[STRONG]["psnr"] > found[WEAK]["psnr"], "over the one pair that is easy"
    assert (found[STRONG]["pareto"], found[WEAK]["pareto"]) == (False, True)
    assert found[STRONG]["compared"] == 0 and found[WEAK]["compared"] == 4
    assert WEAK in text.headline(results)[0] and not any(STRONG in line for line in text.headline(results))
    assert f"not compared, for want of the pairs that the others have: {STRONG}" in results.left_out()
    assert any("those they were drawn on" in line for line in text.explained(results))
    assert f"{STRONG}: 2.00x" not in page.page(results, {})


def test_dense_with_fewer_steps_gives_no_verdict_on_other_pairs(folder):
    assert any("In about that time dense makes 3 of 4 steps" in line for line in text.headline(gather(folder)))
    said = text.headline(without(folder, {STEPS: [B, C, D]}))
    assert not any("In about that time" in text for text in said)
    assert any(f"is not known: {STEPS} was not drawn" in text for text in said)


def test_cases_that_were_drawn_and_not_measured_are_not_compared_by_psnr(folder):
    for row in rows(PLAN, settings(PLAN, KNOWN)):
        if row.setting.name == STRONG and (row.prompt, row.seed) != A:
            (folder.case(row.case.id) / f"against-{row.reference.id}.json").unlink()
    results = gather(folder)
    assert lines_of(results)[STRONG]["compared"] == 0
    assert f"measured for 1 of 4 pairs of prompt and seed: {STRONG}" in results.left_out()


def test_prompts_and_seeds_of_which_there_is_nothing_are_named(folder):
    every = [s.name for s in settings(PLAN, KNOWN) if s.kind != "seed"]  # that one's cases are dense ones of others
    results = without(folder, {name: [B, C, D] for name in every})
    assert results.drawn == [A] and sorted(results.pairs) == [A]
    assert notes(results)[0] == "nothing was drawn of prompt 1, seed 1; prompt 2"
    assert notes(results, joined=True)[0].startswith("no part drew prompt 1, seed 1; prompt 2: ")
    assert "There is one pair of prompt and seed" in " ".join(text.explained(results))
    assert "2 are shown" not in page.page(results, {})


def test_times_that_are_fewer_than_asked_for_are_not_claimed(tmp_path):
    folder = Folder(tmp_path / "report")
    results = write(folder, dataclasses.replace(PLAN, repeats=3))
    assert "timed 1 of 3 times" in text.subject(results)
    assert any("not every case was timed 3 times" in text for text in results.left_out())


def test_the_equal_time_baseline_that_was_never_decided_is_named(tmp_path):
    results = write(Folder(tmp_path / "report"), PLAN, KNOWN._replace(fewer_steps=None))
    assert any("the equal-time baseline was not drawn" in text for text in results.left_out())
