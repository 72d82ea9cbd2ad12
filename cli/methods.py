"""`dittools methods`: the ways to choose what attention skips."""

from __future__ import annotations

from typing import Any

from dittools.cli.flags import Debug, Json
from dittools.cli.output import Output, table

NAME = "methods"
SHORT = "List the ways to choose what is skipped."
HELP = "List the methods, when each decides, and the options each takes in a --config file."
EXAMPLES = """\b
Examples:
  dittools methods
  dittools methods --json"""


def command(as_json: Json = False, debug: Debug = False) -> None:
    from dittools.methods import describe

    methods = [
        {
            "name": name,
            "description": line,
            "options": {option: {"default": default, "help": text} for option, (default, text) in options.items()},
        }
        for name, line, options in describe()
    ]
    Output(as_json).data({"methods": methods}, lambda: _readable(methods))


def _readable(methods: list[dict[str, Any]]) -> str:
    text = table(("METHOD", "WHAT IT DOES"), [(entry["name"], entry["description"]) for entry in methods])
    options = [
        (entry["name"], option, facts["default"], facts["help"])
        for entry in methods
        for option, facts in entry["options"].items()
    ]
    if not options:
        return text
    return f"{text}\n\n{table(('METHOD', 'OPTION', 'DEFAULT', 'WHAT IT SETS'), options)}"
