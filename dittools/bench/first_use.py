"""The short proof of a kernel at its first use, in the child of `dittools.kernels.first_use`: a few cases of the proof.

They take every path through the kernel on one ragged size, in half of the dtypes, and one shape is timed against
Triton's kernel. What `dittools bench kernel --check` finds on all of them counts for every card of a type; what this
finds counts here.

Nearly all of the time goes into compiling, so every case has a process of its own, and so has what is timed: it is run
there once untimed, and Triton finds what was compiled on disk.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from dittools.bench import proof
from dittools.bench.check import Wrong
from dittools.kernels.supervise import At, serve

TOKENS = {proof.NARROW: 1_000, proof.BLOCKS: 4_111, proof.CLUSTERS: 4_111, proof.MASS: 4_111}
SECONDS = 1  # of timing, for each kind of call
# Of every kernel those cases that are built apart: (head dim, dtype, blocks of queries and keys or how clusters share).
PICKED: dict[str, tuple[tuple, ...]] = {
    proof.BLOCKS: ((128, "bfloat16", 128, 128), (128, "float16", 128, 64), (64, "bfloat16", 128, 128)),
    proof.NARROW: ((128, "bfloat16", 64, 64), (128, "float16", 64, 128), (64, "bfloat16", 64, 64)),
    proof.CLUSTERS: ((128, "bfloat16", "ragged"), (128, "bfloat16", "one giant"), (64, "float16", "many empty")),
    proof.MASS: ((128, "bfloat16", 128, 128), (128, "float16", 64, 64), (64, "bfloat16", 128, 64)),
}


def jobs(kernel: str) -> list[dict[str, Any]]:
    """Those of the proof's jobs that are done: some cases, and both that are timed, for less long."""
    whole = proof.jobs(kernel)
    small = [job for job in whole if "seconds" not in job and job["tokens"] == TOKENS[kernel]]
    cases = [job for job in small if _kind(job) in PICKED[kernel] and not job.get("biased")]
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
    _all_at_once(kernel, [{**job, "seconds": 0} if "seconds" in job else job for job in todo], at)
    gains = {}
    for job in (job for job in todo if "seconds" in job):
        kind = job.get("call") or proof.kind_of(job["ordered"])
        gains[kind] = round(_one(job, at)["speedup"], 3)
    return {"cases": len(todo) - len(gains), "speedup_over_triton": gains}


def _all_at_once(kernel: str, todo: list[dict[str, Any]], at: At) -> None:
    """Do jobs in processes of their own, which begin as copies of this one: it must not have waked the card."""
    at(kernel)
    with ProcessPoolExecutor(len(todo), mp_context=multiprocessing.get_context("fork")) as pool:
        for done in as_completed([pool.submit(_one, job) for job in todo]):
            try:
                done.result()
            except BrokenProcessPool:
                raise Wrong(f"{kernel}: a process that ran it ended at once") from None
            at(kernel)


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
