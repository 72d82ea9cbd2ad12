"""What a run did, as the numbers of a run record and as text."""

from __future__ import annotations

from collections import Counter
from itertools import zip_longest
from typing import Any

from dittools import row_errors
from dittools.agreement import density_by_rank
from dittools.json_numbers import number
from dittools.naming import with_options
from dittools.run import Run
from dittools.runtime import Runtime
from dittools.tokens import TokenGrid


def record(runtime: Runtime) -> dict[str, Any]:
    """The latest run in plain values, as the run record has them. Waits for the device.

    Skipped shares are measured from the masks that ran: ``sparse_calls`` over sparse calls, all others over
    every self-attention call. They are None where nothing ran. ``by_parts`` is the share *kept* by sparse calls of
    each kind of pair, queries first ("picture-text"), and ``pairs_by_parts`` what share of all their pairs it is.
    Seconds are those of transformer forwards.
    ``method_options`` are those of the method that ran, where they differ from its defaults, whoever chose them.
    """
    config = runtime.config
    run = runtime.run or Run(None, 0, len(runtime.layers), 0)
    sparse = [call for call in run.calls if call.density is not None]
    kinds = run.kept_by_kind()
    return {
        "method": "dense" if run.why_dense else run.method.name if run.method else config.method,
        "method_options": run.method.changed_options() if run.method else {},
        "correction": run.correction.name if run.correction else "none",
        "steps": run.steps,
        "grid": _grid(run.grid),
        "sparsity": {
            "asked": config.sparsity,
            "sparse_calls": run.skipped(sparse),
            "overall": run.skipped(run.calls),
            "per_step": _shares(run, "step", run.steps),
            "per_layer": _shares(run, "layer", run.layers),
            "by_parts": {name: kept for name, (kept, _) in kinds.items()},
            "pairs_by_parts": {name: share for name, (_, share) in kinds.items()},
        },
        "calls": {
            "dense": len(run.calls) - len(sparse),
            "sparse": len(sparse),
            "reused": run.reused_calls,
            "expected": run.tally.expected(run.first, run.steps),
        },
        "kernels": dict(Counter(call.kernel for call in sparse if call.kernel)),
        "kernel_reasons": dict(run.kernel_reasons),
        "attention_error": row_errors.facts(run.calls, run.steps, run.layers, config.exact_rows),
        "cache": cache_facts(runtime, run),
        **({} if run.ranks.alone and run.shared is None else {"parallel": parallel_facts(run)}),
        "fallbacks": [{"reason": r, "count": n} for r, n in run.fallbacks.most_common()],
        "heads": run.fact_counts(),
        "step_seconds": run.step_seconds(),
        "notes": [
            *run.notes,
            *(run.shared.notes(run) if run.shared else ()),
            *run.tally.notes([layer.name for layer in runtime.layers], run.first, run.steps, run.over),
            *(run.reuse.guard_rails() if run.reuse else ()),
        ],
    }


def cache_facts(runtime: Runtime, run: Run) -> dict[str, Any]:
    """The `cache` entry: steps computed and reused, and for a cache that is on, each branch's calls and the bytes held.

    ``computed_steps`` are those in which at least one branch was computed. ``attention_pairs`` is the share of all
    query-key pairs of a dense, uncached run that was computed, and where the others went: the budget in which reuse
    and sparsity add up.
    """
    reuse, name = run.reuse, runtime.config.cache
    if reuse is None:
        return {"name": name, "computed_steps": sorted({step for step, _ in run.forwards}), "reused_steps": []}
    branches: dict[str, dict[str, list]] = {}
    for entry in reuse.log:
        lane = branches.setdefault(
            entry.branch, {"computed_steps": [], "reused_steps": [], "signals": [], "forced": []}
        )
        lane["reused_steps" if entry.reused else "computed_steps"].append(entry.step)
        lane["signals"].append(number(entry.signal))
        lane["forced"].append(entry.why)
    return {
        "name": name,
        "computed_steps": reuse.steps(reused=False),
        "reused_steps": reuse.steps(reused=True),
        "attention_reused_steps": sorted({step for step, _, _ in reuse.attention_reused}),
        "branches": branches,
        "signals_not_finite": reuse.bad_signals,
        "bytes_held": reuse.peak_bytes,
        "attention_pairs": run.pair_budget(),
    }


def parallel_facts(run: Run) -> dict[str, Any]:
    """The `parallel` entry of a run that several ranks made: what this one sent to others, and what each kept of the
    pairs of its heads in sparse calls. Waits for the device.
    """
    return {
        "ranks": run.ranks.size * (1 if run.shared is None else run.shared.pair.size),
        "exchanged_bytes": run.exchanged.bytes,
        "exchange_seconds": run.exchanged.seconds,
        "density_by_rank": density_by_rank(run),
    }


def by_step_and_layer(runtime: Runtime) -> list[list[float | None]]:
    """Skipped share of the latest run, a list of layers for each step; None where no call ran. Waits for the device."""
    run = runtime.run
    if run is None:
        return []
    cells: dict[tuple[int, int], list] = {}
    for call in run.calls:
        cells.setdefault((call.step, call.layer), []).append(call)
    return [[run.skipped(cells.get((step, layer), [])) for layer in range(run.layers)] for step in range(run.steps)]


REPLACED = "a later dittools.accelerate took its place: this one decides no calls now"


def summary(runtime: Runtime, replaced: bool = False) -> str:
    """The latest run as text for a terminal. ``replaced``: another decides the pipeline's calls now."""
    if runtime.run is None:
        return f"dittools: no run yet; {REPLACED}" if replaced else "dittools: attached, no run yet"
    values = record(runtime)
    sparsity, calls = values["sparsity"], values["calls"]
    seconds = [s for s in values["step_seconds"] if s is not None]
    asked, method = runtime.config.method, with_options(values["method"], values["method_options"])
    correction = "" if values["correction"] == "none" else f", correction {values['correction']}"
    lines = [
        f"method    {method}" + (f", asked {asked}" if asked != values["method"] else "") + correction,
        f"grid      {_grid_text(values['grid'])}",
        f"sparsity  asked {sparsity['asked']:.3f}, sparse calls {_share(sparsity['sparse_calls'])}, "
        f"all calls {_share(sparsity['overall'])}",
        f"calls     {calls['dense']} dense, {calls['sparse']} sparse, {calls['reused']} reused, "
        f"{calls['expected']} expected"
        + (f"; {runtime.run.plans_reused} plans used again" if runtime.run.plans_reused else "")
        + (f"; {runtime.run.plans_shared} plans shared by branches" if runtime.run.plans_shared else ""),
        f"kernels   {', '.join(f'{name} {count}' for name, count in values['kernels'].items()) or '-'}",
        f"seconds   {sum(seconds):.2f} in the transformer, {len(seconds)} of {values['steps']} steps",
    ]
    if len(sparsity["by_parts"]) > 1:
        lines += _pairs_lines(sparsity)
    error = values["attention_error"]
    if error is not None:
        lines.append(
            f"error     {error['overall']:.4f} ± {error['uncertainty']:.4f} of the attention's output, root mean "
            f"square of layers and steps, by {error['rows']} exact rows a call"
        )
    if "branches" in values["cache"]:
        lines += _cache_lines(values["cache"])
    if "parallel" in values:
        lines += _parallel_lines(values["parallel"])
    lines += [f"fallback  {f['count']} calls dense: {f['reason']}" for f in values["fallbacks"]]
    lines += [f"note      {note}" for note in (*values["notes"], *([REPLACED] if replaced else []))]
    wrong = {"per_step": [], "per_layer": []} if error is None else error
    lines += ["", "step   skipped  seconds" + "    error" * (error is not None)]
    rows = zip_longest(sparsity["per_step"], values["step_seconds"], map(_error, wrong["per_step"]), fillvalue="")
    for step, (share, took, off) in enumerate(rows):
        lines.append(f"{step:>4}  {_share(share):>8}  {'-' if took is None else f'{took:.3f}':>7}{off}")
    lines += ["", "layer  skipped  " + "  error  " * (error is not None) + "heads"]
    rows = zip_longest(sparsity["per_layer"], values["heads"], map(_error, wrong["per_layer"]), fillvalue="")
    for layer, (share, heads, off) in enumerate(rows):
        counts = ", ".join(f"{count} {name}" for name, count in heads.items())
        lines.append(f"{layer:>5}  {_share(share):>7}{off}  {counts or '-'}")
    return "\n".join(lines)


def _error(value: float | None) -> str:
    return f"  {'-':>7}" if value is None else f"  {value:>7.4f}"


def _pairs_lines(sparsity: dict[str, Any]) -> list[str]:
    """What sparse calls kept of each kind of pair; those that are dense together."""
    lines, dense = [], 0.0
    for name, kept in sparsity["by_parts"].items():
        share = sparsity["pairs_by_parts"][name]
        if kept > 0.9995:
            dense += share
        else:
            lines.append(f"pairs     {name} {kept:.3f} kept, {share:.3f} of all pairs")
    return [*lines, f"pairs     all others dense, {dense:.3f} of all pairs"]


def _parallel_lines(parallel: dict[str, Any]) -> list[str]:
    kept = ", ".join(_share(None if share is None else 1 - share) for share in parallel["density_by_rank"])
    return [
        f"ranks     {parallel['ranks']}; skipped by each {kept}; {parallel['exchanged_bytes'] / 2**20:.1f} MiB sent by "
        f"this one in {parallel['exchange_seconds']:.2f} s"
    ]


def _cache_lines(cache: dict[str, Any]) -> list[str]:
    lines = []
    for name, lane in cache["branches"].items():
        steps = [(step, "C") for step in lane["computed_steps"]] + [(step, "-") for step in lane["reused_steps"]]
        drawn = "".join(letter for _, letter in sorted(steps))
        lines.append(
            f"cache     {cache['name']}, {name}: {len(lane['computed_steps'])} computed, "
            f"{len(lane['reused_steps'])} reused  {drawn}"
        )
    if cache["attention_reused_steps"]:
        lines.append(f"cache     attention reused in steps {', '.join(map(str, cache['attention_reused_steps']))}")
    pairs = cache["attention_pairs"]
    lines.append(
        f"budget    of all attention {_share(pairs['computed'])} computed, {_share(pairs['reused'])} reused, "
        f"{_share(pairs['skipped'])} skipped; {cache['bytes_held'] / 2**20:.1f} MiB held"
    )
    return lines


def _grid_text(grid: dict[str, Any] | None) -> str:
    """A record's grid for a terminal."""
    if grid is None:
        return "not known"
    others = "".join(f" + {part['tokens']} {part['kind']}" for part in grid.get("parts", ()))
    others += f" + {grid['text']} text" if grid["text"] else ""
    return f"{grid['frames']} x {grid['height']} x {grid['width']}{others} = {grid['tokens']} tokens"


def _grid(grid: TokenGrid | None) -> dict[str, Any] | None:
    sizes = ("frames", "height", "width", "text", "tokens")
    if grid is None:
        return None
    found: dict[str, Any] = {name: getattr(grid, name) for name in sizes}
    if grid.parts:
        found["parts"] = [{"kind": part.kind, "tokens": part.tokens, "shape": part.shape} for part in grid.parts]
    return found


def _shares(run: Run, by: str, count: int) -> list[float | None]:
    groups: list[list] = [[] for _ in range(count)]
    for call in run.calls:
        groups[getattr(call, by)].append(call)
    return [run.skipped(group) for group in groups]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
