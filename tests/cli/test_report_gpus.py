"""`dittools report --gpus N`: cases side by side, each in a process of its own, as on one device."""

import json
import threading
import time

import psutil
import pytest

from dittools.pipelines import reading
from tests.cli.test_report import without_times

BESIDE = ("--gpus", 2, "--device", "cpu")


def drawn(folder):
    """Records and frames of a report's cases, without times."""
    found = {}
    for case in sorted((folder / "cases").iterdir()):
        record = without_times(json.loads((case / "record.json").read_text()))
        found[case.name] = record, reading.read(case / "frames.mkv").frames.tobytes()
    return found


def workers():
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_side_by_side_is_what_one_after_the_other_is_and_goes_on_where_it_stopped(report, tmp_path):
    flags = ("--phase", "run", "--fewer-steps", 1)
    assert report(*flags, "--output", "one").code == 0
    begun = report(*flags, *BESIDE, "--output", "two")
    assert begun.code == 0 and begun.err.count("denoised in") == 5
    assert "2 cases at a time shared one CPU" in begun.err
    one, two = drawn(tmp_path / "one"), drawn(tmp_path / "two")
    assert one == two and len(one) == 5
    assert not any(".part" in path.name for path in (tmp_path / "two").rglob("*"))
    assert workers() == []
    plans = [json.loads((tmp_path / name / "manifest.json").read_text())["plan"] for name in ("one", "two")]
    assert plans[0] == plans[1]
    again = report(*flags, "--output", "two")
    assert again.code == 0 and "denoised in" not in again.err


def test_a_process_that_is_killed_costs_its_case_and_the_rest_go_on(report, tmp_path):
    killed = []

    def kill():
        while not killed:
            cases = tmp_path / "report" / "cases"
            if cases.is_dir() and any((case / "record.json").is_file() for case in cases.iterdir()):
                victim = workers()[0]
                victim.kill()
                killed.append(victim)
            time.sleep(0.01)

    threading.Thread(target=kill, daemon=True).start()
    result = report("--phase", "run", "--fewer-steps", 1, *BESIDE)
    assert killed and result.code == 1 and "was killed (SIGKILL)" in result.err
    failures = json.loads((tmp_path / "report" / "failures.json").read_text())
    assert len(failures) == 1 and len(drawn(tmp_path / "report")) == 4 and workers() == []
    assert report("--phase", "run", "--fewer-steps", 1).code == 0
    assert len(drawn(tmp_path / "report")) == 5
    assert json.loads((tmp_path / "report" / "failures.json").read_text()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpus", 0], "--gpus must be at least 1, got 0"),
        (["--gpus", 2, "--device", "cuda:0"], "--device cuda:0 names one GPU, and --gpus 2 takes more"),
        (["--gpus", 2], "--gpus 2 asked, and no GPU answers here"),
    ],
)
def test_what_cannot_be_is_refused(report, tmp_path, monkeypatch, arguments, says):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = report(*arguments)
    assert result.code == 2 and says in result.err and not (tmp_path / "report").exists()
