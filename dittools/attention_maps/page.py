"""The views of a run as one HTML file that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from dittools.attention_maps.classes import BAND, MOST
from dittools.attention_maps.views import View, recall_of
from dittools.templates import render


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
    return render(
        "attention_maps.html.jinja",
        views=views,
        places=[list(here) for _, here in groupby(views, key=lambda view: (view.step, view.layer))],
        picture=lambda view: [_uri(data) for data in pictures[view.step, view.layer, view.head] if data is not None],
        names=names,
        facts=facts,
        notes=notes,
        recall=recall_of(views),
        band=f"{BAND:.0%}",
        most=f"{MOST:.0%}",
        percent=lambda value: "dense" if value is None else f"{value:.1%}",
    )


def _uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
