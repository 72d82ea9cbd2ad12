"""Full disks, no memory, interrupts: one line, the right exit code, and nothing half-written."""

import errno
import io
import os
import signal
import subprocess
import sys

import pytest
import torch

from dittools.cli.output import Output
from dittools.cli.streams import heard
from dittools.pipelines import saving, stages


@pytest.fixture(autouse=True)
def interruptible():
    """Shells start what runs in the background with interrupts ignored, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", ["out.npy", "out.gif", "frames/"])
def test_a_disk_that_fills_up_while_saving_leaves_no_file(generate, tmp_path, monkeypatch, name):
    def fill(frames, path, kind, fps):
        if kind == "folder":
            path.mkdir()
            path /= "00000.png"
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(saving, "write", fill)
    result = generate("--output", name)
    assert result.code == 1 and result.out == ""
    assert "error: the disk is full" in result.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_for_the_record_leaves_no_video_either(generate, tmp_path, monkeypatch):
    def fill(self, text, encoding=None):
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.write_text", fill)
    assert generate("--output", "out.npy").code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError()]
)
def test_running_out_of_memory_says_what_to_lower(generate, tmp_path, monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(stages, "denoise", fail)
    result = generate()
    last = result.err.splitlines()[-1]
    assert result.code == 1
    assert "out of memory while denoising at 5 x 48 x 64" in last and "--frames" in last and "--offload" in last
    assert list(tmp_path.iterdir()) == []


def test_an_unforeseen_error_is_one_line_too(generate, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(stages, "decode", fail)
    result = generate()
    assert result.code == 1 and "Traceback" not in result.err
    assert "decoding frames failed (RuntimeError: first line): --debug shows where" in result.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_frames_that_are_no_numbers_are_not_saved(generate, tmp_path, monkeypatch):
    denoise = stages.denoise
    monkeypatch.setattr(stages, "denoise", lambda *given: denoise(*given) * float("nan"))
    result = generate()
    assert result.code == 1 and "--dtype fp32" in result.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["denoise", "write"])
def test_ctrl_c_exits_130_and_leaves_nothing(generate, tmp_path, monkeypatch, stage):
    def interrupt(*arguments):
        if stage == "write":
            arguments[1].write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(*((stages, "denoise") if stage == "denoise" else (saving, "write")), interrupt)
    result = generate()
    assert result.code == 130 and result.out == ""
    assert result.err.splitlines()[-1].startswith("interrupted")
    assert list(tmp_path.iterdir()) == []


def test_a_polite_kill_is_said_in_one_line_and_leaves_nothing(generate, tmp_path, monkeypatch):
    def killed(frames, path, kind, fps):
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(saving, "write", killed)
    result = generate()
    assert result.code == 143 and result.out == ""
    assert result.err.splitlines()[-1] == "told to end (SIGTERM): nothing half-written was left behind"
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_that_a_library_turns_into_another_error_is_an_interrupt(generate, tmp_path, monkeypatch):
    def swallow(*arguments):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    monkeypatch.setattr(stages, "denoise", swallow)
    result = generate()
    assert result.code == 130 and "ImportError" not in result.err
    assert result.err.splitlines()[-1].startswith("interrupted: ")


SIGNAL_AT = """
import os, signal, sys

class At:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "{module}":
            sys.meta_path.remove(At)
            os.kill(os.getpid(), signal.{signal})

sys.meta_path.insert(0, At)
from dittools.cli.main import main
sys.exit(main())
"""


def started(code, *arguments, shell='"$@"', cwd=None):
    """A finished child process; ``shell`` says where its streams go."""
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("module", "number", "code"),
    [
        ("threading", "SIGINT", 130),
        ("typer", "SIGINT", 130),
        ("dittools.cli.generate", "SIGINT", 130),
        ("dittools.cli.flag_checks", "SIGINT", 130),
        ("torch", "SIGINT", 130),
        ("dittools.cli.report", "SIGTERM", 143),
    ],
)
def test_a_signal_while_modules_are_imported_is_one_line(tmp_path, module, number, code):
    script = SIGNAL_AT.format(module=module, signal=number)
    done = started(script, "env" if module == "torch" else "generate", cwd=tmp_path)
    assert done.returncode == code and done.stdout == ""
    assert len(done.stderr.splitlines()) <= 1 and "Traceback" not in done.stderr


RUN = "import sys; from dittools.cli.main import main; sys.exit(main())"


@pytest.mark.parametrize(
    ("where", "code", "told"),
    [
        (">&-", 1, "error: the result could not be written to stdout (it is closed)"),
        ("2>&-", 0, ""),
        ("2>&- >/dev/full", 1, ""),
        (">/dev/full", 1, "error: the result could not be written to stdout (No space left on device)"),
        ("2>/dev/full", 0, ""),
        ("--sparsity most 2>/dev/full", 2, ""),
        ("<&- >&- 2>&-", 1, ""),
    ],
)
def test_a_stream_that_is_closed_or_full_says_so_in_one_line_at_most(where, code, told):
    if "/dev/full" in where and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    verb = "generate" if "--sparsity" in where else "models"
    done = started(RUN, verb, shell=f'"$@" {where}')
    assert done.returncode == code
    assert done.stderr.startswith(told) and len(done.stderr.splitlines()) <= 1
    assert ("MODEL" in done.stdout) == (code == 0)


def test_a_video_is_drawn_whoever_listens(generate, tmp_path, monkeypatch):
    """Progress and notes that nobody can read stop nothing; nor does a result, but for the exit code."""

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "stderr", Full())
    monkeypatch.setattr(sys, "stdout", Full())
    assert generate("-o", "a.npy", "--json").code == 1
    assert {path.name for path in tmp_path.iterdir()} == {"a.npy", "a.json"}


def test_letters_that_stdout_does_not_have_are_escaped(monkeypatch):
    for as_json, shown in ((False, "caf\\xe9\n"), (True, '{\n  "a": "caf\\u00e9"\n}\n')):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
        with heard():
            Output(as_json).data({"a": "caf\xe9"}, lambda: "caf\xe9")
        assert raw.getvalue().decode() == shown
