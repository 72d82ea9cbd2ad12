"""The rows of the kernel table on a CPU: measured, refused when wrong, kept when there already."""

import json
import time

import pytest
import torch

from dittools.benchmarks import kernel, peers, rows
from dittools.benchmarks.results import Results, failed
from dittools.benchmarks.work import KINDS, Worker
from dittools.kernels import supervise
from dittools.kernels.block_sparse import dispatch
from dittools.kernels.clusters import dispatch as clustered

CPU = torch.device("cpu")


def jobs(names=None, tokens=300, **more):
    settings = {"peers": True, "burst": True, "sustained": True, "seconds": 0.05, **more}
    return rows.jobs(rows.select(names), device="cpu", dtype="float32", shapes=[(2, tokens)], head_dim=64, **settings)


def measure(some, results=None, limit=300.0):
    told = []
    left = kernel.run(some, results or Results("kernels", CPU, ["x"], None), told.append, limit=limit)
    return told, left


@pytest.fixture
def wrong_kernel(monkeypatch):
    """Plain PyTorch kernels that forget the last head."""

    def spoil(home, name):
        right = getattr(home, name)

        def wrong(*args, **call):
            out, lse = right(*args, **call)
            out[:, :, -1] = 0
            return out, lse

        monkeypatch.setattr(home, name, wrong)

    spoil(dispatch, "portable_block_sparse_attention")
    spoil(clustered, "portable_cluster_attention")


def test_every_row_has_a_way_to_be_measured_and_a_name_of_its_own():
    assert {row.kind for row in rows.ROWS} <= set(KINDS)
    for device in ("cuda", "cpu"):
        found = rows.jobs(rows.ROWS, device=device, dtype="bfloat16")
        assert len({job["id"] for job in found}) == len(found)
    shapes = {(job["heads"], job["tokens"]) for job in rows.jobs(rows.ROWS, device="cuda", dtype="bfloat16")}
    assert shapes == {(12, 32_768), (40, 75_648), (40, 75_600)}
    with pytest.raises(ValueError, match="unknown row 'unifrm': did you mean uniform"):
        rows.select(["unifrm"])


def test_every_row_is_measured_on_a_cpu_and_only_plain_pytorch_runs():
    told, left = measure(jobs())
    assert left == [] and {row["job"]["name"] for row in told} == {row.name for row in rows.ROWS}
    for row in told:
        assert not failed(row), row
        if row["job"]["name"] == "schedule":
            assert row["best"] is None and "interpreter" in row["not_run"]["triton"]
        else:
            assert row["best"].startswith("portable")
            assert row["burst_value"] > 0 and row["sustained_value"] > 0
            assert all(figures["burst"]["ms"] > 0 for figures in row["times"].values())
    json.dumps(told, allow_nan=False)


def test_r_is_dense_time_times_kept_share_over_sparse_time():
    (row,), _ = measure(jobs(["ragged"]))
    for kind in ("burst", "sustained"):
        dense, ours = row["times"]["dense: flash"][kind], row["times"]["portable"][kind]
        assert ours["r"] == pytest.approx(dense["ms"] * row["kept"] / ours["ms"])
        pairs = 2 * 300**2
        assert ours["tflops"] == pytest.approx(4e-12 * 64 * pairs * row["kept"] / ours["ms"] * 1e3)
        assert dense["tflops"] == pytest.approx(4e-12 * 64 * pairs / dense["ms"] * 1e3)


@pytest.mark.parametrize("name", ["uniform", "order", "permute", "clusters-all"])
def test_no_speed_is_told_of_a_wrong_result(wrong_kernel, name):
    told, _ = measure(jobs([name]))
    for row in told:
        assert failed(row)
        assert row["wrong"] and all("RMS error" in why or "not finite" in why for why in row["wrong"].values())
        assert row["best"] is None and not any(
            "portable" in contender for contender in row["times"] if name != "permute"
        )


def test_rows_that_are_there_are_kept_unless_code_card_or_settings_changed(tmp_path, monkeypatch):
    path = tmp_path / "k.json"
    told, _ = measure(jobs(["lists"]), Results("kernels", CPU, ["x"], path))
    again, _ = measure(jobs(["lists"]), Results("kernels", CPU, ["x"], path))
    assert json.loads(path.read_text())["rows"] == told == again
    other, _ = measure(jobs(["lists"], seconds=0.06), Results("kernels", CPU, ["x"], path))
    assert other != told and len(json.loads(path.read_text())["rows"]) == 1
    monkeypatch.setattr("dittools.benchmarks.results.source", lambda kind: "of another day")
    newer, _ = measure(jobs(["lists"], seconds=0.06), Results("kernels", CPU, ["x"], path))
    assert newer[0]["source"] == "of another day" and newer != other


def test_a_failed_row_is_measured_again(tmp_path, monkeypatch):
    path = tmp_path / "k.json"
    some = jobs(["lists"])
    Results("kernels", CPU, ["x"], path).add(some[0], {"error": "out of memory"})
    told, _ = measure(some, Results("kernels", CPU, ["x"], path))
    assert not failed(told[0])


def test_a_file_of_another_card_or_of_something_else_is_refused(tmp_path):
    path = tmp_path / "k.json"
    results = Results("kernels", CPU, ["x"], path)
    results.head["device"]["name"] = "H100"
    results.write()
    with pytest.raises(ValueError, match=r"holds figures of H100, and this is .*: give another file"):
        Results("kernels", CPU, ["x"], path)
    for text in ("{", "[]", '{"kind": "model", "format": 1}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="is not a file of kernels"):
            Results("kernels", CPU, ["x"], path)


def test_nothing_new_is_begun_after_the_limit():
    told, left = measure(jobs(["lists", "permute"]), limit=0.0)
    assert told == [] and [job["name"] for job in left] == ["lists", "permute"]


def test_an_error_is_its_row_and_the_rest_goes_on(monkeypatch):
    monkeypatch.setattr("dittools.benchmarks.work.ALONE", {"lists": lambda job, at: 1 / 0})
    told, _ = measure(jobs(["lists", "permute"]))
    assert told[0]["error"] == "ZeroDivisionError: division by zero" and not failed(told[1])


def test_the_same_rows_come_from_a_child_process():
    told = []
    some = [{**job, "without": {"portable": "hung: silent for 1 s"}} for job in jobs(["hd64"])] + jobs(["lists"])
    left = supervise.supervise(
        kernel.COMMAND, some, lambda job, result: told.append((job["name"], result)), patience=60,
        deadline=time.monotonic() + 120,
    )  # fmt: skip
    assert left == [] and [name for name, _ in told] == ["hd64", "lists"]
    hung, fine = (result for _, result in told)
    assert failed(hung) and hung["wrong"] == {"portable": "hung: silent for 1 s"} and hung["best"] is None
    assert fine["best"] == "portable"


def test_peers_that_are_not_installed_are_named(monkeypatch):
    able, absent = peers.candidates(torch.device("cuda"))
    assert "flex" in able and absent["flashinfer"] == "flashinfer is not installed"
    assert peers.candidates(CPU) == ({}, {})


def test_a_worker_keeps_the_tensors_of_a_shape():
    worker, silent = Worker(), lambda what, patience=None: None
    first, second = jobs(["uniform"])[:2]
    worker.handle(first, silent)
    shape = worker._shape
    worker.handle(second, silent)
    assert worker._shape is shape
    worker.handle(jobs(["uniform"], tokens=200)[0], silent)
    assert worker._shape is not shape
