"""What the flags of `dittools report` come to before anything is drawn."""

import json
import shlex

import pytest

from dittools.cli.app import command
from dittools.cli.report.flags import Flags
from dittools.cli.report.request import ReportRequest
from tests.cli.test_bad_input import one_error


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--seeds 0 1 2 --sweep a=1 b=2 --json", "--seeds 0 --seeds 1 --seeds 2 --sweep a=1 --sweep b=2 --json"),
        ("--sweep a=1 b=2 -o x", "--sweep a=1 --sweep b=2 -o x"),
        ("--join p1 p2 -h", "--join p1 --join p2 -h"),
        ("--seeds=0 1", "--seeds 0 --seeds 1"),
        ("--sweep=a=1 b=2 --out=x y", "--sweep a=1 --sweep b=2 --output=x y"),
        ("--seeds 0 -1 -o x", "--seeds 0 --seeds -1 -o x"),
        ("--seeds 0,1 2 --join a,b", "--seeds 0 --seeds 1 --seeds 2 --join a,b"),
        ("--negative-prompt --out --num-frames 5", "--negative-prompt --out --frames 5"),
        ("--num-inference-steps=4 --guidance-scale 3 -- --out", "--steps=4 --guidance 3 -- --out"),
    ],
)
def test_flags_that_take_many_values_end_at_the_next_flag(line, expected):
    assert command().commands["report"].plain(shlex.split(line)) == shlex.split(expected)


def test_help_after_a_flag_of_many_values_is_help(cli):
    result = cli("report", "--sweep", "sparsity=0.5", "-h")
    assert result.code == 0 and "Usage" in result.out


@pytest.mark.parametrize(
    ("text", "sparsity", "config", "expected"),
    [
        ("model: wan", None, None, [0.5, 0.8, 0.9]),
        ("model: wan", 0.6, None, [0.6]),
        ("sparsity: 0.7", None, None, [0.7]),
        ("sparsity: 0.7", 0.6, None, [0.6]),
        ("model: wan", None, {"sparsity": 0.4}, [0.4]),
        ("model: wan", 0.6, {"sparsity": 0.4}, [0.6]),
        ("model: wan", None, {"method": "svg"}, [0.5, 0.8, 0.9]),
        ("sweep: {sparsity: [0.3]}", 0.6, {"sparsity": 0.4}, [0.3]),
    ],
)
def test_one_sparsity_is_the_sweep_where_none_was_given(tmp_path, text, sparsity, config, expected):
    (tmp_path / "plan.yaml").write_text(text)
    given = {"plan": str(tmp_path / "plan.yaml")} | ({} if sparsity is None else {"sparsity": sparsity})
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
        given["config"] = str(tmp_path / "config.json")
    assert ReportRequest.read(Flags(**given), set(given)).sweep == {"sparsity": expected}


@pytest.mark.parametrize("phase", [("--phase", "quality"), ("--phase", "render"), ("--join", "part1")])
@pytest.mark.parametrize(
    "flags",
    [
        ("--share", "1/2"),
        ("--sparsity", "7"),
        ("--sweep", "nonsense=1"),
        ("--plan", "gone.yaml"),
        ("--untimed",),
        ("--fewer-steps", "3"),
    ],
    ids=lambda flags: flags[0],
)
def test_flags_on_drawing_are_refused_where_nothing_is_drawn(cli, tmp_path, phase, flags):
    line = one_error(cli("report", *phase, *flags, "--output", "joined"))
    assert flags[0] in line and "nothing is generated" in line and phase[0] in line and "drop it" in line
    assert not (tmp_path / "joined").exists()


def test_a_folder_without_a_report_can_be_neither_measured_nor_shown(cli):
    for phase in ("quality", "render"):
        line = one_error(cli("report", "--phase", phase, "--output", "report"))
        assert "holds no report" in line and "--phase run" in line


@pytest.mark.parametrize(
    ("verb", "known"), [(("report",), 8), (("calibrate", "--output", "p.json"), 2)], ids=["report", "calibrate"]
)
def test_more_builtin_prompts_than_there_are_is_refused(cli, tiny_weights, tmp_path, verb, known):
    size = ("--frames", 33, "--height", 256, "--width", 256, "--steps", 2, "--device", "cpu")
    line = one_error(cli(*verb, "--weights", tiny_weights, *size, "--prompts", "builtin:999"))
    assert "builtin:999" in line and f"there are {known} builtin prompts" in line
    assert not list(tmp_path.rglob("*.json"))
