"""What there is to choose from, with options and their defaults, as tables and as plain values."""

from __future__ import annotations

from typing import Any

from dittools.cli.output import Output, table
from dittools.naming import spelt, unknown
from dittools.pipelines.errors import BadInput
from dittools.registry import Registry


def _entries(registry: Registry, name: str | None) -> list[dict[str, Any]]:
    """All of a registry, or one of that name, as plain values."""
    return [
        {
            "name": found,
            "description": line,
            "source": registry.source(found),
            "options": {option: {"default": default, "help": text} for option, (default, text) in options.items()},
        }
        for found, line, options in registry.describe()
        if name in (None, found)
    ]


def found_in(registries: tuple[Registry, ...], asked: str | None) -> str | None:
    """The name as it is known; None for all. Raises BadInput for one that is unknown or cannot be used."""
    known = [name for registry in registries for name in registry.names()]
    name = asked and spelt(asked, known)
    if name is not None and name not in known:
        kinds = " or ".join(registry.kind for registry in registries)
        raise BadInput(unknown(kinds, name, known, listed=registries[0].listed))
    try:
        for registry in registries:
            if name in registry:
                registry[name]
    except ValueError as error:
        raise BadInput(str(error)) from None
    return name


def tell(registries: tuple[Registry, ...], name: str | None, output: Output) -> None:
    """What registries list, or what one of them has of that name; of all, a note for each class that cannot be used."""
    for registry in registries if name is None else ():
        for line in registry.problems():
            output.note(line)
    lists = {one.kind: _entries(one, name) for one in registries}
    shown = [_readable(kind, found) for kind, found in lists.items() if found]
    output.data({f"{kind}s": found for kind, found in lists.items()}, lambda: "\n\n".join(shown))


def _readable(kind: str, found: list[dict[str, Any]]) -> str:
    """Names and options as tables."""
    text = table((kind.upper(), "WHAT IT DOES"), [(entry["name"], _described(entry)) for entry in found])
    options = [
        (entry["name"], option, _default(facts["default"]), facts["help"])
        for entry in found
        for option, facts in entry["options"].items()
    ]
    return f"{text}\n\n{table((kind.upper(), 'OPTION', 'DEFAULT', 'WHAT IT SETS'), options)}" if options else text


def _described(entry: dict[str, Any]) -> str:
    foreign = f" ({entry['source']})" if entry["source"] != "dittools" else ""
    return entry["description"] + foreign


def _default(value: Any) -> Any:
    return None if value == "" else " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
