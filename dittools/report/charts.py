"""Charts as inline SVG, drawn by hand: colours come from the page's style sheet, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 40
_SERIES = 8
_FAR = 12.0  # dB: a baseline so much above every setting would flatten the rest


class Point(NamedTuple):
    """A setting in the chart of speed against quality. `y` may be infinite; bars are standard deviations."""

    x: float
    y: float
    x_bar: float | None
    y_bar: float | None
    label: str
    title: str
    kind: str
    front: bool


class Level(NamedTuple):
    """A horizontal line for a baseline."""

    y: float
    title: str


class Series(NamedTuple):
    """A line of values over frames; None and infinite values leave a gap, the latter marked at the top."""

    name: str
    values: Sequence[float | None]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from below `low` to above `high`."""
    span = high - low or abs(high) or 1.0
    raw = span / about
    size = 10 ** math.floor(math.log10(raw))
    step = size * min((1, 2, 2.5, 5, 10), key=lambda m: abs(m * size - raw))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return [round(n * step, 10) for n in range(first, last + 1)]


class _Axes:
    """Scales both ways and draws the frame."""

    def __init__(
        self, xs: Sequence[float], ys: Sequence[float], x_title: str, y_title: str, overflow_band: bool = False
    ):
        self.x_ticks, self.y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
        self.top = TOP + (20 if overflow_band else 0)  # room for what is infinitely good
        self.titles = x_title, y_title

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        value = min(max(value, low), high)
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        if value == math.inf:
            return TOP + 4
        low, high = self.y_ticks[0], self.y_ticks[-1]
        value = min(max(value, low), high)
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - BOTTOM - self.top)

    def frame(self) -> list[str]:
        parts = []
        for value in self.y_ticks:
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        for value in self.x_ticks:
            x = self.x(value)
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:g}</text>')
        x_title, y_title = self.titles
        parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(x_title)}</text>')
        parts.append(f'<text x="4" y="12">{escape(y_title)}</text>')
        return parts


def speed_and_quality(points: Sequence[Point], levels: Sequence[Level]) -> Markup:
    """Speed-up against PSNR: settings as dots, the front ringed, equal time as a diamond, baselines as lines."""
    finite = [p.y for p in points if math.isfinite(p.y)]
    far = max(finite) + _FAR if finite else math.inf
    finite = [*finite, *(level.y for level in levels if level.y <= far and math.isfinite(level.y))] or [0.0, 1.0]
    pad = (max(finite) - min(finite)) * 0.06 or 1.0
    overflow_band = any(y == math.inf or y > far for y in (*(p.y for p in points), *(level.y for level in levels)))
    xs = [1.0, *(p.x for p in points)]
    spare = (max(xs) - min(xs)) * 0.05 or 0.1
    axes = _Axes(
        [min(xs) - spare, max(xs) + spare],
        [min(finite) - pad, max(finite) + pad],
        "denoising, times as fast as dense",
        "PSNR against dense, dB",
        overflow_band,
    )
    parts = axes.frame()
    x = axes.x(1.0)
    parts.append(f'<line class="level" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}"/>')
    parts.append(f'<text class="soft" x="{x + 4:.1f}" y="{HEIGHT - BOTTOM - 6}">dense</text>')
    for level in levels:
        above = level.y > far or level.y == math.inf
        y, title = axes.y(math.inf if above else level.y), level.title
        if above:
            title += ": identical" if level.y == math.inf else f": {level.y:.0f} dB, above this chart"
        parts.append(f'<line class="level" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text class="soft" x="{WIDTH - RIGHT}" y="{y - 4:.1f}" text-anchor="end">{escape(title)}</text>')
    front = sorted((p for p in points if p.front and math.isfinite(p.y)), key=lambda p: p.x)
    if len(front) > 1:
        path = " ".join(f"{axes.x(p.x):.1f},{axes.y(p.y):.1f}" for p in front)
        parts.append(f'<polyline class="edge" points="{path}"/>')
    for point in points:
        parts += _mark(axes, point)
    return _svg(parts, "Speed-up against PSNR", WIDTH, HEIGHT)


def _mark(axes: _Axes, point: Point) -> list[str]:
    x, y = axes.x(point.x), axes.y(point.y)
    parts = []
    if point.x_bar:
        a, b = axes.x(point.x - point.x_bar), axes.x(point.x + point.x_bar)
        parts.append(f'<line class="bar" x1="{a:.1f}" y1="{y:.1f}" x2="{b:.1f}" y2="{y:.1f}"/>')
    if point.y_bar and math.isfinite(point.y):
        a, b = axes.y(point.y - point.y_bar), axes.y(point.y + point.y_bar)
        parts.append(f'<line class="bar" x1="{x:.1f}" y1="{a:.1f}" x2="{x:.1f}" y2="{b:.1f}"/>')
    title = f"<title>{escape(point.title)}</title>"
    if point.kind == "sweep":
        if point.front:
            parts.append(f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="9"/>')
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5">{title}</circle>')
    else:
        corners = f"{x:.1f},{y - 6:.1f} {x + 6:.1f},{y:.1f} {x:.1f},{y + 6:.1f} {x - 6:.1f},{y:.1f}"
        parts.append(f'<polygon class="stick" points="{corners}">{title}</polygon>')
    parts.append(f'<text class="tag" x="{x + 10:.1f}" y="{y - 6:.1f}">{escape(point.label)}</text>')
    return parts


def over_frames(series: Sequence[Series], y_title: str) -> Markup:
    """Lines over frame numbers, coloured s0, s1, ... in their order."""
    finite = [value for line in series for value in line.values if value is not None and math.isfinite(value)]
    longest = max((len(line.values) for line in series), default=0)
    if not finite or longest < 2:
        return Markup()
    overflow_band = any(value == math.inf for line in series for value in line.values)
    axes = _Axes([1, longest], finite, "frame", y_title, overflow_band)
    axes.x_ticks = [1, *(t for t in ticks(1, longest) if 1 < t < longest - 1), longest]
    parts = axes.frame()
    if overflow_band:
        parts.append(f'<text x="{WIDTH - RIGHT}" y="{TOP + 8}" text-anchor="end" class="soft">identical</text>')
    for number, line in enumerate(series):
        colour = f"s{number % _SERIES}"
        for run in _runs(line.values):
            path = " ".join(f"{axes.x(n + 1):.1f},{axes.y(value):.1f}" for n, value in run)
            parts.append(
                f'<polyline class="line {colour}" points="{path}"><title>{escape(line.name)}</title></polyline>'
            )
        for n, value in enumerate(line.values):
            if value == math.inf:
                parts.append(
                    f'<circle class="fill {colour}" cx="{axes.x(n + 1):.1f}" cy="{axes.y(value):.1f}" r="2.5"/>'
                )
    return _svg(parts, y_title, WIDTH, HEIGHT)


def _runs(values: Iterable[float | None]) -> Iterable[list[tuple[int, float]]]:
    """Stretches of finite values with their places."""
    run: list[tuple[int, float]] = []
    for place, value in enumerate(values):
        if value is not None and math.isfinite(value):
            run.append((place, value))
        elif run:
            yield run
            run = []
    if run:
        yield run


def heat_map(cells: Sequence[Sequence[float | None]], title: str) -> Markup:
    """Computed share by step (down) and layer (across): full colour is dense, an outline is no call."""
    steps, layers = len(cells), max((len(row) for row in cells), default=0)
    if not steps or not layers:
        return Markup()
    side = max(4.0, min(16.0, 240 / max(steps, layers)))
    parts = []
    for step, row in enumerate(cells):
        for layer, skipped in enumerate(row):
            place = f'x="{layer * side:.1f}" y="{step * side:.1f}" width="{side - 1:.1f}"'
            place += f' height="{side - 1:.1f}"'
            if skipped is None:
                parts.append(f'<rect class="none" {place}/>')
                continue
            share = 1 - skipped
            what = f"step {step + 1}, layer {layer + 1}: {share:.0%} computed"
            parts.append(
                f'<rect class="cell" fill-opacity="{max(share, 0.04):.2f}" {place}><title>{what}</title></rect>'
            )
    return _svg(parts, title, layers * side, steps * side, fixed=True)


def _svg(parts: Sequence[str], title: str, width: float, height: float, fixed: bool = False) -> Markup:
    size = f'width="{width:.0f}" height="{height:.0f}" ' if fixed else ""
    return Markup(
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" {size}role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )
