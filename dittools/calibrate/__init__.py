"""What methods and step caches decide ahead, from a few dense runs.

For methods one calibrator a file, all hearing the same runs; `cache.py` fits the step caches.
"""

from __future__ import annotations

from dittools.calibrate.attention_tile import AttentionTile
from dittools.calibrate.base import Calibrator, Size
from dittools.calibrate.paro import PARO
from dittools.calibrate.sparse_vdit import SparseVDiT
from dittools.calibrate.sta import STA
from dittools.calibrate.svg import SVG

__all__ = ["CALIBRATORS", "Calibrator", "Size"]

CALIBRATORS: dict[str, type[Calibrator]] = {cls.method: cls for cls in (PARO, SparseVDiT, STA, AttentionTile, SVG)}
