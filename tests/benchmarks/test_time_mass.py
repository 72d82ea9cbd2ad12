"""The script that times block mass: what is wrong is named and not timed."""

import pytest
import torch

from dittools.benchmarks import time_mass
from dittools.benchmarks.results import failed
from dittools.kernels.block_mass.dispatch import measure_block_mass, measure_lse


def silent(what, patience=None):
    pass


@pytest.fixture
def plain(monkeypatch):
    """Every variant is plain PyTorch; one measures wrongly, and one has no LSE."""

    def passes(name):
        def first(q, k, scale):
            lse = measure_lse(q, k, scale=scale)
            return lse * torch.nan if name == "triton, 4 warps" else lse

        def second(q, k, query, key, scale, lse):
            mass = measure_block_mass(q, k, query, key, scale=scale, lse=lse)
            return mass * 1.01 if name == "triton, 2 stages" else mass

        return first, second

    monkeypatch.setattr(time_mass, "passes", passes)
    monkeypatch.setattr(time_mass, "SMALL", ((100, 1), (300, 2)))


def test_the_small_check_names_what_is_wrong(plain):
    job = time_mass.jobs("cpu", dim=64)[0]
    found = time_mass.Worker().handle(job, silent)
    assert list(found["wrong"]) == ["triton, 2 stages", "triton, 4 warps"] and failed(found)
    assert set(found["right"]) == set(time_mass.TRITON) - set(found["wrong"])
    assert "triton, 4 warps: Wrong" in time_mass.said({**found, "id": "check", "job": job})


def test_what_is_right_is_timed_and_the_fastest_comes_first(plain):
    job = time_mass.jobs("cpu", shapes=((2, 300),), dim=64, seconds=0.01)[1]
    found = time_mass.Worker().handle(job, silent)
    assert list(found["wrong"]) == ["triton, 2 stages: mass", "triton, 4 warps: lse"]
    names = [row["name"] for row in found["table"]]
    assert set(names) == set(time_mass.TRITON) - {"triton, 2 stages", "triton, 4 warps"}
    assert [row["both"] for row in found["table"]] == sorted(row["lse"] + row["mass"] for row in found["table"])
    text = time_mass.said({**found, "id": "2x300", "job": job})
    assert all(name in text for name in names) and "dense" in text


def test_variants_are_those_of_the_kernels():
    pytest.importorskip("triton")
    from dittools.kernels.block_mass.triton import Variant

    for options in time_mass.TRITON.values():
        Variant(**options)
    assert time_mass.able(torch.device("cpu"), 128) == list(time_mass.TRITON)
    ids = [job["id"] for job in time_mass.jobs("cuda")]
    assert ids == ["check hd128", "12x32768 hd128", "40x75648 hd128"]


def test_times_of_dense_attention_are_its_better_layout():
    times = {"dense": 10.0, "dense, heads first": 8.0, "a: lse": 4.0, "a: mass": 2.0, "b: lse": 1.0, "b: mass": 3.0}
    rows = time_mass.table({**times, "c: lse": 1.0}, ["a", "b", "c"])
    assert [(row["name"], row["two"], row["one"]) for row in rows] == [("b", 0.5, 0.375), ("a", 0.75, 0.25)]
