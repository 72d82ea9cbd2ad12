"""A report as one HTML file that needs no other: style, charts, pictures and small clips lie in it.

Every text that came from outside is escaped, and the page's own policy forbids every script but the one that sorts.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from html import escape
from importlib import resources

from dittools.quality.suite import by_name, shown
from dittools.report import charts, words
from dittools.report.pictures import AMPLIFIED, Shown
from dittools.report.plan import DENSE, KERNEL, KINDS, SEED, STEPS, SWEEP
from dittools.report.results import Line, Outcome, Results

Pictures = Mapping[tuple[str, int, int], Shown]
"""(setting's key, prompt, seed) -> what is shown of that case."""


def page(results: Results, pictures: Pictures) -> str:
    """The text of report.html."""
    style, script = (_resource(name) for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; media-src data:"
    )
    body = "".join((
        f"<header><h1>Speed and quality</h1><p class='soft'>{text(words.subject(results))}</p></header><main>",
        _list(words.headline(results), "lead"),
        _chart(results),
        _section("Settings", _table(results)),
        _section("What these figures say, and what they do not", _list(words.explained(results))),
        _section("Where attention was computed", _heat_maps(results)),
        _section("Frame by frame", _frames(results)),
        _section("Side by side", _pictures(results, pictures)),
        _section("Left out, and why", _list(results.left_out())),
        _section("Failed", _failures(results)),
        _section("Prompts", _prompts(results)),
        _section("Made with", _ground(results)),
        "</main>",
    ))  # fmt: skip
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Speed and quality: {text(results.plan.model)}</title><style>{style}</style></head>"
        f"<body>{body}<script>{script}</script></body></html>\n"
    )


def text(value: object) -> str:
    """Any text for a page: escaped, and without characters that print nothing or turn the line around."""
    return escape("".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in str(value)))


def _resource(name: str) -> str:
    return resources.files("dittools.report").joinpath(name).read_text(encoding="utf-8")


def _section(title: str, body: str) -> str:
    return f"<section><h2>{text(title)}</h2>{body}</section>" if body else ""


def _list(lines: list[str], kind: str = "") -> str:
    return f"<ul class='{kind}'>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _chart(results: Results) -> str:
    points, levels = [], []
    for number, line in enumerate(results.lines, 1):
        near, speed, kind = line.metrics["psnr"], line.speedup, line.setting.kind
        if near.mean is None or speed.mean is None or not line.compared:
            continue
        if kind in (SWEEP, STEPS):
            name = f"{line.setting.name}: {speed.mean:.2f}x, {shown(by_name()['psnr'], near.mean)}"
            points.append(charts.Point(speed.mean, near.mean, speed.std, near.std, str(number), name, kind, line.front))
        elif kind in (KERNEL, SEED):
            levels.append(charts.Level(near.mean, {KERNEL: "noise floor", SEED: "another seed"}[kind]))
    if not points:
        return ""
    return (
        f"<figure class='chart'>{charts.speed_and_quality(points, levels)}<figcaption>Up is closer to dense, right is "
        "faster. Numbers are those of the table; rings and the line mark what no other beats in both; the "
        "diamond is dense with fewer steps; bars are standard deviations.</figcaption></figure>"
    )


def _table(results: Results) -> str:
    columns = words.columns(results)
    head = "".join(f"<th scope='col'><button type='button'>{text(name)}</button></th>" for name in words.heads(columns))
    rows = "".join(_table_row(line, words.cells(line, number, columns)) for number, line in enumerate(results.lines, 1))
    front = f"* {text(words.front(results))} " if columns.times else ""
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='Settings'><table class='sortable'>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div><p class='soft'>{front}"
        "Yardsticks are in italics. A click on a head sorts.</p>"
    )


def _table_row(line: Line, found: list[tuple[str, float | None]]) -> str:
    kinds = [] if line.setting.kind in (SWEEP, DENSE) else ["yardstick"]
    kinds += ["best"] if line.front else []
    cells = "".join(
        f"<td data-value='{text(line.setting.name if column == 1 else _sortable(value))}'>{text(shown_text)}</td>"
        for column, (shown_text, value) in enumerate(found)
    )
    return f"<tr class='{' '.join(kinds)}' title='{text(KINDS[line.setting.kind])}'>{cells}</tr>"


def _sortable(value: float | None) -> str:
    return "" if value is None else "1e99" if value == math.inf else f"{value:.9g}"


def _heat_maps(results: Results) -> str:
    """Mean over the cases of each setting, of those that ran sparse."""
    maps = []
    for line in results.lines:
        cases = [o.record["case"]["skipped"] for o in line.outcomes if o.record and o.record["case"]["skipped"]]
        drawn = charts.heat_map(_mean_cells(cases), f"Computed share: {line.setting.name}") if cases else ""
        if drawn:
            size = f"{len(cases[0])} steps, {len(cases[0][0])} layers"
            maps.append(f"<figure>{drawn}<figcaption>{text(line.setting.name)}<br>{size}</figcaption></figure>")
    if not maps:
        return ""
    return (
        "<p>The share of query-key pairs computed in each denoising step (down) and layer (across), mean over cases: "
        f"full colour is dense, pale is sparse.</p><div class='maps'>{''.join(maps)}</div>"
    )


def _mean_cells(cases: list[list[list[float | None]]]) -> list[list[float | None]]:
    def mean(step: int, layer: int) -> float | None:
        known = [c[step][layer] for c in cases if step < len(c) and layer < len(c[step]) and c[step][layer] is not None]
        return sum(known) / len(known) if known else None

    return [[mean(step, layer) for layer in range(len(row))] for step, row in enumerate(cases[0])]


def _frames(results: Results) -> str:
    parts = []
    for prompt, seed in results.drawn:
        # rounding lies so far above the rest that its line would flatten theirs
        pair = [o for o in _of_pair(results, prompt, seed) if o.row.setting.kind != KERNEL]
        some = [o for o in pair if o.per_frame.get("psnr")]
        drawn = charts.over_frames(
            [charts.Series(o.row.setting.name, o.per_frame["psnr"]) for o in some], "PSNR against dense, dB"
        )
        if not drawn:
            continue
        key = "".join(
            f"<li><svg viewBox='0 0 20 10' aria-hidden='true'><line class='line s{n % 8}' x1='0' y1='5' x2='20' "
            f"y2='5'/></svg> {text(o.row.setting.name)}</li>"
            for n, o in enumerate(some)
        )
        opened = "" if parts else " open"
        parts.append(
            f"<details{opened}><summary>Prompt {prompt + 1}, seed {seed}</summary>"
            f"<figure class='chart'>{drawn}</figure><ul class='key'>{key}</ul></details>"
        )
    return "".join(parts)


def _pictures(results: Results, pictures: Pictures) -> str:
    parts, drawn = [], 0
    for prompt, seed in results.drawn:
        inside = "".join(
            _picture(outcome, pictures[outcome.row.setting.key, prompt, seed])
            for outcome in _of_pair(results, prompt, seed)
            if (outcome.row.setting.key, prompt, seed) in pictures
        )
        if inside:
            opened = "" if parts else " open"
            drawn += 1
            parts.append(f"<details{opened}><summary>Prompt {prompt + 1}, seed {seed}</summary>{inside}</details>")
    if not parts:
        return ""
    pairs = len(results.drawn)
    more = (
        f" Of {pairs} pairs of prompt and seed, {drawn} are shown; all videos lie in cases/." if drawn < pairs else ""
    )
    return (
        f"<p>Dense on the left, the case in the middle, their difference times {AMPLIFIED} on the right: black is "
        f"equal.{more}</p>{''.join(parts)}"
    )


def _picture(outcome: Outcome, found: Shown) -> str:
    near = outcome.means.get("psnr")
    fact = "" if near is None else f": {shown(by_name()['psnr'], near)}"
    parts = []
    for strip in found.strips:
        labels = ("dense", "case", f"difference x {AMPLIFIED}")
        images = "".join(
            f"<div><img src='{uri}' alt='{label}, frame {strip.frame}' loading='lazy'><span>{label}</span></div>"
            for uri, label in zip(strip.images, labels, strict=True)
        )
        parts.append(
            f"<figure><div class='strip'>{images}</div>"
            f"<figcaption>frame {strip.frame}, {text(strip.why)}</figcaption></figure>"
        )
    clip = (
        f"<video src='{found.clip}' controls loop muted playsinline preload='metadata'></video>" if found.clip else ""
    )
    link = f"<p><a href='{text(found.link)}'>{text(found.link)}</a></p>" if found.link else ""
    head = f"<h3>{text(outcome.row.setting.name + fact)}</h3>"
    return f"{head}<div class='case'><div>{''.join(parts)}</div><div>{clip}{link}</div></div>"


def _failures(results: Results) -> str:
    return _list([
        f"{entry['setting']}, prompt {entry['prompt']}, seed {entry['seed']} ({entry['phase']}): {entry['error']}"
        for entry in results.failures
    ])  # fmt: skip


def _prompts(results: Results) -> str:
    items = []
    for prompt in results.plan.prompts:
        body = f"<bdi class='prompt'>{text(prompt)}</bdi>"
        if len(prompt) > 300:
            start = f"<bdi>{text(prompt[:120])} ...</bdi> ({len(prompt)} characters)"
            body = f"<details><summary>{start}</summary>{body}</details>"
        items.append(f"<li>{body or '(empty)'}</li>")
    negative = results.plan.negative_prompt
    return (
        "<ol>" + "".join(items) + "</ol>" + (f"<p>Negative prompt: <bdi>{text(negative)}</bdi></p>" if negative else "")
    )


def _ground(results: Results) -> str:
    command = " ".join(results.manifest["command"])
    return f"<p>{text(words.ground(results))}</p><p><code>{text(command)}</code></p>"


def _of_pair(results: Results, prompt: int, seed: int) -> list[Outcome]:
    return [o for o in results.outcomes if (o.row.prompt, o.row.seed) == (prompt, seed)]
