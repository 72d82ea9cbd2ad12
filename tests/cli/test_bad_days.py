"""Full disks, no memory, interrupts: one line, the right exit code, and nothing half-written."""

import errno
import os
import signal

import pytest
import torch

from dittools.pipelines import saving, stages


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


def test_a_polite_kill_leaves_nothing(generate, tmp_path, monkeypatch):
    def killed(frames, path, kind, fps):
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(saving, "write", killed)
    with pytest.raises(SystemExit) as stopped:
        generate()
    assert stopped.value.code == 143
    assert list(tmp_path.iterdir()) == []
