"""Draw the pictures of docs/performance.md: quality against speed, each in light and in dark.

python -m dittools.tools.curves            draw them (needs matplotlib)
python -m dittools.tools.curves --check    exit with 1 where a picture shows other points than the JSON has

A picture carries the points it shows in its `<desc>`: the check compares these, whatever drew them.
"""

from __future__ import annotations

import html
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dittools.tools.figures_reports import YARDSTICKS
from dittools.tools.settings import cached, compared, fewer_steps, settings

MEASURED = Path(__file__).parent.parent / "docs" / "measured"
PICTURES = MEASURED.parent / "pictures"

# the colours of the report's page, light and dark
INK = {"light": ("#1d232b", "#5c6673", "#d9dce0"), "dark": ("#e6e9ec", "#a1abb6", "#343c46")}
SERIES = {
    "light": ("#1763b6", "#b5530b", "#2a7d46", "#8b3fa8", "#b3263a", "#0f7a83", "#7a6300"),
    "dark": ("#6cb0f5", "#f0a267", "#77cf93", "#cf9ae6", "#f2909c", "#67cbd4", "#dcc45a"),
}
SHOWN = ("paro with a profile", "adaspa", "sparse_vdit with a profile", "svg", "sparge", "sta")
ASIDE = ("svg_ear", "svg2")  # slower than dense on this small grid: they would squeeze the others
CACHES = ("easycache", "magcache", "teacache", "first_block", "sea", "taylorseer", "fastercache")


def methods(folder: Path) -> dict[str, Any] | None:
    """Lines of methods over sparsities, without a correction."""
    result = compared(folder)
    if result is None:
        return None
    found = [one for one in settings(result) if not one.correction and one.method not in ASIDE]
    lines = {
        name: [[one.speedup, one.psnr] for one in sorted(found, key=lambda one: one.sparsity) if one.name == name]
        for name in dict.fromkeys(one.name for one in found)
    }
    steps = fewer_steps(result)
    lifted = [
        [one.speedup, one.psnr]
        for one in settings(result)
        if one.correction == "rettention" and one.sparsity == 0.9 and one.method not in (*YARDSTICKS, *ASIDE)
    ]
    return {
        "title": "Methods at 50, 70, 80 and 90 % skipped",
        "card": result["manifest"]["device"]["name"],
        "lines": {name: _rounded(points) for name, points in lines.items()},
        "coloured": [name for name in SHOWN if name in lines],
        "dashed": [name for name in lines if name in YARDSTICKS],
        "circles": {"90 % with rettention": _rounded(lifted)},
        "marks": {steps[0]: _rounded([steps[1:][::-1]])[0]} if steps else {},
    }


def caches(folder: Path) -> dict[str, Any] | None:
    """Lines of step caches over their settings, with dense attention; those with `svg` as circles."""
    found = cached(folder)
    if not found:
        return None
    dense = [one for one in found if one.method == "dense" and one.cache != "none"]
    lines = {
        name: sorted([one.speedup, one.psnr] for one in dense if one.cache.split()[0] == name)
        for name in dict.fromkeys(one.cache.split()[0] for one in dense)
    }
    beside = next(one.method for one in found if one.method.startswith("svg "))
    with_method = [[one.speedup, one.psnr] for one in found if one.method == beside]
    result = compared(folder)
    return {
        "title": f"Step caches: lines with dense attention, circles with {beside}",
        "card": result["manifest"]["device"]["name"] if result else "",
        "lines": {name: _rounded(points) for name, points in lines.items()},
        "coloured": [name for name in CACHES if name in lines],
        "dashed": [],
        "circles": {f"with {beside}": _rounded(with_method)},
        "marks": {},
    }


def _rounded(points: list) -> list[list[float]]:
    return [[round(x, 3), round(y, 2)] for x, y in points]


DRAWN: dict[str, Callable[[Path], dict[str, Any] | None]] = {"methods": methods, "caches": caches}


def draw(shown: dict[str, Any], scheme: str) -> str:
    """The picture as SVG, 520 x 430 points wide and high; text stays text."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    ink, soft, rule = INK[scheme]
    settings_of = {
        "svg.fonttype": "none", "svg.hashsalt": "dittools", "font.size": 11, "text.color": ink, "axes.labelcolor": ink,
        "xtick.color": soft, "ytick.color": soft, "axes.edgecolor": rule, "grid.color": rule,
        "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    }  # fmt: skip
    with pyplot.rc_context(settings_of):
        figure, axes = pyplot.subplots(figsize=(7.2, 6.0), layout="constrained")
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        _lines(axes, shown, scheme)
        axes.set_title(shown["title"], fontsize=12, loc="left")
        axes.set_xlabel(f"denoising, times as fast as dense ({shown['card']})")
        axes.set_ylabel("PSNR against dense, dB")
        axes.grid(linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=10.5)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    described = f"<desc>{html.escape(json.dumps(shown), quote=False)}</desc>"
    head = f"<title>{html.escape(shown['title'])}</title>\n {described}"
    picture = re.sub(r"<svg [^>]*>", lambda match: f"{match[0]}\n {head}", out.getvalue(), count=1)
    return re.sub(r"[ \t]+$", "", picture, flags=re.M)


def _lines(axes: Any, shown: dict[str, Any], scheme: str) -> None:
    """Coloured lines with their names in the legend, the others in grey, yardsticks dashed."""
    ink, soft, _ = INK[scheme]
    colours = dict(zip(shown["coloured"], SERIES[scheme], strict=False))
    grey = "the others"
    for name, points in sorted(shown["lines"].items(), key=lambda line: line[0] in colours):
        across, up = zip(*points, strict=True)
        if name in colours:
            axes.plot(across, up, marker="o", markersize=4.5, linewidth=2, color=colours[name], label=name)
        elif name in shown["dashed"]:
            axes.plot(across, up, linestyle="--" if name == "random" else ":", linewidth=1.6, color=ink, label=name)
        else:
            axes.plot(across, up, marker=".", linewidth=1, color=soft, alpha=0.55, label=grey)
            grey = "_"  # one entry of the legend for all of them
    for name, points in shown.get("circles", {}).items():
        across, up = zip(*points, strict=True)
        axes.scatter(across, up, s=26, facecolors="none", edgecolors=ink, linewidths=1, label=name)
    for name, point in shown["marks"].items():
        axes.scatter(*point, marker="D", s=46, color=ink, zorder=5, label=name)


def told(picture: str) -> dict[str, Any] | None:
    """The points that a picture carries."""
    found = re.search(r"<desc>(.*?)</desc>", picture, re.S)
    return json.loads(html.unescape(found[1])) if found else None


def main(arguments: list[str], folder: Path = MEASURED, into: Path = PICTURES) -> int:
    differ = []
    for name, make in DRAWN.items():
        shown = make(folder)
        for scheme in INK if shown else ():
            path = into / f"{name}_{scheme}.svg"
            if path.exists() and told(path.read_text(encoding="utf-8")) == shown:
                continue
            differ.append(path.name)
            if "--check" not in arguments:
                into.mkdir(exist_ok=True)
                path.write_text(draw(shown, scheme), encoding="utf-8")
    if "--check" in arguments and differ:
        print(f"{' and '.join(differ)} show other points: run python -m dittools.tools.curves", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
