"""The folder of a report: one writer, whole files, nothing of a killed run left behind."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from dittools.report.folder import LOCK, Folder, InUse

HOLD = """
import sys, time, pathlib
from dittools.report.folder import Folder
with Folder(pathlib.Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(60)
"""


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
    (folder.path / LOCK).write_text(json.dumps({"pid": os.getppid()}))
    with folder.held() as before:
        assert before == os.getppid()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "null"])
def test_a_lock_file_that_says_nothing_does_not_matter(folder, text):
    folder.path.mkdir()
    (folder.path / LOCK).write_text(text)
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
    assert left == [LOCK, "cases", "cases/abc", "cases/abc/record.json"]


def test_a_case_is_there_only_when_it_is_whole(folder):
    with folder.held():
        with pytest.raises(OSError, match="full"), folder.new_case("abc") as part:
            (part / "record.json").write_text("{}")
            raise OSError(errno.ENOSPC, "full")
        assert not folder.done("abc") and list(folder.cases.iterdir()) == []
        with folder.new_case("abc") as part:
            (part / "record.json").write_text('{"a": 1}')
            assert not folder.done("abc")
        assert folder.done("abc") and folder.record("abc") == {"a": 1}
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
