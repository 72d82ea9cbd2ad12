"""Models at their real shapes with random weights: how fast they run, and nothing about what they draw."""

from dittools.benchmarks.speed_only.build import STEPS, SpeedOnly, build, call_of, forward_of, skeleton
from dittools.benchmarks.speed_only.record import Call, Record, Size
from dittools.benchmarks.speed_only.table import RECORDS, record_of, size_of

__all__ = [
    "RECORDS", "STEPS", "Call", "Record", "Size", "SpeedOnly", "build", "call_of", "forward_of", "record_of",
    "size_of", "skeleton",
]  # fmt: skip
