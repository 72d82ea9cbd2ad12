"""Tables over whole reports: methods side by side, each paired with random blocks, and step caches with each method.
Used by `figures.py`.

Quality comes from many prompts, drawn beside other work; seconds from another report, of a device that did no other.
"""

from __future__ import annotations

import re
import statistics

YARDSTICKS = ("random", "oracle")
NAME = re.compile(r"^(?P<method>\w+), sparsity (?P<sparsity>[\d.]+)(?:, (?P<rest>.*))?$")


def methods(result: dict) -> tuple[list[str], list[list]]:
    """Head and rows: a method with its correction or profile a line, best first; for each sparsity PSNR, how much more
    that is than random blocks of the same sparsity on the same prompts and seeds, and speed-up where it was timed; for
    the highest also SSIM and the share of all pairs that was skipped.
    """
    found: dict[tuple[str, str], dict[float, dict]] = {}
    for line in result["summary"]:
        match = NAME.match(line["setting"])
        if match:
            found.setdefault((match["method"], match["rest"] or ""), {})[float(match["sparsity"])] = line
    sparsities = sorted({sparsity for lines in found.values() for sparsity in lines})
    order = sorted(found, key=lambda key: -_rank(found[key], sparsities))
    ups = {line["setting"]: line["speedup"] for lines in found.values() for line in lines.values()}
    ups |= result.get("speedups", {})
    timed = any(up is not None for up in ups.values())
    head = ["method", "with"]
    for sparsity in sparsities:
        head += [f"{sparsity:g}: PSNR dB", "over random", *(["speed-up"] if timed else [])]
    head += [f"{sparsities[-1]:g}: SSIM", "of all pairs"] if sparsities else []
    return head, [[*_named(key), *_cells(found, key, sparsities, result, ups if timed else None)] for key in order]


def _named(key: tuple[str, str]) -> list[str]:
    method, rest = key
    return [f"*{method}*" if method in YARDSTICKS else method, rest]


def _rank(lines: dict[float, dict], sparsities: list[float]) -> float:
    """PSNR at the highest sparsity of the table; what was not run there comes last."""
    last = lines.get(sparsities[-1])
    return last["psnr"] if last and isinstance(last["psnr"], float) else float("-inf")


def _cells(
    found: dict, key: tuple[str, str], sparsities: list[float], result: dict, ups: dict[str, float | None] | None
) -> list[str]:
    cells: list[str] = []
    for sparsity in sparsities:
        line = _drawn(found[key].get(sparsity))
        if line is None:
            cells += [""] * (2 if ups is None else 3)
            continue
        random = found.get(("random", ""), {}).get(sparsity)
        over = paired(result["psnr_by_case"], line, random) if random else None
        cells += [
            f"{line['psnr']:.2f}",
            "" if over is None or line is random else f"{over[0]:+.2f} ± {over[1]:.2f}",
            *([] if ups is None else [_shown(ups.get(line["setting"]))]),
        ]  # fmt: skip
    last = _drawn(found[key].get(sparsities[-1]))
    return [*cells, *(("", "") if last is None else (f"{last['ssim']:.4f}", f"{last['skipped_overall']:.2f}"))]


def _drawn(line: dict | None) -> dict | None:
    """A line that has a PSNR."""
    return line if line is not None and isinstance(line["psnr"], float) else None


def partly(result: dict) -> str:
    """Which sparsities were not drawn on every prompt and seed, in words; empty where all were."""
    counts: dict[str, set[tuple[int, int]]] = {}
    for line in result["summary"]:
        match = NAME.match(line["setting"])
        if match and _drawn(line):
            cases = result["psnr_by_case"][line["setting"]]
            counts.setdefault(match["sparsity"], set()).add((sum(x is not None for x in cases), len(cases)))
    said = [
        f"{sparsity} on {' or '.join(f'{drawn} of {asked}' for drawn, asked in sorted(found))}"
        for sparsity, found in counts.items() if any(drawn < asked for drawn, asked in found)
    ]  # fmt: skip
    return f"Drawn in part: {', '.join(said)} prompts and seeds" if said else ""


def paired(by_case: dict[str, list[float | None]], line: dict, other: dict) -> tuple[float, float] | None:
    """Mean difference in PSNR over the same prompts and seeds, and its standard error; None of fewer than two."""
    both = zip(by_case[line["setting"]], by_case[other["setting"]], strict=True)
    apart = [a - b for a, b in both if a is not None and b is not None]
    if len(apart) < 2:
        return None
    return statistics.fmean(apart), statistics.stdev(apart) / len(apart) ** 0.5


def _shown(speedup: float | None) -> str:
    return "" if speedup is None else f"{speedup:.2f}"


def together(results: list[dict]) -> list[dict]:
    """Reports over the same prompts, seeds, size and card as one; a setting that several have is the first's.

    What was not timed gets the speed-ups of reports of the same size and card that were, over whatever prompts.
    """
    joined: list[dict] = []
    for result in results:
        same = next((other for other in joined if _ground(other) == _ground(result)), None)
        if same is None:
            joined.append({**result, "files": [result]})
            continue
        known = {line["setting"] for line in same["summary"]}
        same["summary"] = [*same["summary"], *(x for x in result["summary"] if x["setting"] not in known)]
        same["psnr_by_case"] = {**result["psnr_by_case"], **same["psnr_by_case"]}
        same["files"].append(result)
    untimed = [one for one in joined if not _timed(one)]
    for one in untimed:
        for other in [other for other in joined if _timed(other) and _ground(other)[:-2] == _ground(one)[:-2]]:
            one["speedups"] = {**_speedups(other), **one.get("speedups", {})}
            one["files"] += other["files"]
            joined.remove(other)
    return joined


def _timed(result: dict) -> bool:
    return result["manifest"]["plan"].get("timed", True)


def _speedups(result: dict) -> dict[str, float | None]:
    return {line["setting"]: line["speedup"] for line in result["summary"]}


def caches(results: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a setting of a cache a line, and dense with fewer steps; for each method PSNR, the share of
    attention calls that was reused, and how many times as fast denoising was as dense without a cache.
    """
    ups: dict[str, float | None] = {}
    lines: dict[str, dict[str, dict]] = {}
    for result in results:
        for line in result["summary"]:
            ups[line["setting"]] = ups.get(line["setting"]) or line["speedup"]
        if not _timed(result) or len(results) == 1:
            for line in result["summary"]:
                if line["kind"] in ("dense", "sweep"):
                    method, cache = _split(line["setting"])
                    lines.setdefault(cache, {})[method] = line
                elif line["kind"] == "steps":
                    lines[f"none, {line['steps']} steps"] = {"dense": line}
    methods = list(dict.fromkeys(method for found in lines.values() for method in found))
    head = ["cache", *(name for method in methods for name in (f"{method}: PSNR dB", "reused", "speed-up"))]
    return head, [
        [cache, *(cell for method in methods for cell in _cache_cells(found.get(method), ups))]
        for cache, found in lines.items()
    ]


def _split(setting: str) -> tuple[str, str]:
    """A setting's name as method with sparsity, and cache with options."""
    parts = setting.split(", ")
    known = 2 if len(parts) > 1 and parts[1].startswith("sparsity ") else 1
    return " ".join(parts[:known]).replace("sparsity ", ""), ", ".join(parts[known:]) or "none"


def _cache_cells(line: dict | None, ups: dict[str, float | None]) -> list[str]:
    if line is None:
        return [""] * 3
    psnr, reused = line["psnr"], line["reused_calls"]
    return [
        f"{psnr:.2f}" if isinstance(psnr, float) else "", "" if reused is None else f"{reused:.2f}",
        _shown(ups.get(line["setting"])),
    ]  # fmt: skip


def _ground(result: dict) -> tuple:
    plan, manifest = result["manifest"]["plan"], result["manifest"]
    parts = ("frames", "height", "width", "steps", "dtype", "prompts", "seeds")
    return manifest["device"]["name"], *(str(plan[name]) for name in parts)
