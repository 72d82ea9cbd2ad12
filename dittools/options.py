"""Options of methods, caches, corrections and `Config`: each is declared once, at its field, and checked here alone.

radius: float | str = option("auto", "tokens; pairs less far apart are kept", kind="number", min=1)
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

AUTO = "auto"


@dataclass(frozen=True)
class Option:
    """What a setting may be, and what it sets.

    Args:
        default: value where none is given. "auto" and None are values too where they are the default.
        help: what it sets, in one line.
        kind: a name in `KINDS`.
        min, max: bounds of numbers, which are valid themselves.
        above, below: bounds which are not.
        choices: the values there are, for kind "choice".
    """

    default: Any
    help: str
    kind: str
    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()

    @property
    def text(self) -> str:
        """`help` with the choices."""
        return f"{self.help}: {', '.join(map(str, self.choices))}" if self.choices else self.help

    def read(self, name: str, value: Any) -> Any:
        """The value in its own type: a tuple for a list, a float for a number.

        Raises:
            ValueError: one line that says what ``name`` may be and what was found.
        """
        if self.default in (None, AUTO) and value == self.default and type(value) is type(self.default):
            return value
        try:
            return KINDS[self.kind].read(self, value)
        except (ValueError, TypeError, OverflowError):
            words = KINDS[self.kind].words.format(range=self._range(), choices=", ".join(map(str, self.choices)))
            if self.default == AUTO and AUTO not in self.choices:
                words = words.replace("be ", "be 'auto' or ", 1)
            raise ValueError(f"{name} must {words}, got {value!r}{self._hint(value)}") from None

    def within(self, value: float) -> float:
        """The number itself. Raises ValueError where it is out of bounds or not finite."""
        fine = (
            math.isfinite(value)
            and (self.min is None or value >= self.min)
            and (self.max is None or value <= self.max)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        if not fine:
            raise ValueError
        return value

    def _range(self) -> str:
        if self.min is not None and self.max is not None:
            return f" from {self.min:g} to {self.max:g}"
        limits = {"of at least": self.min, "above": self.above, "at most": self.max, "below": self.below}
        words = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)
        return f" {words}" if words else ""

    def _hint(self, value: Any) -> str:
        """The value that was meant, where a share was given in percent or a count as a float."""
        if isinstance(value, bool) or not isinstance(value, Real):
            return ""
        if self.kind == "number" and 1 in (self.max, self.below) and 10 <= value < 100:
            return f": did you mean {value / 100:g}?"
        if self.kind == "steps" and value > 1 and math.isfinite(value) and value == int(value):
            return f": did you mean {int(value)}?"
        return ""


@dataclass(frozen=True)
class Kind:
    """How values of a kind are read, and what follows "must" in the error where one is not of it."""

    read: Callable[[Option, Any], Any]
    words: str


def _switch(option: Option, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _count(option: Option, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError
    return int(option.within(value))


def _number(option: Option, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError
    return option.within(float(value))


def _steps(option: Option, value: Any) -> float | int:
    whole = isinstance(value, Integral)
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= (math.inf if whole else 1):
        raise ValueError
    return int(value) if whole else float(value)


def _choice(option: Option, value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError
    return option.choices[option.choices.index(value)]


def _axes(option: Option, value: Any) -> tuple[int, int, int]:
    if isinstance(value, str):
        value = [int(part) for part in value.split("x")]
        value = value[0] if len(value) == 1 else value
    axes = [value] * 3 if isinstance(value, Integral) else value
    if not isinstance(axes, (list, tuple)) or len(axes) != 3:
        raise ValueError
    if not all(isinstance(x, Integral) and not isinstance(x, bool) and x >= 1 for x in axes):
        raise ValueError
    return tuple(int(x) for x in axes)


def _shares(option: Option, value: Any) -> tuple[float, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError
    if not all(isinstance(x, Real) and not isinstance(x, bool) and 0 <= x <= 1 for x in value):
        raise ValueError
    return tuple(value)


def _file(option: Option, value: Any) -> str:
    value = os.fspath(value)
    if not isinstance(value, str) or not (value or option.default == ""):
        raise ValueError
    return value


def _text(option: Option, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _mapping(option: Option, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError
    return dict(value)


KINDS: dict[str, Kind] = {
    "switch": Kind(_switch, "be True or False"),
    "count": Kind(_count, "be a whole number{range}"),
    "number": Kind(_number, "be a number{range}"),
    "steps": Kind(
        _steps, "be a number: a share of the run as a float in [0, 1] such as 0.2, or a count of at least 0 such as 5"
    ),
    "choice": Kind(_choice, "be one of {choices}"),
    "axes": Kind(_axes, "be a whole number of at least 1, or three of them for frames, rows and columns"),
    "shares": Kind(_shares, "be shares of the run in [0, 1], for example [0.2, 0.6]"),
    "file": Kind(_file, "be the path of a profile or the name of one"),
    "path": Kind(_file, "be the path of a file"),
    "text": Kind(_text, "be a name"),
    "mapping": Kind(_mapping, "map names to values"),
}
_BY_TYPE = {bool: "switch", int: "count", float: "number"}


def option(
    default: Any,
    help: str,
    *,
    kind: str = "",
    min: float | None = None,
    max: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[Any] = (),
) -> Any:
    """A dataclass field that is an option; see `Option`. Without `kind`, that of the default's type.

    Raises:
        ValueError: for a default that is no valid value.
    """
    kind = kind or ("choice" if choices else _BY_TYPE[type(default)])
    about = Option(default, help, kind, min, max, above, below, tuple(choices))
    about.read("a default", default)
    given = {"default_factory": lambda: dict(default)} if kind == "mapping" else {"default": default}
    return dataclasses.field(**given, metadata={"help": about.text, "option": about})


class Renamed(FutureWarning):
    """An option was given by a name that it will have no more."""


class Options:
    """Base of dataclasses whose fields are options: their values are checked when one is made.

    Attributes:
        renamed: options by names that they had before; these are understood for one release.
    """

    renamed: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self):
        for name, about in options_of(type(self)).items():
            object.__setattr__(self, name, about.read(name, getattr(self, name)))


def options_of(cls: type) -> dict[str, Option]:
    """The options of a class by name, in the order of its fields; fields that are declared otherwise are left out."""
    found = {f.name: f.metadata.get("option") for f in dataclasses.fields(cls)}
    return {name: about for name, about in found.items() if about is not None}
