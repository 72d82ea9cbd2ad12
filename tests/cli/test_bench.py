"""`dittools bench` from the command line, as small as it goes."""

import json
from types import SimpleNamespace

import pytest

from dittools.benchmarks import speed_only
from dittools.kernels import checked
from dittools.kernels.block_sparse import dispatch
from dittools.methods import auto
from dittools.methods.draft import Draft

SMALL = ("--device", "cpu", "--shape", "2x300", "--head-dim", 64, "--seconds", 0.05)
TINY = ("--size", "tiny", "--height", 128, "--width", 192, "--frames", 33, "--device", "cpu", "--repeats", 1)


def test_kernel_prints_a_table_writes_json_and_goes_on_from_it(cli, tmp_path):
    flags = ("bench", "kernel", *SMALL, "--rows", "uniform,lists", "--density", "0.3", "--json", "k.json")
    done = cli(*flags)
    assert done.code == 0
    assert "uniform  2 x 300" in done.out and "portable" in done.out and "dense: flash" in done.out
    assert "this says little about cards" in done.err and "uniform 2x300 hd64 0.3 float32: dense flash" in done.err
    found = json.loads((tmp_path / "k.json").read_text())
    assert [row["job"]["name"] for row in found["rows"]] == ["uniform", "lists"]
    assert found["command"][:3] == ["dittools", "bench", "kernel"] and found["device"]["name"]
    assert cli(*flags).out == done.out


def test_a_wrong_kernel_is_named_without_a_speed_and_fails_the_command(cli, monkeypatch):
    right = dispatch.portable_block_sparse_attention

    def twice(*args, **call):
        return tuple(x if x is None else x * 2 for x in right(*args, **call))

    monkeypatch.setattr(dispatch, "portable_block_sparse_attention", twice)
    done = cli("bench", "kernel", *SMALL, "--rows", "ragged")
    assert done.code == 1
    (line,) = [line for line in done.out.splitlines() if " portable " in line]
    assert "Wrong: RMS error" in line and line.split("portable")[1].split()[:6] == ["-"] * 6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--rows", "unifrm"), "unknown row 'unifrm': did you mean uniform"),
        (("--shape", "12by300"), "--shape takes heads x tokens as 12x32768, separated by commas, got '12by300'"),
        (("--density", "1.5"), "--density takes kept shares above 0 and up to 1"),
        (("--implementation", "cuda"), "--implementation"),
        (("--no-burst", "--no-sustained"), "leave nothing to time"),
        (("--seconds", "0"), "--seconds must be a number above 0, got 0"),
        (("--seconds", "nan"), "--seconds must be a number above 0, got nan"),
        (("--limit", "nan"), "--limit must be a number above 0, got nan"),
        (("--limit", "inf"), "--limit must be a number above 0, got inf"),
        ((*SMALL, "--implementation", "triton"), "--implementation triton cannot run here: "),
        ((*SMALL, "--implementation", "hopper"), "--implementation hopper cannot run here: needs a CUDA device"),
        ((*SMALL, "--json", "gone/k.json"), "--output gone/k.json: there is no folder gone: make it first"),
        ((*SMALL, "--json", "."), "--output . is a folder: name a file"),
        (("--dtype", "fp8"), "--dtype"),
        (("--check", "--device", "cpu"), "nothing to check here: the kernel hopper needs a CUDA device, got cpu"),
    ],
)
def test_bad_flags_of_kernel_are_one_line(cli, tmp_path, flags, message):
    done = cli("bench", "kernel", *flags)
    assert done.code == 2 and done.out == "" and message in done.err and done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_something_else_is_left_alone(cli, tmp_path):
    (tmp_path / "k.json").write_text("{}")
    done = cli("bench", "kernel", *SMALL, "--json", "k.json")
    assert done.code == 2 and "is not a file of kernels" in done.err and (tmp_path / "k.json").read_text() == "{}"


def test_model_says_speed_only_and_goes_on_from_its_file(cli, tmp_path):
    flags = ("bench", "model", *TINY, "--layers", 2, "--sparsity", 0.7, "--json", "m.json")
    done = cli(*flags)
    assert done.code == 0 and done.out.startswith("speed only: random weights\n")
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["named"] == "speed only: random weights"
    assert [row["job"]["kind"] for row in found["rows"]] == ["dense", "sparse"]
    assert not {"quality", "psnr"} & set(json.dumps(found).replace('"', " ").split())
    again = cli(*flags)
    assert again.out == done.out and "every row is there already" in again.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--size", "15b"), "'15b'"),
        (("--model", "wam"), "did you mean wan"),
        (("--sparsity", "80"), "did you mean 0.8"),
        (("--method", "svgg"), "did you mean svg"),
        (("--size", "tiny", "--dense-layers", "2"), "--dense-layers 2 leaves none of 2 layers sparse"),
        (("--size", "tiny", "--height", "100", "--device", "cpu"), "--height 100 does not fit"),
        ((*TINY, "--frames", 1), "--method svg cannot run here: svg needs a video"),
        ((*TINY, "--height", 32, "--width", 32), "needs at least 4 blocks of 64 tokens"),
        ((*TINY, "--method", "auto"), "video tokens are too few to gain on cpu"),
        ((*TINY, "--method", "svg,drft"), "did you mean draft"),
        ((*TINY, "--method", "svg:probe_rows"), "a method's options are name:option=value"),
        ((*TINY, "--method", "svg:rows=3"), "unknown option of method svg 'rows'"),
        ((*TINY, "--method", "svg:probe_rows=0"), "probe_rows must be"),
        ((*TINY, "--json", "gone/m.json"), "--output gone/m.json: there is no folder gone: make it first"),
        ((*TINY, "--method", "svg,dense"), "--method dense skips nothing"),
        ((*TINY, "--method", "paro", "--profile", "missing.json"), "--profile: "),
        ((*TINY, "--method", "draft", "--profile", "missing.json"), "none of draft takes one: drop it"),
        (("--model", "flux", "--size", "tiny", "--method", "svg", "--device", "cpu"), "svg needs a video"),
        (("--model", "qwen_imag"), "did you mean"),
    ],
)
def test_bad_flags_of_model_are_one_line(cli, tmp_path, flags, message):
    done = cli("bench", "model", *flags)
    assert done.code == 2 and done.out == "" and message in done.err and done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_bad_sizes_are_known_before_a_model_is_made(cli, monkeypatch):
    monkeypatch.setattr(speed_only, "build", lambda *args: pytest.fail("a model was made"))
    assert cli("bench", "model", "--model", "hunyuan", "--height", 721, "--device", "cpu").code == 2


def test_several_methods_share_a_model_and_a_file_that_is_gone_on_from(cli, tmp_path, monkeypatch):
    flags = ("bench", "model", *TINY, "--sparsity", 0.7, "--json", "m.json")
    done = cli(*flags, "--method", "svg")
    assert done.code == 0 and "share of its attention" in done.out
    before = {row["id"]: row for row in json.loads((tmp_path / "m.json").read_text())["rows"]}
    builds, build = [], speed_only.build
    monkeypatch.setattr(speed_only, "build", lambda *args: builds.append(args) or build(*args))
    assert cli(*flags, "--method", "svg,draft,svg2").code == 0
    rows = json.loads((tmp_path / "m.json").read_text())["rows"]
    assert len(builds) == 1
    assert [row["job"].get("method") for row in rows] == [None, "svg", "draft", "svg2"]
    assert {row["id"]: row for row in rows[:2]} == before  # measured once
    assert all(row["speedup"].keys() == {"dense"} and row["costs"]["all"] > 0 for row in rows[1:])


def test_rows_of_auto_say_which_method_it_took_and_how(cli, tmp_path, monkeypatch):
    monkeypatch.setitem(auto.FEWEST_TOKENS, "cpu", 100)
    flags = ("bench", "model", *TINY, "--sparsity", 0.7, "--method", "auto,svg", "--json", "m.json")
    done = cli(*flags)
    assert done.code == 0, done.err
    _, of_auto, of_svg = json.loads((tmp_path / "m.json").read_text())["rows"]
    assert (of_auto["method"], of_auto["method_options"]) == ("adaspa", {"rows": auto.CPU_ROWS})
    assert (of_svg["method"], of_svg["method_options"]) == ("svg", {})
    assert f"{of_auto['id']} -> adaspa (rows=8) " in done.out and "\nauto -> adaspa (rows=8) " in done.out
    assert "sparse auto -> adaspa (rows=8): " in done.err and "svg ->" not in done.out + done.err


def test_a_method_runs_with_the_options_that_follow_its_name(cli, tmp_path):
    flags = ("bench", "model", *TINY, "--sparsity", 0.7, "--method", "svg2:iterations=2,svg2", "--json", "m.json")
    done = cli(*flags)
    assert done.code == 0, done.err
    _, once, twice = json.loads((tmp_path / "m.json").read_text())["rows"]
    assert (once["job"]["method"], once["method_options"]) == ("svg2:iterations=2", {"iterations": 2})
    assert (twice["job"]["method"], twice["method_options"]) == ("svg2", {})
    assert "sparse svg2:iterations=2 0.7" in done.out and "\nsvg2:iterations=2 " in done.out


def test_methods_that_need_a_profile_get_one_of_the_random_weights(cli, tmp_path):
    flags = ("bench", "model", *TINY, "--sparsity", 0.7, "--method", "paro,sparse_vdit", "--json", "m.json")
    done = cli(*flags)
    assert done.code == 0, done.err
    assert "paro needs a profile and got none: it is measured on the random weights" in done.err
    rows = json.loads((tmp_path / "m.json").read_text())["rows"]
    assert [row["job"].get("profile") for row in rows] == [None, *["measured on the random weights"] * 2]
    assert all(row["skipped_sparse_calls"] == pytest.approx(0.7, abs=0.02) for row in rows[1:])


def test_a_method_that_fails_is_named_and_the_others_are_measured(cli, tmp_path, monkeypatch):
    def fails(*args):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(Draft, "plan", fails)
    flags = ("bench", "model", *TINY, "--sparsity", 0.7, "--method", "draft,svg2", "--json", "m.json")
    done = cli(*flags)
    assert done.code == 1 and "error: RuntimeError: no such luck" in done.out
    rows = {row["job"].get("method"): row for row in json.loads((tmp_path / "m.json").read_text())["rows"]}
    assert rows[None]["complete"] and rows["svg2"]["complete"] and "error" in rows["draft"]


@pytest.mark.parametrize("model", ["hunyuan", "qwen_image"])
def test_other_families_run_at_their_own_sizes(cli, model):
    done = cli("bench", "model", "--model", model, "--size", "tiny", "--device", "cpu", "--repeats", 1)
    assert done.code == 0, done.err
    assert "portable 1" in done.out


@pytest.mark.parametrize("verb", ["kernel", "model"])
def test_both_have_examples_that_parse(cli, verb):
    assert f"Examples:\n    dittools bench {verb}" in cli("bench", verb, "--help").out
    assert "bench" in cli("--help").out


@pytest.mark.parametrize("broken", ["hopper", "hopper-64", "hopper-clusters", "hopper-mass", "none"])
def test_check_enters_every_kernel_that_passed(cli, monkeypatch, tmp_path, broken):
    def side_by_side(groups, results, told, *, limit, lanes):
        for jobs in groups:
            run(jobs, results, told, limit)

    def run(jobs, results, told, limit):
        for job in jobs:
            of_blocks = "hopper-64" if job.get("query_block") == 64 else "hopper"
            of = {"clusters": "hopper-clusters", "mass": "hopper-mass"}
            mine = of.get(job["kind"].split("-")[0], of_blocks)
            wrong = mine == broken and ("1000" in job["id"] or "4111" in job["id"])
            result = {"error": "hung"} if wrong else {"right": True}
            told({"id": job["id"], **(result | {"speedup": 1.5} if "faster" in job["kind"] else result)})

    head = {"device": {"capability": "9.0", "name": "a card"}, "versions": {}}
    monkeypatch.setattr("dittools.kernels.capability.why_not_hopper", lambda *_: None)
    monkeypatch.setattr("dittools.benchmarks.long_proof.run", run)
    monkeypatch.setattr("dittools.benchmarks.long_proof.run_side_by_side", side_by_side)
    monkeypatch.setattr("dittools.cli.bench_kernel.open_results", lambda *_: SimpleNamespace(head=head))
    monkeypatch.setattr(checked, "TABLE", tmp_path / "checked.json")
    done = cli("bench", "kernel", "--check", "--device", "cpu")
    assert done.code == (0 if broken == "none" else 1)
    entered = {entry["implementation"] for entry in json.loads((tmp_path / "checked.json").read_text())["entries"]}
    kernels = {"hopper", "hopper-64", "hopper-clusters", "hopper-mass"}
    assert entered == kernels - {broken}
    for kernel in kernels:
        assert (f"{kernel} is not chosen on this card type: " in done.out) == (kernel == broken)
        assert (f"{kernel} is right in " in done.out) == (kernel != broken)
