"""`dittools models`: the model families that can be accelerated, and what a run of each is by default."""

from __future__ import annotations

from typing import Any

from dittools.cli.flags import Debug, Json
from dittools.cli.output import Output, table

NAME = "models"
SHORT = "List the model families."
HELP = "List the model families, their default checkpoints and sizes, and whether the embedded model is here."
EXAMPLES = """\b
Examples:
  dittools models
  dittools models --json"""


def command(as_json: Json = False, debug: Debug = False) -> None:
    from dittools.pipelines.families import FAMILIES

    families = [
        {
            "name": family.name,
            "aliases": list(family.aliases),
            "title": family.title,
            "repo": family.repo,
            **{key: getattr(family, key) for key in ("frames", "height", "width", "steps", "guidance", "fps")},
        }
        for family in FAMILIES
    ]
    facts = {"families": families, "embedded": _embedded()}
    Output(as_json).data(facts, lambda: _readable(facts))


def _embedded() -> dict[str, Any]:
    """Whether the embedded model is installed, and its defaults."""
    from dittools.pipelines import embedded

    try:
        embedded.weights_path()
    except FileNotFoundError as error:
        return {"available": False, "why_not": str(error)}
    return {"available": True, "family": "wan", **embedded.DEFAULTS}


def _readable(facts: dict[str, Any]) -> str:
    rows = [
        (
            family["name"],
            ", ".join(family["aliases"]),
            family["repo"],
            f"{family['frames']} x {family['height']} x {family['width']}",
            family["steps"],
            family["title"],
        )
        for family in facts["families"]
    ]
    text = table(("MODEL", "ALSO", "CHECKPOINT", "FRAMES x HEIGHT x WIDTH", "STEPS", "WHAT"), rows)
    here = facts["embedded"]
    if not here["available"]:
        return f"{text}\n\nembedded: not available ({here['why_not']})"
    size = f"{here['frames']} x {here['height']} x {here['width']}, {here['steps']} steps"
    return f"{text}\n\nembedded: a small wan, {size}; use it with --weights embedded"
