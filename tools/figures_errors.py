"""Tables of `dittools.benchmarks.errors`, and of methods with and without a correction at as many pairs."""

from __future__ import annotations

import re
import shlex

from dittools.json_numbers import read_number
from dittools.tools.figures_blocks import how, table, where

SETTING = re.compile(r"^(?P<method>[\w ]+), sparsity (?P<sparsity>[\d.]+)(?:, (?P<correction>.*))?$")
NEAR = 0.25
"""What is told of a call is near where it is off by at most so much of the true error."""


def errors(result: dict) -> str:
    """A line for each setting and sharpness: how near the video, how far calls were, and how well rows told of it."""
    bounded = any("max_error" in row["setting"] for row in result["rows"])
    head = [
        "logits", "best block of a row", "method", "correction", *(["max_error", "calls above it"] if bounded else []),
        "PSNR dB", "error of a step and layer", "largest", "skipped of sparse calls", "of all", "told, rms off", "near",
    ]  # fmt: skip
    rows = []
    for row in result["rows"]:
        setting, sharp = row["setting"], row["sharper"]
        cells = [cell for run in row["runs"] for cell in run["cells"] if cell[3] is not None]
        off = [told / true - 1 for _, _, true, told, _ in cells if true]
        some = "" if sharp["heads"] is None else f" in {sharp['heads']} heads"
        best = sharp["best_block"][: sharp["heads"]]
        above = sum(run["above_bound"] or 0 for run in row["runs"])
        rows.append([
            f"x {sharp['factor']:g}{some}", f"{100 * sum(best) / len(best):.0f} %",
            f"{setting['method']} {setting['sparsity']:g}", setting["correction"],
            *([setting.get("max_error", ""), f"{above} of {len(cells)}"] if bounded else []),
            f"{read_number(row['psnr']):.2f}", f"{row['error']:.3f}",
            f"{max(run['largest_error'] for run in row['runs']):.3f}",
            *("" if row.get(name) is None else f"{row[name]:.3f}" for name in ("skipped", "skipped_of_all")),
            f"{100 * (sum(x * x for x in off) / len(off)) ** 0.5:.0f} %",
            f"{100 * sum(abs(x) <= NEAR for x in off) / len(off):.0f} %",
        ])  # fmt: skip
    frames, height, width = result["size"]
    drawn = f"{len(result['prompts'])} prompts, {len(result['seeds'])} seeds"
    facts = f"{frames} x {height} x {width}, {result['steps']} steps, {drawn}. {where(result)}"
    return "\n\n".join((table(head, rows), facts, f"Command: `{shlex.join(result['command'])}`"))


def equal_pairs(result: dict) -> str:
    """A method a line: PSNR alone and with each correction at as many pairs, by sparsity, best first."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    for line in result["summary"]:
        match = SETTING.match(line["setting"])
        if line["kind"] == "sweep" and match and isinstance(line["psnr"], float):
            found.setdefault(match["method"], {})[match["sparsity"], match["correction"] or "alone"] = line["psnr"]
    columns = list(dict.fromkeys(place for row in found.values() for place in row))
    columns.sort(key=lambda place: (float(place[0]), place[1] != "alone"))
    order = sorted(found, key=lambda name: -max(found[name].values()))
    rows = [[name, *(f"{found[name][at]:.2f}" if at in found[name] else "" for at in columns)] for name in order]
    beside = [f"{line['setting']} {line['psnr']:.2f} dB" for line in result["summary"]
              if line["kind"] != "sweep" and isinstance(line["psnr"], float)]  # fmt: skip
    plan, manifest = result["manifest"]["plan"], result["manifest"]
    size = f"{plan['frames']} x {plan['height']} x {plan['width']}"
    facts = (
        f"PSNR in dB; {size}, {plan['steps']} steps, {len(plan['prompts'])} prompts. Beside them: {'; '.join(beside)}."
    )
    head = ["method", *(f"{sparsity}: {correction}" for sparsity, correction in columns)]
    return "\n\n".join((table(head, rows), f"{facts} {where(manifest)}", how(manifest)))
