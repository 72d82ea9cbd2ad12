"""The latest run of an acceleration as a file of plans."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dittools.attention_profile import Made
from dittools.caches.base import OutputCache
from dittools.caches.decided import ABSENT, COMPUTED, REUSED
from dittools.config import Config
from dittools.files import sha256, together
from dittools.options import options_of
from dittools.plans.form import renumbered, used_rows
from dittools.plans.manifest import Manifest
from dittools.provenance import dittools_version, versions

if TYPE_CHECKING:
    from dittools.run import Run
    from dittools.runtime import Runtime


class CannotExport(ValueError):
    """A run whose decisions no file of plans can hold, with the reason."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        files: path and bytes of each, the JSON first.
        plans, calls: distinct plans, and the sparse calls that they are for.
        table_bytes: of masks, orders and labels by the kind of table.
    """

    files: dict[Path, int]
    plans: int
    calls: int
    table_bytes: dict[str, int]


def export(runtime: Runtime, path: Path, made: Made | None = None) -> Exported:
    """Write what the latest run decided to ``path`` (JSON) and the tables beside it, both whole or neither.

    Args:
        made: how the run came about; by default what is known here.

    Raises:
        CannotExport: one line, when there is no such run, or nothing or something else decided it.
        OSError: when a file cannot be written.
    """
    from safetensors.torch import save

    run = runtime.run
    if why := why_not(runtime):
        raise CannotExport(why)
    uses, entries = run.recorded.uses()
    named: dict[str, list[int]] = {}
    for table, row in used_rows({str(number): entry for number, entry in enumerate(entries)}):
        named.setdefault(table, []).append(row)
    tables, numbers = run.recorded.rows.only(named)
    sparse = run.method is not None and bool(uses)
    manifest = Manifest(
        path=Path(path),
        model=runtime.identity,
        made=made or Made("unknown", run.steps, versions=versions(), dittools=dittools_version()),
        grids=run.recorded.grids or (run.grid,),
        steps=run.steps,
        config=_settings(runtime.config, run, sparse),
        method={"name": run.method.name if sparse else "dense", "options": _options(run) if sparse else {}},
        plans=[renumbered(entry, numbers) for entry in entries],
        uses=uses,
        dense=sorted([step, layer] for step, layer in run.dense_from),
        cache=_cache(run),
        tables={
            name: {"shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")} for name, x in tables.items()
        },
    )
    targets = [manifest.tables_path, manifest.path] if tables else [manifest.path]
    with together(*targets) as parts:
        if tables:
            parts[0].write_bytes(save(tables))
        text = json.dumps(manifest.to_dict(sha256(parts[0]) if tables else None), ensure_ascii=False, allow_nan=False)
        parts[-1].write_text(text + "\n", encoding="utf-8")
    sizes: dict[str, int] = {}
    for name, table in tables.items():
        kind = name.partition(".")[0]
        sizes[kind] = sizes.get(kind, 0) + table.nbytes
    files = {target: target.stat().st_size for target in targets[::-1]}
    return Exported(files, len(entries), run.recorded.calls, sizes)


def why_not(runtime: Runtime) -> str | None:
    """Why the latest run cannot be exported, in one line; None where it can."""
    run = runtime.run
    if run is None:
        return "there was no run: draw with the pipeline first"
    if run.recorded is None:
        return "the run kept no plans: call keep_plans() before drawing"
    if runtime.identity is None:
        return "the model is not known, so nobody could tell which one the plans fit"
    if run.recorded.why_not is not None:
        return run.recorded.why_not
    cache = run.reuse and run.reuse.cache
    if isinstance(cache, OutputCache) and not _plain(cache):
        return f"cache {cache.name} carries steps over in a way of its own, which no file holds: export without it"
    if not run.recorded.calls and (cache is None or not any(entry.reused for entry in run.reuse.log)):
        why = run.why_dense or next(iter(run.fallbacks), None) or next(iter(run.notes), "every call ran dense")
        return f"the run decided nothing: {why}"
    return None


def _plain(cache: OutputCache) -> bool:
    """Whether `OutputCache` alone says what is carried over; a cache of dittools only drops tensors beside that."""
    own = type(cache).__module__.startswith("dittools.caches.")
    return own or (type(cache).predict is OutputCache.predict and type(cache).update is OutputCache.update)


def _settings(config: Config, run: Run, sparse: bool) -> dict[str, Any]:
    """The config of the run, as another machine can have it: what files and "auto" decided is settled."""
    from dittools.caches import CACHES

    cache_files = {} if config.cache == "none" else options_of(CACHES[config.cache])
    cache_options = {name: value for name, value in config.cache_options.items() if cache_files[name].kind != "file"}
    settled = {"profile": None, "plans": None, "block_size": run.block_size, "cache_options": cache_options}
    if sparse:
        settled["correction"] = "none" if run.correction is None else run.correction.name
    else:
        settled |= {"method": "dense", "options": {}, "correction": "none", "correction_options": {}}
    return dataclasses.replace(config, **{"strict": False, **settled}).to_dict()


def _options(run: Run) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in run.method.changed_options().items()}


def _cache(run: Run) -> dict[str, Any] | None:
    """What a cache of whole calls decided; one of attention decides by its options and the schedule alone."""
    if run.reuse is None or not isinstance(run.reuse.cache, OutputCache):
        return None
    cache, steps = run.reuse.cache, {}
    for entry in run.reuse.log:
        drawn = steps.setdefault((entry.part, entry.branch), [ABSENT] * run.steps)
        drawn[entry.step] = REUSED if entry.reused else COMPUTED
    calls = [{"part": part, "branch": branch, "steps": "".join(drawn)} for (part, branch), drawn in steps.items()]
    return {"reuse": cache.reuse, "taylor_order": cache.taylor_order, "calls": calls}
