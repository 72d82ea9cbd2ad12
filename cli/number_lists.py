"""Steps, layers and heads as a flag names them: whole numbers with commas between."""

from __future__ import annotations

COUNTED = {"--at": "steps", "--layers": "layers", "--heads": "heads"}


def check_numbers(flag: str, given: tuple[int, ...], count: int) -> None:
    """Raises BadInput for a number of a step, layer or head that is beyond the last one."""
    from dittools.pipelines.errors import BadInput

    if given and max(given) >= count:
        raise BadInput(f"{flag} {max(given)}: there are {count} {COUNTED[flag]}, 0 to {count - 1}")


def numbers(flag: str, given: list[str] | None) -> tuple[int, ...] | None:
    """Whole numbers from 0, each once. Raises BadInput."""
    from dittools.pipelines.errors import BadInput

    if given is None:
        return None
    if not all(part.isascii() and part.isdigit() and len(part) < 7 for part in given):
        raise BadInput(f"{flag} must be whole numbers with commas between, such as 0,3, got {','.join(given)!r}")
    return tuple(sorted({int(part) for part in given}))
