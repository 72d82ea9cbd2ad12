"""`dittools report` of parts, or of a run that was interrupted: exit code 0, and what is missing is said."""

import pytest

from dittools.pipelines import stages
from tests.cli.conftest import PROMPT


@pytest.fixture(autouse=True)
def prompts(report, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\na blue square spins\n")


def test_a_part_that_is_missing_from_a_join_is_named_and_not_counted(report, cli, tmp_path):
    part = report("--phase", "run", "--share", "1/2", "--output", "part1")
    assert part.code == 0 and "pairs of prompt and seed" not in part.err, "a part is not meant to be whole"
    result = cli("report", "--join", "part1", "--output", "joined")
    assert result.code == 0
    assert "no part drew prompt 2: give its part to --join as well" in result.err
    assert "drawn for 1 of 2 pairs of prompt and seed: dense; svg, sparsity 0.5;" in result.err
    written = (tmp_path / "joined" / "report.md").read_text()
    assert "asked for 2 prompts x 1 seed, compared over 1 of 2 pairs" in written
    assert "nothing was drawn of prompt 2" in written and "There is one pair" in written
    assert "2 pairs of prompt" not in written.replace("of 2 pairs of prompt", "")


def test_an_interrupted_report_that_is_measured_and_shown_says_so(report, cli, tmp_path, monkeypatch):
    denoise, drawn = stages.denoise, []

    def interrupt(pipe, embeds, shot, on_step=None, only_steps=None):
        if only_steps is None:
            drawn.append(shot)
            if len(drawn) > 6:
                raise KeyboardInterrupt
        return denoise(pipe, embeds, shot, on_step, only_steps)

    monkeypatch.setattr(stages, "denoise", interrupt)
    assert report("--phase", "run").code == 130
    assert cli("report", "--phase", "quality", "--output", "report").code == 0
    result = cli("report", "--phase", "render", "--output", "report")
    assert result.code == 0 and "drawn for 1 of 2 pairs" in result.err
    assert "compared over 1 of 2 pairs" in (tmp_path / "report" / "report.md").read_text()


def test_a_whole_report_ends_without_such_notes(report):
    result = report()
    assert result.code == 0 and "of 2 pairs" not in result.err
