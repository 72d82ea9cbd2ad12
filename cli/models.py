"""`dittools models`: the model families, what can be done with each, and what was tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from dittools.cli._command import takes
from dittools.cli._flags import Common
from dittools.cli.output import Output, table

NAME = "models"
SHORT = "List the model families."
HELP = """List the model families: whether their attention can run sparse, which `generate` can run, and what
was tested on tiny random models; or show what one of them draws by default, and where that is from.
--json has all of it, with aliases, checkpoints and default sizes."""
EXAMPLES = """\b
Examples:
  dittools models
  dittools models wan
  dittools models --json"""


@dataclass(frozen=True, kw_only=True)
class Flags(Common):
    name: Annotated[
        str | None, typer.Argument(help="A family, by name or alias; all by default.", show_default=False)
    ] = None


@takes(Flags)
def command(ctx: typer.Context, flags: Flags) -> None:
    from dittools.pipelines import matrix

    if flags.name is not None:
        facts = _family(flags.name)
        Output.of(flags).data(facts, lambda: _shown(facts))
        return
    results = matrix.tested()
    facts = {
        "families": matrix.rows(),
        "tested_with": {"device": results["device"], **results["versions"]},
        "pairs": results["pairs"],
        "kinds": results["kinds"],
        "embedded": _embedded(),
    }
    Output.of(flags).data(facts, lambda: _readable(facts))


def _family(name: str) -> dict[str, Any]:
    """A family's row, and what its pipeline classes draw by default. Raises BadInput for an unknown one."""
    from dataclasses import asdict

    from dittools.pipelines import matrix
    from dittools.pipelines.families import find_family
    from dittools.pipelines.tasks.presets import presets

    family = find_family(name)
    row = next(row for row in matrix.rows() if row["name"] == family.name)
    return {**row, "presets": [asdict(one) for one in presets() if one.family == family.name]}


def _shown(facts: dict[str, Any]) -> str:
    """One family, for people."""
    lines = [f"{facts['name']}: {facts['title']}"]
    lines += [f"aliases: {', '.join(facts['aliases'])}"] if facts["aliases"] else []
    lines.append(f"transformer: {facts['transformer']}; draws: {facts['draws']}; text: {facts['text']}")
    lines.append(f"sparse attention: {'yes' if facts['why_not'] is None else 'no, ' + facts['why_not']}")
    lines += [f"mind: {facts['notes']}"] if facts["notes"] else []
    if not facts["presets"]:
        return "\n".join([*lines, "no defaults of a checkpoint are known"])
    names = ("frames", "height", "width", "steps", "guidance", "shift", "fps", "repo")
    rows = [(one["pipeline"], *(_told(one[name]) for name in names)) for one in facts["presets"]]
    text = "\n".join(lines) + "\n\n" + table(("PIPELINE", *(name.upper() for name in names)), rows)
    negatives: dict[str, list[str]] = {}
    for one in facts["presets"]:
        if (one["negative_prompt"] or "").strip():
            negatives.setdefault(one["negative_prompt"], []).append(one["pipeline"])
    for negative, of in negatives.items():
        text += f"\n\nnegative prompt of {', '.join(of)}:\n{negative}"
    sources = [(one["pipeline"], one["source"]) for one in facts["presets"]]
    return text + "\n\n" + table(("PIPELINE", "SOURCE"), sources)


def _told(value: Any) -> str | None:
    return f"{value:g}" if isinstance(value, float) else None if value is None else str(value)


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
