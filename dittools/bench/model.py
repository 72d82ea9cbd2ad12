"""One denoiser call: dense and sparse, eager and compiled, in turn, with everything a sparse call needs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import dittools
from dittools.bench.check import Oracle, Wrong
from dittools.bench.contest import line
from dittools.bench.timing import once
from dittools.observer import Observer, PartTimes

ROUNDS = 2
LOOSE = 0.02  # how far from the sparsity asked for the masks that ran may be

Forward = Callable[[], torch.Tensor]
Told = Callable[[str, dict[str, Any]], None]


class Witness(Observer):
    """Checks the sparse attention of one layer against fp32.

    Args:
        layer: index of the layer.
    """

    def __init__(self, layer: int):
        self._layer = layer
        self.seen = False

    def attended(self, layer, q, k, v, plan, scale, out) -> None:
        if layer == self._layer:
            Oracle(q, k, v, plan.mask, scale, plan.order, getattr(plan, "key_order", None)).judge(out)
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
            self._model.compile_repeated_blocks(**self._options)
            self._compiled = {m: m._compiled_call_impl for m in self._model.modules() if m._compiled_call_impl}
        for module, call in self._compiled.items():
            module._compiled_call_impl = call if on else None
        try:
            yield
        finally:
            for module in self._compiled:
                module._compiled_call_impl = None


@torch.no_grad()
def measure(
    pipe: Any, forward: Forward, settings: dict[str, Any], *, device: torch.device, repeats: int, compiled: bool,
    told: Told, **compile_options: Any,
) -> None:  # fmt: skip
    """Time dense and sparse calls in turn.

    Args:
        pipe: what `dittools.accelerate` takes; its transformer has to be diffusers' own.
        forward: makes one call and gives its output.
        settings: for `dittools.accelerate`; every step is a sparse one.
        repeats: timed calls of each kind, over `ROUNDS` rounds.
        compiled: also with compiled blocks.
        told: called with the name of a kind and what is known of it, after each round.
        compile_options: of `torch.compile`.
    """
    blocks = Blocks(pipe.transformer, **compile_options)
    kinds = ["dense", "sparse"] + (["dense compiled", "sparse compiled"] if compiled else [])
    found = {kind: _tried(pipe, forward, settings, blocks, kind, device) for kind in kinds}
    for kind, values in found.items():
        if "error" in values:
            told(kind, values)
    kinds = [kind for kind in kinds if "error" not in found[kind]]
    for turn in range(ROUNDS):
        for kind in sorted(kinds, key=lambda name: "sparse" in name):
            calls = repeats // ROUNDS + (turn < repeats % ROUNDS)
            found[kind]["seconds"] += _timed(pipe, forward, settings, blocks, kind, device, calls)
            found[kind]["peak_gb"] = _peak_gb(device)
            told(kind, _figures(found, kind, turn == ROUNDS - 1))


def _tried(pipe, forward: Forward, settings, blocks: Blocks, kind: str, device) -> dict[str, Any]:
    """The first call of a kind: compiled, checked, and what it needs; {"error": why} where it is wrong."""
    facts: dict[str, Any] = {"seconds": []}
    try:
        with blocks.compiled("compiled" in kind):
            if "sparse" not in kind:
                facts["first_seconds"] = once(lambda: _finite(forward()), device) / 1000
                return facts
            with dittools.accelerate(pipe, **settings) as fast:
                layers = len(fast.runtime.layers)
                fast.runtime.observer = Witness(layers // 2 if layers > 1 else 0)
                facts["first_seconds"] = once(lambda: _finite(forward()), device) / 1000
                if not fast.runtime.observer.seen:
                    raise Wrong("the layer that was to be checked did not run sparse: " + _why_not_sparse(fast))
                fast.runtime.observer = PartTimes(device)
                facts["parts_of_seconds"] = once(forward, device) / 1000
                facts["parts"] = fast.runtime.observer.seconds()
                facts |= _checked(fast.record(), settings["sparsity"])
    except Exception as error:
        facts["error"] = line(error)
    return facts


def _timed(pipe, forward: Forward, settings, blocks: Blocks, kind: str, device, calls: int) -> list[float]:
    """Seconds of calls of one kind, after one that does not count: the plan of a run is made in its first call."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with blocks.compiled("compiled" in kind):
        if "sparse" not in kind:
            forward()
            return [once(forward, device) / 1000 for _ in range(calls)]
        with dittools.accelerate(pipe, **settings):
            forward()
            return [once(forward, device) / 1000 for _ in range(calls)]


def _figures(found: dict[str, dict[str, Any]], kind: str, complete: bool) -> dict[str, Any]:
    values = dict(found[kind])
    median = {name: statistics.median(x["seconds"]) for name, x in found.items() if x["seconds"]}
    values |= {
        "median": median[kind], "least": min(values["seconds"]), "most": max(values["seconds"]), "complete": complete,
    }  # fmt: skip
    if "sparse" in kind:
        values["speedup"] = {name: median[name] / median[kind] for name in median if "sparse" not in name}
    return values


def _checked(record: dict[str, Any], asked: float) -> dict[str, Any]:
    """What ran, from the record of a run. Raises Wrong when it is not what was asked for."""
    skipped = record["sparsity"]["sparse_calls"]
    if record["fallbacks"]:
        raise Wrong(f"calls ran dense: {record['fallbacks'][0]['reason']}")
    if skipped is None or abs(skipped - asked) > LOOSE:
        raise Wrong(f"the masks that ran skip {skipped}, asked {asked:g}")
    return {
        "skipped_sparse_calls": skipped, "skipped_all_calls": record["sparsity"]["overall"],
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
