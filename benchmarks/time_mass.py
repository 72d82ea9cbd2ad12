"""Check and time the passes of block mass in each variant: ``python -m dittools.benchmarks.time_mass --json PATH``.

Each pass of each variant is timed in turn with dense attention on the same tensors, once its result was found right
against fp32 on small ragged inputs and on that very case. The work is done by a child process: a kernel that hangs or
crashes costs its own case, is left out after the second time, and the rest goes on. The file is rewritten after every
case; the same command again goes on from it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dittools.benchmarks import kernel
from dittools.benchmarks.contest import Contest
from dittools.benchmarks.results import Results, failed
from dittools.kernels.block_mass.hopper import hopper_block_mass, hopper_lse
from dittools.kernels.capability import why_not_hopper_mass
from dittools.kernels.dense import dense_attention, dense_kernel_name
from dittools.kernels.masks.block_mask import Partition
from dittools.kernels.proof.check import Wrong, poisoned
from dittools.kernels.proof.inputs import heads_first, make_tensors
from dittools.kernels.proof.mass import judge, judge_lse
from dittools.kernels.supervise import At, serve

# What `block_mass.triton.Variant` takes.
TRITON = {
    "triton": {},
    "triton, 2 stages": {"stages": 2},
    "triton, 4 warps": {"warps": 4},
    "triton, 4 warps, 2 stages": {"warps": 4, "stages": 2},
    "triton, 128 keys": {"keys": 128},
    "triton, 128 keys, 2 stages": {"keys": 128, "stages": 2},
    "triton, groups of 16": {"group": 16},
    "triton, 32 keys": {"keys": 32, "stages": 4},
}
HOPPER = "hopper"
DENSE = ("dense", "dense, heads first")
SHAPES = ((12, 32_768), (40, 75_648))
SMALL = ((100, 1), (1_000, 2), (4_111, 2))  # tokens, heads
BLOCK = 128
PATIENCE = 60


def jobs(device: str, shapes=SHAPES, dim: int = 128, seconds: float = 8) -> list[dict[str, Any]]:
    """The small check, and then every shape."""
    same = {"head_dim": dim, "dtype": "bfloat16", "device": device}
    found = [{**same, "kind": "check", "id": f"check hd{dim}"}]
    for heads, tokens in shapes:
        timing = {"seconds": seconds, "burst": True, "sustained": False}
        job = {**same, **timing, "kind": "time", "heads": heads, "tokens": tokens}
        found.append({**job, "id": f"{heads}x{tokens} hd{dim}"})
    return found


def passes(name: str) -> tuple[Callable, Callable]:
    """The LSE pass and the mass pass of a variant, as `triton_lse` and `triton_block_mass` of `block_mass.triton`.

    Raises:
        ValueError: where the variant cannot run.
    """
    if name == HOPPER:
        return hopper_lse, hopper_block_mass
    from dittools.kernels.block_mass.triton import Variant, triton_block_mass, triton_lse

    variant = Variant(**TRITON[name])
    return lambda q, k, scale: triton_lse(q, k, scale, variant), lambda *call: triton_block_mass(*call, variant)


def able(device: torch.device, dim: int) -> list[str]:
    """Variants that can run here, those that never failed to first."""
    q = torch.empty(1, 1, 1, dim, dtype=torch.bfloat16, device=device)
    return [*TRITON, *([HOPPER] if why_not_hopper_mass(q) is None else ())]


class Worker:
    """Does the jobs."""

    @torch.no_grad()
    def handle(self, job: dict[str, Any], at: At) -> dict[str, Any]:
        """What a job found."""
        contest = Contest(job, at)
        if job["kind"] == "time":
            return self._time(job, contest)
        names = able(torch.device(job["device"]), job["head_dim"])
        for name in names:
            contest.enter(name, lambda: None, lambda _, name=name: self._small(job, name), PATIENCE)
        return {"right": list(contest.calls), "times": {}, "ours": names, "wrong": contest.wrong}

    def _small(self, job: dict[str, Any], name: str) -> None:
        """Ragged inputs, without and with keys that are far louder at either end."""
        first, second = passes(name)
        scale = job["head_dim"] ** -0.5
        for tokens, heads in SMALL:
            q, k, _ = make_tensors(heads, tokens, job["head_dim"], torch.bfloat16, torch.device(job["device"]))
            partition = Partition(tokens, BLOCK)
            for loud in (slice(0), slice(0, tokens // 3), slice(-(tokens // 3), None)):
                keys = k.clone()
                keys[:, loud] *= 60
                with poisoned():
                    lse = first(q, keys, scale)
                    mass = second(q, keys, partition, partition, scale, lse)
                judge_lse(q, keys, partition, scale, lse)
                judge(q, keys, partition, partition, scale, mass)

    def _time(self, job: dict[str, Any], contest: Contest) -> dict[str, Any]:
        """The passes of all variants and dense attention, in turn."""
        device, dtype, scale = torch.device(job["device"]), getattr(torch, job["dtype"]), job["head_dim"] ** -0.5
        q, k, v = make_tensors(job["heads"], job["tokens"], job["head_dim"], dtype, device)
        turned = [heads_first(x) for x in (q, k, v)]
        partition = Partition(job["tokens"], BLOCK)
        contest.calls |= {DENSE[0]: lambda: dense_attention(q, k, v), DENSE[1]: lambda: dense_attention(*turned)}
        for call in contest.calls.values():
            call()
        names = able(device, job["head_dim"])
        for name in names:
            first, second = passes(name)
            known: list[torch.Tensor] = []

            def right_lse(call, known=known) -> None:
                with poisoned():
                    known.append(call())
                if not known[0].isfinite().all():
                    raise Wrong("the LSE is not finite everywhere")
                judge_lse(q, k, partition, scale, known[0])

            def right_mass(call) -> None:
                with poisoned():
                    judge(q, k, partition, partition, scale, call())

            contest.enter(f"{name}: lse", lambda f=first: lambda: f(q, k, scale), right_lse, PATIENCE)
            if f"{name}: lse" in contest.calls:
                mass = (q, k, partition, partition, scale)
                contest.enter(
                    f"{name}: mass", lambda f=second, mass=mass, known=known: lambda: f(*mass, known[0]), right_mass,
                    PATIENCE,
                )  # fmt: skip
        times = {name: figures["burst"]["ms"] for name, figures in contest.time(device, job).items()}
        return {
            "dense": dense_kernel_name(device, dtype, job["head_dim"]), "times": times, "wrong": contest.wrong,
            "ours": [f"{name}: {of}" for name in names for of in ("lse", "mass")], "table": table(times, names),
        }  # fmt: skip


def table(times: dict[str, float], names: list[str]) -> list[dict[str, Any]]:
    """A row of each variant whose passes were both timed, the fastest first.

    Milliseconds of "lse", "mass" and of both; "two" and "one" are times of dense attention, for both passes and for
    the second alone.
    """
    dense = min(times[name] for name in DENSE if name in times)
    rows = []
    for name in names:
        lse, mass = times.get(f"{name}: lse"), times.get(f"{name}: mass")
        if lse is not None and mass is not None:
            two = lse + mass
            rows.append(
                {"name": name, "lse": lse, "mass": mass, "both": two, "two": two / dense, "one": mass / dense}
            )  # fmt: skip
    return sorted(rows, key=lambda row: row["both"])


def said(row: dict[str, Any]) -> str:
    """A result as lines of text."""
    if "error" in row:
        return f"{row['id']}: error: {row['error']}"
    lines = [f"  {name}: {why}" for name, why in row["wrong"].items()]
    if row["job"]["kind"] == "check":
        return "\n".join([f"{row['id']}: right: {', '.join(row['right']) or 'none'}", *lines])
    dense = ", ".join(f"{name} {row['times'][name]:.2f} ms" for name in DENSE)
    lines = [f"{row['id']}: {row['dense']}: {dense}", *lines]
    lines.append(f"  {'variant':<30}{'lse ms':>10}{'mass ms':>10}{'two passes':>12}{'LSE known':>12}")
    for x in row["table"]:
        lines.append(f"  {x['name']:<30}{x['lse']:>10.2f}{x['mass']:>10.2f}{x['two']:>10.3f} x{x['one']:>10.3f} x")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run the jobs and print what came of each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--limit", type=float, default=480, help="seconds after which nothing new begins")
    parser.add_argument("--seconds", type=float, default=8, help="of timing a shape")
    parser.add_argument("--dim", type=int, default=128, help="head dim")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.work:
        serve(Worker().handle)
        return
    if asked.json is None:
        parser.error("--json is needed")
    if not torch.cuda.is_available():
        sys.exit("a CUDA GPU is needed")
    command = ["python", "-m", "dittools.benchmarks.time_mass", *sys.argv[1:]]
    results = Results("mass", torch.device("cuda"), command, asked.json)
    rows = []

    def told(row: dict[str, Any]) -> None:
        rows.append(row)
        print(said(row), flush=True)

    todo = jobs("cuda", dim=asked.dim, seconds=asked.seconds)
    child = [sys.executable, "-m", "dittools.benchmarks.time_mass", "--work"]
    left = kernel.run(todo, results, told, limit=asked.limit, command=child)
    faults = [row for row in rows if failed(row)]
    print(f"{len(rows)} cases, {len(faults)} with faults, {len(left)} left")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
