"""docs/methods.md says what the registries say: tables, cards, options and defaults."""

import json
import re
from pathlib import Path

import pytest

from dittools import corrections, methods
from dittools.tools import methods_page as page
from tests.methods.scenes import GRIDS, call, scene

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "methods.md"
PARTS = ("Reorders", "Keeps", "Knobs", "When", "Differs", "Published", "Measured")
NAMES = [*methods.names(), *corrections.CORRECTIONS]


def cards() -> dict[str, str]:
    """Name -> card."""
    found = re.findall(r"^### `(\w+)`\n(.*?)(?=^### |\Z)", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    assert len({name for name, _ in found}) == len(found), "a card comes twice"
    return dict(found)


def part(name: str, which: str) -> str:
    return re.search(rf"^- \*\*{which}\*\*: (.+)$", cards()[name], re.M)[1]


def test_page_agrees_with_registries_and_results():
    assert page.main(["--check"]) == 0


def test_a_page_that_is_out_of_date_is_refused_and_written_anew(tmp_path, monkeypatch, capsys):
    right = PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(page, "PAGE", tmp_path / "methods.md")
    page.PAGE.write_text(right.replace("`sink=True` |", "`sink=False` |", 1), encoding="utf-8")
    assert page.main(["--check"]) == 1 and "run python -m dittools.tools.methods_page" in capsys.readouterr().err
    assert page.main([]) == 0
    assert page.PAGE.read_text(encoding="utf-8") == right


def test_every_method_and_correction_has_a_card_and_every_card_is_of_one():
    assert sorted(cards()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_has_all_its_parts_in_order(name):
    assert tuple(re.findall(r"^- \*\*(\w+)\*\*", cards()[name], re.M)) == PARTS


@pytest.mark.parametrize("name", NAMES)
def test_a_card_names_every_option_with_its_default(name):
    known = corrections.options(name) if name in corrections.CORRECTIONS else methods.options(name)
    assert dict(re.findall(r"`(\w+)=([^`]+)`", part(name, "Knobs"))) == {
        option: page.shown(default) for option, (default, _) in known.items()
    }


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("auto", "dense")])
def test_figures_are_the_authors_with_a_source_or_ours_from_results(name):
    published = part(name, "Published")
    assert not re.search(r"\d", published) or re.search(r"\((?:paper|abstract|\*second-hand\*)", published)
    assert re.fullmatch(rf"<!-- measured {name} -->.+<!-- end -->", part(name, "Measured"))


@pytest.mark.parametrize("name", [name for name in methods.METHODS if name != "dense"])
def test_the_class_says_what_the_table_wants_to_know(name):
    assert "–" not in [page.said(methods.METHODS[name], which) for which in ("Order", "Selector", "Budget")]


@pytest.mark.parametrize("name", [name for name, cls in methods.METHODS.items() if cls.profile_use != "needed"])
def test_static_methods_are_those_that_do_not_look_at_queries_and_keys(name):
    if name in ("dense", "random", "trained"):  # which do not look either, and draw anew in every call, or take a mask
        return
    plans = []
    for seed in (0, 1):
        q, k, v = scene(GRIDS["video"], seed=seed)
        plan = methods.create(name, {}).plan(q, k, v, call(GRIDS["video"]))
        plans.append((plan.order, plan.mask.keep))
    same = all((a is None and b is None) or a.equal(b) for a, b in zip(*plans, strict=True))
    assert same == page.decided(methods.METHODS[name]).startswith("static")


def test_figures_come_from_the_results_of_a_folder(tmp_path):
    assert page.measured("svg", tmp_path) == "not measured yet"
    summary = [
        {"setting": "radial, sparsity 0.8", "speedup": 1.5, "psnr": 25.0, "ssim": 0.9},
        {"setting": "draft, sparsity 0.8, centroids", "speedup": None, "psnr": "inf", "ssim": 1.0},
        {"setting": "radial, sparsity 0.8, sea threshold 0.5", "speedup": 2.5, "psnr": 22.0, "ssim": 0.8},
        {"setting": "paro, sparsity 0.8, profile big.json", "speedup": None, "psnr": 28.0, "ssim": 0.9},
        {"setting": "dense", "speedup": None, "psnr": None, "ssim": None},
    ]
    result = {"manifest": {"device": {"name": "a card"}}, "summary": summary}
    (tmp_path / "report.json").write_text(json.dumps(result))
    said = "on a card: radial, sparsity 0.8 1.50x, 25.00 dB, SSIM 0.9000"
    said = f"{said} (report.json, whole in [all methods](measured/methods.md))"
    assert page.measured("radial", tmp_path) == said
    assert "identical" in page.measured("centroids", tmp_path)
    assert "paro, sparsity 0.8, profile big.json 28.00 dB" in page.measured("paro", tmp_path)
    assert page.measured("svg", tmp_path) == "not measured yet"
