"""Sentences and short tables of docs/performance.md, from the JSON of docs/measured. Used by `figures.py`.

Each function takes the folder of results, and gives Markdown; an empty text where nothing was measured.
"""

from __future__ import annotations

from pathlib import Path

from dittools.tools import figures_bench, figures_blocks
from dittools.tools.figures_reports import YARDSTICKS
from dittools.tools.settings import (
    Cached,
    Setting,
    cached,
    compared,
    denoiser_calls,
    fewer_steps,
    load,
    settings,
    uniform_rows,
)

SHARES = (0.1, 0.2, 0.5)  # kept, of the rows of the kernel table that are shown
NEAR = 1.0  # dB: a cache that takes less than this from its method is near to it


def findings(folder: Path) -> str:
    """Six sentences."""
    result = compared(folder)
    calls, kernel, caches = denoiser_calls(folder), uniform_rows(folder), cached(folder)
    if result is None or not (calls and kernel and caches):
        return ""
    found = settings(result)
    told = [_calls(calls), _kernel(kernel), _choice(found), _correction(found), _cache(caches), _yardsticks(result)]
    device = result["manifest"]["device"]["name"]
    return "\n".join(f"{n}. {sentence}" for n, sentence in enumerate(told, 1)) + f"\n\nAll on one {device}."


def at(found: list[Setting], method: str, sparsity: float, correction: str = "", profiled: bool = False) -> Setting:
    """The setting that is asked for; a KeyError names one that nobody measured."""
    for one in found:
        if (one.method, one.sparsity, one.correction, one.profiled) == (method, sparsity, correction, profiled):
            return one
    raise KeyError(f"{method} at {sparsity:g}{' with ' + correction if correction else ''} was not measured")


def _calls(rows: list[list[str]]) -> str:
    most, least = rows[0], rows[-1]
    return (
        f"**The more tokens, the more sparse attention gains**: with 80 % of the pairs skipped, one denoiser call is "
        f"{least[6].rstrip('x')} ({least[0]}, {least[2]} tokens) to {most[6].rstrip('x')} times ({most[0]}, {most[2]} "
        f"tokens) as fast as the faster of eager and compiled dense."
    )


def rate(row: dict, kernel: str) -> float | None:
    return figures_bench.value(row["times"][kernel]) if kernel in row["times"] else None


def _kernel(rows: list[dict]) -> str:
    rates = {name: [r for row in rows if (r := rate(row, name)) is not None] for name in ("hopper", "triton")}
    spans = {name: f"{min(some):.2f} to {max(some):.2f}" for name, some in rates.items()}
    return (
        f"**Skipped pairs become saved time in full**: the Hopper kernel computes its pairs at {spans['hopper']} times "
        f"the rate of the fastest dense kernel, the Triton kernel at {spans['triton']} times."
    )


def _skipping(found: list[Setting], sparsity: float) -> list[Setting]:
    """Methods without a correction, nearest to dense first; a method that has means of its own is none."""
    only = [one for one in found if one.sparsity == sparsity and not one.correction and one.method != "svg_ear"]
    return sorted(only, key=lambda one: -one.psnr)


def _named(one: Setting) -> str:
    return f"`{one.method}`" + " with a profile" * one.profiled


def _choice(found: list[Setting]) -> str:
    first, second = [one for one in _skipping(found, 0.8) if one.method not in YARDSTICKS][:2]
    return (
        f"**{_named(first)} and {_named(second)} choose best**: of the methods "
        f"that only skip, they stay nearest to the dense video at 80 %, with {first.psnr:.1f} and {second.psnr:.1f} dB "
        f"at {first.speedup:.2f} and {second.speedup:.2f} times the speed of dense."
    )


def _correction(found: list[Setting]) -> str:
    alone, lifted = at(found, "adaspa", 0.9), at(found, "adaspa", 0.9, "rettention")
    return (
        f"**A correction is worth more than a better choice**: at 90 % `rettention` raises `adaspa` from "
        f"{alone.psnr:.1f} to {lifted.psnr:.1f} dB, while its speed-up falls from {alone.speedup:.2f} to "
        f"{lifted.speedup:.2f}."
    )


def _fastest(caches: list[Cached]) -> tuple[Cached, Cached]:
    """The fastest cache near to `svg` alone, and `svg` alone."""
    alone = next(one for one in caches if one.method.startswith("svg ") and one.cache == "none")
    near = [one for one in caches if one.method == alone.method and one.psnr > alone.psnr - NEAR]
    return max(near, key=lambda one: one.speedup), alone


def _cache(caches: list[Cached]) -> str:
    fast, alone = _fastest(caches)
    return (
        f"**A step cache multiplies the gain**: `svg` at 80 % with `{flag(fast.cache)}` denoises {fast.speedup:.2f} "
        f"times as fast as dense at {fast.psnr:.1f} dB, where `svg` alone is {alone.speedup:.2f} times as fast at "
        f"{alone.psnr:.1f} dB."
    )


def flag(cache: str) -> str:
    """A cache as `--cache` takes it."""
    name, *rest = cache.split()
    return ":".join([name, *(f"{key}={value}" for key, value in zip(rest[::2], rest[1::2], strict=True))])


def _yardsticks(result: dict) -> str:
    found = _skipping(settings(result), 0.8)
    random = next(one for one in found if one.method == "random")
    worse = sorted({one.method for one in found if one.psnr < random.psnr and not one.profiled})
    name, psnr, speedup = fewer_steps(result) or ("dense", 0.0, 1.0)
    return (
        f"**Some settings are not worth their place**: {name.removeprefix('dense, ')} instead of "
        f"{result['manifest']['plan']['steps']} are {speedup:.2f} times as fast at {psnr:.1f} dB without any method, "
        f"and {', '.join(f'`{method}`' for method in worse[:-1])} and `{worse[-1]}` without a profile are no nearer to "
        f"dense at 80 % than random blocks ({random.psnr:.1f} dB)."
    )


def take(folder: Path) -> str:
    """What to take, with what it gave."""
    result, caches = compared(folder), cached(folder)
    if result is None or not caches:
        return ""
    found = settings(result)
    fast, _ = _fastest(caches)
    plain = next(one for one in caches if one.method == "dense" and one.cache == "easycache threshold 0.1")

    def gave(one: Setting | Cached) -> str:
        return f"{one.psnr:.1f} dB, {one.speedup:.2f}x"

    rows = [
        ["nothing is known yet", "`--method auto`", f"as `adaspa` at 80 %: {gave(at(found, 'adaspa', 0.8))}"],
        ["one model and size, many runs", "`--method paro`, after `dittools calibrate`",
         f"at 80 %: {gave(at(found, 'paro', 0.8, profiled=True))}"],
        ["the picture must stay near to dense", "`--method adaspa --sparsity 0.9 --correction rettention`",
         gave(at(found, "adaspa", 0.9, "rettention"))],
        ["nearest, and the time of choosing is small beside attention (long videos)",
         "`--method svg_ear --sparsity 0.9`", f"{gave(at(found, 'svg_ear', 0.9))} on this small model"],
        ["as fast as it gets", f"`--method svg --sparsity 0.8 --cache {flag(fast.cache)}`", gave(fast)],
        ["few tokens, where sparse attention gains nothing", f"`--method dense --cache {flag(plain.cache)}`",
         gave(plain)],
    ]  # fmt: skip
    return figures_blocks.table(["if", "take", "which gave here"], rows)


def methods_short(folder: Path) -> str:
    """Every method without a correction: PSNR at each sparsity, and the speed-up at 80 %."""
    result = compared(folder)
    if result is None:
        return ""
    found = [one for one in settings(result) if not one.correction]
    sparsities = sorted({one.sparsity for one in found})
    names = {one.name: one for one in sorted(found, key=lambda one: (one.sparsity != 0.8, -one.psnr))}
    rows = []
    for name, first in names.items():
        at_each = {one.sparsity: one for one in found if one.name == name}
        shown = f"*{name}*" if first.method in YARDSTICKS else name
        cells = [f"{at_each[s].psnr:.1f}" if s in at_each else "" for s in sparsities]
        rows.append([shown, *cells, f"{at_each[0.8].speedup:.2f}" if 0.8 in at_each else ""])
    head = ["method", *(f"dB at {s:g}" for s in sparsities), "speed-up at 0.8"]
    return figures_blocks.table(head, rows) + "\n\n" + _ground(result)


def _ground(result: dict) -> str:
    plan, manifest = result["manifest"]["plan"], result["manifest"]
    return (
        f"{plan['frames']} x {plan['height']} x {plan['width']}, {plan['steps']} steps, {len(plan['prompts'])} prompts "
        f"x {len(plan['seeds'])} seeds. {figures_blocks.where(manifest)}"
    )


def corrections_short(folder: Path) -> str:
    """Methods alone and with each correction at 90 %: PSNR and speed-up; the six nearest to dense."""
    result = compared(folder)
    if result is None:
        return ""
    found = {(one.name, one.correction): one for one in settings(result) if one.sparsity == 0.9}
    whole = [name for name, correction in found if correction == "rettention" and (name, "") in found]
    best = sorted(whole, key=lambda name: -found[name, "rettention"].psnr)[:6]
    head = ["method at 0.9", *(cell for name in ("alone", "centroids", "rettention") for cell in (name, "speed-up"))]
    rows = []
    for name in best:
        some = [found.get((name, correction)) for correction in ("", "centroids", "rettention")]
        cells = [cell for one in some for cell in ((f"{one.psnr:.1f} dB", f"{one.speedup:.2f}") if one else ("", ""))]
        rows.append([f"*{name}*" if name in YARDSTICKS else name, *cells])
    return figures_blocks.table(head, rows)


def caches_short(folder: Path) -> str:
    """For each cache its fastest setting within 1 dB of `svg` alone, and the same setting with dense attention."""
    caches = cached(folder)
    if not caches:
        return ""
    _, alone = _fastest(caches)
    near = [one for one in caches if one.method == alone.method and one.psnr > alone.psnr - NEAR]
    best: dict[str, Cached] = {}
    for one in sorted(near, key=lambda one: -one.speedup):
        best.setdefault(one.cache.split()[0], one)
    dense = {one.cache: one for one in caches if one.method == "dense"}
    rows = []
    for one in best.values():
        by_itself = dense.get(one.cache)
        shown = by_itself is not None and one.cache != "none"
        cells = [f"{by_itself.psnr:.1f} dB", f"{by_itself.speedup:.2f}"] if shown else ["", ""]
        rows.append([f"`{flag(one.cache)}`", "" if one.reused is None else f"{100 * one.reused:.0f} %",
                     f"{one.psnr:.1f} dB", f"{one.speedup:.2f}", *cells])  # fmt: skip
    head = ["cache", "calls reused", f"with {alone.method}", "speed-up", "with dense attention", "speed-up"]
    return figures_blocks.table(head, rows)


def kernels_short(folder: Path) -> str:
    """r of lists of 128 x 128 blocks, by shape and kept share."""
    rows = [
        [
            f"{row['job']['heads']} x {row['job']['tokens']:,}", f"{100 * row['kept']:.0f} %",
            *("" if (r := rate(row, name)) is None else f"{r:.3f}" for name in ("hopper", "triton", "flex")),
        ]
        for row in sorted(uniform_rows(folder), key=lambda row: (row["job"]["tokens"], row["kept"]))
        if row["job"]["density"] in SHARES
    ]  # fmt: skip
    return figures_blocks.table(["heads x tokens", "kept", "hopper", "triton", "flex_attention"], rows) if rows else ""


def costs_short(folder: Path) -> str:
    """What each method costs besides attention, where most methods were timed on one model."""
    shares: dict[tuple, dict[str, float]] = {}
    for result in load(folder, "model_*.json"):
        _, rows = figures_bench.costs(result)
        for row in rows:
            shares.setdefault(tuple(row[1:4]), {})[row[0].partition(" ")[0]] = float(row[-1].rstrip(" %"))
    if not shares:
        return ""
    place, most = max(shares.items(), key=lambda item: len(item[1]))
    groups = {"under 5 %": (0, 5), "5 to 10 %": (5, 10), "10 to 20 %": (10, 20), "more": (20, float("inf"))}
    rows = []
    for title, (low, high) in groups.items():
        some = sorted((share, name) for name, share in most.items() if low <= share < high)
        rows.append([title, ", ".join(f"{name} {share:.1f}" for share, name in some)])
    head = ["of the attention's time", f"methods at 80 %, {place[0].partition(',')[0]}, {place[2]} tokens"]
    return figures_blocks.table(head, rows) + _searches(folder)


def _searches(folder: Path) -> str:
    """What the two searches of `adaspa` take: one measures block mass in two passes, the other knows the LSE."""
    passes = {
        (row["job"]["tokens"], row["job"]["title"].rpartition(", ")[2]): figures_bench.value(row["times"][row["best"]])
        for result in load(folder, "kernels_*.json")
        for row in result["rows"]
        if row["job"]["title"].startswith("measured block mass") and row.get("best")
    }
    tokens = max((tokens for tokens, _ in passes), default=None)
    if tokens is None:
        return ""
    both = passes[tokens, "two passes"] + passes[tokens, "LSE known"]
    return f"\n\n`adaspa` also searches at two steps of a run, which takes {both:.1f} dense calls of each layer in all."


BLOCKS = {
    "findings": findings,
    "take": take,
    "methods_short": methods_short,
    "corrections_short": corrections_short,
    "caches_short": caches_short,
    "kernels_short": kernels_short,
    "costs_short": costs_short,
}
