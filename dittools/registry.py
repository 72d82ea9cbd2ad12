"""Methods, caches and corrections by name: those that ship, those that are registered, and those of other packages."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import Any

from dittools.naming import name_and_options, spelt, unknown
from dittools.options import Options, Renamed

_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Placeholder:
    """A name that stands for no class of its own: "auto" for methods and corrections, "none" for these and caches.

    Args:
        make: gives what runs in its place.
    """

    name: str
    summary: str
    make: Callable[[], Any] = lambda: None


class Registry(MutableMapping[str, type]):
    """Classes of one kind by name.

    A class gets in by `register`, or by an entry point of an installed package: group ``dittools.methods`` (caches,
    corrections), its name that of the class. An entry point is imported when its name is first asked for; one that
    cannot be used is left out of listings, named in `problems`, and an error for who asks for it.

    Args:
        kind: "method", "cache" or "correction".
        base: the class they derive from.
        shipped: those of dittools.
        placeholders: the names that come first; the first of them is the default.
        listed: the command that lists them.
    """

    def __init__(
        self, kind: str, base: type[Options], shipped: Iterable[type], placeholders: Iterable[Placeholder], listed: str
    ) -> None:
        self.kind, self.base, self.listed = kind, base, listed
        self._placeholders = {one.name: one for one in placeholders}
        self.default = next(iter(self._placeholders))
        self.group = f"dittools.{kind}s"
        self._classes: dict[str, type] = {cls.name: cls for cls in shipped}
        self._shipped = frozenset(self._classes)

    def names(self) -> list[str]:
        """Every name that `Config` takes, the placeholders first."""
        return [*dict.fromkeys((*self._placeholders, *self._classes, *self._foreign))]

    def options(self, name: str) -> dict[str, tuple[Any, str]]:
        """Options: name -> (default, help); none for a placeholder, whose options belong to what it stands for."""
        if name in self._placeholders:
            return {}
        return {f.name: (f.default, f.metadata.get("help", "")) for f in dataclasses.fields(self[name])}

    def describe(self) -> list[tuple[str, str, dict[str, tuple[Any, str]]]]:
        """(name, one line, options) of all that can be used, the placeholder first."""
        lines = {name: one.summary for name, one in self._placeholders.items()}
        lines |= {name: cls.summary for name, cls in self.items()}
        return [(name, line, self.options(name)) for name, line in lines.items()]

    def create(self, name: str, given: Mapping[str, Any], also_known: Iterable[str] = ()) -> Any:
        """An instance with these options, or what the placeholder stands for.

        Args:
            given: option values by name.
            also_known: names that are near misses too, when an option is unknown: the settings of `Config`.

        Raises:
            ValueError: for an unknown name or option (naming the nearest), a bad option value, or a class of another
                package that cannot be used.
        """
        self.check(name)
        given = self.renewed(name, given)
        if name in self._placeholders and self.kind != "method" and given:  # those of auto's method name it as they are
            told = ", ".join(given)
            raise ValueError(f"{self.kind} is {name}, and options of one are given ({told}): name the {self.kind}")
        known = self.options(name)
        for option in given:
            if option not in known:
                listed = f"{self.listed} {name}"
                raise ValueError(unknown(f"option of {self.kind} {name}", option, known, also_known, listed))
        return self._placeholders[name].make() if name in self._placeholders else self[name](**given)

    def renewed(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Option values by the names that options have now, with a `Renamed` warning for each old one.

        Raises:
            ValueError: when an option is given by both names.
        """
        cls = self[name] if name in self and name not in self._placeholders else self.base
        known, found = self.options(name) if name in self else {}, {}
        for option, value in given.items():
            new = cls.renamed.get(option) if option not in known else None
            if new is not None and new in known:
                if new in given:
                    raise ValueError(f"options {option} and {new} of {self.kind} {name} are one: give {new} alone")
                text = f"option {option} of {self.kind} {name} is called {new} now; the next release knows {new} alone"
                warnings.warn(text, Renamed, stacklevel=2)
            found[new if new in known else option] = value
        return found

    def check(self, name: Any) -> None:
        """Raises ValueError for an unknown name, with the nearest."""
        if name not in self.names():
            raise ValueError(unknown(self.kind, name, self.names(), listed=self.listed))

    def read(self, text: str) -> tuple[str, dict[str, Any]]:
        """``"teacache:threshold=0.1"`` -> ("teacache", {"threshold": 0.1}), the name in its own letters.

        Raises:
            ValueError: when ``text`` is no text, or an option has no value, or two.
        """
        if not isinstance(text, str):
            raise ValueError(f"{self.kind} must be a name such as {next(iter(self._classes))}, got {text!r}")
        name, options = name_and_options(text, self.kind)
        return spelt(name, self.names()), options

    def register(self, cls: type) -> type:
        """Add a class under its own name; one that is defined anew, as in a notebook, takes the place of the old.

        Raises:
            ValueError: when it is no such class, has no good name, or its name is taken.
        """
        self._check_class(cls)
        before = self._classes.get(cls.name)
        if before is not None and (before.__module__, before.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"{self.kind} {cls.name} exists already ({before.__module__}.{before.__qualname__}): "
                f"give {cls.__qualname__} another name"
            )
        self._classes[cls.name] = cls
        return cls

    def source(self, name: str) -> str:
        """Where a class comes from: "dittools", or package and version, or the module that registered it."""
        if name in self._shipped or name in self._placeholders:
            return "dittools"
        if name in self._foreign:
            return " and ".join(_package(point) for point in self._foreign[name])
        return self._classes[name].__module__

    def problems(self) -> list[str]:
        """What is wrong with entry points of other packages, a line each."""
        found = []
        for name, points in self._foreign.items():
            if name in self._shipped or name in self._placeholders:
                brings = ", ".join(_package(point) for point in points)
                found.append(f"{self.kind} {name} of {brings} is left out: dittools has one of that name")
                continue
            try:
                self[name]
            except ValueError as error:
                found.append(str(error))
        return found

    @cached_property
    def _foreign(self) -> dict[str, list[metadata.EntryPoint]]:
        found: dict[str, list[metadata.EntryPoint]] = {}
        for point in sorted(metadata.entry_points(group=self.group), key=lambda point: (point.name, _package(point))):
            found.setdefault(point.name, []).append(point)
        return found

    def _load(self, name: str) -> type:
        """The class of an entry point. Raises ValueError for one that cannot be used."""
        points = self._foreign[name]
        brings = " and ".join(_package(point) for point in points)
        if len(points) > 1:
            raise ValueError(f"{self.kind} {name} is in {brings}: uninstall one of them")
        try:
            cls = points[0].load()
            self._check_class(cls)
        except Exception as error:  # whatever an import of somebody else's code may end with
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"{self.kind} {name} of {brings} cannot be used ({why}): update or uninstall it") from None
        if cls.name != name:
            raise ValueError(f"{self.kind} {name} of {brings} calls itself {cls.name}: its entry point must too")
        return cls

    def _check_class(self, cls: Any) -> None:
        what = getattr(cls, "__qualname__", repr(cls))
        if not isinstance(cls, type) or not issubclass(cls, self.base):
            raise ValueError(f"a {self.kind} is a class derived from {self.base.__qualname__}, got {what}")
        if "__dataclass_fields__" not in vars(cls):
            raise ValueError(f"{what} is no dataclass: put @dataclass(frozen=True) on it, below a register")
        name, summary = getattr(cls, "name", None), getattr(cls, "summary", None)
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in self._placeholders:
            taken = " or ".join(self._placeholders)
            raise ValueError(f"{what}.name must be small letters, digits and _ (not {taken}), got {name!r}")
        if not isinstance(summary, str) or not summary or "\n" in summary:
            raise ValueError(f"{what}.summary must say in one line what it does, got {summary!r}")

    # A mapping of all classes that can be used

    def __getitem__(self, name: str) -> type:
        if name not in self._classes and name in self._foreign:
            self._classes[name] = self._load(name)
        return self._classes[name]

    def __setitem__(self, name: str, cls: type) -> None:
        self._classes[name] = cls

    def __delitem__(self, name: str) -> None:
        del self._classes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._classes or name in self._foreign

    def __iter__(self) -> Iterator[str]:
        for name in self._foreign:
            if name not in self._classes and name not in self._placeholders:
                try:
                    self[name]
                except ValueError:
                    continue  # `problems` names it
        return iter([*self._classes])

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _package(point: metadata.EntryPoint) -> str:
    """Name and version of the package that brings an entry point."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value
