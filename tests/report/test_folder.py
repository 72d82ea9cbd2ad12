"""The folder of a report: one writer, whole files, nothing of a killed run left behind."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from dittools.report.folder import LOCK, WRITER, Folder, InUse, Unreadable

HOLD = """
import sys, time, pathlib
from dittools.report.folder import Folder
with Folder(pathlib.Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(60)
"""

RECORD = {
    "seconds": {"text": 1, "denoise": 2.5, "decode": 1.0},
    "sparsity": {"sparse_calls": None, "overall": 0.0},
    "method": "svg",
    "case": {"skipped": []},
}


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "report")


@pytest.fixture
def holder(folder):
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder.path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_two_writers_are_refused_with_the_first_ones_number(folder, holder):
    with pytest.raises(InUse, match=f"in use by process {holder.pid}"), folder.held():
        pass


def test_the_lock_of_a_killed_writer_is_free_and_named(folder, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with folder.held() as before:
        assert before == holder.pid
    with folder.held() as before:
        assert before is None


def test_a_number_that_another_process_has_now_holds_no_lock(folder):
    folder.path.mkdir()
    (folder.path / WRITER).write_text(json.dumps({"pid": os.getppid()}))
    with folder.held() as before:
        assert before == os.getppid()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "null"])
def test_a_writers_file_that_says_nothing_does_not_matter(folder, text):
    folder.path.mkdir()
    (folder.path / WRITER).write_text(text)
    with folder.held() as before:
        assert before is None


def test_what_a_killed_run_left_unfinished_goes(folder):
    (folder.cases / "abc").mkdir(parents=True)
    (folder.cases / ".def.17.part").mkdir()
    (folder.cases / ".def.17.part" / "frames.mkv").write_bytes(b"half")
    (folder.path / ".manifest.17.part.json").write_text("{")
    (folder.cases / "abc" / ".record.17.part.json").write_text("{")
    (folder.cases / "abc" / "record.json").write_text("{}")
    with folder.held():
        left = sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob("*"))
    assert left == [LOCK, WRITER, "cases", "cases/abc", "cases/abc/record.json"]


def test_a_case_is_there_only_when_it_is_whole(folder):
    with folder.held():
        with pytest.raises(OSError, match="full"), folder.new_case("abc") as part:
            (part / "record.json").write_text("{}")
            raise OSError(errno.ENOSPC, "full")
        assert not folder.done("abc") and list(folder.cases.iterdir()) == []
        with folder.new_case("abc") as part:
            (part / "record.json").write_text(json.dumps(RECORD))
            assert not folder.done("abc")
        assert folder.done("abc") and folder.record("abc") == RECORD
        folder.write_repeat("abc", 2, {"b": 2})
        assert folder.done("abc", 2) and not folder.done("abc", 1)


def test_a_manifest_of_another_version_is_refused(folder):
    folder.path.mkdir()
    assert folder.manifest() is None
    (folder.path / "manifest.json").write_text('{"report": 99}')
    with pytest.raises(ValueError, match="99"):
        folder.manifest()
    (folder.path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        folder.manifest()


def test_baselines_of_a_report_that_was_begun_under_their_old_name_are_read(folder):
    known = {"dense_kernel": "flash", "other_kernel": None, "fewer_steps": 3, "notes": []}
    with folder.held():
        (folder.path / "yardsticks.json").write_text(json.dumps(known))
        assert folder.baselines() == known
        folder.write_baselines({**known, "fewer_steps": 4})
        assert folder.baselines()["fewer_steps"] == 4


def test_a_case_that_was_not_finished_makes_room_for_one_that_is(folder):
    (folder.case("abc")).mkdir(parents=True)
    (folder.case("abc") / "frames.mkv").write_bytes(b"half")
    with folder.held(), folder.new_case("abc") as part:
        (part / "record.json").write_text(json.dumps(RECORD))
    assert [path.name for path in folder.case("abc").iterdir()] == ["record.json"]


def test_a_folder_of_its_own_goes_again_where_nothing_was_written(folder):
    with pytest.raises(ValueError, match="no"), folder.held():
        raise ValueError("no")
    assert not folder.path.exists()
    folder.path.mkdir()
    with pytest.raises(ValueError, match="no"), folder.held():
        raise ValueError("no")
    assert folder.path.exists()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("manifest.json", "[]", "it is \\[\\]"),
        ("manifest.json", '{"report": 1}', "command is missing"),
        ("baselines.json", '{"a": 1}', "dense_kernel is missing"),
        ("baselines.json", "null", "it is null"),
        ("yardsticks.json", '{"a": 1}', "dense_kernel is missing"),
        ("failures.json", "[1]", "\\[0\\] is 1"),
        ("failures.json", "{}", "it is {}"),
        ("cases/abc/record.json", "{}", "seconds is missing"),
        ("cases/abc/record.json", '{"seconds": {"text": "1"}}', 'seconds.text is "1"'),
        ("cases/abc/repeat-1.json", '{"seconds": [1]}', "seconds is \\[1\\]"),
        ("cases/abc/against-def.json", '{"scores": {"psnr": 5}}', "scores.psnr is 5"),
        ("cases/abc/judge.json", "true", "it is true"),
    ],
)
def test_json_of_another_shape_is_named_with_what_is_wrong_and_what_to_do(folder, name, text, said):
    folder.case("abc").mkdir(parents=True)
    (folder.path / name).write_text(text)
    readers = (
        *(folder.manifest, folder.baselines, folder.failures),
        *(lambda: folder.record("abc"), lambda: folder.record("abc", 1)),
        *(lambda: folder.scores("abc", "def"), lambda: folder.judged("abc")),
    )
    with pytest.raises(Unreadable, match=f"{name} is damaged .*{said}.*: remove it"):
        for read in readers:
            read()
