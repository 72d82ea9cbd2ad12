"""`dittools caches`: the ways to reuse steps."""

from __future__ import annotations

from typing import Any

from dittools.cli.flags import Debug, Json
from dittools.cli.output import Output, table

NAME = "caches"
SHORT = "List the ways to reuse steps."
HELP = """List the step caches and the options each takes.

An option follows the cache's name: --cache teacache:threshold=0.1:max_skips=3."""
EXAMPLES = """\b
Examples:
  dittools caches
  dittools caches --json
  dittools generate --cache easycache:threshold=0.05 --weights embedded"""


def command(as_json: Json = False, debug: Debug = False) -> None:
    from dittools.caches import describe

    caches = [
        {
            "name": name,
            "description": line,
            "options": {option: {"default": default, "help": text} for option, (default, text) in options.items()},
        }
        for name, line, options in describe()
    ]
    Output(as_json).data({"caches": caches}, lambda: _readable(caches))


def _readable(caches: list[dict[str, Any]]) -> str:
    text = table(("CACHE", "WHAT IT DOES"), [(entry["name"], entry["description"]) for entry in caches])
    rows = [
        (entry["name"], option, facts["default"] if facts["default"] != "" else None, facts["help"])
        for entry in caches
        for option, facts in entry["options"].items()
    ]
    return f"{text}\n\n{table(('CACHE', 'OPTION', 'DEFAULT', 'WHAT IT SETS'), rows)}"
