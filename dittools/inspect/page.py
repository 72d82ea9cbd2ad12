"""The views of a run as one HTML file that needs no other and runs no script."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import NamedTuple

from dittools.inspect.classes import BAND, MOST
from dittools.inspect.views import View, recall_of
from dittools.report.page import text

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
.heads { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
.heads figure { margin: 0; padding: .6rem; background: var(--panel); border-radius: 6px; }
.heads img { width: 100%; height: auto; display: block; image-rendering: pixelated; border-radius: 3px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; }
.pair span { font-size: .8rem; color: var(--soft); }
.wide .heads { grid-template-columns: repeat(auto-fill, minmax(24rem, 1fr)); }
@media (max-width: 36rem) { .wide .heads { grid-template-columns: 1fr; } }
td:first-child, th:first-child { text-align: left; }
"""


class Pictures(NamedTuple):
    """PNG files of a view: its map, and its map in the plan's order with what is skipped in grey."""

    map: bytes
    kept: bytes | None


def page(
    views: Sequence[View],
    pictures: Mapping[tuple[int, int, int], Pictures],
    names: Sequence[str],
    facts: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    """The text of index.html.

    Args:
        pictures: by (step, layer, head).
        names: of the layers.
        facts: what was run, a line each.
        notes: what the run had to say.
    """
    style = resources.files("dittools.report").joinpath("page.css").read_text(encoding="utf-8") + _STYLE
    places = list(dict.fromkeys((view.step, view.layer) for view in views))
    body = "".join((
        "<header><h1>Attention in a run</h1>",
        "".join(f"<p class='soft'>{text(name)}: <bdi>{text(value)}</bdi></p>" for name, value in facts.items()),
        "</header><main>",
        f"<p>{recall_of(views)}.</p>",
        f"<p>{_legend()}</p>",
        "".join(f"<p class='soft'>note: {text(note)}</p>" for note in notes),
        _table(views, names),
        "".join(_place(step, layer, views, pictures, names) for step, layer in places),
        "</main>",
    ))  # fmt: skip
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Attention in a run</title><style>{style}</style></head><body>{body}</body></html>\n"
    )


def _legend() -> str:
    return (
        "A map shows how much of the softmax each block of keys (across) holds for each block of queries (down), from "
        "dark (little) to light (much), on a logarithmic scale. Beside it is the same map in the order the method "
        "gave the head (svg2: in its clusters): grey was skipped. Recall is the share of the "
        "true mass in what was computed. A head is "
        f"spatial or temporal when the nearest {BAND:.0%} of pairs in its frame or at its place hold more than "
        f"{MOST:.0%} of its mass; it belongs to the first frame or to text when these do; else it is spread. Bands "
        "overlap, so a head can be of several: text and the first frame are named first, the others after 'also'."
    )


def _table(views: Sequence[View], names: Sequence[str]) -> str:
    heads = ("layer", "step", "head", "class", "spatial", "temporal", "first frame", "text", "computed", "recall")
    rows = "".join(
        f"<tr><td>{text(names[view.layer])}</td><td>{view.step}</td><td>{view.head}</td>"
        f"<td>{text(view.shares.told)}</td>"
        + "".join(f"<td>{share:.0%}</td>" for share in view.shares)
        + f"<td>{_share(view.density)}</td><td>{'-' if view.recall is None else _share(view.recall)}</td></tr>"
        for view in views
    )
    head = "".join(f"<th scope='col'>{name}</th>" for name in heads)
    return (
        "<section><h2>Heads</h2><div class='scroll' tabindex='0' role='region' aria-label='Heads'><table><thead><tr>"
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        "<p class='soft'>Steps, layers and heads count from 0.</p></section>"
    )


def _place(step: int, layer: int, views: Sequence[View], pictures: Mapping, names: Sequence[str]) -> str:
    here = [view for view in views if (view.step, view.layer) == (step, layer)]
    sparse = any(view.keep is not None for view in here)
    figures = "".join(_figure(view, pictures[view.step, view.layer, view.head]) for view in here)
    state = "" if sparse else ", dense"
    return (
        f"<section{' class=wide' if sparse else ''}><h2>{text(names[layer])}, step {step}{state}</h2>"
        f"<div class='heads'>{figures}</div></section>"
    )


def _figure(view: View, found: Pictures) -> str:
    title = f"head {view.head}: {view.shares.told}"
    images = f"<div><img src='{_uri(found.map)}' alt='{text(title)}, map'><span>map</span></div>"
    if found.kept is not None:
        what = "computed, in another order" if view.reordered else "computed"
        images += f"<div><img src='{_uri(found.kept)}' alt='{text(title)}, computed'><span>{what}</span></div>"
        images = f"<div class='pair'>{images}</div>"
        title += f"; {_share(view.density)} computed, recall {_share(view.recall)}"
    return f"<figure>{images}<figcaption>{text(title)}</figcaption></figure>"


def _share(value: float | None) -> str:
    return "dense" if value is None else f"{value:.1%}"


def _uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
