"""One denoiser call: dense and sparse, eager and compiled, in turn, with everything a sparse call needs."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

import dittools
from dittools.benchmarks import costs
from dittools.benchmarks.contest import line
from dittools.kernels.proof.check import Oracle, Wrong
from dittools.kernels.timing import once

ROUNDS = 2
LOOSE = 0.02  # how far from the sparsity asked for the masks that ran may be

Forward = Callable[[], torch.Tensor]
Told = Callable[[str, dict[str, Any]], None]


class Witness:
    """Checks the sparse attention of one layer against fp32: put it among the result watchers.

    Args:
        layer: index of the layer.
    """

    def __init__(self, layer: int):
        self._layer = layer
        self.seen = False

    def __call__(self, call, taken, plan, out, sample) -> None:
        if call.layer == self._layer:
            Oracle(*taken, plan.mask, call.scale, plan.order, plan.key_order, sample=sample).judge(out)
            self.seen = True


class Blocks:
    """The repeated blocks of a model, that can be compiled and set back to eager.

    Args:
        model: a diffusers transformer.
        options: of `torch.compile`.
    """

    def __init__(self, model: torch.nn.Module, **options: Any):
        self._model = model
        self._options = {"fullgraph": True, **options}
        self._compiled: dict[torch.nn.Module, Any] = {}

    @contextmanager
    def compiled(self, on: bool) -> Iterator[None]:
        """Inside, the blocks run compiled, or all eager."""
        if on and not self._compiled:
            # CogVideoX names no repeated blocks, but the blocks that cannot be split are the same.
            names = getattr(self._model, "_repeated_blocks", None) or self._model._no_split_modules
            repeated = [module for module in self._model.modules() if type(module).__name__ in names]
            for module in repeated:
                module.compile(**self._options)
            self._compiled = {module: module._compiled_call_impl for module in repeated}
        for module, call in self._compiled.items():
            module._compiled_call_impl = call if on else None
        try:
            yield
        finally:
            for module in self._compiled:
                module._compiled_call_impl = None


@dataclass(frozen=True, eq=False)
class Case:
    """One row to measure.

    Args:
        kind: "dense" or "sparse", and "compiled" behind it where the blocks are.
        settings: for `dittools.accelerate`, every step being a sparse one; None for a dense call.
        name: what it is told by.
    """

    kind: str
    settings: dict[str, Any] | None
    name: str

    @property
    def compiled(self) -> bool:
        return "compiled" in self.kind


def cases_of(settings: dict[str, Any], compiled: bool) -> list[Case]:
    """Dense and sparse calls under these settings, eager and with compiled blocks."""
    ways = ("", " compiled") if compiled else ("",)
    return [
        *(Case(f"dense{way}", None, f"dense{way}") for way in ways),
        *(Case(f"sparse{way}", settings, f"sparse{way}") for way in ways),
    ]


@torch.no_grad()
def measure(
    pipe: Any, forward: Forward, cases: Sequence[Case], *, device: torch.device, repeats: int, told: Told,
    dense: Mapping[str, float] | None = None, blocks: Blocks | None = None,
) -> dict[str, float]:  # fmt: skip
    """Time dense and sparse calls in turn. What goes wrong in one case is told in its place, and the others go on.

    Args:
        pipe: what `dittools.accelerate` takes; its transformer has to be diffusers' own.
        forward: makes one call and gives its output.
        cases: what to time.
        repeats: timed calls of each, over at most `ROUNDS` rounds.
        told: called with the name of a case and what is known of it, after each round.
        dense: median seconds of dense kinds that were measured before.
        blocks: of the transformer; the same for all calls of this function, so that they are compiled once.

    Returns:
        Median seconds of dense kinds, ``dense`` included.
    """
    blocks = blocks or Blocks(pipe.transformer)
    found = {case: _guarded(lambda case=case: _tried(pipe, forward, blocks, case, device)) for case in cases}
    for case, values in found.items():
        if "error" in values:
            told(case.name, values)
    medians = dict(dense or {})
    rounds = min(ROUNDS, repeats)
    for turn in range(rounds):
        for case in sorted(found, key=lambda case: case.settings is not None):
            values = found[case]
            if "error" in values:
                continue
            calls = repeats // rounds + (turn < repeats % rounds)
            timed = _guarded(lambda case=case, calls=calls: _timed(pipe, forward, blocks, case, device, calls))
            if "error" in timed:
                found[case] = {**values, "seconds": [], **timed}
                told(case.name, found[case])
                continue
            values["seconds"] = values["seconds"] + timed["seconds"]
            values["peak_gb"] = timed["peak_gb"]
            if case.settings is None:
                medians[case.kind] = statistics.median(values["seconds"])
            told(case.name, _figures(values, case, medians, turn == rounds - 1))
    return medians


def _guarded(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it gives, or {"error": why, "seconds": []}; memory that a failure held is free again."""
    try:
        return work()
    except Exception as error:
        failure = {"error": line(error), "seconds": []}
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return failure


def _tried(pipe, forward: Forward, blocks: Blocks, case: Case, device) -> dict[str, Any]:
    """The first call of a case: compiled, checked, and what it needs. Raises where it is wrong."""
    facts: dict[str, Any] = {"seconds": []}
    with blocks.compiled(case.compiled):
        if case.settings is None:
            facts["first_seconds"] = once(lambda: _finite(forward()), device) / 1000
            return facts
        with dittools.accelerate(pipe, **case.settings) as fast:
            sparse = [i for i, layer in enumerate(fast.runtime.layers) if layer.depth >= case.settings["dense_layers"]]
            witness = Witness(sparse[len(sparse) // 2])
            fast.runtime.result_watchers.append(witness)
            facts["first_seconds"] = once(lambda: _finite(forward()), device) / 1000
            fast.runtime.result_watchers.remove(witness)
            if not witness.seen:
                raise Wrong("the layer that was to be checked did not run sparse: " + _why_not_sparse(fast))
            facts |= _checked(fast.record(), case.settings["sparsity"])
            if not case.compiled:
                parts = _guarded(lambda: costs.measure(fast.runtime, forward, device))
                facts |= parts if "error" not in parts else {"no_parts": parts["error"]}
    return facts


def _timed(pipe, forward: Forward, blocks: Blocks, case: Case, device, calls: int) -> dict[str, Any]:
    """Seconds of calls of one case, after one that does not count: the plan of a run is made in its first call."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    around = nullcontext() if case.settings is None else dittools.accelerate(pipe, **case.settings)
    with blocks.compiled(case.compiled), around:
        forward()
        seconds = [once(forward, device) / 1000 for _ in range(calls)]
    return {"seconds": seconds, "peak_gb": _peak_gb(device)}


def _figures(values: dict[str, Any], case: Case, dense: Mapping[str, float], complete: bool) -> dict[str, Any]:
    seconds = values["seconds"]
    median = statistics.median(seconds)
    values = {**values, "median": median, "least": min(seconds), "most": max(seconds), "complete": complete}
    if case.settings is not None:
        values["speedup"] = {name: dense[name] / median for name in dense}
    return values


def _checked(record: dict[str, Any], asked: float) -> dict[str, Any]:
    """What ran, from the record of a run. Raises Wrong when it is not what was asked for."""
    skipped = record["sparsity"]["sparse_calls"]
    if record["fallbacks"]:
        raise Wrong(f"calls ran dense: {record['fallbacks'][0]['reason']}")
    kept = record["sparsity"]["by_parts"].get("picture-picture")  # what is asked is of these; text is dense beside them
    if kept is None or abs(1 - kept - asked) > LOOSE:
        raise Wrong(f"the masks that ran skip {skipped} of all pairs and keep {kept} of the picture's, asked {asked:g}")
    return {
        "skipped_sparse_calls": skipped, "skipped_all_calls": record["sparsity"]["overall"],
        "method": record["method"], "method_options": record["method_options"],
        "kernels": record["kernels"], "notes": record["notes"],
    }  # fmt: skip


def _why_not_sparse(fast: Any) -> str:
    record = fast.record()
    return "; ".join(f["reason"] for f in record["fallbacks"]) or f"calls {record['calls']}"


def _finite(out: torch.Tensor) -> None:
    if not out.isfinite().all():
        raise Wrong("the output of the denoiser is not finite")


def _peak_gb(device: torch.device) -> float | None:
    """Most memory allocated since the last calls began, in GB."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
