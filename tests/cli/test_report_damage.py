"""A report whose files were removed or damaged: what its own command makes again, and what the user is told."""

import json
import shutil

import pytest

from dittools.cli.main import main
from dittools.pipelines import stages
from tests.cli.conftest import PROMPT, SMALL
from tests.cli.test_bad_input import one_error
from tests.cli.test_report import tree


@pytest.fixture(scope="module")
def flags(tmp_path_factory, tiny_weights):
    """All of the report's command but its phase and folder."""
    prompts = tmp_path_factory.mktemp("damage") / "prompts.txt"
    prompts.write_text(PROMPT)
    found = ["report", "--weights", tiny_weights, *SMALL, "--prompts", prompts]
    return [str(flag) for flag in (*found, "--sweep", "sparsity=0.5", "--method", "svg", "--repeats", 2)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, flags):
    """A report that was drawn and not measured; its folder."""
    folder = tmp_path_factory.mktemp("drawn") / "report"
    assert main([*flags, "--output", str(folder), "--phase", "run"]) == 0
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, drawn):
    """The same, measured and shown."""
    folder = tmp_path_factory.mktemp("whole") / "report"
    shutil.copytree(drawn, folder)
    for phase in ("quality", "render"):
        assert main(["report", "--output", str(folder), "--phase", phase]) == 0
    return folder


@pytest.fixture
def copy(tmp_path):
    """A report to damage, and what it was."""

    def copied(folder):
        shutil.copytree(folder, tmp_path / "report")
        return tmp_path / "report"

    return copied


@pytest.fixture
def count(monkeypatch):
    """Whole runs that were drawn, warm-ups apart."""
    found, denoise = [], stages.denoise

    def counted(pipe, embeds, shot, on_step=None, only_steps=None):
        found.extend([shot] if only_steps is None else [])
        return denoise(pipe, embeds, shot, on_step, only_steps)

    monkeypatch.setattr(stages, "denoise", counted)
    return found


def case_of(folder, setting):
    """The folder of a setting's one case."""
    lines = (folder / "quality.csv").read_text().splitlines()
    head = lines[0].split(",")
    name = f'"{setting}"' if "," in setting else setting
    line = next(line for line in lines if line.startswith(f"{name},"))
    return folder / "cases" / line.removeprefix(f"{name},").split(",")[head.index("case") - 1]


def test_a_case_without_its_record_is_drawn_again(cli, copy, whole, flags, count):
    folder = copy(whole)
    (case_of(folder, "svg, sparsity 0.5") / "record.json").write_text("{")
    line = one_error(cli(*flags, "--output", folder))
    assert "record.json is damaged" in line and "remove it" in line
    (case_of(folder, "svg, sparsity 0.5") / "record.json").unlink()
    result = cli(*flags, "--output", folder)
    assert result.code == 0 and "is not whole (record.json not there): made again" in result.err
    assert len(count) == 2, "once, and timed once more"
    assert tree(folder) == tree(whole)


def test_a_report_without_its_manifest_gets_it_again(cli, copy, whole, flags, count):
    folder = copy(whole)
    (folder / "manifest.json").write_text("[]")
    for command in ([*flags, "--output", folder], ["report", "--phase", "render", "--output", folder]):
        line = one_error(cli(*command))
        assert "manifest.json is damaged (it is [])" in line and "remove it" in line
    (folder / "manifest.json").unlink()
    line = one_error(cli("report", "--phase", "render", "--output", folder))
    assert "lost its manifest.json" in line and "own command" in line
    result = cli(*flags, "--output", folder)
    assert result.code == 0 and "manifest.json was gone and was made again" in result.err and count == []
    again, before = tree(folder), tree(whole)
    assert any("was made again" in note for note in again["manifest.json"].pop("notes"))
    before["manifest.json"].pop("notes")
    assert again == before


@pytest.mark.parametrize("name", ["baselines.json", "failures.json"])
def test_other_files_of_another_shape_are_named_and_made_again_when_removed(cli, copy, whole, flags, count, name):
    folder = copy(whole)
    (folder / name).write_text('{"a": 1}')
    line = one_error(cli(*flags, "--output", folder))
    assert f"{name} is damaged" in line and "remove it" in line
    (folder / name).unlink()
    assert cli(*flags, "--output", folder).code == 0 and count == []
    if name == "baselines.json":
        assert tree(folder) == tree(whole)


@pytest.mark.parametrize("empty", [False, True])
def test_frames_that_are_still_to_be_measured_are_drawn_again(cli, copy, drawn, whole, flags, count, empty):
    folder = copy(drawn)
    for setting in ("dense", "svg, sparsity 0.5"):
        frames = folder / "cases" / case_of(whole, setting).name / "frames.mkv"
        frames.write_bytes(b"") if empty else frames.unlink()
    result = cli(*flags, "--output", folder)
    assert result.code == 0 and result.err.count("is not whole (its frames not there): made again") == 2
    assert len(count) == 4 and tree(folder) == tree(whole)


def test_the_frames_of_dense_are_drawn_again_where_others_are_to_be_compared_with_it(cli, copy, whole, flags, count):
    folder = copy(whole)
    (case_of(folder, "dense") / "frames.mkv").unlink()
    next(case_of(folder, "svg, sparsity 0.5").glob("against-*.json")).unlink()
    assert cli(*flags, "--output", folder).code == 0
    assert len(count) == 2 and tree(folder) == tree(whole)


def test_frames_may_go_once_they_are_measured(cli, copy, whole, flags, count, tmp_path):
    folder = copy(whole)
    for frames in folder.glob("cases/*/frames.mkv"):
        frames.unlink()
    before = tree(folder)
    assert cli(*flags, "--output", folder).code == 0 and count == []
    assert tree(folder) == before
    assert cli("report", "--join", folder, "--output", tmp_path / "joined").code == 0
    assert tree(tmp_path / "joined").keys() == before.keys()


def test_truncated_frames_are_told_of_with_the_folder_to_remove(cli, copy, drawn, whole, flags, count):
    folder = copy(drawn)
    case = folder / "cases" / case_of(whole, "svg, sparsity 0.5").name
    for share in (0.6, 0.001):
        data = (case / "frames.mkv").read_bytes()
        (case / "frames.mkv").write_bytes(data[: int(len(data) * share)])
        result = cli(*flags, "--output", folder)
        assert result.code == 1 and "1 of the cases failed" in result.err.splitlines()[-1]
        failure = json.loads((folder / "failures.json").read_text())[0]
        assert failure["phase"] == "quality" and f"remove {case}, and" in failure["error"]
    shutil.rmtree(case)
    assert cli(*flags, "--output", folder).code == 0
    assert len(count) == 2 and tree(folder) == tree(whole)


def test_a_case_that_failed_is_counted_once(cli, flags, tmp_path, monkeypatch):
    denoise = stages.denoise

    def fail(pipe, embeds, shot, on_step=None, only_steps=None):
        if only_steps is None and shot.seed == 1:
            raise RuntimeError("no")
        return denoise(pipe, embeds, shot, on_step, only_steps)

    monkeypatch.setattr(stages, "denoise", fail)
    result = cli(*flags, "--output", "report")
    assert result.code == 1 and "1 of the cases failed" in result.err.splitlines()[-1]
    assert len(json.loads((tmp_path / "report" / "failures.json").read_text())) == 1


def test_a_part_that_does_not_join_leaves_no_folder(cli, drawn, tmp_path):
    line = one_error(cli("report", "--join", drawn, "typo", "--output", "joined"))
    assert "--join typo" in line and not (tmp_path / "joined").exists()


def test_a_damaged_record_in_a_part_is_named_there(cli, copy, drawn, tmp_path):
    folder = copy(drawn)
    record = next(folder.glob("cases/*/record.json"))
    before = record.read_text()
    record.write_text("{}")
    assert f"{record} is damaged" in one_error(cli("report", "--join", folder, "--output", "joined"))
    record.write_text(before)
    assert cli("report", "--join", folder, "--output", "joined").code == 0
