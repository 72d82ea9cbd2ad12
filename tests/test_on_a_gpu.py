"""What the record of a GPU's test run says, from a pytest run of its own and a stand-in for compute-sanitizer."""

import json
import re
import subprocess
import sys

import pytest

from tests import on_a_gpu

CASE_OF = {
    "antidiagonal/triton": "antidiagonals",
    "block_mass/hopper_forward": "hopper-mass",
    "block_mass/one_pass_triton": "mass",
    "block_mass/triton": "mass",
    "block_sparse/hopper_forward": "hopper",
    "block_sparse/lists_triton": "lists",
    "block_sparse/sample_tiles_triton": "hopper",
    "block_sparse/triton": "triton",
    "clusters/hopper_forward": "hopper-clusters",
    "clusters/hopper_lists": "hopper-clusters",
    "clusters/triton": "clusters",
    "cosine_similarity/triton": "likeness",
    "counting_sort/triton": "kmeans",
    "hopper_parts": "hopper",
    "kmeans/triton": "kmeans",
    "kmeans/update_triton": "kmeans",
    "permute/triton": "permute",
    "probe/triton": "probe",
    "residual/error_triton": "compensation",
    "residual/triton": "skipped",
    "segment_mean/triton": "means",
    "topk_mask/triton": "fill",
    "triton_parts": "triton",
}


PLUGGED = """
import json, sys
sys.path.insert(0, {root!r})
from tests import on_a_gpu
on_a_gpu.SECONDS_BETWEEN = -1
kept = []
code = on_a_gpu.run_tests({arguments!r}, lambda found, finished=False: kept.append(json.dumps(found)))
print(json.dumps([code, len(kept), kept[0], kept[-1]]))
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_outcomes_are_counted_by_file_while_they_come(tmp_path, workers):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "pytestmark = pytest.mark.gpu\n"
        "def test_fine(record_property): record_property('held_mb', 12)\n"
        "def test_wrong(): assert 1 == 2, 'one is not two'\n"
        "@pytest.mark.skip\ndef test_not_here(): pass\n"
        "@pytest.fixture\ndef broken(): raise ValueError('no fixture')\n"
        "def test_broken(broken): pass\n"
    )
    arguments = ["-p", "no:cacheprovider", *workers, "-c", "/dev/null", str(tmp_path / "test_some.py")]
    script = PLUGGED.format(root=str(on_a_gpu.HERE.parent), arguments=arguments)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    code, times, first, last = json.loads(done.stdout.splitlines()[-1])
    assert code == 1 and times > 4 and first != last
    (found,) = json.loads(last).values()
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, 1)
    assert found["noted"] == {"test_fine": {"held_mb": "12"}}
    assert set(found["failures"]) == {"test_wrong", "test_broken"}
    assert "one is not two" in found["failures"]["test_wrong"][0]
    assert "test_some.py::test_wrong: AssertionError: one is not two" in done.stdout


def test_no_test_for_a_gpu_is_left_out():
    marked = [p for p in on_a_gpu.HERE.rglob("test_*.py") if "mark.gpu" in p.read_text() and p.parent != on_a_gpu.HERE]
    assert marked
    assert {p.relative_to(on_a_gpu.HERE).parts[0] for p in marked} <= set(on_a_gpu.FOLDERS)


def test_every_kernel_has_a_small_case():
    room = on_a_gpu.HERE.parent / "kernels"
    files = {p.relative_to(room).with_suffix("").as_posix(): p.read_text() for p in room.rglob("*.py")}
    kernels = {name for name, text in files.items() if re.search(r"^@(triton|gluon)\.jit", text, re.M)}
    assert kernels == set(CASE_OF)
    assert set(CASE_OF.values()) <= set(on_a_gpu.case_names())


@pytest.mark.parametrize(
    ("said", "code", "clean"),
    [
        ("right\n========= ERROR SUMMARY: 0 errors", 0, True),
        ("right\n========= ERROR SUMMARY: 2 errors", 9, False),
        ("========= ERROR SUMMARY: 0 errors", 1, False),
        ("Device not supported", 1, False),
    ],
)
def test_clean_is_right_and_without_errors(tmp_path, monkeypatch, said, code, clean):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\ncat <<'X'\n{said}\nX\nexit {code}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert on_a_gpu.sanitize("lists")["clean"] is clean
