"""The corrections by name: what makes up for skipped pairs. A new one is a file here and a line in `CORRECTIONS`."""

from __future__ import annotations

from dittools.corrections.base import Corrected, Correction, SparseCall
from dittools.corrections.centroids import Centroids
from dittools.corrections.fit import Fit
from dittools.corrections.rettention import Rettention
from dittools.corrections.sampled import Sampled
from dittools.registry import Placeholder, Registry

AUTO = "auto"

__all__ = ["AUTO", "CORRECTIONS", "Corrected", "Correction", "SparseCall", "create", "describe", "names", "options"]

CORRECTIONS = Registry(
    "correction",
    Correction,
    (Rettention, Centroids, Sampled, Fit),
    (
        Placeholder(AUTO, "what the method brings along, and sampled with method auto"),
        Placeholder("none", "what is skipped is lost"),
    ),
    "dittools methods",
)
names, options, describe, create = CORRECTIONS.names, CORRECTIONS.options, CORRECTIONS.describe, CORRECTIONS.create
