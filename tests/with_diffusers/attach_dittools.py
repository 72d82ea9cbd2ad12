"""A pytest plugin: puts dittools on every transformer that a test makes, and keeps what became of each test.

`DITTOOLS_ATTACH` says whether it puts anything on; `DITTOOLS_OUTCOMES` names the file of outcomes.
"""

from __future__ import annotations

import functools
import json
import os
import weakref
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

# The same for both runs, so that what differs is dittools.
torch.set_num_threads(1)
_outcomes: dict[str, str] = {}
_attached: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_counts = {"models": 0, "dense": 0, "sparse": 0, "reused": 0}


def pytest_configure(config: pytest.Config) -> None:
    if os.environ["DITTOOLS_ATTACH"] == "1":
        _attach_to_all()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or (report.when == "setup" and not report.passed):
        _outcomes[report.nodeid] = report.outcome
    elif report.failed:
        _outcomes[report.nodeid] = "failed"


def pytest_sessionfinish() -> None:
    for fast in _attached.values():
        for name, count in fast.record()["calls"].items():
            if name in _counts:
                _counts[name] += count
    with open(os.environ["DITTOOLS_OUTCOMES"], "w", encoding="utf-8") as file:
        json.dump({"tests": _outcomes, "calls": _counts}, file)


def _attach_to_all() -> None:
    """Every family that runs sparse: its transformers are led to dittools as soon as they are made."""
    import diffusers

    from dittools import methods
    from dittools.pipelines.families import FAMILIES

    methods.METHODS["everything"] = _everything()
    for family in FAMILIES:
        kind = getattr(diffusers, family.transformer, None)
        if family.why_not is None and kind is not None and "_dittools_init" not in vars(kind):
            kind._dittools_init = kind.__init__
            kind.__init__ = _attaching(kind.__init__, family.components[0])


def _attaching(init, component: str):
    @functools.wraps(init)
    def made(self, *args, **kwargs) -> None:
        init(self, *args, **kwargs)
        import dittools

        pipe = type("Around", (), {component: self})()
        # All pairs; and a cache that keeps every output and computes every step.
        cache = os.environ.get("DITTOOLS_CACHE", "easycache:threshold=1e-30")
        settings = {"method": "everything", "sparsity": 0.0, "dense_steps": 0, "dense_layers": 0}
        fast = dittools.accelerate(pipe, **settings, **({"cache": cache} if cache else {}))
        fast._around = pipe  # the model alone does not keep it
        _attached[self] = fast
        _counts["models"] += 1

    return made


def _everything() -> type:
    """A method that keeps every pair, on any grid: calls go the way of sparse ones, whatever their size."""
    from dittools.kernels.masks.block_mask import BlockMask, Partition
    from dittools.methods.base import Method, Plan

    @dataclass(frozen=True)
    class Everything(Method):
        name: ClassVar[str] = "everything"
        summary: ClassVar[str] = "all pairs"

        def plan(self, q, k, v, call):
            blocks = Partition(call.grid.tokens, call.block_size)
            keep = torch.ones(1, 1, blocks.count, blocks.count, dtype=torch.bool, device=q.device)
            return Plan(None, BlockMask(keep, blocks, blocks))

        def why_not(self, grid, block_size):
            return None

    return Everything
