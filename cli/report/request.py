"""What `dittools report` is asked for: its flags laid over a YAML plan, and checked."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dittools import files
from dittools.cli.flag_checks import check_run, check_seed
from dittools.cli.prompts import prompts_of
from dittools.cli.report.flags import ABOUT, PLANNED, Flags
from dittools.cli.tasks.request import routed
from dittools.naming import unknown
from dittools.pipelines import places
from dittools.pipelines.errors import BadInput, first_line
from dittools.report.folder import LOCK, MANIFEST, is_report

PHASES = ("run", "quality", "render", "all")
SWEEP = {"sparsity": [0.5, 0.8, 0.9]}
_TEXTS = ("model", "weights", "negative_prompt", "config", "device", "dtype", "offload")
_TEXTS += ("image", "last_image", "video", "control", "mask", "quantize")
_LISTS = ("reference", "lora", "set")
_WHOLE = ("repeats", "fewer_steps", "steps", "height", "width", "frames")
_NUMBERS = ("guidance", "strength", "fps", "shift")


@dataclass(frozen=True)
class ReportRequest:
    """What a report is made of.

    Args:
        flags: those of every run, and the settings that are not swept.
        prompts: None takes builtin ones, ``count`` of them; where that is None too, it is left to the machine.
        sweep: values by setting.
        share: the first number of the prompts to generate, and the step to the next.
        timed: whether times count.
        given: names of the flags that the command line or the YAML holds.
        general: whether whole calls of a pipeline draw, not one in stages.
    """

    flags: Flags
    prompts: tuple[str, ...] | None
    count: int | None
    seeds: tuple[int, ...]
    sweep: dict[str, list]
    share: tuple[int, int] | None = None
    timed: bool = True
    given: frozenset[str] = frozenset()
    general: bool = False

    @classmethod
    def read(cls, flags: Flags, given: Collection[str]) -> ReportRequest:
        """Flags over the YAML over the defaults.

        Args:
            given: names of the flags that the command line holds.

        Raises:
            BadInput: for what makes no report.
        """
        from dittools.report.plan import read_sweeps

        found = _read_yaml(flags.plan) if flags.plan is not None else {}
        found |= {name: getattr(flags, name) for name in PLANNED if name in given}
        if "sweep" in given:
            try:
                found["sweep"] = read_sweeps(flags.sweep)
            except ValueError as error:
                raise BadInput(first_line(error)) from None
        _types(found)
        sweep, seeds = found.get("sweep") or _one_sparsity(found) or SWEEP, tuple(found.get("seeds", (0,)))
        prompts, count = prompts_of(found.get("prompts", flags.prompts))
        flags = dataclasses.replace(
            flags, **{name: found[name] for name in found.keys() - {"sweep", "seeds", "prompts"}}
        )
        given = frozenset((*given, *found))
        flags, general = routed(flags, given, listed_videos=False)
        if not general:
            check_run(flags)
        for number, seed in enumerate(seeds):
            check_seed("--seeds", seed)
            if seed in seeds[:number]:
                raise BadInput(f"--seeds: {seed} is given twice, and would generate the same: give it once")
        for flag, value in (("--repeats", flags.repeats), ("--fewer-steps", flags.fewer_steps), ("--gpus", flags.gpus)):
            if value is not None and value < 1:
                raise BadInput(f"{flag} must be at least 1, got {value}")
        if flags.repeats > 1 and flags.untimed:
            raise BadInput(f"--repeats {flags.repeats} is for times, and --untimed leaves them out: drop one of them")
        if (flags.gpus or 1) > 1 and ":" in flags.device:
            raise BadInput(
                f"--device {flags.device} names one GPU, and --gpus {flags.gpus} takes more: use --device cuda"
            )
        share = None if flags.share is None else _share(flags.share)
        return cls(flags, prompts, count, seeds, sweep, share, not flags.untimed, given, general)


def _one_sparsity(found: Mapping[str, Any]) -> dict[str, list] | None:
    """The sweep of the one sparsity that was given, by itself or in the file of --config; None where none was.

    A file that cannot be read is told of by those who need all of it.
    """
    value = found.get("sparsity")
    if value is None and isinstance(found.get("config"), str):
        try:
            values = files.parse_json(files.read_text(Path(found["config"]).expanduser()))
            value = (values["config"] if isinstance(values.get("config"), dict) else values)["sparsity"]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None
    return None if value is None else {"sparsity": [value]}


def _share(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise BadInput(f"--share must be such as 2/4, the second of four parts, got {text!r}")
    return int(found[1]), int(found[2])


def check_phase(phase: str, joined: bool, given: Collection[str]) -> bool:
    """Whether this phase generates. Raises BadInput for an unknown one, and for flags on what is not done.

    Args:
        given: names of the flags that the command line holds.
    """
    if phase not in PHASES:
        raise BadInput(unknown("--phase", phase, PHASES))
    if phase in ("run", "all") and not joined:
        return True
    names = [field.name for field in dataclasses.fields(Flags) if field.name in given and field.name not in ABOUT]
    flags = ["--" + name.replace("_", "-") for name in names]
    if flags:
        here, other = ("--join", "leave out --join") if joined else (f"--phase {phase}", "use --phase run")
        say, them = ("say", "them") if len(flags) > 1 else ("says", "it")
        raise BadInput(
            f"{', '.join(flags)} {say} what is generated, and nothing is generated with {here}: drop {them}, or {other}"
        )
    return False


def check_output(out: str, phase: str, joined: bool = False) -> Path:
    """The report's folder, after what can be checked at once. Raises BadInput."""
    path = places.path_of("--output", out, "report", "folder")
    with places.told("--output", places.shown(out)):
        if path.exists() and not path.is_dir():
            raise BadInput(f"--output {places.shown(out)} is a file: a report needs a folder")
        ours = is_report(path)
    if phase in ("quality", "render") and not joined:
        if not ours:
            raise BadInput(f"--output {out} holds no report: make one first with --phase run")
        if not (path / MANIFEST).exists():
            raise BadInput(f"--output {out} lost its {MANIFEST}: the report's own command makes it again")
    if path.is_dir() and not ours and any(not file.name.startswith(LOCK[0]) for file in path.iterdir()):
        raise BadInput(f"--output {out} is a folder with other files in it: use a new or empty folder")
    with places.told("--output", places.shown(out)):
        _room(path, out)
    return path


def _room(path: Path, out: str) -> None:
    """Raises BadInput where the folder cannot be made, with those above it, or cannot be written."""
    probe = path / MANIFEST if path.is_dir() else path
    while not probe.parent.is_dir():
        probe = probe.parent
    places.writable(probe, "--output", out)


def _read_yaml(name: str) -> dict[str, Any]:
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
        if key not in PLANNED:
            raise BadInput(f"--plan {name}: {unknown('key', key, PLANNED)}")
    return {key: value for key, value in found.items() if value is not None}


def _types(found: dict[str, Any]) -> None:
    """Make lists of what may be one or many, and refuse what a flag could not be."""
    if "seeds" in found and not isinstance(found["seeds"], list):
        found["seeds"] = [found["seeds"]]
    if "sweep" in found:
        found["sweep"] = _sweeps(found["sweep"])
    for names, kinds, what in (
        (_TEXTS, str, "a text"),
        (_WHOLE, int, "a whole number"),
        (_NUMBERS, (int, float), "a number"),
        (("compile", "untimed", "vae_tiling"), bool, "true or false"),
    ):
        for name in names:
            value = found.get(name)
            if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool)):
                raise BadInput(f"{name} must be {what}, got {value!r}")
    for name in _LISTS:
        value = found.get(name)
        if isinstance(value, str):
            found[name] = [value]
        elif value is not None and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            raise BadInput(f"{name} must be a text or a list of texts, got {value!r}")
    for seed in found.get("seeds", ()):
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise BadInput(f"seeds must be whole numbers, got {seed!r}")
    if not found.get("seeds", True):
        raise BadInput("seeds is empty: give at least one")


def _sweeps(sweep: Any) -> dict[str, list]:
    """Values by setting. Raises BadInput."""
    if not isinstance(sweep, dict) or not sweep:
        raise BadInput(f"sweep must hold settings and their values, such as {{sparsity: [0.5, 0.8]}}, got {sweep!r}")
    found = {str(key): value if isinstance(value, list) else [value] for key, value in sweep.items()}
    for key, values in found.items():
        if not values or any(isinstance(value, (list, dict, type(None))) for value in values):
            raise BadInput(f"sweep {key} must be a list of values, got {values!r}")
    return found
