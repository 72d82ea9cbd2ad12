"""Blocks of the pages of measurements as Markdown: each function takes what JSON files of docs/measured hold, and gives
tables with the device, versions and command they came from. Used by `figures.py`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable

from dittools.tools import figures_bench, figures_reports


def where(result: dict) -> str:
    """Device and versions of a result, in one line."""
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items() if value)
    return f"On {result['device']['name']} ({result['device']['type']}); dittools {result['dittools']}, {versions}."


def how(result: dict) -> str:
    return "Command: `" + " ".join(result["command"]) + "`"


def table(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def embedded_model(result: dict) -> str:
    judged, vae, drawn = result["judge"], result["vae"], result["summary"]
    frames, height, width = result["asked"]["size"]
    rows = [
        [f"judge on {judged['videos']} ground-truth videos", *(f"{100 * judged[n]:.1f} %" for n in ATTRIBUTES)],
        [
            f"{drawn['captions']} held-out captions, {drawn['objects']} objects, {result['asked']['steps']} steps",
            *(f"{100 * drawn[n]:.1f} %" for n in ATTRIBUTES),
        ],
    ]
    return "\n\n".join((
        table([f"{frames} x {height} x {width}", "colour", "shape", "motion"], rows),
        f"Autoencoder on {vae['clips']} unseen clips: {vae['psnr']:.1f} dB PSNR (worst clip "
        f"{vae['psnr_worst_clip']:.1f} dB, first frame {vae['psnr_per_frame'][0]:.1f} dB, last "
        f"{vae['psnr_per_frame'][-1]:.1f} dB).",
        where(result),
        how(result),
    ))  # fmt: skip


ATTRIBUTES = ("colour", "shape", "motion")


def sweep(result: dict) -> str:
    runs: dict = {}
    for run in result["runs"]:
        runs.setdefault(run["setting"], []).append(run)
    rows = []
    for setting, some in runs.items():
        seconds = statistics.median(s for run in some for s in run["seconds"])
        if setting == "dense":
            rows.append(["dense", f"{seconds:.2f}", "", "", "", "", ""])
            continue
        rows.append([
            setting,
            f"{seconds:.2f}",
            f"{statistics.mean(run['speedup'] for run in some):.2f}x",
            f"{statistics.mean(run['psnr'] for run in some):.2f}",
            f"{statistics.mean(run['ssim'] for run in some):.4f}",
            f"{statistics.mean(run['sparsity']['sparse_calls'] for run in some):.3f}",
            f"{statistics.mean(run['sparsity']['overall'] for run in some):.3f}",
        ])  # fmt: skip
    head = ["sparsity asked", "denoise s", "speed-up", "PSNR dB", "SSIM", "skipped, sparse calls", "skipped, all calls"]
    parts = [table(head, rows)]
    mass = result.get("attention_mass")
    if mass:
        last = next(run for run in reversed(result["runs"]) if run["setting"] != "dense")
        lines = []
        for row in mass:
            heads = last["heads"][row["layer"]] if row["layer"] < len(last["heads"]) else {}
            shares = [
                f"{row[k]['mean']:.2f} ({row[k]['least']:.2f} to {row[k]['most']:.2f})" for k in row if k != "layer"
            ]
            lines.append([row["layer"], *shares, heads.get("spatial", "dense"), heads.get("temporal", "")])
        head = ["layer", *(f"top {k[4:]} %" for k in mass[0] if k != "layer"), "spatial", "temporal"]
        parts.append(
            "Share of attention mass in the heaviest blocks, mean over heads (least to most), and how often a head "
            "went each way at the highest sparsity:"
        )
        parts.append(table(head, lines))
    size = " x ".join(map(str, result["size"]))
    prompts = len(runs["dense"])
    parts.append(
        f"{size}, {result['steps']} steps, {prompts} prompt{'s' * (prompts > 1)}, {result['dtype']}, dense kernel "
        f"{result['dense_kernel']}, sparse kernel {result['sparse_kernel']}. {where(result)}"
    )
    parts.append(how(result))
    return "\n\n".join(parts)


def report(result: dict) -> str:
    """A report's summary, as `dittools report --json` prints it."""

    def cell(line: dict, name: str, digits: int) -> str:
        value, spread = line[name], line[f"{name}_std"]
        if value is None or value == "inf":
            return "identical" if value == "inf" else ""
        return f"{value:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")

    head = ["setting", "denoise s", "speed-up", "whole", "PSNR dB", "SSIM", "skipped, sparse calls", "judge"]
    rows = [
        [
            line["setting"],
            "" if line["denoise_seconds"] is None else f"{line['denoise_seconds']:.2f}",
            *(cell(line, name, digits) for name, digits in (("speedup", 2), ("whole_speedup", 2))),
            *(cell(line, name, digits) for name, digits in (("psnr", 2), ("ssim", 4))),
            "" if line["skipped_sparse_calls"] is None else f"{line['skipped_sparse_calls']:.3f}",
            cell(line, "judge", 2),
        ]
        for line in result["summary"]
    ]
    manifest, plan = result["manifest"], result["manifest"]["plan"]
    size = f"{plan['frames']} x {plan['height']} x {plan['width']}"
    decided = result.get("baselines") or result["yardsticks"]  # as earlier records name them
    facts = (
        f"{size}, {plan['steps']} steps, {len(plan['prompts'])} prompts x {len(plan['seeds'])} seeds, {plan['dtype']}, "
        f"dense kernel {decided['dense_kernel']}, {len(result['failures'])} failed. {where(manifest)}"
    )
    return "\n\n".join((table(head, rows), facts, how(manifest)))


def bench(columns: Callable[[dict], tuple[list[str], list[list]]]) -> Callable[[dict], str]:
    """A table of `dittools bench`, under the card's name; nothing where a file has no rows for it."""
    return benches(lambda result: [columns(result)])


def benches(parts: Callable[[dict], list[tuple[list[str], list[list]]]]) -> Callable[[dict], str]:
    """The same, of several tables: those that have rows."""

    def render(result: dict) -> str:
        tables = [table(head, rows) for head, rows in parts(result) if rows]
        if not tables:
            return ""
        device = result["device"]
        power = device.get("power_limit_watts")
        named = f" ({result['named']})" if "named" in result else ""
        card = f"**{device['name']}**{f', {power:g} W' if power else ''}{named}"
        commands = "\n\n".join(how(one) for one in result.get("files", [result]))
        return "\n\n".join((card, *tables, where(result), commands))

    return render


def by_card(results: list[dict]) -> list[dict]:
    """Results of one card and the same versions as one, with the rows of all."""
    cards: dict[str, dict] = {}
    for result in results:
        device = result["device"]
        key = json.dumps([device["name"], device.get("power_limit_watts"), result["dittools"], result["versions"]])
        card = cards.setdefault(key, {**result, "rows": [], "files": []})
        card["rows"] += result.get("rows", result.get("cases", []))
        card["files"].append(result)
    return list(cards.values())


def all_at_once(results: list[dict]) -> list[list[dict]]:
    """For what is told of all results together; nothing where there are none."""
    return [results] if results else []


def caches(result: dict) -> str:
    """A report over step caches: what each saved, and how near it stayed. Timings are left to a quiet machine."""
    rows = []
    for line in result["summary"]:
        psnr, ssim = line["psnr"], line["ssim"]
        rows.append([
            line["setting"],
            "" if line["reused_calls"] is None else f"{line['reused_calls']:.3f}",
            "" if psnr is None else "identical" if psnr == "inf" else f"{psnr:.2f}",
            "" if ssim is None else f"{ssim:.4f}",
        ])  # fmt: skip
    manifest, plan = result["manifest"], result["manifest"]["plan"]
    size = f"{plan['frames']} x {plan['height']} x {plan['width']}"
    facts = f"{size}, {plan['steps']} steps, {len(plan['prompts'])} prompts, {plan['dtype']}. {where(manifest)}"
    head = ["setting", "attention calls reused", "PSNR dB", "SSIM"]
    return "\n\n".join((table(head, rows), facts, how(manifest)))


def methods(result: dict) -> str:
    """Methods side by side, of one or several reports over the same prompts and seeds."""
    head, rows = figures_reports.methods(result)
    others = [line for line in result["summary"] if line["kind"] != "sweep" and line["psnr"] is not None]
    beside = "; ".join(f"{line['setting']} {line['psnr']:.2f} dB" for line in others if line["psnr"] != "inf")
    plan, manifest = result["manifest"]["plan"], result["manifest"]
    failed = sum(len(one["failures"]) for one in result["files"])
    partly = figures_reports.partly(result)
    partly += ". " if partly else ""
    facts = (
        f"{plan['frames']} x {plan['height']} x {plan['width']}, {plan['steps']} steps, {len(plan['prompts'])} prompts "
        f"x {len(plan['seeds'])} seeds, {plan['dtype']}, {failed} failed. "
        f"{partly}Beside them: {beside}. {where(manifest)}"
    )
    return "\n\n".join((table(head, rows), facts, *(how(one["manifest"]) for one in result["files"])))


def recall(results: list[dict]) -> str:
    """How much of the attention mass each method's blocks hold, from `dittools inspect`."""

    def held(result: dict) -> list[float]:
        return [head["recall"] for head in result["heads"] if head["recall"] is not None]

    rows = [
        [result["method"], f"{100 * statistics.fmean(held(result)):.1f} %", f"{100 * min(held(result)):.1f} %"]
        for result in sorted(results, key=lambda result: -statistics.fmean(held(result)))
    ]
    first = results[0]
    facts = f"Step {first['heads'][0]['step']} of {first['steps']}, {len(held(first))} heads. {where(first)}"
    return "\n\n".join((table(["method", "mass kept, mean", "least head"], rows), facts, how(first)))


def in_short(results: list[dict]) -> str:
    """Whole denoiser calls on each card, for the README."""
    told = []
    for result in results:
        head, rows = figures_bench.in_short(result)
        if rows:
            told.append(f"On one {result['device']['name']}:\n\n{table(head, rows)}")
    return "\n\n".join(told)


def tritons(results: list[dict]) -> str:
    """The same rows of the kernel table with several Tritons, and what first use took with each."""
    return "\n\n".join((table(*figures_bench.tritons(results)), *(how(one) for one in results)))


def first_use(results: list[dict]) -> str:
    """Two processes of `dittools generate`, one after the other from an empty cache, with each Triton."""
    return "\n\n".join((table(*figures_bench.first_use(results)), how(results[0]), where(results[0])))


def gpu_tests(results: list[dict]) -> str:
    """Runs of the tests that need a GPU, and the memory that methods took in them."""
    head, rows = figures_bench.memory(results)
    told = [text for one in results for text in (figures_bench.gpu_tests(one), how(one))]
    return "\n\n".join((*told, table(head, rows), where(results[0])))


def deals(result: dict) -> str:
    """What dealing heads to ranks would give, from densities that were measured or published."""
    tables = [table(head, rows) for head, rows in figures_bench.deals(result)]
    measured = "Densities of the embedded model: `" + " ".join(result["measured_by"]) + "`"
    return "\n\n".join((*tables, measured, where(result), how(result)))


def kept(result: dict) -> str:
    """PSNR and SSIM of every setting under test."""
    lines = [line for line in result["summary"] if line["kind"] == "sweep"]
    rows = [[line["setting"], f"{line['psnr']:.2f}", f"{line['ssim']:.4f}"] for line in lines]
    plan, manifest = result["manifest"]["plan"], result["manifest"]
    facts = f"{len(plan['prompts'])} prompts, {plan['steps']} steps. {where(manifest)}"
    return "\n\n".join((table(["setting", "PSNR dB", "SSIM"], rows), facts, how(manifest)))


def caches_beside_methods(results: list[dict]) -> str:
    """Step caches alone and with methods: quality from one report, seconds from another."""
    head, rows = figures_reports.caches(results)
    facts = []
    for result in results:
        plan, manifest = result["manifest"]["plan"], result["manifest"]
        what = "Seconds" if plan.get("timed", True) else "Quality"
        facts.append(
            f"{what}: {plan['frames']} x {plan['height']} x {plan['width']}, {plan['steps']} steps, "
            f"{len(plan['prompts'])} prompts x {len(plan['seeds'])} seeds, {plan['dtype']}"
            f"{', compiled' if plan['compile'] else ''}, {len(result['failures'])} failed. {where(manifest)}"
        )
        facts.append(how(manifest))
    return "\n\n".join((table(head, rows), *facts))
