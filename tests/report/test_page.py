"""The page and the tables from a folder made by hand: right figures, and nothing from outside gets through."""

import base64
import csv
import dataclasses
import hashlib
import html
import html.parser
import io
import json
import math
import re

import pytest

from dittools.report import charts, page, text
from dittools.report.folder import Folder
from dittools.report.pictures import Shown, Strip
from dittools.report.plan import rows, settings
from dittools.report.results import gather, spread
from dittools.report.tables import quality_csv, summary, summary_csv
from tests.report.test_plan import KNOWN, PLAN

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><b>",
    "`code` | pipe | [a](javascript:alert(1)) ../../etc/passwd \x00\x1b[31m ‮evil",
    "long " * 800,
    "",
)


def write(folder, plan, known=KNOWN, failures=(), chosen=("svg", {})):
    """A finished report; dense takes 4 s, every other setting 2 s, and PSNR falls with the setting's place."""
    with folder.held():
        folder.write_manifest({
            "command": ["dittools", "report", "--out", "<b>"],
            "dittools": "0.1.0",
            "commit": "0123456789abcdef+",
            "versions": {"python": "3", "triton": None},
            "device": {"type": "cpu", "name": "<i>CPU</i>", "memory_gb": 1.0, "power_limit_watts": None},
            "plan": plan.to_dict(),
            "notes": ["a <u>note</u>"],
        })  # fmt: skip
        folder.write_baselines(known._asdict())
        folder.write_failures(list(failures))
        for place, row in enumerate(rows(plan, settings(plan, known))):
            kind = row.setting.kind
            if not folder.done(row.case.id):
                with folder.new_case(row.case.id) as part:
                    record = {
                        "seconds": {
                            "text": 1.0,
                            "denoise": 4.0 if kind in ("dense", "seed", "kernel") else 2.0,
                            "decode": 1.0,
                        },
                        "sparsity": {"sparse_calls": 0.8 if kind == "sweep" else None, "overall": 0.4},
                        "method": chosen[0],
                        "method_options": chosen[1],
                        "fallbacks": [{"reason": "<em>few</em> tokens", "count": 3}] if kind == "sweep" else [],
                        "case": {"skipped": [[0.0, None], [0.0, 0.8]] if kind == "sweep" else []},
                    }
                    (part / "record.json").write_text(json.dumps(record))
                folder.write_judged(row.case.id, {"right": 1.0} if row.prompt == 0 else {"why_not": "no <p>caption"})
            if kind != "dense":
                value = "inf" if kind == "kernel" else 40.0 - place
                scores = {"psnr": {"mean": value, "per_frame": [value, value]}}
                left_out = {"lpips": "no <q>weights"}
                folder.write_scores(row.case.id, row.reference.id, {"scores": scores, "left_out": left_out})
    return gather(folder)


@pytest.fixture
def results(tmp_path):
    return write(Folder(tmp_path / "report"), PLAN)


def test_figures_are_paired_with_dense_of_the_same_prompt_and_seed(results):
    lines = {line["setting"]: line for line in summary(results)}
    assert lines["dense"]["speedup"] == 1 and lines["dense"]["psnr"] is None
    sparse = lines["svg, sparsity 0.5"]
    assert (sparse["speedup"], sparse["whole_speedup"]) == (2, 1.5)
    assert sparse["psnr"] == pytest.approx(40 - 5.5) and sparse["psnr_std"] == pytest.approx(1.29, abs=0.01)
    assert (sparse["pareto"], lines["svg, sparsity 0.8"]["pareto"]) == (True, False)
    assert lines["dense, math kernel"]["psnr"] == "inf" and lines["dense, math kernel"]["psnr_identical"] == 4
    assert lines["dense, another seed"]["drawn"] == 4


def drawn_again(folder, kind, denoise, psnr, known=KNOWN):
    """The report again, with other seconds and PSNR for the cases of one kind of setting."""
    for row in rows(PLAN, settings(PLAN, known)):
        if row.setting.kind == kind:
            path = folder.case(row.case.id) / "record.json"
            record = json.loads(path.read_text())
            path.write_text(json.dumps({**record, "seconds": {**record["seconds"], "denoise": denoise}}))
            scores = {"psnr": {"mean": psnr, "per_frame": [psnr, psnr]}}
            folder.write_scores(row.case.id, row.reference.id, {"scores": scores, "left_out": {}})
    return gather(folder)


@pytest.mark.parametrize(
    ("denoise", "psnr", "front"),
    [
        (1.0, 60.0, ["dense, 3 steps"]),  # faster and closer than all
        (1.0, 20.0, ["svg, sparsity 0.5", "dense, 3 steps"]),  # faster alone
        (2.0, 20.0, ["svg, sparsity 0.5"]),
    ],
)
def test_dense_with_fewer_steps_takes_part_in_the_front(tmp_path, denoise, psnr, front):
    folder = Folder(tmp_path / "report")
    write(folder, PLAN)
    results = drawn_again(folder, "steps", denoise, psnr)
    assert [line["setting"] for line in summary(results) if line["pareto"]] == front
    told = html.unescape(page.page(results, {})) + page.markdown(results)
    assert ("Dense with 3 of 4 steps beats every setting in both" in told) == (front == ["dense, 3 steps"])
    assert 'of the settings under test, dense and "dense, 3 steps", none is both faster and closer' in told


def test_a_setting_that_is_slower_than_dense_is_on_no_front(tmp_path):
    folder = Folder(tmp_path / "report")
    write(folder, PLAN)
    results = drawn_again(folder, "sweep", 8.0, 30.0)
    assert not any(line["pareto"] for line in summary(results) if line["kind"] == "sweep")


def test_an_asterisk_claims_nothing_of_a_baseline_that_was_not_drawn(tmp_path):
    results = write(Folder(tmp_path / "report"), PLAN, KNOWN._replace(fewer_steps=None))
    assert text.front(results).endswith("how dense with fewer steps would do is not known.")


def test_tables_have_a_line_for_each_row_and_setting(results):
    quality = list(csv.DictReader(io.StringIO(quality_csv(results))))
    assert len(quality) == 24 and len({(q["setting"], q["prompt"], q["seed"]) for q in quality}) == 24
    assert {q["psnr"] for q in quality if q["kind"] == "kernel"} == {"inf"}
    assert all((q["reference"] == "") == (q["kind"] == "dense") for q in quality)
    assert len(list(csv.DictReader(io.StringIO(summary_csv(results))))) == 6


def test_infinite_values_do_not_hide_finite_ones():
    found = spread([math.inf, 30.0, 40.0, None])
    assert (found.mean, found.count, found.infinite) == (35, 3, 1)
    assert spread([math.inf]).mean == math.inf and spread([]).mean is None


class Seen(html.parser.HTMLParser):
    """Tags, their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize("negative", ["", "<script>alert(3)</script>"])
def test_hostile_prompts_break_neither_page_nor_table(tmp_path, negative):
    plan = dataclasses.replace(PLAN, prompts=HOSTILE, negative_prompt=negative)
    error = "<script>alert(4)</script> failed"
    failed = {"phase": "run", "case": "x", "repeat": 0, "setting": "<s>", "prompt": 1, "seed": 0, "error": error}
    results = write(Folder(tmp_path / "report"), plan, failures=[failed])
    pictures = {("dense", 0, 0): Shown([], None, "cases/x/video.mp4")}
    text = page.page(results, pictures)
    seen = Seen(text)
    assert seen.tags.count("script") == 1 and not {"img", "b", "i", "u", "em", "q", "s"} & set(seen.tags)
    assert not [name for _, name, _ in seen.attributes if name.startswith("on")]
    links = [value for _, name, value in seen.attributes if name in ("href", "src")]
    assert links == ["cases/x/video.mp4"]
    assert "\x00" not in text and "\x1b" not in text and "‮" not in text
    whole = "".join(seen.words)
    assert HOSTILE[0] in whole and "long long" in whole and "(4000 characters)" in whole
    written = page.markdown(results)
    assert "<script" not in written and "](javascript" not in written and "\x1b" not in written
    assert max(map(len, written.splitlines())) < 2000
    table = [line for line in written.splitlines() if line.startswith("| ")]
    assert len(table) == 1 + 1 + 6 and len({line.replace("\\|", "").count("|") for line in table}) == 1


def test_the_page_needs_no_other_file_and_allows_no_other_script(results):
    text = page.page(results, {})
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_cases_of_a_pair_play_together_and_each_frame_wipes_between_dense_and_the_case(results):
    clip, images = "data:video/mp4;base64,", tuple(f"data:image/webp;base64,{n}" for n in "DCX")
    keys = [line.setting.key for line in results.lines]
    shown = {(key, 0, 0): Shown([Strip(7, "the middle", images)] * (key != "dense"), clip, None) for key in keys}
    text = page.page(results, {**shown, (keys[1], 1, 0): Shown([], None, "cases/a/video.mp4")})
    players = text.split('<div class="player">')[1:]
    assert len(players) == 1 and players[0].count(f'<video src="{clip}"') == len(keys)
    wipes = text.split('<div class="wipe">')[1:]
    assert len(wipes) == len(keys) - 1
    for line, wipe in zip(results.lines[1:], wipes, strict=True):
        assert re.findall('src="(.*?)"', wipe)[:3] == list(images), "dense below, the case over it, then the difference"
        assert f'aria-label="Wipe from dense to {html.escape(line.setting.name)}' in wipe
    assert re.findall('<a href="(.*?)">', text) == ["cases/a/video.mp4"]
    heads = re.findall(r'<th scope="row" data-value="(\d+)">', text)
    assert heads == [str(number) for number, _ in enumerate(keys, 1)]


def test_what_was_left_out_is_named_with_the_reason(results):
    left_out = results.left_out()
    assert "LPIPS was not measured: no <q>weights" in left_out
    assert "prompt 2 was not judged: no <p>caption" in left_out
    assert "svg, sparsity 0.5: 12 calls ran dense: <em>few</em> tokens" in left_out
    assert "Each case was timed once" in page.markdown(results)


def test_what_auto_stood_for_is_named_with_its_options(tmp_path):
    plan = dataclasses.replace(PLAN, sweep={"method": ["auto"], "sparsity": [0.8]})
    results = write(Folder(tmp_path / "report"), plan, chosen=("adaspa", {"rows": 8}))
    assert "Method auto stood for adaspa (rows=8) here." in text.explained(results)


def test_a_report_without_a_single_case_still_has_a_page(tmp_path):
    folder = Folder(tmp_path / "report")
    results = write(folder, PLAN)
    for case in folder.cases.iterdir():
        for file in case.iterdir():
            file.unlink()
    results = gather(folder)
    assert "No setting under test was drawn" in page.page(results, {}) and page.markdown(results)
    assert {line["drawn"] for line in summary(results)} == {0}


def test_times_are_left_out_where_the_device_did_other_work(tmp_path):
    results = write(Folder(tmp_path / "report"), dataclasses.replace(PLAN, timed=False))
    for line in summary(results):
        assert line["denoise_seconds"] is None and line["speedup"] is None and not line["pareto"]
        assert line["drawn"] == line["cases"] and (line["kind"] == "dense") == (line["psnr"] is None)
    found = page.page(results, {})
    assert "The setting nearest to dense is svg, sparsity 0.5" in found and "Up is closer to dense" not in found
    told = page.markdown(results)
    assert "not timed" in told and "Times were left out" in told and summary_csv(results)
    assert not any(words in told for words in ("times as fast", "denoise s", "speed-up", "Speed-up", "asterisk"))


def test_a_folder_without_a_report_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no report"):
        gather(Folder(tmp_path))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 1), (0, 0), (28.4, 31.2), (1e-6, 2e-6), (-3, 900)])
def test_ticks_are_few_and_enclose_the_values(low, high):
    found = charts.ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 12


def test_charts_stand_infinite_and_missing_values():
    points = [charts.Point(1.5, math.inf, None, None, "2", "<a>", "sweep", True)]
    drawn = charts.speed_and_quality(points, [charts.Level(math.inf, "noise floor"), charts.Level(12.0, "seed")])
    assert "nan" not in drawn and "inf" not in drawn and "<a>" not in drawn and "noise floor: identical" in drawn
    assert charts.over_frames([charts.Series("a", [math.inf, math.inf])], "PSNR") == ""
    assert "polyline" in charts.over_frames([charts.Series("a", [30.0, 31.0, None, math.inf, 29.0])], "PSNR")
    assert charts.heat_map([], "x") == ""
