"""Settings that were measured on the largest grid there is a report of, for the findings and the pictures of
docs/performance.md. Quality is of many prompts, seconds of a report that was timed; both are of one card.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from dittools.tools import figures_bench, figures_blocks, figures_reports

CORRECTIONS = ("centroids", "rettention")


@dataclass(frozen=True)
class Setting:
    """One way to run: PSNR in dB against dense, `speedup` how many times as fast as dense denoising is."""

    method: str
    sparsity: float
    correction: str
    profiled: bool
    psnr: float
    speedup: float

    @property
    def name(self) -> str:
        return self.method + (" with a profile" if self.profiled else "")


@dataclass(frozen=True)
class Cached:
    """A step cache with a method; `cache` is "none" where the method runs alone."""

    method: str
    cache: str
    psnr: float
    speedup: float
    reused: float | None


def load(folder: Path, pattern: str) -> list[dict]:
    """The results whose files match, in the order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(pattern))]


def compared(folder: Path) -> dict | None:
    """All reports over methods on the largest grid, as one; None where there is none."""
    joined = figures_reports.together(load(folder, "report_methods_*.json"))
    return max(joined, key=_pixels, default=None)


def _pixels(result: dict) -> int:
    plan = result["manifest"]["plan"]
    return plan["frames"] * plan["height"] * plan["width"]


def settings(result: dict) -> list[Setting]:
    """What the reports drew and timed, at every sparsity."""
    ups = {line["setting"]: line["speedup"] for line in result["summary"]} | result.get("speedups", {})
    found = []
    for line in result["summary"]:
        match = figures_reports.NAME.match(line["setting"])
        if not match or not isinstance(line["psnr"], float) or ups.get(line["setting"]) is None:
            continue
        rest = match["rest"] or ""
        correction = next((name for name in CORRECTIONS if name in rest), "")
        profiled = "profile" in rest
        found.append(
            Setting(match["method"], float(match["sparsity"]), correction, profiled, line["psnr"], ups[line["setting"]])
        )
    return found


def fewer_steps(result: dict) -> tuple[str, float, float] | None:
    """The yardstick of dense runs with fewer steps: its name, PSNR and speed-up."""
    ups = result.get("speedups", {})
    for line in result["summary"]:
        if line["kind"] == "steps":
            return line["setting"], line["psnr"], line["speedup"] or ups[line["setting"]]
    return None


def cached(folder: Path) -> list[Cached]:
    """Step caches with each method they were run with."""
    head, rows = figures_reports.caches(load(folder, "report_caches_480p_*.json"))
    methods = [title.partition(":")[0] for title in head[1::3]]
    return [
        Cached(method, row[0], float(psnr), float(speedup), float(reused) if reused else None)
        for row in rows
        for method, (psnr, reused, speedup) in zip(methods, _threes(row[1:]), strict=True)
        if psnr and speedup and not re.match(r"none, \d+ steps", row[0])
    ]


def _threes(cells: list[str]) -> list[tuple[str, str, str]]:
    return list(zip(cells[0::3], cells[1::3], cells[2::3], strict=True))


def denoiser_calls(folder: Path) -> list[list[str]]:
    """Rows of the table of whole denoiser calls, most gained first: model, pixels, tokens, method, seconds, gain."""
    return [
        row
        for card in figures_blocks.by_card(load(folder, "model_*.json"))
        for row in figures_bench.in_short(card)[1]
    ]  # fmt: skip


def uniform_rows(folder: Path) -> list[dict]:
    """Rows of the kernel table about lists of 128 x 128 blocks spread evenly."""
    return [
        row
        for result in load(folder, "kernels_*.json")
        for row in result["rows"]
        if row["job"]["name"] == "uniform" and "times" in row
    ]  # fmt: skip
