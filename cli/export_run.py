"""One export from checked flags to a file of plans: load, encode, denoise with plans kept, write."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from dittools.attention_profile import Made
from dittools.cli import generation
from dittools.cli.output import Output
from dittools.cli.progress import Progress, Stages
from dittools.cli.record import SECONDS
from dittools.cli.request import Request
from dittools.pipelines import saving
from dittools.pipelines.errors import RunFailed
from dittools.provenance import device_facts, dittools_version, versions

KINDS = {"keep": "masks", "order": "orders", "labels": "clusters", "sizes": "clusters"}
"""What tables hold, by the first part of their names."""


def run(request: Request, place: Path, command: list[str], output: Output) -> dict[str, Any]:
    """Draw, write the plans, and return what they are."""
    from dittools.plans.export import CannotExport, export

    begun = time.perf_counter()
    with Progress(output) as progress:
        stages = Stages(progress)
        opened = generation.open_model(request, stages, output)
        scene, shot = opened.scene, opened.scene.shot
        embeds = generation.encode(opened, scene, stages)
        for note in generation.prompt_notes(opened, scene):
            output.note(note)
        _, fast = generation.denoise_sparse(
            opened, embeds, scene, request.config, stages, watch=lambda fast: fast.keep_plans()
        )
        made = Made(
            weights=opened.weights.name,
            steps=shot.steps,
            device=device_facts(opened.device),
            versions=versions(),
            dittools=dittools_version(),
            command=tuple(command),
            prompts=(scene.prompt,),
            seeds=(shot.seed,),
            guidance=shot.guidance,
            dtype=opened.dtype,
            seconds=round(time.perf_counter() - begun, 3),
        )
        with stages("save"), saving.told(place):
            try:
                written = export(fast.runtime, place, made)
            except CannotExport as error:
                raise RunFailed(f"{error}; nothing was written") from None
    facts = fast.record()
    for note in facts["notes"]:
        output.note(note)
    sizes: dict[str, int] = {}
    for kind, size in written.table_bytes.items():
        sizes[KINDS.get(kind, "others")] = sizes.get(KINDS.get(kind, "others"), 0) + size
    whole = sum(written.files.values())
    parts = ", ".join(f"{name} {_size(size)}" for name, size in sizes.items())
    output.line(
        f"{place}: {written.plans} plans for {written.calls} sparse calls of {shot.frames} x {shot.height} x "
        f"{shot.width} in {shot.steps} steps, {_size(whole)}" + (f" ({parts})" if parts else "")
    )
    reused = facts["cache"]["reused_steps"]
    if facts["cache"]["name"] != "none":
        output.line(f"cache {facts['cache']['name']}: {len(reused)} of {shot.steps} steps reused")
    return {
        "output": str(place),
        "files": {file.name: size for file, size in written.files.items()},
        "plans": written.plans,
        "sparse_calls": written.calls,
        "table_bytes": sizes,
        "model": request.family.name,
        "weights": opened.weights.name,
        "grid": facts["grid"],
        "steps": shot.steps,
        "method": facts["method"],
        "sparsity": facts["sparsity"]["sparse_calls"],
        "cache": {"name": facts["cache"]["name"], "reused_steps": reused},
        "seconds": {name: round(stages.seconds[name], 3) for name in SECONDS if name in stages.seconds},
    }


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
