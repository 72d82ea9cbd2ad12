"""`dittools models`: the model families, what can be done with each, and what was tested."""

from __future__ import annotations

from typing import Any

import typer

from dittools.cli._command import takes
from dittools.cli._flags import Common
from dittools.cli.output import Output, table

NAME = "models"
SHORT = "List the model families."
HELP = """List the model families: whether their attention can run sparse, which `generate` can run, and what
was tested on tiny random models. --json has all of it, with aliases, checkpoints and default sizes."""
EXAMPLES = """\b
Examples:
  dittools models
  dittools models --json"""


@takes(Common)
def command(ctx: typer.Context, flags: Common) -> None:
    from dittools.pipelines import matrix

    results = matrix.tested()
    facts = {
        "families": matrix.rows(),
        "tested_with": {"device": results["device"], **results["versions"]},
        "pairs": results["pairs"],
        "kinds": results["kinds"],
        "embedded": _embedded(),
    }
    Output.of(flags).data(facts, lambda: _readable(facts))


def _embedded() -> dict[str, Any]:
    """Whether the embedded model is installed, and its defaults."""
    from dittools.pipelines import embedded

    try:
        embedded.weights_path()
    except FileNotFoundError as error:
        return {"available": False, "why_not": str(error)}
    return {"available": True, "family": "wan", **embedded.DEFAULTS}


def _readable(facts: dict[str, Any]) -> str:
    able = [row for row in facts["families"] if row["why_not"] is None]
    text = table(
        ("MODEL", "OUTPUT", "TEXT", "WHAT"), [(row["name"], row["draws"], row["text"], row["title"]) for row in able]
    )
    text += "\n\n" + table(
        ("GENERATE TAKES", "WEIGHTS"), [(row["name"], row["repo"]) for row in able if row["generate"]]
    )
    untested = [row["name"] for row in able if not row["tested"]]
    if untested:
        text += f"\n\nnot tested: {', '.join(untested)}"
    unable = [(row["name"], row["why_not"]) for row in facts["families"] if row["why_not"] is not None]
    text += "\n\n" + table(("NOT SPARSE", "BECAUSE"), unable)
    versions = ", ".join(f"{name} {value}" for name, value in facts["tested_with"].items() if name != "device")
    text += f"\n\ntested: tiny random models on the {facts['tested_with']['device']}, {versions}"
    here = facts["embedded"]
    if not here["available"]:
        return f"{text}\nembedded: not available ({here['why_not']})"
    size = f"{here['frames']} x {here['height']} x {here['width']}, {here['steps']} steps"
    return f"{text}\nembedded: a small wan, {size}; use it with --weights embedded"
