"""Tables over whole reports: methods side by side, each paired with random blocks. Used by `figures.py`."""

from __future__ import annotations

import re
import statistics

YARDSTICKS = ("random", "oracle")
NAME = re.compile(r"^(?P<method>\w+), sparsity (?P<sparsity>[\d.]+)(?:, (?P<rest>.*))?$")


def methods(result: dict) -> tuple[list[str], list[list]]:
    """Head and rows: a method with its correction a line, best first; for each sparsity PSNR, how much more that is
    than random blocks of the same sparsity on the same prompts and seeds, SSIM, the share of all pairs that was
    skipped, and speed-up where it was timed.
    """
    found: dict[tuple[str, str], dict[float, dict]] = {}
    for line in result["summary"]:
        match = NAME.match(line["setting"])
        if match:
            found.setdefault((match["method"], match["rest"] or ""), {})[float(match["sparsity"])] = line
    sparsities = sorted({sparsity for lines in found.values() for sparsity in lines})
    order = sorted(found, key=lambda key: -_rank(found[key], sparsities))
    timed = any(line["speedup"] is not None for lines in found.values() for line in lines.values())
    head = ["method", "made up for by"]
    for sparsity in sparsities:
        head += [f"{sparsity:g}: PSNR dB", "over random", "SSIM", "of all pairs", *(["speed-up"] if timed else [])]
    return head, [[*_named(key), *_cells(found, key, sparsities, result, timed)] for key in order]


def _named(key: tuple[str, str]) -> list[str]:
    method, rest = key
    return [f"*{method}*" if method in YARDSTICKS else method, rest]


def _rank(lines: dict[float, dict], sparsities: list[float]) -> float:
    """PSNR at the highest sparsity of the table; what was not run there comes last."""
    last = lines.get(sparsities[-1])
    return last["psnr"] if last and isinstance(last["psnr"], float) else float("-inf")


def _cells(found: dict, key: tuple[str, str], sparsities: list[float], result: dict, timed: bool) -> list[str]:
    cells: list[str] = []
    for sparsity in sparsities:
        line = found[key].get(sparsity)
        if line is None or not isinstance(line["psnr"], float):
            cells += [""] * (4 + timed)
            continue
        random = found.get(("random", ""), {}).get(sparsity)
        over = paired(result["psnr_by_case"], line, random) if random else None
        cells += [
            f"{line['psnr']:.2f}",
            "" if over is None or line is random else f"{over[0]:+.2f} ± {over[1]:.2f}",
            f"{line['ssim']:.4f}", f"{line['skipped_overall']:.2f}",
            *(["" if line["speedup"] is None else f"{line['speedup']:.2f}"] if timed else []),
        ]  # fmt: skip
    return cells


def paired(by_case: dict[str, list[float | None]], line: dict, other: dict) -> tuple[float, float] | None:
    """Mean difference in PSNR over the same prompts and seeds, and its standard error; None of fewer than two."""
    both = zip(by_case[line["setting"]], by_case[other["setting"]], strict=True)
    apart = [a - b for a, b in both if a is not None and b is not None]
    if len(apart) < 2:
        return None
    return statistics.fmean(apart), statistics.stdev(apart) / len(apart) ** 0.5


def together(results: list[dict]) -> list[dict]:
    """Reports over the same prompts, seeds, size and card as one; a setting that several have is the first's."""
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
    return joined


def _ground(result: dict) -> tuple:
    plan, manifest = result["manifest"]["plan"], result["manifest"]
    parts = ("frames", "height", "width", "steps", "prompts", "seeds", "dtype")
    return manifest["device"]["name"], *(str(plan[name]) for name in parts)
