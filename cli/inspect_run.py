"""One inspection from checked flags to a folder: load, run up to the last step shown while listening, draw, save."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from dittools.attention_maps import Choice, View, Viewer, recall_of
from dittools.attention_maps.images import map_image, png
from dittools.attention_maps.page import Pictures, page
from dittools.cli import generation
from dittools.cli.flag_checks import check_numbers
from dittools.cli.output import Output, to_json
from dittools.cli.progress import Progress, Stages
from dittools.cli.request import Request
from dittools.naming import with_options
from dittools.pipelines import saving
from dittools.pipelines import stages as pipeline
from dittools.pipelines.errors import BadInput
from dittools.provenance import device_facts, dittools_version, versions

HEADS = 4  # of them, shown by default
MOST_VIEWS = 400


def run(
    request: Request, wanted: dict[str, tuple[int, ...] | None], place: Path, command: list[str], output: Output
) -> dict[str, Any]:
    """Write the folder and return its record."""
    import dittools

    request = _without_cache(request)
    with Progress(output) as progress:
        stages = Stages(progress)
        opened = generation.open_model(request, stages, output, check=lambda chosen: _check(wanted, request, chosen))
        scene = opened.scene
        embeds = generation.encode(opened, scene, stages)
        for note in generation.prompt_notes(opened, scene):
            output.note(note)
        with stages("denoise", scene.shot.steps), dittools.accelerate(opened.pipe, config=request.config) as fast:
            model = fast.runtime.identity
            viewer = Viewer(_choice(wanted, scene.shot.steps, model.layers, model.heads))
            fast.runtime.watchers.append(viewer.observe)
            fast.runtime.plan_watchers.append(viewer.plan)
            last = max(viewer.choice.steps) + 1
            pipeline.denoise(opened.pipe, embeds, scene.shot, stages.progress.step, only_steps=last)
        acceleration = fast.record()
        names = [layer.name for layer in fast.runtime.layers]
        with stages("render"):
            facts = acceleration | {"notes": [*acceleration["notes"], *output.notes]}
            record = _record(request, opened, viewer, names, facts, place, command)
            _save(place, viewer, names, record)
    for note in acceleration["notes"]:
        output.note(note)
    output.line(record["recall"])
    return record


def _without_cache(request: Request) -> Request:
    """The request with every step computed, which is what can be looked at."""
    config = request.config
    if config.cache == "none":
        return request
    if config.plans is not None:
        raise BadInput(
            f"{config.plans} was decided with cache {config.cache}, and only computed steps can be looked at: export a "
            "run without a cache"
        )
    told = with_options(config.cache, config.cache_options)
    note = f"cache {told} of --config {request.flags.config} is left out: only computed steps can be looked at"
    config = dataclasses.replace(config, cache="none", cache_options={})
    return dataclasses.replace(request, config=config, notes=(*request.notes, note))


def _check(wanted: dict[str, tuple[int, ...] | None], request: Request, chosen: generation.Chosen) -> None:
    """Refuse before the model is loaded what its configs say is not there."""
    from dittools.pipelines.skeleton import identity_of

    check_numbers("--at", wanted["--at"] or (), chosen.scene.shot.steps)
    model = identity_of(chosen.folder, request.family)
    if model is not None:
        _choice(wanted, chosen.scene.shot.steps, model.layers, model.heads)


def _choice(wanted: dict[str, tuple[int, ...] | None], steps: int, layers: int, heads: int) -> Choice:
    """What was asked for, checked against what there is; else a few of each."""
    defaults = {
        "--at": tuple(sorted({steps // 2, steps - 1})),
        "--layers": tuple(sorted({0, layers // 2, layers - 1})),
        "--heads": tuple(range(min(HEADS, heads))),
    }
    chosen = {flag: wanted[flag] or default for flag, default in defaults.items()}
    for flag, count in (("--at", steps), ("--layers", layers), ("--heads", heads)):
        check_numbers(flag, chosen[flag], count)
    choice = Choice(chosen["--at"], chosen["--layers"], chosen["--heads"])
    views = len(choice.steps) * len(choice.layers) * len(choice.heads)
    if views > MOST_VIEWS:
        raise BadInput(f"{views} maps are asked for, and a page takes {MOST_VIEWS}: choose fewer")
    return choice


def _record(
    request: Request, opened: Any, viewer: Viewer, names: list[str], acceleration: dict, place: Path, command: list[str]
) -> dict[str, Any]:
    return {
        "dittools": dittools_version(),
        "versions": versions(),
        "command": command,
        "device": device_facts(opened.device),
        "model": request.family.name,
        "weights": opened.weights.name,
        "grid": acceleration["grid"],
        "config": request.config.to_dict(),
        "method": acceleration["method"],
        "method_options": acceleration["method_options"],
        "prompt": opened.scene.prompt,
        "seed": opened.scene.shot.seed,
        "steps": opened.scene.shot.steps,
        "heads": [_facts(view, names) for view in viewer.views.values()],
        "recall": recall_of(viewer.views.values()),
        "fallbacks": acceleration["fallbacks"],
        "notes": acceleration["notes"],
        "output": str(place / "index.html"),
    }


def _facts(view: View, names: list[str]) -> dict[str, Any]:
    shares = {name: round(value, 4) for name, value in view.shares._asdict().items()}
    facts = {"step": view.step, "layer": view.layer, "name": names[view.layer], "head": view.head}
    facts |= {
        "branch": view.branch,
        "class": view.shares.name,
        "also": list(view.shares.also),
        "shares": shares,
        "reordered": view.reordered,
    }
    rounded = {name: getattr(view, name) for name in ("density", "recall")}
    return facts | {name: None if value is None else round(value, 4) for name, value in rounded.items()}


def _save(place: Path, viewer: Viewer, names: list[str], record: dict[str, Any]) -> None:
    """The folder appears whole or not at all. Names of files hold numbers alone."""
    pictures = {}
    with saving.whole(place) as part:
        part.mkdir()
        for key, view in viewer.views.items():
            kept = None if view.keep is None else png(map_image(view.ordered, view.keep))
            pictures[key] = Pictures(png(map_image(view.map)), kept)
            stem = "step{:03d}_layer{:03d}_head{:03d}".format(*key)
            for kind, data in pictures[key]._asdict().items():
                if data is not None:
                    (part / f"{stem}_{kind}.png").write_bytes(data)
        method = with_options(record["method"], record["method_options"])
        facts = {
            "prompt": record["prompt"],
            "method": f"{method}, sparsity {record['config']['sparsity']:g}",
            "weights": f"{record['weights']}, {record['steps']} steps, seed {record['seed']}",
            "command": " ".join(record["command"]),
        }
        html = page(list(viewer.views.values()), pictures, names, facts, record["notes"])
        (part / "index.html").write_bytes(html.encode("utf-8", errors="replace"))
        (part / "record.json").write_text(to_json(record) + "\n", encoding="utf-8")
