"""What attention looks like in a live run: maps, head classes, block masks and how much of the mass they keep."""

from __future__ import annotations

from dittools.attention_maps.views import Choice, View, Viewer, recall_of

__all__ = ["Choice", "View", "Viewer", "recall_of"]
