"""A kernel proves itself only when every case is right, every time."""

import pytest
import torch

from dittools.bench import proof
from dittools.bench.attention import Shape
from dittools.bench.check import Wrong
from dittools.kernels import portable


def silent(what, patience=None):
    pass


def case(**changes):
    return {**proof.jobs()[0], "device": "cpu", "kernel": "portable", "dtype": "float32", **changes}


def results():
    found = {job["id"]: {"right": True} for job in proof.jobs()}
    return found | {"speed, raster": {"speedup": 1.4}, "speed, ordered": {"speedup": 0.9}}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("tokens", [1, 129, 700])
def test_a_right_kernel_proves_itself(tokens, biased):
    assert proof.prove(case(tokens=tokens, heads=2, batch=2, biased=biased), silent) == {"right": True}


@pytest.mark.parametrize("fault", ["wrong", "differs", "ignores the bias"])
def test_a_faulty_kernel_does_not(monkeypatch, fault):
    right, turns = portable.portable_block_sparse_attention, []

    def faulty(*args, **call):
        turns.append(1)
        if fault == "ignores the bias":
            call["key_bias"] = None
        out, lse = right(*args, **call)
        if fault == "wrong" or (fault == "differs" and len(turns) == 3):
            out[0, -1] += 0.01
        return out, lse

    monkeypatch.setattr(portable, "portable_block_sparse_attention", faulty)
    with pytest.raises(Wrong, match="two calls" if fault == "differs" else "RMS error|LSE|keeps nothing"):
        proof.prove(case(tokens=700, heads=2, batch=1, biased=True), silent)


def test_what_brought_a_process_down_is_not_tried_again():
    with pytest.raises(Wrong, match="hopper: hung"):
        proof.prove(case(without={"hopper": "hung: silent for 60 s"}), silent)


def test_two_kernels_are_compared_once_both_are_right():
    job = {**proof.jobs()[-1], "device": "cpu", "dtype": "float32", "tokens": 300, "heads": 2, "head_dim": 64}
    job |= {"seconds": 0.05, "kernels": ("portable", "naive")}
    with torch.no_grad():
        found = proof.faster(job, Shape(job, silent), silent)
    assert found["speedup"] == pytest.approx(found["times"]["naive"]["ms"] / found["times"]["portable"]["ms"])


def test_an_entry_needs_every_case():
    entry = proof.entry(results(), {"capability": "9.0"})
    assert entry["speedup_over_triton"] == {"raster": 1.4, "ordered": 0.9}
    assert entry["cases"] == len(proof.jobs()) - 2 and entry["capability"] == "9.0"
    for job in proof.jobs():
        left_out = results()
        del left_out[job["id"]]
        with pytest.raises(Wrong, match="not run"):
            proof.entry(left_out, {})
    with pytest.raises(Wrong, match="RMS error"):
        proof.entry(results() | {proof.jobs()[3]["id"]: {"error": "Wrong: RMS error"}}, {})
