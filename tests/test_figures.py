"""The figures in the docs are those of the committed measurements."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dittools.tools import curves, figures, findings

ROOT = Path(__file__).parent.parent


@pytest.fixture
def filled(tmp_path):
    """Fills a page of the three sections of a bench from results in a folder of its own."""

    def fill(**results):
        for name, result in results.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(result))
        page = "".join(
            f"<!-- {name} -->\nold\n<!-- end -->\n" for name in ("kernels", "hopper", "model", "method_costs")
        )
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


def report_result(lines, by_case):
    empty = {"kind": "sweep", "speedup": 1.3, "ssim": 0.99, "skipped_overall": 0.57}
    plan = {"frames": 81, "height": 480, "width": 832, "steps": 16, "prompts": ["a"], "seeds": [0, 1], "dtype": "bf16"}
    manifest = {**result([]), "plan": plan}
    lines = [{**empty, "setting": name, "psnr": psnr} for name, psnr in lines.items()]
    noise = {"setting": "dense, another seed", "kind": "noise", "psnr": 20.0, "speedup": 1.0, "ssim": 0.9}
    return {"manifest": manifest, "summary": [*lines, noise], "psnr_by_case": by_case, "failures": []}


def test_methods_of_several_reports_stand_in_one_table_paired_with_random_blocks(tmp_path):
    random = {"random, sparsity 0.8": 20.0}
    first = report_result({"svg, sparsity 0.8": 30.0, **random}, {"svg, sparsity 0.8": [29.0, 31.0],
                                                                 "random, sparsity 0.8": [18.0, 22.0]})  # fmt: skip
    second = report_result(
        {"svg, sparsity 0.8, centroids": 33.0, **random},
        {"svg, sparsity 0.8, centroids": [32.0, 34.0], "random, sparsity 0.8": [0.0, 0.0]},
    )
    for name, found in (("a", first), ("b", second)):
        (tmp_path / f"report_methods_{name}.json").write_text(json.dumps(found))
    page = figures.filled("<!-- report_methods -->\n<!-- end -->", tmp_path)
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert lines[0].startswith("| method | with | 0.8: PSNR dB | over random")
    assert lines[2] == "| svg | centroids | 33.00 | +13.00 ± 1.00 | 1.30 | 0.9900 | 0.57 |"
    assert lines[3] == "| svg |  | 30.00 | +10.00 ± 1.00 | 1.30 | 0.9900 | 0.57 |"
    assert lines[4] == "| *random* |  | 20.00 |  | 1.30 | 0.9900 | 0.57 |" and len(lines) == 5
    assert "Beside them: dense, another seed 20.00 dB" in page and "Drawn in part" not in page
    first["psnr_by_case"]["svg, sparsity 0.8"][1] = None
    (tmp_path / "report_methods_a.json").write_text(json.dumps(first))
    cut_off = figures.filled("<!-- report_methods -->\n<!-- end -->", tmp_path)
    assert "Drawn in part: 0.8 on 1 of 2 or 2 of 2 prompts and seeds. Beside them" in cut_off
    first["psnr_by_case"]["svg, sparsity 0.8"][1] = 31.0
    for found in (first, second):
        for line in found["summary"]:
            line["speedup"] = None  # of an untimed report
    (tmp_path / "report_methods_a.json").write_text(json.dumps(first))
    (tmp_path / "report_methods_b.json").write_text(json.dumps(second))
    untimed = figures.filled("<!-- report_methods -->\n<!-- end -->", tmp_path)
    assert "| svg |  | 30.00 | +10.00 ± 1.00 | 0.9900 | 0.57 |\n" in untimed and "speed-up" not in untimed


def test_speed_ups_of_what_was_not_timed_come_from_a_report_that_was(tmp_path):
    names = {"svg, sparsity 0.8": 30.0, "svg, sparsity 0.8, sea": 29.5, "dense, sea": 40.0}
    quality = report_result(names, {name: [psnr, psnr] for name, psnr in names.items()})
    quality["manifest"]["plan"] |= {"timed": False, "compile": False}
    times = report_result(names, {name: [psnr] for name, psnr in names.items()})
    times["manifest"]["plan"] |= {"prompts": ["a"], "seeds": [0], "compile": True}
    for line in quality["summary"]:
        line |= {"speedup": None, "reused_calls": 0.5 if "sea" in line["setting"] else None}
    for line in times["summary"]:
        line |= {"speedup": 2.0, "psnr": 1.0}
    fewer = {"setting": "dense, 6 steps", "kind": "steps", "steps": 6, "psnr": 25.0, "ssim": 0.9, "reused_calls": None}
    quality["summary"].append({**fewer, "speedup": None})
    times["summary"].append({**fewer, "speedup": 2.7})
    for kind, found in (("quality", quality), ("times", times)):
        (tmp_path / f"report_caches_480p_{kind}.json").write_text(json.dumps(found))
        (tmp_path / f"report_methods_{kind}.json").write_text(json.dumps(found))
    page = figures.filled("<!-- report_caches_480p -->\n<!-- end -->\n<!-- report_methods -->\n<!-- end -->", tmp_path)
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert lines[0] == "| cache | svg 0.8: PSNR dB | reused | speed-up | dense: PSNR dB | reused | speed-up |"
    assert lines[2] == "| none | 30.00 |  | 2.00 |  |  |  |"
    assert lines[3] == "| sea | 29.50 | 0.50 | 2.00 | 40.00 | 0.50 | 2.00 |"
    assert lines[4] == "| none, 6 steps |  |  |  | 25.00 |  | 2.70 |"
    assert lines[5].startswith("| method |") and "| svg |  | 30.00 |  | 2.00 | 0.9900 | 0.57 |" in lines
    assert "Quality: 81 x 480 x 832" in page and "compiled, 0 failed" in page


def test_sections_say_so_where_nothing_was_measured(filled):
    assert filled().count("Not measured yet.") == 4 and "old" not in filled()


def test_kernels_of_every_card_have_a_table_with_card_versions_and_command(filled):
    page = filled(kernels_h100=result([kernel_row()]), kernels_a100=result([kernel_row()], "NVIDIA A100"))
    line = "| uniform | 12 x 32,768 | 20.0 % | hopper | 0.930 | 0.940 | 0.930 |  | 0.720 | flex 0.600 |"
    assert f"{line} 1 / 0.9 |" in page and f"{line}  |" in page  # goals are of an H100 and its like
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


def test_variants_have_their_table(filled):
    timed = {**JOB, "kind": "time", "head_dim": 128, "key_block": 128, "family": "ragged"}
    tried = kernel_row(job=timed, dense="cudnn", ours=["stages2", "pinned"], wrong={"pinned": "hung"},
                       times={"stages2": figures_of(0.91)})  # fmt: skip
    page = filled(hopper_h100=result([tried]))
    assert "| 12 x 32,768, hd128, 128 x 128, ragged | 20.0 % | cudnn | 0.910 | hung |" in page


def call_rows(model="wan", size="14b", shape=(81, 720, 1280), tokens=75_600, method="svg", layers=40):
    """Rows of one model: dense calls, and sparse ones by one method."""
    job = {"model": model, "size": size, "shape": list(shape), "tokens": tokens, "layers": layers, "heads": 40}
    sparse = {**job, "method": method, "sparsity": 0.8, "dense_layers": 1}
    spread = {"least": 1.0, "most": 20.0}
    return [
        {"job": {**job, "kind": "dense"}, "median": 12.2, "peak_gb": 40.0, **spread},
        {"job": {**job, "kind": "dense compiled"}, "median": 11.0, "peak_gb": 39.0, **spread},
        {
            "job": {**sparse, "kind": "sparse"}, "median": 6.1, "peak_gb": 41.0, **spread,
            "skipped_sparse_calls": 0.8, "parts": {"select": 0.1, "lists": 0.002, "attention": 2.0, "check": 0.01},
            "costs": {"select": 0.05, "lists": 0.001, "all": 0.051},
        },
        {"job": {**sparse, "kind": "sparse compiled"}, "median": 5.0, "peak_gb": 40.5, **spread},
    ]  # fmt: skip


def test_models_of_one_card_share_a_table(filled):
    named = {"named": "speed only: random weights"}
    page = filled(
        model_h100=result(call_rows(), **named),
        model_h100_flux=result(call_rows("flux", "dev", (1, 4096, 4096), 66_048, "draft", 57), **named),
        model_h200=result(call_rows()[:2], "NVIDIA H200"),
    )
    assert page.count("**NVIDIA H100 80GB HBM3**, 700 W (speed only: random weights)") == 2  # and once for the costs
    wan = "| wan 14b, 40 layers of 40 heads | 81 x 720 x 1280 | 75,600 | svg 0.8, first 1 dense |"
    figures = " 12.200 | 11.000 | 6.100 | 5.000 | 2.00x | 2.20x | 2.20x | 0.800 | 40.0 / 41.0 |"
    assert wan + figures in page
    assert "| flux dev, 57 layers of 40 heads | 1 x 4096 x 4096 | 66,048 | draft 0.8, first 1 dense |" in page
    assert "|  | 12.200 | 11.000 |  |  |  |  |  |  | 40.0 / - |" in page  # dense alone


def test_a_few_layers_of_a_model_that_also_ran_whole_are_in_the_costs_alone(filled):
    few = call_rows(layers=2, method="gna")
    page = filled(model_h100=result(call_rows()), model_h100_costs=result(few))
    models, costs = page.split("<!-- method_costs -->")
    assert "2 layers" not in models and "| gna 0.8 | wan 14b, 2 layers of 40 heads |" in costs
    assert "2 layers" in filled(model_h100=result(few), model_h100_costs=result([])).split("<!-- method_costs -->")[0]


def test_costs_of_methods_are_shares_of_their_attention(filled):
    page = filled(model_h100=result(call_rows()))
    line = "| svg 0.8 | wan 14b, 40 layers of 40 heads | 81 x 720 x 1280 | 75,600 | 2000.0 |"
    assert f"{line}  | 5.0 % | 0.1 % |  |  | 5.1 % |" in page
    bare = call_rows()
    del bare[2]["costs"]
    assert filled(model_h100=result(bare)).endswith("<!-- method_costs -->\nNot measured yet.\n<!-- end -->\n")


def test_a_call_that_failed_shows_why_beside_those_that_did_not(filled):
    rows = call_rows()
    rows[2] = {"job": rows[2]["job"], "error": "out of memory"}
    page = filled(model_h100=result(rows))
    assert "| 12.200 | 11.000 | out of memory | 5.000 |  | 2.20x | 2.20x |  |" in page


def test_the_readme_shows_the_faster_of_each_kind_most_gained_first(tmp_path):
    slow = call_rows("flux", "dev", (1, 4096, 4096), 66_048, "draft", 57)
    slow[3]["median"], slow[1] = 8.0, {"job": slow[1]["job"], "error": "out of memory"}
    (tmp_path / "model_h100.json").write_text(json.dumps(result([*slow, *call_rows()])))
    lines = figures.filled("<!-- in_short -->\n<!-- end -->", tmp_path).splitlines()
    assert lines[1] == "On one NVIDIA H100 80GB HBM3:"
    assert lines[5:7] == [
        "| wan 14b | 81 x 720 x 1280 | 75,600 | svg 0.8 | 11.000 | 5.000 | 2.20x |",
        "| flux dev | 1 x 4096 x 4096 | 66,048 | draft 0.8 | 12.200 | 6.100 | 2.00x |",
    ]


def test_performance_page_agrees_with_its_json():
    command = [sys.executable, "-m", "dittools.tools.figures", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_gpu_tests_are_told_with_what_failed_and_the_memory_of_methods(tmp_path):
    files = {
        "tests/kernels/test_a.py": {"failures": {"test_x[1]": ["AssertionError"]}},
        "tests/methods/test_gpu.py": {
            "failures": {},
            "noted": {"test_memory[svg]": {"plan_mb": "69", "call_mb": "240"}},
        },
    }
    found = result([], files=files, total={"failed": 1, "passed": 3}, finished=False)
    found["memcheck"] = {"lists": {"clean": True}, "fill": {"clean": False}}
    (tmp_path / "gpu_tests_h100.json").write_text(json.dumps(found))
    page = figures.filled("<!-- gpu_tests -->\n<!-- end -->", tmp_path)
    assert "1 failed, 3 passed, in 2 files; cut off before the last. Failed: tests/kernels/test_a.py: test_x[1]" in page
    assert "clean on 1 of 2: lists." in page and "| svg | 69 | 240 |" in page


def test_findings_follow_the_measurements(tmp_path):
    """The page of findings is short, and its first choice changes when another method measures nearer to dense."""
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 150 and "Not measured yet" not in text
    assert set(re.findall(r"<!-- (\w+) -->", text)) == {*findings.BLOCKS, "in_short", "end"}
    assert all(make(tmp_path) == "" for make in findings.BLOCKS.values())
    shutil.copytree(figures.MEASURED, tmp_path, dirs_exist_ok=True)
    assert "**`paro` with a profile and `adaspa` choose best**" in findings.findings(tmp_path)
    changed = tmp_path / "report_methods_480p.json"
    result = json.loads(changed.read_text())
    next(line for line in result["summary"] if line["setting"] == "svg, sparsity 0.8")["psnr"] = 99.04
    changed.write_text(json.dumps(result))
    assert "**`svg` and `paro` with a profile choose best**" in findings.findings(tmp_path)
    assert "with 99.0 and 36.5 dB" in findings.findings(tmp_path)
    assert curves.methods(tmp_path)["lines"]["svg"][2] == [1.474, 99.04]


def test_pictures_show_the_measured_points_in_light_and_dark(tmp_path, capsys):
    assert curves.main(["--check"]) == 0
    assert curves.main(["--check"], into=tmp_path) == 1 and "methods_dark.svg" in capsys.readouterr().err
    shown = curves.caches(figures.MEASURED)
    drawn = {scheme: curves.draw(shown, scheme) for scheme in curves.INK}
    assert all(curves.told(picture) == shown for picture in drawn.values())
    assert "easycache</text>" in drawn["light"] and drawn["light"] != drawn["dark"]


def test_ways_to_deal_heads_stand_in_one_cell_for_each_layout(tmp_path):
    def row(parallel, ranks, natural):
        ways = {"natural": {"balance": natural, "worst": 2.0}, "snake": {"balance": 1.1, "worst": 1.5},
                "greedy": {"balance": 1.0, "worst": 1.25}}  # fmt: skip
        return {"model": "wan", "heads": 40, "method": "nabla", "parallel": parallel, "ranks": ranks, "ways": ways,
                "density": {"mean": 0.2, "least": 0.1, "most": 0.9, "varied": 0.5}}  # fmt: skip

    rows = [row("ulysses:8", 8, 1.3), row("ulysses:8,ring:8", 64, 1.4)]
    found = result(rows, measured_by=["python", "-m", "dittools.benchmarks.head_density"])
    (tmp_path / "deal_simulated.json").write_text(json.dumps(found))
    page = figures.filled("<!-- deal_simulated -->\n<!-- end -->", tmp_path)
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert lines[2] == "| wan | nabla | 0.200 | 0.100 | 0.900 | 0.500 |"
    assert lines[3].startswith("| wan, 40 heads a layer | 8: `ulysses:8` | 64: `ulysses:8,ring:8` | worst of 8 |")
    assert lines[5] == ("| nabla | 1.300 / 1.100 / 1.000 | 1.400 / 1.100 / 1.000 | 2.00 / 1.50 / 1.25 | 1.30x |")


def test_true_errors_stand_beside_told_ones_and_bounds_beside_what_is_above_them(tmp_path):
    run = {"cells": [[3, 1, 0.1, 0.11, 0.01], [4, 1, 0.2, 0.1, 0.01], [5, 1, 0.0, 0.0, 0.0]], "largest_error": 0.2,
           "above_bound": 1}  # fmt: skip
    row = {"sharper": {"factor": 64.0, "heads": 1, "best_block": [0.95, 0.1]}, "psnr": "inf", "skipped": None,
           "skipped_of_all": 0.4, "error": 0.15, "runs": [run],
           "setting": {"method": "adaspa", "sparsity": 0.8, "correction": "none", "max_error": 0.19}}  # fmt: skip
    facts = {"size": [81, 480, 832], "steps": 16, "prompts": ["a star"], "seeds": [0]}
    (tmp_path / "errors_h200_x.json").write_text(json.dumps(result([row], **facts)))
    page = figures.filled("<!-- errors -->\n<!-- end -->", tmp_path)
    line = next(line for line in page.splitlines() if "adaspa" in line)
    assert line == (
        "| x 64 in 1 heads | 95 % | adaspa 0.8 | none | 0.19 | 1 of 3 | inf | 0.150 | 0.200 |  | 0.400 | 36 % | 50 % |"
    )


def test_methods_stand_with_and_without_a_correction_best_first(tmp_path):
    lines = {"draft order cubes, sparsity 0.8": 30.0, "svg, sparsity 0.8": 29.0, "svg, sparsity 0.9, sampled": 41.5}
    (tmp_path / "report_equal_pairs_480p.json").write_text(json.dumps(report_result(lines, [])))
    page = figures.filled("<!-- report_equal_pairs_480p -->\n<!-- end -->", tmp_path)
    assert page.splitlines()[1:5] == [
        "| method | 0.8: alone | 0.9: sampled |",
        "| --- | --- | --- |",
        "| svg | 29.00 | 41.50 |",
        "| draft order cubes | 30.00 |  |",
    ]
    assert "dense, another seed 20.00 dB" in page
