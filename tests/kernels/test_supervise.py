"""Jobs in a child process: what hangs or crashes costs itself, not the rest."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from dittools.kernels.supervise import supervise

COMMAND = [sys.executable, str(Path(__file__).parent / "child.py")]


def run(*jobs, patience=3.0, seconds=120.0, **more):
    found = []
    given = [{"name": i, "does": does} for i, does in enumerate(jobs)]
    left = supervise(
        COMMAND, given, lambda job, result: found.append((job["name"], result)), patience=patience,
        deadline=time.monotonic() + seconds, **more,
    )  # fmt: skip
    return found, left


def test_what_hangs_or_crashes_is_left_out_and_the_same_job_goes_on():
    found, left = run(["a", "hang"], ["crash", "b"], ["break"], ["c"], ["fault"])
    assert left == []
    assert [name for name, _ in found] == [0, 1, 2, 3, 4]
    reasons = [result["without"] for _, result in found]
    assert reasons[0] == {"hang": "hung: silent for 3 s"}
    assert reasons[1] == {"crash": "the process ended with code -6"}
    assert reasons[2] == {"break": "Broken: an illegal address"}
    assert reasons[3] == {}
    assert reasons[4] == {"fault": "RuntimeError: CUDA error: an illegal memory access was encountered"}


def test_an_exception_is_the_result_of_its_job_in_one_line():
    found, _ = run(["raise"], ["a"])
    assert found == [(0, {"error": "ValueError: not this"}), (1, {"name": 1, "without": {}})]


def test_after_too_many_hangs_nothing_more_is_tried():
    found, left = run(["hang"], ["hang"], ["a"], most_hangs=2)
    assert [name for name, _ in found] == [0] and [job["name"] for job in left] == [1, 2]


def test_the_deadline_leaves_the_rest_over():
    begun = time.monotonic()
    found, left = run(["a"], ["hang"], ["b"], patience=60, seconds=8)
    assert time.monotonic() - begun < 30
    assert [name for name, _ in found] == [0] and [job["name"] for job in left] == [1, 2]


def test_what_hangs_again_is_left_out_of_all_that_follows():
    begun = time.monotonic()
    found, _ = run(["hang"], ["a", "hang"], ["hang", "b"], ["hang"])
    assert time.monotonic() - begun < 60
    assert [sorted(result["without"]) for _, result in found] == [["hang"]] * 4
    assert found[3][1]["without"]["hang"] == "hung: silent for 3 s, 2 times before"


def stoppable(does):
    """Jobs in a parent that a polite kill unwinds, as it does the command."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    run(does, patience=60)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_child_does_not_outlive_its_parent(tmp_path, how):
    parent = multiprocessing.get_context("fork").Process(target=stoppable, args=([str(tmp_path / "pid"), "hang"],))
    parent.start()
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.1)
    child = int((tmp_path / "pid").read_text())
    os.kill(parent.pid, how)
    parent.join(20)
    for _ in range(100):
        if not running(child):
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child is still there")


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
