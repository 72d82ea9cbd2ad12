"""The phases of a report in order: generate, measure, make the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dittools import provenance
from dittools.cli import generation, ranks, request
from dittools.cli.output import Output
from dittools.cli.prompts import builtin_prompts
from dittools.cli.report.join import GROUND, check, join
from dittools.cli.report.profiles import check_files, check_swept, named
from dittools.cli.report.request import ReportRequest
from dittools.cli.report.run import Drawer
from dittools.cli.tasks import request as whole
from dittools.config import Config
from dittools.pipelines import saving
from dittools.pipelines.errors import BadInput, RunFailed, first_line
from dittools.report import coverage, text
from dittools.report.folder import MANIFEST, Folder, InUse, Unreadable
from dittools.report.plan import Plan, swept
from dittools.report.results import gather
from dittools.report.tables import by_case, summary

CPU_PROMPTS, GPU_PROMPTS, CPU_STEPS = 2, 8, 8
"""Of the builtin report: small enough to be done on two CPU cores while one waits."""


def run_phases(
    path: Path, phase: str, wanted: ReportRequest | None, command: list[str], output: Output, parts: Sequence[str] = ()
) -> None:
    """Do what the phase says, or join parts in place of drawing; raises RunFailed at the end when cases failed."""
    folder = Folder(path)
    made, notes = _checked(wanted, folder, output) if wanted is not None else (None, [])
    try:
        if parts:
            check(folder, parts)
        with saving.told(path), folder.held() as before:
            if before is not None:
                output.note(f"process {before} did not finish this report: going on where it stopped")
            if wanted is not None:
                _draw(folder, wanted, made, notes, command, output)
            if parts:
                join(folder, parts)
            if phase in ("quality", "all"):
                from dittools.cli.report.quality import measure_all

                measure_all(folder, gather(folder).plan, output)
            if phase in ("render", "all"):
                from dittools.cli.report.render import render

                render(folder, output)
            _close(folder, phase, output, part=wanted is not None and wanted.share is not None, joined=bool(parts))
    except (InUse, Unreadable) as error:
        raise BadInput(str(error)) from None


def _checked(wanted: ReportRequest, folder: Folder, output: Output) -> tuple[request.Request, list[str]]:
    """The request, and notes on its sweeps, before anything is fetched or written."""
    notes: list[str] = []

    def check_sweeps(base: Config) -> None:
        try:
            found, said = swept(base.to_dict(), wanted.sweep, 1)
        except (ValueError, TypeError) as error:
            raise BadInput(first_line(error)) from None
        notes.extend(said)
        if not found:
            raise BadInput("there is nothing to compare with dense: give a --sweep of another method or sparsity")
        check_swept(wanted.sweep.get("profile", ()), found)
        for setting in found:
            with named(setting):
                if wanted.general:
                    continue
                request.check_sizes(wanted.flags, Config.from_dict(setting.config))
        if not (folder.path / MANIFEST).exists():  # what is drawn already needs its profiles no more
            check_files(found)

    if wanted.general:
        made = whole.check(wanted.flags, wanted.given, [], output.note, also=check_sweeps)
        _check_whole(made, wanted)
    else:
        made = request.check(wanted.flags, None, also=check_sweeps)
    if (wanted.flags.gpus or 1) > 1:
        ranks.check_gpus(wanted.flags.device, wanted.flags.gpus, alike=True)
    return made, notes


def _check_whole(made: request.Request, wanted: ReportRequest) -> None:
    """Raises BadInput for what a report of whole calls cannot be of."""
    if made.family.why_not is not None:
        raise BadInput(
            f"{made.family.name} draws densely alone, since {made.family.why_not}: there is nothing to report"
        )
    if "prompts" in wanted.given and "prompt" not in made.task.one.parameters:
        raise BadInput(f"--prompts: {made.task.one.name} takes none: leave it out")


def _draw(
    folder: Folder, wanted: ReportRequest, made: request.Request, notes: list[str], command: list[str], output: Output
) -> None:
    chosen = generation.choose(made, output)
    plan = _plan(made, wanted, chosen)
    shot = dataclasses.replace(chosen.scene.shot, steps=plan.steps)
    for setting in swept(plan.base, plan.sweep, plan.steps)[0]:
        with named(setting):
            config = Config.from_dict(setting.config)
            if made.task is not None:
                whole.check_method(made, config, chosen.folder, shot, chosen.device)
                continue
            grid = request.grid_of(made.family, chosen.folder, shot.frames, shot.height, shot.width)
            request.check_method(config, grid, request.block_of(chosen.device))
    manifest = folder.manifest()
    if manifest is not None:
        _same(manifest, plan, chosen.device, folder)
    gpus = wanted.flags.gpus or 1
    if gpus > 1 and plan.timed and chosen.device.type == "cpu":
        notes = [*notes, f"{gpus} cases at a time shared one CPU: each took longer than it would alone"]
    drawer = Drawer(made, chosen, plan, folder, command, output, _mine(wanted.share, plan), gpus)

    def begin(unread: list[str]) -> None:
        """Write the manifest once, and say what the model will not read."""
        if folder.manifest() is not None:
            return
        found = list(notes)
        if folder.cases.is_dir() and any(folder.cases.iterdir()):
            found.append(
                f"{MANIFEST} was gone and was made again: cases from before may be of another machine or version"
            )
        for note in found + unread:
            output.note(note)
        with saving.told(folder.path / MANIFEST):
            folder.write_manifest(_manifest(plan, chosen.device, command, found + unread))

    drawer.run(begin)


def _mine(share: tuple[int, int] | None, plan: Plan) -> range | None:
    """Numbers of the prompts in this share of a report."""
    if share is None:
        return None
    first, parts = share
    if parts > len(plan.prompts):
        raise BadInput(f"--share {first}/{parts} of {len(plan.prompts)} prompts leaves parts empty: ask for fewer")
    return range(first - 1, len(plan.prompts), parts)


def _plan(made: request.Request, wanted: ReportRequest, chosen: generation.Chosen) -> Plan:
    """Every default filled in."""
    cpu, builtin = chosen.device.type == "cpu", wanted.prompts is None
    shot, scene = chosen.scene.shot, chosen.scene
    prompts = wanted.prompts
    if builtin and made.task is not None and (made.task.inputs.given or "prompt" not in made.task.one.parameters):
        builtin, prompts = False, (scene.prompt,)  # ours say nothing of what is given
    elif builtin:
        prompts = builtin_prompts(chosen.weights.embedded, wanted.count or (CPU_PROMPTS if cpu else GPU_PROMPTS))
    steps = CPU_STEPS if builtin and cpu and wanted.flags.steps is None else shot.steps
    steps = steps if shot.steps is None else min(steps, shot.steps)
    fewer = wanted.flags.fewer_steps
    if fewer is not None and fewer >= steps:
        raise BadInput(f"--fewer-steps {fewer} is not fewer than the {steps} steps of a run: lower it")
    plan = Plan(
        model=made.family.name,
        weights=chosen.weights.name,
        prompts=tuple(prompts),
        negative_prompt=scene.negative_prompt,
        seeds=wanted.seeds,
        base=made.config.to_dict(),
        sweep=wanted.sweep,
        frames=shot.frames,
        height=shot.height,
        width=shot.width,
        steps=steps,
        guidance=shot.guidance,
        fps=scene.fps,
        dtype=generation.dtype_name(chosen.dtype),
        device=chosen.device.type,
        offload=wanted.flags.offload,
        compile=wanted.flags.compile,
        repeats=wanted.flags.repeats,
        fewer_steps=wanted.flags.fewer_steps,
        timed=wanted.timed,
        task=None if made.task is None else made.task.facts(),
    )
    if fewer is not None and fewer < plan.fewest_steps:
        raise BadInput(f"--fewer-steps {fewer}: at this --strength a run has at least {plan.fewest_steps}: raise one")
    return plan


def _ground(device: Any) -> dict[str, Any]:
    """What timings stand on; one report stands on one of it."""
    return {
        "dittools": provenance.dittools_version(),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "device": {**provenance.device_facts(device), "power_limit_watts": provenance.power_limit_watts(device)},
    }


def _manifest(plan: Plan, device: Any, command: list[str], notes: list[str]) -> dict[str, Any]:
    return {"command": command, **_ground(device), "plan": plan.to_dict(), "notes": notes}


def _same(manifest: dict[str, Any], plan: Plan, device: Any, folder: Folder) -> None:
    """Refuse to mix two plans, or two machines, in one report."""
    before = Plan.from_dict(manifest["plan"])
    changed = plan.difference(before)
    if changed:
        told = ", ".join(_change(name, before, plan) for name in changed)
        raise BadInput(
            f"{folder.path} holds a report with other settings ({told}): give them again, or another --output"
        )
    now = _ground(device)
    for name in GROUND:
        if now[name] != manifest[name]:
            raise BadInput(
                f"{folder.path} was begun with another {name} ({_short(manifest[name])}, now {_short(now[name])}): "
                "one report needs one machine and one set of versions; give another --output"
            )


def _change(name: str, before: Plan, now: Plan) -> str:
    """What one field of a plan was and is."""
    if name != "task":
        return f"{name} {_short(getattr(before, name))}, now {_short(getattr(now, name))}"
    was, mine = (text.inputs_by_flag(plan.task) for plan in (before, now))
    changed = [flag for flag in {**was, **mine} if was.get(flag) != mine.get(flag)]
    told = [[_short(plan.get(flag, "not given")) for plan in (was, mine)] for flag in changed]
    return ", ".join(f"{flag} {one}, now {other}" for flag, (one, other) in zip(changed, told, strict=True))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _close(folder: Folder, phase: str, output: Output, part: bool, joined: bool) -> None:
    """The result on stdout, what is missing as notes, and what failed as an error. A part is not meant to be whole."""
    found = gather(folder)
    for note in [] if part else coverage.notes(found, joined):
        output.note(note)
    page = folder.path / ("report.html" if phase in ("render", "all") else "")
    output.data(
        {
            "out": str(folder.path),
            "manifest": found.manifest,
            "baselines": found.decided._asdict(),
            "summary": summary(found),
            "psnr_by_case": by_case(found),
            "failures": found.failures,
        },
        lambda: str(page),
    )
    if found.failures and phase != "render":
        first, failed = found.failures[0], {failure["case"] for failure in found.failures}
        raise RunFailed(
            f"{len(failed)} of the cases failed and are in {folder.path / 'failures.json'} "
            f"(the first: {first['setting']}: {first['error']}); the same command tries them again"
        )
