"""The process that measures: ``python -m dittools.benchmarks.work`` does the jobs that it reads from stdin."""

from __future__ import annotations

import time
from typing import Any

import torch

from dittools.benchmarks import around, attention, clusters
from dittools.benchmarks.attention import Shape
from dittools.kernels.proof import cases as proof
from dittools.kernels.supervise import At, serve

WITH_SHAPE = {
    "attention": attention.measure_attention,
    "order": attention.measure_order,
    "sample": attention.measure_sample,
    "sample-order": attention.measure_sample,
    "schedule": attention.measure_schedule,
    "permute": around.measure_permute,
    "mass": around.measure_mass,
    "clusters": clusters.measure_clusters,
}
ALONE = {
    "lists": around.measure_lists,
    "kmeans": around.measure_kmeans,
    **proof.KINDS,
}
KINDS = (*WITH_SHAPE, *ALONE)


class Worker:
    """Does jobs one after the other, and keeps the tensors of a shape for the next job that has it."""

    def __init__(self):
        self._key: tuple | None = None
        self._shape: Shape | None = None

    @torch.no_grad()
    def handle(self, job: dict[str, Any], at: At) -> dict[str, Any]:
        """What a job measured, and the "seconds_taken"."""
        begun = time.monotonic()
        if job["kind"] in WITH_SHAPE:
            found = WITH_SHAPE[job["kind"]](job, self._shape_of(job, at), at)
        else:
            self._key = self._shape = None
            found = ALONE[job["kind"]](job, at)
        return {**found, "seconds_taken": round(time.monotonic() - begun, 2)}

    def _shape_of(self, job: dict[str, Any], at: At) -> Shape:
        key = tuple(job[name] for name in ("heads", "tokens", "head_dim", "dtype", "device"))
        if key != self._key:
            self._key = self._shape = None
            if job["device"] == "cuda":
                torch.cuda.empty_cache()
            self._shape = Shape(job, at)
            self._key = key
        return self._shape


if __name__ == "__main__":
    serve(Worker().handle)
