"""The bench on a card, as small as its kernels allow: every row, the child process, and a whole call."""

import pytest
import torch

from dittools.benchmarks import kernel, rows, speed_only
from dittools.benchmarks import model as bench
from dittools.benchmarks.results import Results, failed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def test_every_row_is_measured_in_a_child_process():
    settings = {"peers": False, "burst": True, "sustained": True, "seconds": 0.3}
    some = rows.jobs(
        rows.ROWS, device="cuda", dtype="bfloat16", shapes=[(3, 4096)], implementation="triton", **settings
    )
    told = []
    left = kernel.run(some, Results("kernels", torch.device("cuda"), ["x"], None), told.append, limit=400)
    assert left == [] and len(told) == len(some)
    for row in told:
        assert not failed(row), row
        assert row["best"] is not None and row["burst_value"] > 0 and row["sustained_value"] > 0, row
        if "dense" in row and row["job"]["unit"] == "r":
            assert row["times"][row["best"]]["burst"]["r"] > 0


@pytest.mark.parametrize("name", list(speed_only.RECORDS))
def test_a_call_is_timed_dense_and_sparse_and_compiled(name):
    device, found = torch.device("cuda"), {}
    size = speed_only.size_of(name, "tiny")
    pipe = speed_only.build(size, device, torch.bfloat16)
    # Twice the pixels: enough blocks of 128 for a budget to be met.
    call = speed_only.call_of(pipe, 2 * size.height, 2 * size.width, size.frames, device, torch.bfloat16)
    settings = {"method": speed_only.RECORDS[name].method, "sparsity": 0.6, "dense_layers": 1, "dense_steps": 0}
    torch._dynamo.reset()
    bench.measure(
        pipe, speed_only.forward_of(pipe, call), bench.cases_of(settings, True), device=device, repeats=2,
        told=lambda kind, row: found.update({kind: row}),
    )  # fmt: skip
    assert list(found) == ["dense", "dense compiled", "sparse", "sparse compiled"]
    for row in found.values():
        assert "error" not in row and row["peak_gb"] > 0, row
    assert found["sparse"]["costs"]["all"] > 0 and found["sparse"]["parts"]["attention"] > 0
