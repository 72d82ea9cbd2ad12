"""The flags of `dittools report` and its YAML, laid over each other and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dittools import files
from dittools.cli.asked import Asked, check_prompt, check_seed
from dittools.naming import unknown
from dittools.pipelines import places
from dittools.pipelines.errors import BadInput, first_line
from dittools.report.folder import LOCK, MANIFEST, is_report

PHASES = ("run", "quality", "render", "all")
BUILTIN = "builtin"
SWEEP = {"sparsity": [0.5, 0.8, 0.9]}
DEFAULTS = {
    "model": "wan",
    "weights": "auto",
    "prompts": BUILTIN,
    "seeds": [0],
    "repeats": 1,
    "device": "auto",
    "dtype": "auto",
    "offload": "none",
    "compile": False,
    "untimed": False,
}
_TEXTS = (
    *("model", "weights", "method", "cache", "correction"),
    *("negative_prompt", "config", "device", "dtype", "offload"),
)
_WHOLE = ("repeats", "fewer_steps", "steps", "height", "width", "frames", "dense_layers", "refresh")
_NUMBERS = ("sparsity", "guidance")
_LONGEST_PROMPT = 100_000


@dataclass(frozen=True)
class ReportAsked:
    """What a report was asked for. `count` is N of builtin:N, None where it is left to the machine."""

    asked: Asked
    prompts: tuple[str, ...] | None
    count: int | None
    seeds: tuple[int, ...]
    sweep: dict[str, list]
    repeats: int
    fewer_steps: int | None
    share: tuple[int, int] | None = None
    timed: bool = True

    @classmethod
    def read(cls, plan: str | None, given: Mapping[str, Any], share: str | None = None) -> ReportAsked:
        """Flags over the YAML over the defaults. Raises BadInput."""
        from dittools.report.plan import read_sweeps

        flags = {name: value for name, value in given.items() if value not in (None, [])}
        if "sweep" in flags:
            try:
                flags["sweep"] = read_sweeps(flags["sweep"])
            except ValueError as error:
                raise BadInput(first_line(error)) from None
        found = {**DEFAULTS, **(_read_yaml(plan, given) if plan is not None else {}), **flags}
        if "sweep" not in found:
            found["sweep"] = _one_sparsity(found) or SWEEP
        _types(found)
        prompts, count = prompts_of(found["prompts"])
        asked = Asked(
            dense_steps=None if found.get("dense_steps") is None else str(found["dense_steps"]),
            **{name: found.get(name) for name in (*_TEXTS, "sparsity", "steps", "height", "width", "frames")},
            **{name: found.get(name) for name in ("guidance", "dense_layers", "refresh", "compile")},
        )
        asked.check_settings()
        for number, seed in enumerate(found["seeds"]):
            check_seed("--seeds", seed)
            if seed in found["seeds"][:number]:
                raise BadInput(f"--seeds: {seed} is given twice, and would draw the same: give it once")
        for flag, value in (("--repeats", found["repeats"]), ("--fewer-steps", found.get("fewer_steps"))):
            if value is not None and value < 1:
                raise BadInput(f"{flag} must be at least 1, got {value}")
        seeds = tuple(found["seeds"])
        part = None if share is None else _share(share)
        repeats, timed = found["repeats"], not found["untimed"]
        if repeats > 1 and not timed:
            raise BadInput(f"--repeats {repeats} is for times, and --untimed leaves them out: drop one of them")
        return cls(asked, prompts, count, seeds, found["sweep"], repeats, found.get("fewer_steps"), part, timed)


def _one_sparsity(found: Mapping[str, Any]) -> dict[str, list] | None:
    """The sweep of the one sparsity that was given, by itself or in the file of --config; None where none was.

    A file that cannot be read is told of by those who need all of it.
    """
    value = found.get("sparsity")
    if value is None and isinstance(found.get("config"), str):
        try:
            value = files.parse_json(files.read_text(Path(found["config"]).expanduser()))["sparsity"]
        except (OSError, ValueError, LookupError, TypeError):
            return None
    return None if value is None else {"sparsity": [value]}


def _share(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise BadInput(f"--share must be such as 2/4, the second of four parts, got {text!r}")
    return int(found[1]), int(found[2])


def check_phase(phase: str, joined: bool, given: Mapping[str, Any]) -> bool:
    """Whether this phase draws. Raises BadInput for an unknown one, and for flags on drawing where nothing is drawn."""
    if phase not in PHASES:
        raise BadInput(unknown("--phase", phase, PHASES))
    if phase in ("run", "all") and not joined:
        return True
    flags = ["--" + name.replace("_", "-") for name, value in given.items() if value not in (None, [])]
    if flags:
        here, other = ("--join", "leave out --join") if joined else (f"--phase {phase}", "use --phase run")
        say, them = ("say", "them") if len(flags) > 1 else ("says", "it")
        raise BadInput(
            f"{', '.join(flags)} {say} what is drawn, and nothing is drawn with {here}: drop {them}, or {other}"
        )
    return False


def check_out(out: str, phase: str, joined: bool = False) -> Path:
    """The report's folder, after what can be checked at once. Raises BadInput."""
    path = places.path_of("--out", out, "report", "folder")
    with places.told("--out", places.shown(out)):
        if path.exists() and not path.is_dir():
            raise BadInput(f"--out {places.shown(out)} is a file: a report needs a folder")
        ours = is_report(path)
    if phase in ("quality", "render") and not joined:
        if not ours:
            raise BadInput(f"--out {out} holds no report: draw one first with --phase run")
        if not (path / MANIFEST).exists():
            raise BadInput(f"--out {out} lost its {MANIFEST}: the report's own command makes it again")
    if path.is_dir() and not ours and any(not file.name.startswith(LOCK[0]) for file in path.iterdir()):
        raise BadInput(f"--out {out} is a folder with other files in it: use a new or empty folder")
    with places.told("--out", places.shown(out)):
        _room(path, out)
    return path


def _room(path: Path, out: str) -> None:
    """Raises BadInput where the folder cannot be made, with those above it, or cannot be written."""
    probe = path / MANIFEST if path.is_dir() else path
    while not probe.parent.is_dir():
        probe = probe.parent
    places.writable(probe, "--out", out)


def _read_yaml(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(files.read_text(Path(name).expanduser()))
    except OSError as error:
        raise BadInput(f"--plan {name} cannot be read ({error.strerror}): give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"--plan {name} is no YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(found, dict):
        raise BadInput(f"--plan {name} must hold names and values, such as `seeds: [0, 1]`")
    found = {str(key).replace("-", "_"): value for key, value in found.items()}
    for key in found:
        if key not in given:
            raise BadInput(f"--plan {name}: {unknown('key', key, given)}")
    return {key: value for key, value in found.items() if value is not None}


def _types(found: dict[str, Any]) -> None:
    """Make lists of what may be one or many, and refuse what a flag could not be."""
    if not isinstance(found["seeds"], list):
        found["seeds"] = [found["seeds"]]
    sweep = found["sweep"]
    if not isinstance(sweep, dict) or not sweep:
        raise BadInput(f"sweep must hold settings and their values, such as {{sparsity: [0.5, 0.8]}}, got {sweep!r}")
    found["sweep"] = {str(key): value if isinstance(value, list) else [value] for key, value in sweep.items()}
    for key, values in found["sweep"].items():
        if not values or any(isinstance(value, (list, dict, type(None))) for value in values):
            raise BadInput(f"sweep {key} must be a list of values, got {values!r}")
    for names, kinds, what in (
        (_TEXTS, str, "a text"),
        (_WHOLE, int, "a whole number"),
        (_NUMBERS, (int, float), "a number"),
        (("compile", "untimed"), bool, "true or false"),
    ):
        for name in names:
            value = found.get(name)
            if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool)):
                raise BadInput(f"{name} must be {what}, got {value!r}")
    for seed in found["seeds"]:
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise BadInput(f"seeds must be whole numbers, got {seed!r}")
    if not found["seeds"]:
        raise BadInput("seeds is empty: give at least one")


def prompts_of(asked: Any) -> tuple[tuple[str, ...] | None, int | None]:
    """Prompts, each once; or None and how many of the builtin ones."""
    if isinstance(asked, str):
        builtin = re.fullmatch(rf"{BUILTIN}(?::(\d+))?", asked)
        if builtin:
            count = int(builtin[1]) if builtin[1] else None
            if count == 0:
                raise BadInput("--prompts builtin:0 asks for none: give at least 1")
            return None, count
        if asked.startswith(f"{BUILTIN}:") and not Path(asked).exists():
            raise BadInput(f"--prompts {asked}: how many of the builtin prompts is a number, such as {BUILTIN}:2")
        if not asked:
            raise BadInput("--prompts is empty: give a text file, one prompt a line, or builtin")
        asked = _prompt_file(asked)
    if not isinstance(asked, list) or not all(isinstance(text, str) for text in asked):
        raise BadInput(
            "prompts must be texts, a file name, or builtin; in YAML put quotes around a prompt that is a number"
        )
    prompts = tuple(dict.fromkeys(asked))
    if not prompts:
        raise BadInput("there are no prompts: give at least one")
    for number, text in enumerate(prompts, 1):
        check_prompt(f"prompt {number}", text)
    long = next((text for text in prompts if len(text) > _LONGEST_PROMPT), None)
    if long is not None:
        raise BadInput(f"a prompt has {len(long)} characters, and at most {_LONGEST_PROMPT} make sense")
    return prompts, None


def builtin_prompts(known: Sequence[str], count: int) -> tuple[str, ...]:
    """The first ``count`` builtin prompts. Raises BadInput where there are not so many."""
    if count > len(known):
        raise BadInput(f"--prompts {BUILTIN}:{count}: there are {len(known)} builtin prompts: ask for at most so many")
    return tuple(known[:count])


def _prompt_file(name: str) -> list[str]:
    try:
        text = files.read_text(Path(name).expanduser())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise BadInput(
            f"--prompts {name} cannot be read ({why}): give a text file, one prompt a line, or builtin"
        ) from None
    return [line.strip() for line in text.splitlines() if line.strip()]
