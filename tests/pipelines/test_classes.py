"""Every pipeline class that diffusers has around the transformers of nine families, with dittools on."""

import pytest

from dittools.tools import pipelines_page
from tests.classes_tiny import ROWS, class_of, listed
from tests.classes_tiny.outcome import run


def test_every_class_that_diffusers_lists_has_a_row():
    assert {class_of(row) for row in ROWS} == set(listed())


def test_the_page_of_pipelines_is_of_the_classes_there_are():
    assert pipelines_page.problem() is None


@pytest.mark.parametrize("name", ROWS)
def test_a_pipeline_of_this_class_runs_sparse_and_is_restored(name):
    row = ROWS[name]()
    found = run(row)
    assert found.full_error < 1e-4, "all pairs kept is dense"
    assert found.restored
    calls = found.calls
    assert calls["dense"] + calls["sparse"] == found.forwards * row.attentions / row.runs > 0
    assert (calls["expected"] == calls["dense"] + calls["sparse"]) is not row.leaves_steps_out
    assert any("did not run" in note for note in found.notes) is row.leaves_steps_out
    reasons = {entry["reason"]: entry["count"] for entry in found.fallbacks}
    assert all(any(part in reason for part in row.dense) for reason in reasons), reasons
    assert all(any(part in reason for reason in reasons) for part in row.dense), reasons
    assert calls["dense"] == sum(reasons.values())
    if calls["sparse"]:
        assert found.change > 10 * found.full_error, "pairs are left out"
