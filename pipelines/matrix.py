"""Every family with what dittools can do with it, and what tests have shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dittools.pipelines.families import FAMILIES

_TEXT = {
    "none": "cross-attention",
    "first": "before the picture",
    "last": "behind the picture",
    "keys first": "keys alone, before the picture's",
    "keys last": "keys alone, behind the picture's",
}
_FACTS = ("name", "aliases", "title", "draws", "transformer", "why_not", "notes", "way", "self_attention")
_DEFAULTS = ("repo", "frames", "height", "width", "steps", "guidance", "fps")


def tested() -> dict[str, Any]:
    """Results of the families' tests, from tools/models_matrix.py: versions, passed checks by family, pairs, kinds."""
    return json.loads((Path(__file__).parent / "tested.json").read_text(encoding="utf-8"))


def rows() -> list[dict[str, Any]]:
    """A row a family, as `dittools models --json` prints it."""
    results = tested()["families"]
    return [
        {
            **{key: getattr(family, key) for key in _FACTS},
            "text": _TEXT[family.text_position],
            "guidance_passes": family.guidance_passes,
            "generate": bool(family.text_to),
            **{key: getattr(family, key) for key in _DEFAULTS},
            "tested": results.get(family.name, []),
        }
        for family in FAMILIES
    ]
