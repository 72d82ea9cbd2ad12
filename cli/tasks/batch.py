"""Prompts x seeds: a file and a record for each, so that a list that was stopped goes on where it was."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dittools import made
from dittools.cli import generation, run
from dittools.cli.flag_checks import check_seed
from dittools.cli.output import Output
from dittools.cli.progress import Progress, Stages
from dittools.cli.prompts import builtin_prompts, prompts_of
from dittools.cli.record import summary_lines
from dittools.cli.request import Request, Scene
from dittools.pipelines import places, saving
from dittools.pipelines.errors import BadInput

_MOST = 100_000
"""Videos of one list."""


class Lists(NamedTuple):
    """What is drawn: prompts, None for the one of --prompt, by seeds."""

    prompts: tuple[str, ...] | None
    seeds: tuple[int, ...]


class Item(NamedTuple):
    """One video of a list."""

    scene: Scene
    output: saving.Output


def lists(flags: Any, given: Collection[str], embedded: bool) -> Lists | None:
    """The prompts and seeds of flags; None where they ask for one video.

    Args:
        given: names of the flags that the command line holds.

    Raises:
        BadInput: for flags that do not go together.
    """
    if flags.prompts is None and not flags.seeds and flags.num_videos is None:
        return None
    if flags.prompts is not None and flags.prompt is not None:
        raise BadInput("--prompt and --prompts both say what to show: give one of them")
    if flags.seeds and (flags.num_videos is not None or "seed" in given):
        other = "--num-videos" if flags.num_videos is not None else "--seed"
        raise BadInput(f"--seeds says which seeds are drawn: leave {other} out")
    if flags.num_videos is not None and not 1 <= flags.num_videos <= _MOST:
        raise BadInput(f"--num-videos must be from 1 to {_MOST}, got {flags.num_videos}")
    seeds = tuple(flags.seeds or range(flags.seed, flags.seed + (flags.num_videos or 1)))
    for number, seed in enumerate(seeds):
        check_seed("--seeds", seed)
        if seed in seeds[:number]:
            raise BadInput(f"--seeds: {seed} is given twice, and would draw the same: give it once")
    prompts = None
    if flags.prompts is not None:
        prompts, count = prompts_of(flags.prompts)
        prompts = prompts or builtin_prompts(embedded, count)
    return Lists(prompts, seeds)


def output_of(base: saving.Output, prompt: int, seed: int) -> saving.Output:
    """Where one video goes: out.mp4 -> out_003_seed1.mp4 for the third prompt."""
    suffix = base.path.suffix if base.kind != "folder" else ""
    stem = base.path.name.removesuffix(suffix) if suffix else base.path.name
    return dataclasses.replace(base, path=base.path.with_name(f"{stem}_{prompt:03d}_seed{seed}{suffix}"))


def draw_all(
    request: Request, wanted: Lists, reads: Sequence[places.Read], command: list[str], output: Output
) -> list[dict[str, Any]]:
    """Draw what is not there yet; the records of all, in the order of the list.

    Raises:
        BadInput: where a file is there that is of another request, or was not written by dittools.
    """
    chosen = generation.choose(request, output)
    items = _items(request, wanted, chosen.scene)
    records = [_there(item, request, chosen, reads) for item in items]
    left = [number for number, record in enumerate(records) if record is None]
    if len(left) < len(items):
        output.note(f"{len(items) - len(left)} of {len(items)} are there already, by their records: left as they are")
    if not left:
        return [record for record in records if record is not None]
    notes = list(output.notes)
    with Progress(output) as progress:
        stages = Stages(progress)
        opened = generation.open_model(request, stages, output, chosen)
        for number in left:
            item, output.notes = items[number], list(notes)
            own, seconds = Stages(progress), stages.seconds.get("load", 0.0)
            own.seconds["load"], own.cuda = seconds, stages.cuda
            own.size = generation.size_of(item.scene)
            progress.title = f"[{number + 1}/{len(items)}] "
            output.line(f"{progress.title}{item.output.path.name}")
            each = dataclasses.replace(request, output=item.output)
            begun = time.perf_counter() - seconds
            record = run.draw(dataclasses.replace(opened, scene=item.scene), each, own, begun, command, output)
            records[number] = record
            for line in summary_lines(record, item.output.record, said=output.notes):
                output.line(line)
    return [record for record in records if record is not None]


def _items(request: Request, wanted: Lists, scene: Scene) -> list[Item]:
    prompts = (scene.prompt,) if wanted.prompts is None else wanted.prompts
    if len(prompts) * len(wanted.seeds) > _MOST:
        raise BadInput(f"{len(prompts)} prompts by {len(wanted.seeds)} seeds are more than {_MOST}: ask for fewer")
    return [
        Item(scene.of(prompt, seed=seed), output_of(request.output, number, seed))
        for number, prompt in enumerate(prompts, 1)
        for seed in wanted.seeds
    ]


def _there(
    item: Item, request: Request, chosen: generation.Chosen, reads: Sequence[places.Read]
) -> dict[str, Any] | None:
    """The record of a video that is done; None where it is to be drawn. Raises BadInput."""
    place, flags = item.output, request.flags
    if place.kind == "folder" and place.path.is_dir() and not place.record.exists():
        raise BadInput(f"{place.path} is there without its record: use another --output, or remove it")
    place.keep(reads, flags.overwrite, request.task.one.sounds)
    found = made.record(place.record, place.path)
    if found is None or flags.overwrite:
        return None
    before = (found.get("task") or {}).get("asked") if isinstance(found.get("task"), dict) else None
    wanted = request.task.asked_for(item.scene, request, str(chosen.dtype).removeprefix("torch."))
    if before != wanted:
        raise BadInput(_changed(place.record, before, wanted))
    if place.kind == "folder":
        return found if place.path.is_dir() else None
    return found if place.path.is_file() and made.video(place.path, place.record) else None


def _changed(path: Path, before: Any, wanted: dict[str, Any]) -> str:
    """What a record has that the request has not."""
    remedy = "use another --output, or --overwrite to draw all anew"
    if not isinstance(before, dict):
        return f"{path} is of a run that was no list: {remedy}"
    name = next(key for key in wanted if before.get(key) != wanted[key])
    was, now = before.get(name), wanted[name]
    if isinstance(was, dict) and isinstance(now, dict):
        inner = next(key for key in {**was, **now} if was.get(key) != now.get(key))
        name, was, now = f"{name} {inner}", was.get(inner), now.get(inner)
    was, now = (places.shown(str(value), 60) for value in (was, now))
    return f"{path} is of another request ({name} was {was}, is now {now}): {remedy}"
