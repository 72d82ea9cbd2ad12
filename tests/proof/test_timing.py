"""How calls are timed: in turn, in bursts and back to back."""

import time
from contextlib import contextmanager

import pytest
import torch

from dittools.kernels import timing

CPU = torch.device("cpu")


def sleepy(log, name, seconds):
    def call():
        log.append(name)
        time.sleep(seconds)

    return call


def test_bursts_take_turns_and_know_the_slower_call():
    log, told = [], []
    calls = {"a": sleepy(log, "a", 0.002), "b": sleepy(log, "b", 0.008)}
    found = timing.burst(calls, CPU, 0.0, tell=told.append)
    assert log == ["a", "b", "b", "a", "a", "b"] == told
    assert found["a"]["ms"] < found["b"]["ms"] and found["b"]["ms"] >= 8
    assert found["a"]["least"] <= found["a"]["ms"] <= found["a"]["most"] and found["a"]["calls"] == timing.FEWEST


def test_alone_makes_all_calls_of_a_name_inside_its_own_context_and_leaves_out_what_cannot():
    log = []

    @contextmanager
    def around(name):
        if name == "missing":
            raise ImportError(name)
        log.append(f"<{name}")
        yield
        log.append(f"{name}>")

    def call(name):
        log.append(name)
        if name == "broken":
            raise RuntimeError(name)
        # The first call is not timed: "slow" is the slower one, however long "fast" takes to begin.
        time.sleep(0.03 if name == "fast" and log.count(name) == 1 else {"fast": 0.001, "slow": 0.006}[name])

    names = ("slow", "missing", "broken", "fast")
    found = timing.alone(names, call, CPU, 3, around=around, unable=(ImportError, RuntimeError))
    assert list(found) == ["slow", "fast"] and 1 <= found["fast"] < found["slow"]
    assert log == ["<slow", *["slow"] * 4, "slow>", "<broken", "broken", "<fast", *["fast"] * 4, "fast>"]
    with pytest.raises(RuntimeError, match="broken"):
        timing.alone(["broken"], call, CPU, 3, around=around, unable=(ImportError,))


def test_sustained_runs_each_call_back_to_back_for_about_the_time():
    log = []
    calls = {"a": sleepy(log, "a", 0.002), "b": sleepy(log, "b", 0.004)}
    found = timing.sustained(calls, CPU, 0.08, {"a": 2.0, "b": 4.0})
    assert "".join(log) == "a" * 20 + "b" * 10 + "b" * 10 + "a" * 20
    assert found["a"]["calls"] == 40 and 2 <= found["a"]["ms"] < found["b"]["ms"]


BOTH = {"burst", "sustained"}


@pytest.mark.parametrize(
    ("bursts", "sustain", "kinds"), [(True, True, BOTH), (True, False, {"burst"}), (False, True, {"sustained"})]
)
def test_only_what_was_asked_for_is_told(bursts, sustain, kinds):
    calls = {"a": lambda: None, "peer": lambda: None}
    found = timing.measure(calls, CPU, seconds=0.01, bursts=bursts, sustain=sustain, only_bursts={"peer"})
    assert set(found["a"]) == kinds
    assert set(found.get("peer", ())) == kinds - {"sustained"}


def test_nothing_to_time_is_nothing():
    assert timing.measure({}, CPU, seconds=1, bursts=True, sustain=True) == {}


def test_on_a_card_a_call_queues_behind_other_work_after_a_pause(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, other):
            return 2.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: log.append("idle"))
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: log.append("pause"))

    class Ballast:
        def add_(self, _):
            log.append("work")

    monkeypatch.setattr(torch, "zeros", lambda *_, **__: Ballast())
    found = timing.burst({"a": lambda: log.append("a")}, torch.device("cuda"), 0.0)
    assert log == ["idle", "pause", *["work"] * timing.RUN_UPS, "record", "a", "record", "wait"] * timing.FEWEST
    assert found["a"] == {"ms": 2.5, "least": 2.5, "most": 2.5, "calls": timing.FEWEST}
    found = timing.sustained({"a": lambda: log.append("a")}, torch.device("cuda"), 0.02, {"a": 2.5})
    assert log[-7:] == ["record", "a", "a", "a", "a", "record", "wait"] and found["a"]["ms"] == 2.5 / 4
