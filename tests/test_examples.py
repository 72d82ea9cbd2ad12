"""The examples run as they stand, at their small sizes on the embedded model, and show what they say they show."""

import contextlib
import io
import json
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SHIPPED, SMALL = "FRAMES, PIXELS, STEPS = 33, 256, 16", "FRAMES, PIXELS, STEPS = 17, 128, 5"


@pytest.fixture
def example(tmp_path, monkeypatch, capsys):
    """Runs a script in a folder of its own: its names, and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(name):
        return runpy.run_path(str(EXAMPLES / name)), capsys.readouterr().out

    return run


def test_every_example_has_a_test():
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{path.name}"' in source for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))


def test_sparse_attention_skips_what_was_asked_and_is_restored(example):
    names, out = example("sparse_attention.py")
    assert names["record"]["sparsity"]["sparse_calls"] == pytest.approx(0.8, abs=0.02)
    assert "skipped in sparse calls: 0.8" in out and "restored to the bit: True" in out
    assert 15 < names["psnr"](names["sparse"], names["dense"]).mean < 60, "sparse is near to dense, and not the same"


def test_step_caches_reuse_steps_and_each_step_is_one_or_the_other(example):
    names, out = example("step_caches.py")
    for computed, reused, distance in names["found"].values():
        assert sorted([*computed, *reused]) == list(range(8)) and reused and 15 < distance < 60
    assert out.count(" dB\n") == len(names["SETTINGS"])


def test_a_method_of_ones_own_runs_by_its_name(example):
    from dittools import methods

    try:
        names, out = example("own_method.py")
        assert names["record"]["sparsity"]["sparse_calls"] == pytest.approx(0.6, abs=0.02)
        assert names["fast"].config.options == {"stride": 3} and "sparse calls skipped 0.6" in out
    finally:
        methods.METHODS.pop("strided", None)


def test_a_report_gives_a_page_and_a_line_for_every_setting(example, tmp_path):
    names, out = example("compare_settings.py")
    assert (tmp_path / "report" / "report.html").is_file()
    assert {"dense", "svg, sparsity 0.5", "svg, sparsity 0.8"} < set(names["lines"]) and "svg, sparsity 0.8" in out


def test_a_method_runs_by_the_profile_that_was_calibrated(example, tmp_path):
    names, _ = example("calibrate.py")
    assert (tmp_path / "profile.safetensors").is_file() and names["fast"].config.profile == "profile.json"
    assert names["record"]["sparsity"]["sparse_calls"] == pytest.approx(0.6, abs=0.02)


def test_the_notebook_runs_from_top_to_bottom_and_says_what_it_shows():
    """Its cells run one after the other, at a smaller size; each prints what is saved with it, but for figures."""
    notebook = json.loads((EXAMPLES / "first_steps.ipynb").read_text(encoding="utf-8"))
    names = {}
    *_, steps = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")  # as many lines as steps
    assert sum(SHIPPED in "".join(cell["source"]) for cell in notebook["cells"]) == 1
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec("".join(cell["source"]).replace(SHIPPED, SMALL), names)
        if cell is steps:
            continue
        saved = "".join(text for output in cell["outputs"] for text in output.get("text", []))
        assert [line.partition(":")[0] for line in out.getvalue().splitlines()] == [
            line.partition(":")[0] for line in saved.splitlines()
        ]
    assert names["record"]["sparsity"]["sparse_calls"] == pytest.approx(0.8, abs=0.02)
    assert names["distance"] > 15 and names["strip"].size[0] > names["strip"].size[1]
