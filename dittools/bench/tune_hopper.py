"""Check and time the Hopper kernel's variants on this card: ``python -m dittools.bench.tune_hopper --json FILE``.

A variant is timed on a case only after its result was found right on that very case. The work is done by a child
process: a kernel that hangs or crashes costs its own case, is left out after the second time, and the rest goes on. The
file is rewritten after every case; the same command again goes on from it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dittools.bench import kernel
from dittools.bench.attention import PATIENCE, Shape, best_of, fastest_dense, rates
from dittools.bench.check import Oracle, result_of
from dittools.bench.contest import Contest
from dittools.bench.inputs import make_mask, make_order, make_tensors
from dittools.bench.results import Results, failed
from dittools.kernels import gather_tokens, scatter_tokens
from dittools.kernels.hopper import hopper_block_sparse_attention, why_not_hopper
from dittools.kernels.hopper_variants import Variant, tile_bytes
from dittools.kernels.supervise import At, serve

# Of tiles of 128 rows; of 64, two programs a multiprocessor, keys a slot x stages.
VARIANTS = {
    "stages2": Variant(stages=2),
    "stages3": Variant(stages=3),
    "persistent": Variant(stages=2, persistent=True),
    "stages3-persistent": Variant(stages=3, persistent=True),
    "no-pin": Variant(stages=2, pin=False),
    "in-turn": Variant(stages=2, overlap=False),
    "hold": Variant(stages=2, hold=True),
    "hold-no-pin": Variant(stages=2, hold=True, pin=False),
    "hold-persistent": Variant(stages=2, hold=True, persistent=True),
    "hold-no-pin-persistent": Variant(stages=2, hold=True, pin=False, persistent=True),
    "stages3-hold-no-pin-persistent": Variant(stages=3, hold=True, pin=False, persistent=True),
    "64x3": Variant(stages=3, slot=64, hold=True),
    "64x3-no-pin": Variant(stages=3, slot=64, hold=True, pin=False),
    "64x2-no-pin-persistent": Variant(stages=2, slot=64, hold=True, pin=False, persistent=True),
    "64x3-no-pin-persistent": Variant(stages=3, slot=64, hold=True, pin=False, persistent=True),
    "64x3-read": Variant(stages=3, slot=64),
    "64x3-in-turn": Variant(stages=3, slot=64, hold=True, overlap=False),
    "64x2-persistent": Variant(stages=2, slot=64, hold=True, persistent=True),
    "128x1": Variant(stages=1, hold=True),
    "64x6": Variant(stages=6, slot=64, hold=True),
    "128x3": Variant(stages=3, hold=True),
    "128x3-no-pin": Variant(stages=3, hold=True, pin=False),
    "128x2-no-pin-persistent": Variant(stages=2, hold=True, pin=False, persistent=True),
    "128x3-read": Variant(stages=3),
}
HELD = ("hold", "hold-no-pin", "hold-persistent", "hold-no-pin-persistent", "stages3-hold-no-pin-persistent")
WIDE = ("stages2", "stages3", "persistent", "stages3-persistent", "no-pin", "in-turn", *HELD)
NARROW = {
    128: (
        "64x3",
        "64x3-read",
        "64x3-in-turn",
        "64x3-no-pin",
        "64x2-persistent",
        "64x2-no-pin-persistent",
        "64x3-no-pin-persistent",
        "128x1",
    ),
    64: ("64x6", "128x3", "128x3-no-pin", "128x2-no-pin-persistent", "128x3-read"),
}  # by head dim
# With an order: the default, q gathered and the output scattered by the kernel, or both copied like k and v; then, by
# rows of a tile, what else gathers and scatters.
ORDERED = ("fused", "copies")
FUSED = {
    128: ("stages2", "hold", "hold-no-pin", "hold-no-pin-persistent", "stages3-hold-no-pin-persistent"),
    64: ("64x3", "64x3-no-pin", "64x2-no-pin-persistent", "64x3-no-pin-persistent"),
}


@dataclass(frozen=True)
class Case:
    """Tensors and a mask to try the variants on, at the first of `FAMILIES`."""

    heads: int
    tokens: int
    head_dim: int = 128
    query_block: int = 128
    key_block: int = 128
    ordered: bool = False
    families: int = 3


SMALLER, LARGER = (12, 32_768), (40, 75_648)
# In the order of their interest; tensors are made anew where their shape changes.
CASES = (
    Case(*SMALLER, families=6),
    Case(*SMALLER, ordered=True, families=1),
    Case(*SMALLER, query_block=64, key_block=64),
    Case(*SMALLER, query_block=64, key_block=64, ordered=True, families=1),
    Case(*SMALLER, query_block=64, families=1),
    Case(*SMALLER, key_block=64),
    Case(*LARGER, families=6),
    Case(*LARGER, ordered=True, families=1),
    Case(*LARGER, query_block=64, key_block=64, families=1),
    Case(*LARGER, key_block=64),
    Case(*SMALLER, head_dim=64),
    Case(*SMALLER, head_dim=64, query_block=64, key_block=64, families=1),
    Case(*SMALLER, head_dim=64, key_block=64),
    Case(*LARGER, head_dim=64),
)
FAMILIES = (
    (0.2, "uniform"), (1.0, "uniform"), (0.2, "ragged"), (0.1, "uniform"), (0.5, "uniform"), (0.2, "heavy head")
)  # fmt: skip
SMALL = ((100, 1), (1_000, 2), (4_111, 3))  # tokens, heads
LONG = 50_000  # tokens from which only what may be the fastest is timed
ROOM = {128: 226 << 10, 64: 112 << 10}  # bytes of shared memory for all but barriers, by rows of a tile


def names_for(case: Case) -> list[str]:
    """The variants that are tried on a case: those that fit into shared memory."""
    some = WIDE if case.query_block == 128 else NARROW[case.head_dim]
    if case.ordered:
        some = FUSED[case.query_block]
    taken = {name: tile_bytes(VARIANTS[name], case.head_dim, case.query_block, case.ordered) for name in some}
    fit = [name for name in some if taken[name] <= ROOM[case.query_block]]
    return [*ORDERED, *fit] if case.ordered else fit


def jobs(device: str = "cuda") -> list[dict[str, Any]]:
    """Every case in the order of its interest; before the first timing of a kind its small checks."""
    found: list[dict[str, Any]] = []
    checked = set()
    for case in CASES:
        same = {**asdict(case), "dtype": "bfloat16", "device": device}
        kind = f"hd{case.head_dim} {case.query_block}x{case.key_block}{' ordered' if case.ordered else ''}"
        names = names_for(case)
        if kind not in checked:
            found.append({**same, "kind": "check", "variants": names, "tokens": 0, "id": f"check {kind}"})
            checked.add(kind)
        if case.tokens >= LONG or case.key_block == 64:
            names = [name for name in names if name not in ("no-pin", "in-turn")]
        for density, family in FAMILIES[: case.families]:
            found.append({
                **same, "kind": "time", "density": density, "family": family, "variants": names, "seconds": 6,
                "burst": True, "sustained": (density, family) == FAMILIES[0],
                "id": f"{case.heads}x{case.tokens} {kind} {density:g} {family}",
            })  # fmt: skip
    return found


class Worker:
    """Does the jobs, and keeps the tensors of a shape."""

    def __init__(self):
        self._key, self._shape = None, None

    @torch.no_grad()
    def handle(self, job: dict[str, Any], at: At) -> dict[str, Any]:
        """What a job found."""
        if job["kind"] == "check":
            return self._check(job, at)
        key = tuple(job[name] for name in ("heads", "tokens", "head_dim"))
        if key != self._key:
            self._key = self._shape = None
            self._shape, self._key = Shape(job, at), key
        return self._time(job, self._shape, at)

    def _check(self, job: dict[str, Any], at: At) -> dict[str, Any]:
        """All variants on small ragged inputs with an empty row and a full one."""
        contest = Contest(job, at)
        for name in job["variants"]:
            contest.enter(name, lambda: None, lambda _, name=name: self._small(job, name), PATIENCE)
        return {"right": list(contest.calls), "times": {}, "ours": job["variants"], "wrong": contest.wrong}

    def _small(self, job: dict[str, Any], name: str) -> None:
        device = torch.device(job["device"])
        for tokens, heads in SMALL:
            q, k, v = make_tensors(heads, tokens, job["head_dim"], torch.bfloat16, device)
            mask = make_mask(heads, tokens, job["query_block"], job["key_block"], 0.4, "ragged", device)
            mask.keep[0, 0, 0], mask.keep[0, -1, -1] = False, True
            order = make_order(heads, tokens, device) if job["ordered"] else None
            call = (q, k, v, mask, job["head_dim"] ** -0.5, order)
            out, lse = result_of(lambda call=call: attend(*call, name))
            Oracle(*call).judge(out, lse)

    def _time(self, job: dict[str, Any], shape: Shape, at: At) -> dict[str, Any]:
        """The variants, the Triton kernel and the dense baselines, in turn."""
        from dittools.kernels.triton_block_sparse import triton_block_sparse_attention

        names = ("heads", "tokens", "query_block", "key_block", "density", "family")
        mask = make_mask(*(job[name] for name in names), shape.device)
        mask.lists()
        order = make_order(job["heads"], job["tokens"], shape.device) if job["ordered"] else None
        tensors = shape.q, shape.k, shape.v
        call = (*tensors, mask, shape.scale, order)
        oracle = Oracle(*call)
        contest = Contest(job, at)
        contest.calls |= shape.baselines()
        calls = {name: lambda name=name: attend(*call, name) for name in job["variants"]}
        calls["triton"] = lambda: triton_block_sparse_attention(*tensors, mask, order=order, scale=shape.scale)
        for name, run in calls.items():
            contest.enter(name, lambda run=run: run, lambda run: oracle.judge(*result_of(run)), PATIENCE)
        kept = mask.density().double().mean().item()
        times = contest.time(shape.device, job)
        rates(times, job, kept)
        ours = {name: times[name] for name in calls if name in times}
        return {
            "kept": kept, "dense": fastest_dense(times), "times": times, "ours": list(calls), "wrong": contest.wrong,
            **best_of(ours, lambda figures: figures["r"], largest=True),
        }  # fmt: skip


def attend(q, k, v, mask, scale: float, order: torch.Tensor | None, name: str):
    """One call of a variant, or of the default where the name is of none: (out, lse)."""
    if name != "copies":
        return hopper_block_sparse_attention(q, k, v, mask, order=order, scale=scale, variant=VARIANTS.get(name))
    ordered = gather_tokens((q, k, v), order)
    out, lse = hopper_block_sparse_attention(*ordered, mask, order=None, scale=scale)
    (back,) = scatter_tokens((out,), order)
    return back, torch.empty_like(lse).scatter_(2, order.expand(lse.shape).long(), lse)


def line(row: dict[str, Any]) -> str:
    """A result in one line."""
    if "error" in row:
        return f"{row['id']}: error: {row['error']}"
    said = [f"{name}: {why}" for name, why in row["wrong"].items()]
    if row["job"]["kind"] == "check":
        right = ", ".join(row["right"]) or "none"
        return f"{row['id']}: right: {'; '.join([right, *said])}"
    fastest = row["times"]["dense: " + row["dense"]]["burst"]["ms"]
    rates = [
        f"{name} {row['times'][name]['burst']['r']:.3f}" for name in row["ours"] if name in row["times"]
    ]  # fmt: skip
    return f"{row['id']}: dense {row['dense']} {fastest:.2f} ms, r: {'  '.join([*rates, *said])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--only", default="", help='cases with this in their name, as "64x64" or "ordered"')
    parser.add_argument("--seconds", type=float, default=540, help="when to begin nothing new")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        serve(Worker().handle)
        return
    if arguments.json is None:
        parser.error("--json is needed")
    reason = why_not_hopper(torch.device("cuda"), torch.bfloat16, 128)
    if reason is not None:
        sys.exit(f"the Hopper kernel cannot run here: {reason}")
    command = ["python", "-m", "dittools.bench.tune_hopper", *sys.argv[1:]]
    results = Results("hopper", torch.device("cuda"), command, arguments.json)
    rows = []

    def told(row: dict[str, Any]) -> None:
        rows.append(row)
        print(line(row), file=sys.stderr, flush=True)

    child = [sys.executable, "-m", "dittools.bench.tune_hopper", "--work"]
    asked = [job for job in jobs() if arguments.only in job["id"]]
    left = kernel.run(asked, results, told, limit=arguments.seconds, command=child)
    faults = [row for row in rows if failed(row)]
    print(f"{len(rows)} cases, {len(faults)} with faults, {len(left)} left")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
