"""The short proof of a kernel at its first use, in the child of `dittools.kernels.first_use`: a few cases of the proof.

They take every path through the kernel on one ragged size, in half of the dtypes, and one shape is timed against
Triton's kernel. What `dittools bench kernel --check` finds on all of them counts for every card of a type; what this
finds counts here.

Nearly all of the time goes into compiling, so every kind of call of every case has a process of its own, and so has
each kernel that is timed: it is run there untimed, and Triton finds what was compiled on disk.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from dittools.kernels import checked
from dittools.kernels.proof import cases as proof
from dittools.kernels.proof.check import Wrong
from dittools.kernels.supervise import At, serve

TOKENS = {proof.NARROW: 1_000, proof.BLOCKS: 4_111, proof.CLUSTERS: 4_111, proof.MASS: 4_111}
SECONDS = 1  # of timing, for each kind of call
# Of every kernel those cases that are built apart: (head dim, dtype, blocks of queries and keys or how clusters share).
# The first of them with a sample too, where there are such.
PICKED: dict[str, tuple[tuple, ...]] = {
    proof.BLOCKS: ((128, "bfloat16", 128, 128), (128, "float16", 128, 64), (64, "bfloat16", 128, 128)),
    proof.NARROW: ((128, "bfloat16", 64, 64), (128, "float16", 64, 128), (64, "bfloat16", 64, 64)),
    proof.CLUSTERS: ((128, "bfloat16", "ragged"), (128, "bfloat16", "one giant"), (64, "float16", "many empty")),
    proof.MASS: ((128, "bfloat16", 128, 128), (128, "float16", 64, 64), (64, "bfloat16", 128, 64)),
}
# Kinds of calls that are built apart: a case has a process for each. Those of block mass share what is built.
CALLS = {
    proof.BLOCKS: ("raster", "ordered"),
    proof.NARROW: ("raster", "ordered"),
    proof.CLUSTERS: ("raster", "ordered", "keys ordered"),
}


def jobs(kernel: str) -> list[dict[str, Any]]:
    """Those of the proof's jobs that are done: some cases, and both that are timed, for less long."""
    whole = proof.jobs(kernel)
    small = [job for job in whole if "seconds" not in job and job["tokens"] == TOKENS[kernel]]
    cases = [job for job in small if _kind(job) in PICKED[kernel] and not job.get("biased")]
    cases = [job for job in cases if not job.get("drawn") or _kind(job) == PICKED[kernel][0]]
    cases = [{**job, "calls": [kind]} for job in cases for kind in CALLS[kernel]] if kernel in CALLS else cases
    timed = [{**job, "seconds": SECONDS} for job in whole if "seconds" in job]
    return [*cases, *timed]


def _kind(job: dict[str, Any]) -> tuple:
    sizes = (job["family"],) if "family" in job else (job["query_block"], job["key_block"])
    return (job["head_dim"], job["dtype"], *sizes)


def handle(asked: dict[str, Any], at: At) -> dict[str, Any]:
    """Prove a kernel: "cases", and "speedup_over_triton" by kind of call.

    Args:
        asked: "kernel", "device" as "cuda:0", and "without" where the kernel brought a process down before.

    Raises:
        Wrong: when the kernel is.
    """
    kernel, why = asked["kernel"], asked.get("without", {})
    if kernel in why:
        raise Wrong(f"{kernel}: {why[kernel]}")
    todo = [{**job, "device": asked["device"]} for job in jobs(kernel)]
    cases, timed = ([job for job in todo if ("seconds" in job) == speed] for speed in (False, True))
    untimed = [{**job, "seconds": 0, "kernels": [name]} for job in timed for name in ("hopper", "triton")]
    _all_at_once(kernel, cases[0], [*cases[1:], *untimed], at)
    gains = {}
    for job in timed:
        gains[job.get("call") or proof.kind_of(job["ordered"])] = round(_one(job, at)["speedup"], 3)
    return {"cases": len({job["id"] for job in cases}), "speedup_over_triton": gains}


def _all_at_once(kernel: str, own: dict[str, Any], others: list[dict[str, Any]], at: At) -> None:
    """Do a job here, which wakes the card for what is timed later, and each other one in a process of its own.

    These begin as copies of this process, which must not have waked the card before.
    """
    at(kernel)
    _import_once(kernel)
    with ProcessPoolExecutor(len(others), mp_context=multiprocessing.get_context("fork")) as pool:
        running = [pool.submit(_one, job) for job in others]
        _one(own, at)
        for done in as_completed(running):
            try:
                done.result()
            except BrokenProcessPool:
                raise Wrong(f"{kernel}: a process that ran it ended at once") from None
            at(kernel)


def _import_once(kernel: str) -> None:
    """Import what every process would import at its first call: a second or two of each, and they share the cores."""
    sources = (file.removesuffix(".py").replace("/", ".") for file in checked.SOURCES[kernel])
    for name in ("torch._dynamo", *(f"dittools.kernels.{source}" for source in sources)):
        importlib.import_module(name)
    if importlib.util.find_spec("triton") is not None:
        importlib.import_module("triton.backends.nvidia.compiler")


def _silent(*_: Any) -> None:
    """Nobody listens to a process of the pool: the parent sees when none of them ends."""


@torch.no_grad()
def _one(job: dict[str, Any], at: At = _silent) -> dict[str, Any]:
    device = torch.device(job["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return proof.KINDS[job["kind"]](job, at)


def main() -> None:
    serve(handle)


if __name__ == "__main__":
    main()
