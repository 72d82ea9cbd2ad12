"""The README's commands exist, and its table is the record's."""

import re
import shlex
from pathlib import Path

import pytest

from dittools.cli import (
    app,
    bench,
    caches,
    calibrate,
    compare,
    demo,
    env,
    export,
    generate,
    methods,
    models,
    plan,
    report,
)
from dittools.cli import inspect_maps as inspect
from tests.cli.test_generate import KEYS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = app.command().commands
VERBS = (generate, demo, report, calibrate, export, inspect, compare, plan, env, models, methods, caches, bench)
SHOWN = "\n".join([README, *(verb.EXAMPLES for verb in VERBS), bench.KERNEL_EXAMPLES, bench.MODEL_EXAMPLES])
LINES = sorted(set(re.findall(r"^\s*(?:.* && )?(dittools [^\n#]+)", SHOWN, re.MULTILINE)))


@pytest.mark.parametrize("line", LINES)
def test_every_command_shown_has_a_known_verb_and_known_flags(line):
    _, verb, *arguments = shlex.split(line)
    command = COMMANDS[verb]
    if hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    assert {part for part in arguments if part.startswith("-")} <= known


def test_the_readme_shows_every_verb():
    block = README.split("## Command line")[1].split("```")[1]
    assert {line.split()[1] for line in block.splitlines() if line.startswith("dittools")} >= set(COMMANDS)


def test_there_is_one_line_to_run_and_one_to_test():
    lines = [line for line in README.splitlines() if line.startswith("pip install ")]
    assert len(lines) == 2 and all("-c constraints.txt" in line for line in lines)
    assert " && dittools generate --model wan --sparsity 0.8 " in lines[0]
    assert " && python -m pytest" in lines[1]


def test_ci_takes_its_line_from_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    pattern = re.search(r"grep -m 1 '([^']+)' README.md", script).group(1)
    assert len(re.findall(pattern, README, re.MULTILINE)) == 1
    assert "pytest" not in script.replace(pattern, "")


def test_every_key_of_the_record_is_explained():
    table = README.split("## The record")[1].split("## Limits")[0]
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)))) == set(KEYS)
