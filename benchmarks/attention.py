"""Block-sparse attention against dense attention: rows of kind "attention", "order", "sample" and "schedule"."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from dittools.benchmarks import dense, peers
from dittools.benchmarks.contest import Contest, breaks_the_card, line
from dittools.kernels import block_sparse_attention, gather_tokens, scatter_tokens, schedule
from dittools.kernels.block_sparse.sample import draw_sample
from dittools.kernels.capability import why_not
from dittools.kernels.masks.block_mask import BlockMask
from dittools.kernels.proof.check import Oracle, Wrong, result_of
from dittools.kernels.proof.inputs import heads_first, make_mask, make_order, make_tensors
from dittools.kernels.supervise import At, Broken
from dittools.kernels.timing import once

OURS = ("hopper", "triton", "portable")
DENSE = "dense: "
PATIENCE = 60
DRAWN = 16  # of so many keys that rows skip one is drawn, in rows with a sample


class Shape:
    """Tensors of one shape, and the dense kernels that are right on them, each in its better layout.

    Made once for all rows of a shape: q, k, v ``[1, S, H, D]``, and ``dense``: name -> call.
    """

    def __init__(self, job: dict[str, Any], at: At):
        self.device, self.dtype = torch.device(job["device"]), getattr(torch, job["dtype"])
        self.scale = job["head_dim"] ** -0.5
        self.q, self.k, self.v = make_tensors(job["heads"], job["tokens"], job["head_dim"], self.dtype, self.device)
        self.dense: dict[str, Callable[[], object]] = {}
        self.layouts: dict[str, str] = {}
        self.wrong: dict[str, str] = {}
        oracle = Oracle(self.q, self.k, self.v, None, self.scale)
        able, self.not_run = dense.candidates(self.device, self.dtype)
        self.ms: dict[str, float] = {}
        tensors = {"tokens first": (self.q, self.k, self.v)}
        if self.device.type == "cuda":
            tensors["heads first"] = tuple(heads_first(x) for x in (self.q, self.k, self.v))
        for name, make in able.items():
            if DENSE + name in job.get("without", {}):
                self.wrong[name] = job["without"][DENSE + name]
                continue
            at(DENSE + name, 180)
            try:
                self._enter(name, make, tensors, oracle)
            except Exception as error:
                if breaks_the_card(error):
                    raise Broken(line(error)) from error
                self.wrong[name] = line(error)
        at("", PATIENCE)
        if not self.dense:
            raise Wrong(f"no dense kernel is right here: {self.wrong}")

    def _enter(self, name: str, make: dense.Make, layouts: dict[str, tuple], oracle: Oracle) -> None:
        ms, calls, refused = {}, {}, None
        for layout, tensors in layouts.items():
            try:
                call = make(*tensors)
                oracle.judge(call())
                ms[layout] = statistics.median(once(call, self.device) for _ in range(3))
            except Exception as error:
                if breaks_the_card(error):
                    raise
                refused = error
                continue
            calls[layout] = call
        if not calls:
            raise refused
        best = min(ms, key=ms.get)
        self.dense[name], self.layouts[name], self.ms[name] = calls[best], best, ms[best]

    def baselines(self) -> dict[str, Callable[[], object]]:
        """The two fastest dense kernels, and cuDNN and FlashAttention 3 and 4 where they are not among them."""
        names = [*sorted(self.dense, key=self.ms.get)[:2], "cudnn", *dense.FLASH]
        return {DENSE + name: self.dense[name] for name in dict.fromkeys(names) if name in self.dense}


def measure_attention(job: dict[str, Any], shape: Shape, at: At) -> dict[str, Any]:
    """A row of kind "attention": our kernels, and peers, on one mask."""
    mask = _mask(job, shape)
    oracle = Oracle(shape.q, shape.k, shape.v, mask, shape.scale)
    contest = _contest(job, shape, at)
    ours = _enter_ours(contest, job, shape, mask, oracle)
    if job.get("peers") and job["density"] < 1:
        able, absent = peers.candidates(shape.device)
        contest.not_run |= absent
        for name, (make, patience) in able.items():
            contest.enter(
                name,
                lambda make=make: make(shape.q, shape.k, shape.v, mask),
                lambda call: oracle.judge(call()),
                patience,
                peer=True,
            )
    return _result(job, shape, contest, mask, ours)


def measure_order(job: dict[str, Any], shape: Shape, at: At) -> dict[str, Any]:
    """A row of kind "order": gathering in the kernel, or copies in order before and back after."""
    mask = _mask(job, shape)
    q, k, v, scale = shape.q, shape.k, shape.v, shape.scale
    order = make_order(job["heads"], job["tokens"], shape.device)
    oracle = Oracle(q, k, v, mask, scale, order)
    contest = _contest(job, shape, at)
    ours = _enter_ours(contest, job, shape, mask, oracle, order=order)

    def by_copies(name: str) -> torch.Tensor:
        tensors = gather_tokens((q, k, v), order)
        out = block_sparse_attention(*tensors, mask, scale=scale, implementation=name)
        return scatter_tokens((out,), order)[0]

    for name in [name for name in ours if name != "portable"]:
        contest.enter(
            f"{name}, copies",
            lambda name=name: lambda: by_copies(name),
            lambda call: oracle.judge(*result_of(call)),
            PATIENCE,
        )
        ours.append(f"{name}, copies")
    return _result(job, shape, contest, mask, ours)


def measure_sample(job: dict[str, Any], shape: Shape, at: At) -> dict[str, Any]:
    """A row of kind "sample": 1/16 of the keys that rows skip are drawn, and count in the density, with an order in
    "sample-order"."""
    drawn = job["key_block"] // DRAWN
    blocks = (job["density"] - 1 / DRAWN) / (1 - 1 / DRAWN)
    mask = _mask({**job, "density": blocks}, shape)
    mask.kept_bits()
    sample = draw_sample(mask.key, drawn, 7, device=shape.device)
    order = make_order(job["heads"], job["tokens"], shape.device) if job["kind"] == "sample-order" else None
    oracle = Oracle(shape.q, shape.k, shape.v, mask, shape.scale, order, sample=sample)
    contest = _contest(job, shape, at)
    ours = _enter_ours(contest, job, shape, mask, oracle, order=order, sample=sample)
    kept = mask.density().double().mean().item()
    return _result(job, shape, contest, kept + (1 - kept) / DRAWN, ours)


def measure_schedule(job: dict[str, Any], shape: Shape, at: At) -> dict[str, Any]:
    """A row of kind "schedule": the Triton kernel with its rows first to last, and longest first."""
    mask = _mask(job, shape)
    oracle = Oracle(shape.q, shape.k, shape.v, mask, shape.scale)
    contest = _contest(job, shape, at)
    ours = _enter_ours(contest, {**job, "implementation": "triton"}, shape, mask, oracle)
    if ours:
        from dittools.kernels.block_sparse.triton import triton_block_sparse_attention

        starts = schedule(mask.kv_blocks()[0])
        call = {"scale": shape.scale, "schedule": starts}
        contest.enter(
            "triton, longest first",
            lambda: lambda: triton_block_sparse_attention(shape.q, shape.k, shape.v, mask, **call),
            lambda call: oracle.judge(*result_of(call)),
            PATIENCE,
        )
        ours.append("triton, longest first")
    return _result(job, shape, contest, mask, ours)


def _contest(job: dict[str, Any], shape: Shape, at: At) -> Contest:
    contest = Contest(job, at)
    contest.not_run |= {DENSE + name: why for name, why in shape.not_run.items()}
    contest.wrong |= {DENSE + name: why for name, why in shape.wrong.items()}
    contest.calls |= shape.baselines()
    return contest


def _mask(job: dict[str, Any], shape: Shape) -> BlockMask:
    names = ("heads", "tokens", "query_block", "key_block", "density", "family")
    mask = make_mask(*(job[name] for name in names), shape.device)
    mask.kv_blocks()
    return mask


def _enter_ours(
    contest: Contest, job: dict[str, Any], shape: Shape, mask: BlockMask, oracle: Oracle, **more
) -> list[str]:
    """Our kernels that take this case, or the one that was asked for; on a card plain PyTorch only if asked for."""
    asked = job["implementation"]
    names = [asked] if asked else [n for n in OURS if n != "portable" or shape.device.type != "cuda"]
    tensors = shape.q, shape.k, shape.v
    entered = []
    for name in names:
        reason = why_not(name, *tensors, mask)
        if reason is not None:
            contest.not_run[name] = reason
            continue
        call = {**more, "scale": shape.scale, "implementation": name}
        contest.enter(
            name,
            lambda call=call: lambda: block_sparse_attention(*tensors, mask, **call),
            lambda _, call=call: oracle.judge(
                *result_of(lambda: block_sparse_attention(*tensors, mask, return_lse=True, **call))
            ),
            PATIENCE,
        )
        entered.append(name)
    return entered


def _result(
    job: dict[str, Any], shape: Shape, contest: Contest, mask: BlockMask | float, ours: list[str]
) -> dict[str, Any]:
    kept = mask if isinstance(mask, float) else mask.density().double().mean().item()
    times = contest.time(shape.device, job)
    rates(times, job, kept)
    return {
        "kept": kept,
        "dense": fastest_dense(times),
        "layouts": shape.layouts,
        "times": times,
        "ours": ours,
        "wrong": contest.wrong,
        "not_run": contest.not_run,
        **best_of({n: times[n] for n in ours if n in times}, lambda f: f["r"], largest=True),
    }


def rates(times: dict[str, dict[str, Any]], job: dict[str, Any], kept: float) -> None:
    """Put TFLOP/s of the pairs asked for beside every time, and r = dense time x kept / time beside sparse ones.

    Against the dense kernel that was the fastest in this very row, cuDNN ("r_cudnn") and FlashAttention ("r_flash"):
    None where it was not timed.
    """
    flash = next((name for name in dense.FLASH[::-1] if DENSE + name in times), None)
    tflop = 4e-12 * job["head_dim"] * job["heads"] * job["tokens"] ** 2
    for name, figures in times.items():
        is_dense = name.startswith(DENSE)
        for kind, measured in figures.items():
            measured["tflops"] = tflop * (1 if is_dense else kept) / measured["ms"] * 1000
            against = {"r": fastest_dense(times, kind), "r_cudnn": "cudnn", "r_flash": flash}
            for key, other in against.items() if not is_dense else ():
                base = times.get(f"{DENSE}{other}", {}).get(kind)
                measured[key] = base["ms"] * kept / measured["ms"] if base else None


def fastest_dense(times: dict[str, dict[str, Any]], kind: str | None = None) -> str | None:
    """Name of the dense kernel with the least time; by bursts where no kind is named and there are any."""
    able = {}
    for name, figures in times.items():
        measured = figures.get(kind) if kind else figures.get("burst") or figures.get("sustained")
        if name.startswith(DENSE) and measured:
            able[name.removeprefix(DENSE)] = measured["ms"]
    return min(able, key=able.get) if able else None


def best_of(
    times: dict[str, dict[str, Any]], value: Callable[[dict[str, Any]], float], *, largest: bool
) -> dict[str, Any]:
    """The row's value: that of the best of our contenders, by bursts where they were timed. ``value``: of a figure."""
    pick = max if largest else min
    found: dict[str, Any] = {"best": None, "burst_value": None, "sustained_value": None}
    for kind in ("burst", "sustained"):
        able = {name: value(figures[kind]) for name, figures in times.items() if kind in figures}
        if able and found["best"] is None:
            found["best"] = pick(able, key=able.get)
        if able:
            found[f"{kind}_value"] = able[found["best"]]
    return found
