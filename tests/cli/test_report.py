"""`dittools report` on a tiny model: what it leaves, and what happens when it is killed, full, or asked wrongly."""

import contextlib
import csv
import dataclasses
import errno
import json
import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from dittools import files
from dittools.cli.main import main
from dittools.cli.report import quality as report_quality
from dittools.cli.report.baselines import Baselines
from dittools.cli.report.join import whole_command
from dittools.methods import METHODS
from dittools.pipelines import reading, saving, stages
from dittools.report.folder import WRITER, Folder
from dittools.report.results import decided
from tests.cli.conftest import PROMPT, SMALL
from tests.cli.test_bad_input import one_error
from tests.report.test_plan import PLAN

HOSTILE = f"a <b>blue</b> square / ../up 'quoted' \"twice\" {'long ' * 800}".strip()
TIMES = {"seconds", "step_seconds"}
TIMED_COLUMNS = {
    *("denoise_seconds", "speedup", "speedup_std", "whole_speedup", "whole_speedup_std", "pareto"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_weights):
    """A finished report; its folder."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(arguments(folder, tiny_weights)) == 0
    return folder / "report"


def arguments(folder, weights):
    """The command for a small report with everything in it: a hostile prompt, every case timed twice."""
    prompts = folder / "prompts.txt"
    prompts.write_text(f"\n{HOSTILE}\n")
    flags = ["report", "--weights", weights, "--output", folder / "report", *SMALL, "--prompts", prompts]
    flags += ["--sweep", "sparsity=0.8", "--method", "svg", "--repeats", 2]
    return [str(flag) for flag in flags]


def tree(folder):
    """Every file but the lock, timings taken out."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name == ".lock":
            continue
        if path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.suffix == ".csv":
            lines = list(csv.DictReader(path.open()))
            found[name] = [{k: v for k, v in line.items() if k not in TIMED_COLUMNS} for line in lines]
        elif path.suffix in (".html", ".md"):
            found[name] = None  # shows times
        else:
            found[name] = path.read_bytes()
    return found


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items() if key not in TIMES | {"command"}}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def test_the_folder_has_everything(whole):
    assert {path.name for path in whole.iterdir()} == {
        *("manifest.json", "baselines.json", "failures.json", "cases", "quality.csv", "summary.csv"),
        *("report.md", "report.html", ".lock"),
    }
    manifest = json.loads((whole / "manifest.json").read_text())
    assert {"versions", "device", "commit", "plan", "command"} <= set(manifest)
    assert "power_limit_watts" in manifest["device"]
    assert any("tokens and the model reads" in note for note in manifest["notes"])
    cases = list((whole / "cases").iterdir())
    assert len(cases) == 5
    for case in cases:
        assert {"frames.mkv", "video.mp4", "record.json", "repeat-1.json", "judge.json"} <= {
            p.name for p in case.iterdir()
        }
        assert json.loads((case / "repeat-1.json").read_text())["same_latents"] is True


def test_records_keep_the_contract_and_frames_are_the_models_own(whole):
    from tests.cli.test_generate import KEYS

    summary = {line["setting"]: line for line in csv.DictReader((whole / "summary.csv").open())}
    assert list(summary) == [
        *("dense", "svg, sparsity 0.8"),
        *("dense, math kernel", "dense, another seed", "dense, 1 step"),
    ]
    assert abs(float(summary["svg, sparsity 0.8"]["skipped_sparse_calls"]) - 0.8) < 0.1
    for path in (whole / "cases").glob("*/record.json"):
        record = json.loads(path.read_text())
        assert set(record) == {*KEYS, "case"}
        frames = reading.read(path.parent / "frames.mkv").frames
        assert frames.shape == (17, 96, 112, 3)
        assert record["seconds"]["total"] >= record["seconds"]["denoise"] > 0


def test_generate_draws_the_same_frames(whole, generate, tmp_path):
    quality = list(csv.DictReader((whole / "quality.csv").open()))
    case = next(q["case"] for q in quality if q["setting"] == "svg, sparsity 0.8" and q["prompt"] == "1")
    flags = (*SMALL[:-2], "--method", "svg", "--sparsity", 0.8)
    assert generate(*flags, "--prompt", HOSTILE, "--output", "out.npy").code == 0
    assert np.array_equal(np.load(tmp_path / "out.npy"), reading.read(whole / "cases" / case / "frames.mkv").frames)


def test_quality_is_what_compare_says(whole, cli):
    quality = list(csv.DictReader((whole / "quality.csv").open()))
    row = next(q for q in quality if q["setting"] == "svg, sparsity 0.8")
    a, b = (whole / "cases" / row[name] / "frames.mkv" for name in ("case", "reference"))
    scores = cli("compare", a, b, "--json").json["scores"]
    assert scores["psnr"]["mean"] == pytest.approx(float(row["psnr"]), abs=1e-3)
    assert scores["ssim"]["mean"] == pytest.approx(float(row["ssim"]), abs=1e-5)


def test_measuring_several_cases_at_a_time_gives_the_same_files(whole, tmp_path, cli, monkeypatch):
    folder = tmp_path / "report"
    shutil.copytree(whole, folder)
    for case in (folder / "cases").iterdir():
        for path in case.iterdir():
            if path.name == "judge.json" or path.name.startswith("against"):
                path.unlink()
    monkeypatch.setattr(report_quality.os, "cpu_count", lambda: 8)
    assert cli("report", "--phase", "quality", "--output", folder).code == 0
    assert tree(folder) == tree(whole)


def test_the_same_command_again_draws_nothing(whole, cli, tiny_weights, monkeypatch):
    monkeypatch.setattr(stages, "denoise", lambda *a: pytest.fail("drew again"))
    before = tree(whole)
    result = cli(*arguments(whole.parent, tiny_weights), "--json")
    assert result.code == 0 and len(result.json["summary"]) == 5
    assert tree(whole) == before
    by_case = result.json["psnr_by_case"]
    rows = [q for q in csv.DictReader((whole / "quality.csv").open()) if q["setting"] == "svg, sparsity 0.8"]
    assert by_case["svg, sparsity 0.8"] == [pytest.approx(float(q["psnr"]), abs=1e-3) for q in rows]
    assert set(by_case["dense"]) == {None}


def test_a_prompt_of_4000_characters_and_html_is_in_the_page_as_text(whole):
    page = (whole / "report.html").read_text()
    assert "a &lt;b&gt;blue&lt;/b&gt; square" in page and "<b>blue" not in page
    assert all(len(path.name) < 40 for path in whole.rglob("*"))


def start(command, log):
    """Run a command in a process that is already warm, silently."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    raise SystemExit(main(command))


def test_killed_ten_times_and_gone_on_with_it_is_the_folder_of_an_unbroken_run(whole, tmp_path, tiny_weights):
    context = multiprocessing.get_context("forkserver")
    modules = [
        "diffusers.pipelines.wan.pipeline_wan",
        "transformers.models.umt5.modeling_umt5",
        "dittools.cli.report.run",
    ]
    context.set_forkserver_preload([__name__, "dittools.cli.report.phases", "dittools.cli.report.quality", *modules])
    command = arguments(tmp_path, tiny_weights)
    chance, kills, folder = random.Random(4), 0, tmp_path / "report"
    while True:
        process = context.Process(target=start, args=(command, tmp_path / "log.txt"))
        process.start()
        if kills < 10:
            wait_for_life(process, folder)
            process.join(chance.uniform(0.0, 1.2))
            kills += process.exitcode is None
            process.kill()
            process.join()
            assert process.exitcode in (0, -9), (tmp_path / "log.txt").read_text()
        else:
            process.join(120)
            assert process.exitcode == 0, (tmp_path / "log.txt").read_text()
            break
    assert tree(folder) == tree(whole)


class Died(BaseException):
    """What a killed process does: nothing more."""


def test_dying_after_any_one_file_leaves_a_report_to_go_on_with(whole, tmp_path, tiny_weights, monkeypatch):
    command, replace = arguments(tmp_path, tiny_weights), os.replace

    def die(source, target):
        replace(source, target)
        if tmp_path in Path(target).parents and target not in written:
            written.append(target)
            raise Died

    monkeypatch.setattr(files.os, "replace", die)
    monkeypatch.setattr(report_quality, "_MOST_AT_ONCE", 1)  # so that nothing goes on beside what died
    written, deaths = [], 0
    while True:
        try:
            assert main(command) == 0
            break
        except Died:
            deaths += 1
        assert len(written) == deaths
    assert written[0].name == "manifest.json" and deaths > 20
    assert tree(tmp_path / "report") == tree(whole)


def wait_for_life(process, folder):
    """Until this process has begun to write: what comes before needs no care."""
    deadline = time.monotonic() + 60
    while process.exitcode is None and time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if str(process.pid) in (folder / WRITER).read_text():
                return
        time.sleep(0.01)


def test_a_case_that_fails_is_recorded_and_the_rest_go_on(report, tmp_path, monkeypatch):
    denoise = stages.denoise

    def fail(pipe, embeds, shot, on_step=None, only_steps=None):
        if only_steps is None and shot.steps == 2 and shot.seed == 1:
            raise RuntimeError("the GPU is <tired>")
        return denoise(pipe, embeds, shot, on_step, only_steps)

    monkeypatch.setattr(stages, "denoise", fail)
    result = report()
    assert result.code == 1 and "1 of the cases failed" in result.err.splitlines()[-1]
    failures = json.loads((tmp_path / "report" / "failures.json").read_text())
    assert [(f["setting"], f["phase"]) for f in failures] == [("dense, another seed", "run")]
    assert "the GPU is &lt;tired&gt;" in (tmp_path / "report" / "report.html").read_text()
    assert len(list((tmp_path / "report" / "cases").iterdir())) == 4
    monkeypatch.setattr(stages, "denoise", denoise)
    assert report().code == 0
    assert json.loads((tmp_path / "report" / "failures.json").read_text()) == []


def test_a_method_that_the_size_rules_out_is_told_before_anything_is_drawn(report, tmp_path):
    result = report("--frames", 1)
    assert result.code == 2 and "svg needs a video" in result.err.splitlines()[-1]
    assert not (tmp_path / "report").exists()


def test_a_method_that_fails_is_a_failed_case_not_a_failed_report(report, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no room for a plan")

    monkeypatch.setattr(METHODS["svg"], "plan", fail)
    result = report()
    assert result.code == 1
    failures = json.loads((tmp_path / "report" / "failures.json").read_text())
    assert len(failures) == 1 and "no room for a plan" in failures[0]["error"]
    assert (tmp_path / "report" / "report.html").exists()


def test_a_full_disk_stops_the_report_and_loses_nothing_finished(report, tmp_path, monkeypatch):
    write, calls = saving.write, []

    def fill(frames, path, kind, fps):
        calls.append(path)
        if len(calls) > 3:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(frames, path, kind, fps)

    monkeypatch.setattr(saving, "write", fill)
    result = report()
    assert result.code == 1 and "the disk is full" in result.err.splitlines()[-1]
    assert len(calls) == 4, "it went on after the disk was full"
    done = tree(tmp_path / "report")
    assert sum(name.endswith("record.json") for name in done) == 1
    assert not any(".part" in name for name in done)
    monkeypatch.setattr(saving, "write", write)
    assert report().code == 0
    again = tree(tmp_path / "report")
    assert {name: again[name] for name in done if "cases" in name} == {n: v for n, v in done.items() if "cases" in n}


def test_without_ffmpeg_frames_are_arrays_and_the_page_says_no_more_than_it_has(report, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "ffmpeg", lambda: None)
    result = report()
    assert result.code == 0 and result.err.count("no ffmpeg found: frames are kept as arrays") == 1
    cases = list((tmp_path / "report" / "cases").iterdir())
    assert len(cases) == 5
    for case in cases:
        frames = np.load(case / "frames.npy")
        assert frames.shape == (17, 96, 112, 3) and not list(case.glob("*.mkv")) and not list(case.glob("*.mp4"))
        assert json.loads((case / "record.json").read_text())["output"].endswith("frames.npy")
    rows = csv.DictReader((tmp_path / "report" / "quality.csv").open())
    assert all(float(row["psnr"]) > 5 for row in rows if row["psnr"])
    page = (tmp_path / "report" / "report.html").read_text()
    assert "video.mp4" not in page and "frames.mkv" not in page and "<img" in page


def test_two_reports_in_one_folder_are_refused(report, tmp_path):
    with Folder(tmp_path / "report").held():
        line = one_error(report())
    assert f"in use by process {os.getpid()}" in line and "--output" in line


def test_other_settings_in_the_same_folder_are_refused_with_both(report):
    assert report("--phase", "run").code == 0
    line = one_error(report("--sweep", "sparsity=0.9"))
    assert "other settings (sweep" in line and "0.5" in line and "0.9" in line
    assert "seeds (0,), now (1, 2)" in one_error(report("--seeds", 1, 2))


def test_phases_can_be_done_one_by_one(report, cli, tmp_path):
    folder = tmp_path / "report"
    assert report("--phase", "run").code == 0
    assert not (folder / "quality.csv").exists() and len(list((folder / "cases").iterdir())) == 5
    assert cli("report", "--output", "report", "--phase", "quality").code == 0
    assert (folder / "quality.csv").exists() and not (folder / "report.html").exists()
    result = cli("report", "--output", "report", "--phase", "render")
    assert result.code == 0 and result.out == "report/report.html\n"
    assert (folder / "report.html").exists() and (folder / "report.md").exists()


def test_a_yaml_plan_is_read_and_flags_win(cli, tiny_weights, tmp_path):
    (tmp_path / "plan.yaml").write_text(
        f"weights: {tiny_weights}\nprompts: [a red circle, 'a: \"blue\" {{square}}']\nseeds: [3]\nsteps: 3\n"
        "fewer-steps: 1\nframes: 5\nheight: 48\nwidth: 64\nsweep: {method: auto, sparsity: [0.8]}\n"
    )
    result = cli("report", "--plan", "plan.yaml", "--steps", 2, "--output", "report", "--phase", "run", "--json")
    assert result.code == 0
    plan = result.json["manifest"]["plan"]
    assert plan["prompts"] == ["a red circle", 'a: "blue" {square}'] and plan["seeds"] == [3]
    assert plan["steps"] == 2 and plan["sweep"] == {"method": ["auto"], "sparsity": [0.8]}


def test_builtin_is_small_on_a_cpu(cli, embedded_model, tmp_path):
    from dittools.pipelines.embedded.captions import BUILTIN

    result = cli("report", "--weights", "embedded", "--output", "report", "--phase", "run", "--json", "--device", "cpu")
    assert result.code == 0
    plan = result.json["manifest"]["plan"]
    assert plan["prompts"] == list(BUILTIN[:2]) and plan["seeds"] == [0]
    assert plan["sweep"] == {"sparsity": [0.5, 0.8, 0.9]}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--phase", "runn"], ["'runn'", "did you mean run"]),
        (["--prompts", "gone.txt"], ["--prompts gone.txt", "No such file"]),
        (["--prompts", "empty.txt"], ["no prompts"]),
        (["--prompts", "builtin:0"], ["builtin:0"]),
        (["--sweep", "sparsity"], ["--sweep must be name=value"]),
        (["--sweep", "sparsty=0.5"], ["did you mean sparsity"]),
        (["--sweep", "sparsity=2"], ["below 1"]),
        (["--method", "dense"], ["nothing to compare", "--sweep"]),
        (["--seeds", "-1"], ["--seeds", "-1"]),
        (["--repeats", "0"], ["--repeats must be at least 1"]),
        (["--fewer-steps", "2"], ["--fewer-steps 2", "2 steps"]),
        (["--frames", "16"], ["--frames 16", "13 or 17"]),
        (["--plan", "gone.yaml"], ["--plan gone.yaml", "No such file"]),
        (["--plan", "bad.yaml"], ["bad.yaml", "no YAML"]),
        (["--plan", "list.yaml"], ["names and values"]),
        (["--plan", "key.yaml"], ["'sweeps'", "did you mean sweep"]),
        (["--plan", "type.yaml"], ["guidance must be a number, got 'firm'"]),
        (["--output", "prompts.txt"], ["is a file"]),
        (["--output", "other"], ["other files in it"]),
        (["--output", ""], ["names no folder"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("-") else "",
)
def test_a_wrong_flag_is_one_line_with_the_way_out(report, tmp_path, flags, said):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bad.yaml").write_text("a: [1")
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "key.yaml").write_text("sweeps: {sparsity: [0.5]}")
    (tmp_path / "type.yaml").write_text("guidance: firm")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    line = one_error(report(*flags))
    for part in said:
        assert part in line
    assert not (tmp_path / "report").exists() or not (tmp_path / "report" / "cases").exists()


def test_parts_drawn_apart_join_into_the_whole_report(report, cli, tmp_path):
    """Also from parts of which one was measured already, and again when a part is joined twice."""
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\na blue square spins\n")
    assert report("--phase", "run", "--output", "whole").code == 0
    for part in (1, 2):
        assert report("--phase", "run", "--share", f"{part}/2", "--output", f"part{part}").code == 0
    drawn = [{case.name for case in Folder(tmp_path / name).cases.iterdir()} for name in ("part1", "part2", "whole")]
    assert drawn[0] and drawn[1] and not drawn[0] & drawn[1]
    assert drawn[0] | drawn[1] == drawn[2]
    assert cli("report", "--phase", "quality", "--output", "part2").code == 0
    for _ in range(2):
        assert cli("report", "--join", "part1", "part2", "--phase", "quality", "--output", "joined").code == 0
    assert cli("report", "--phase", "quality", "--output", "whole").code == 0
    assert tree(tmp_path / "joined") == tree(tmp_path / "whole")


def test_an_untimed_report_has_measures_and_no_times(report, tmp_path):
    done = report("--untimed", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert all(line["denoise_seconds"] is None and line["speedup"] is None for line in found["summary"])
    assert any(isinstance(line["psnr"], float) for line in found["summary"])
    assert found["manifest"]["plan"]["timed"] is False
    assert any("times were left out" in note for note in found["baselines"]["notes"])
    assert "--untimed leaves them out" in one_error(report("--untimed", "--repeats", 2, "--output", "other"))


def test_a_compiled_model_has_one_kernel_and_so_no_noise_floor(tmp_path):
    folder = Folder(tmp_path)
    with folder.held():
        Baselines(dataclasses.replace(PLAN, compile=True), folder).choose_kernels(["flash", "math"])
    found = decided(folder)
    assert (found.dense_kernel, found.other_kernel) == ("flash", None)
    assert "keeps the kernel it was compiled with" in found.notes[0]


def test_only_parts_of_one_report_join(report, cli, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\na blue square spins\n")
    assert report("--phase", "run", "--share", "1/2", "--output", "part1").code == 0
    assert report("--phase", "run", "--share", "2/2", "--output", "part2", "--steps", 3).code == 0
    assert "steps" in one_error(cli("report", "--join", "part1", "part2", "--output", "joined"))
    assert not (tmp_path / "joined" / "manifest.json").exists()
    assert "manifest.json is missing" in one_error(cli("report", "--join", "part1", "nowhere", "--output", "joined"))
    assert "fewer" in one_error(report("--share", "3/3", "--output", "part3"))
    for bad in ("0/2", "3/2", "half", "1/0"):
        assert "2/4" in one_error(report("--share", bad, "--output", "part4"))


def test_a_joined_report_names_the_command_of_the_whole():
    part = ["dittools", "report", "--share", "2/4", "--method", "svg", "--phase=run", "--output", "part2"]
    assert whole_command(part, Path("all")) == ["dittools", "report", "--method", "svg", "--output", "all"]


def test_parts_that_decided_on_other_baselines_are_joined_with_a_note(report, cli, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\na blue square spins\n")
    for part in (1, 2):
        assert report("--phase", "run", "--share", f"{part}/2", "--output", f"part{part}").code == 0
    other = Folder(tmp_path / "part2")
    other.write_baselines({**other.baselines(), "fewer_steps": 7})
    result = cli("report", "--join", "part1", "part2", "--phase", "quality", "--output", "joined", "--json")
    assert result.code == 0
    assert any("equal-time steps apart (1, 7)" in note for note in result.json["baselines"]["notes"])
