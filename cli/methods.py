"""`dittools methods`: the ways to choose what attention skips."""

from __future__ import annotations

from typing import Any

from dittools.cli.flags import Debug, Json
from dittools.cli.output import Output, table

NAME = "methods"
SHORT = "List the ways to choose what is skipped, and to make up for it."
HELP = "List the methods and the corrections, and the options each takes in a --config file."
EXAMPLES = """\b
Examples:
  dittools methods
  dittools methods --json"""


def command(as_json: Json = False, debug: Debug = False) -> None:
    from dittools import corrections, methods

    lists = {"methods": _entries(methods.describe()), "corrections": _entries(corrections.describe())}
    Output(as_json).data(lists, lambda: "\n\n".join(_readable(name, entries) for name, entries in lists.items()))


def _entries(described: list[tuple[str, str, dict]]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "description": line,
            "options": {option: {"default": default, "help": text} for option, (default, text) in options.items()},
        }
        for name, line, options in described
    ]


def _readable(kind: str, methods: list[dict[str, Any]]) -> str:
    kind = kind.removesuffix("s").upper()
    text = table((kind, "WHAT IT DOES"), [(entry["name"], entry["description"]) for entry in methods])
    options = [
        (entry["name"], option, facts["default"], facts["help"])
        for entry in methods
        for option, facts in entry["options"].items()
    ]
    if not options:
        return text
    return f"{text}\n\n{table((kind, 'OPTION', 'DEFAULT', 'WHAT IT SETS'), options)}"
