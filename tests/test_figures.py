"""The figures in the docs are those of the committed measurements."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def filled(tmp_path, monkeypatch):
    """Fills a page of the three sections of a bench from results in a folder of its own."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import figures

    def fill(**results):
        for name, result in results.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(result))
        page = "".join(f"<!-- {name} -->\nold\n<!-- end -->\n" for name in ("kernels", "hopper", "model"))
        return figures.filled(page, tmp_path)

    return fill


def result(rows, card="NVIDIA H100 80GB HBM3", **more):
    return {
        "dittools": "0.1.0", "versions": {"torch": "2.11"}, "command": ["dittools", "bench"], "rows": rows,
        "device": {"name": card, "type": "cuda", "power_limit_watts": 700.0}, **more,
    }  # fmt: skip


JOB = {"heads": 12, "tokens": 32768, "kind": "attention", "unit": "r", "goal": 1.0, "floor": 0.9, "title": "uniform"}


def figures_of(r, ms=1.0):
    return {"burst": {"ms": ms, "r": r, "r_cudnn": r, "r_flash": None}, "sustained": {"ms": ms, "r": r + 0.01}}


def kernel_row(**changes):
    times = {"hopper": figures_of(0.93), "triton": figures_of(0.72), "flex": figures_of(0.6), "dense: cudnn": {}}
    return {
        "job": JOB, "kept": 0.2, "best": "hopper", "ours": ["hopper", "triton"], "times": times, "wrong": {},
        "not_run": {}, **changes,
    }  # fmt: skip


def test_sections_say_so_where_nothing_was_measured(filled):
    assert filled().count("Not measured yet.") == 3 and "old" not in filled()


def test_kernels_of_every_card_have_a_table_with_card_versions_and_command(filled):
    page = filled(kernels_h100=result([kernel_row()]), kernels_h200=result([kernel_row()], "NVIDIA H200"))
    line = "| uniform | 12 x 32,768 | 20.0 % | hopper | 0.930 | 0.940 | 0.930 |  | 0.720 | flex 0.600 |"
    assert f"{line} 1 / 0.9 |" in page and f"{line}  |" in page  # goals are of an H100
    assert "**NVIDIA H100 80GB HBM3**, 700 W" in page and "torch 2.11" in page and "`dittools bench`" in page


def test_what_was_wrong_shows_and_has_no_figure(filled):
    times = {"triton": figures_of(0.72)}
    half = kernel_row(times=times, best="triton", wrong={"hopper": "RMS error 1.0"})
    none = kernel_row(times={}, best=None, wrong={"hopper": "hung", "triton": "wrong too"})
    broken = {"job": JOB, "error": "out of memory"}
    page = filled(kernels_h100=result([half, none, broken]))
    assert "| triton; hopper: RMS error 1.0 | 0.720 |" in page
    assert "| hopper: hung; triton: wrong too |  |" in page and "| out of memory |  |" in page


def test_a_row_that_compares_shows_each_of_ours(filled):
    page = filled(kernels_h100=result([kernel_row(job={**JOB, "kind": "order"})]))
    assert "| hopper | 0.930 |" in page and "| triton | 0.720 |" in page


def test_variants_and_models_have_their_tables(filled):
    timed = {**JOB, "kind": "time", "head_dim": 128, "key_block": 128, "family": "ragged"}
    tried = kernel_row(job=timed, dense="cudnn", ours=["stages2", "pinned"], wrong={"pinned": "hung"},
                       times={"stages2": figures_of(0.91)})  # fmt: skip
    call = {"model": "wan", "size": "14b", "shape": [81, 720, 1280], "method": "svg", "sparsity": 0.8}
    dense = {"job": {**call, "kind": "dense"}, "median": 12.2, "least": 12.1, "most": 12.3, "peak_gb": 40.0}
    sparse = {
        "job": {**call, "kind": "sparse compiled"}, "median": 4.88, "least": 4.8, "most": 5.0, "peak_gb": 41.0,
        "skipped_sparse_calls": 0.8, "speedup": {"dense": 2.5, "dense compiled": 2.24},
        "parts": {"select": 0.1, "lists": 0.002, "attention": 2.0, "check": 0.01},
    }  # fmt: skip
    page = filled(hopper_h100=result([tried]), model_h100=result([dense, sparse], named="speed only: random weights"))
    assert "| 12 x 32,768, hd128, 128 x 128, ragged | 20.0 % | cudnn | 0.910 | hung |" in page
    assert "(speed only: random weights)" in page
    assert "| dense, wan 14b | 81 x 720 x 1280 | 12.200 (12.100 to 12.300) |  |  |  | 40.0 |  |" in page
    assert "2.50x | 2.24x | 0.800 | 41.0 | 100.0 / 2.0 / 2000.0 / 10.0 |" in page


def test_performance_page_agrees_with_its_json():
    done = subprocess.run([sys.executable, ROOT / "docs" / "figures.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
