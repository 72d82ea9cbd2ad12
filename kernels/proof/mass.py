"""Does the Hopper kernel for block mass prove itself on this card? Its cases of `dittools.kernels.proof.cases`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from dittools.kernels import measure_block_mass, measure_lse
from dittools.kernels.masks.block_mask import Partition
from dittools.kernels.proof.calls import speedup
from dittools.kernels.proof.check import Wrong, poisoned, stop_if_broken
from dittools.kernels.proof.inputs import make_tensors
from dittools.kernels.supervise import At
from dittools.kernels.timing import burst

MASS = "hopper-mass"
TRITON = "triton, mass"
KERNELS = ("hopper", "triton")  # that are timed, in turn
TWO_PASSES, ONE_PASS = "two passes", "one pass"  # kinds of calls: the second knows the LSE
# tokens, heads, batch
SIZES = ((1, 1, 1), (129, 2, 1), (1_000, 3, 2), (4_111, 2, 1), (32_760, 2, 1))
BLOCKS = ((128, 128), (128, 64), (64, 128), (64, 64))
SPEED_SHAPE = (12, 32_768)
MORE_KEYS = 39  # than queries: ragged in another way
REPEATS = 5
SLACK = 2e-3
FAINT = 1e-5


def mass_jobs() -> list[dict[str, Any]]:
    """What the kernel has to pass, small cases first, then the two that are timed."""
    cases = [
        {
            "kind": "mass-proof", "id": f"mass, {blocks[0]}x{blocks[1]}, hd{dim} {dtype} {tokens} tokens",
            "head_dim": dim, "dtype": dtype, "tokens": tokens, "heads": heads, "batch": batch,
            "query_block": blocks[0], "key_block": blocks[1], "device": "cuda",
        }
        for (tokens, heads, batch), dim, blocks, dtype in itertools.product(
            SIZES, (128, 64), BLOCKS, ("bfloat16", "float16")
        )
        if tokens != 32_760 or dtype == "bfloat16"
    ]  # fmt: skip
    heads, tokens = SPEED_SHAPE
    speed = {
        "kind": "mass-faster", "heads": heads, "tokens": tokens, "head_dim": 128, "query_block": 128, "key_block": 128,
        "dtype": "bfloat16", "device": "cuda", "seconds": 4,
    }  # fmt: skip
    return [*cases, *({**speed, "call": call, "id": f"speed of mass, {call}"} for call in (TWO_PASSES, ONE_PASS))]


def prove_mass(job: dict[str, Any], at: At) -> dict[str, Any]:
    """One case: right on sampled blocks, the same bits each time, also where the logits grow along the keys.

    Raises:
        Wrong: when it is not.
    """
    stop_if_broken(job, MASS)
    device, tokens = torch.device(job["device"]), job["tokens"]
    generator = torch.Generator(device).manual_seed(3)
    made = {"device": device, "generator": generator}
    shapes = [(job["batch"], n, job["heads"], job["head_dim"]) for n in (tokens, tokens + MORE_KEYS)]
    q, k = (torch.randn(shape, **made).to(getattr(torch, job["dtype"])) for shape in shapes)
    query, key = Partition(tokens, job["query_block"]), Partition(tokens + MORE_KEYS, job["key_block"])
    scale, name = job["head_dim"] ** -0.5, job.get("kernel", "hopper")
    # Far louder keys at either end: what a pass sees first says little of what comes.
    loud = [torch.ones_like(k[:, :, :1, :1]) for _ in range(3)]
    loud[1][:, : key.length // 3], loud[2][:, -(key.length // 3) :] = 60, 60
    for factor in loud:
        keys = k * factor
        at(MASS, 60)
        for known in (False, True):
            with poisoned():
                lse = measure_lse(q, keys, scale=scale, implementation=name) if known else None
                mass = measure_block_mass(q, keys, query, key, scale=scale, lse=lse, implementation=name)
            if known:
                judge_lse(q, keys, query, scale, lse)
            judge(q, keys, query, key, scale, mass)
            for _ in range(REPEATS):
                again = measure_block_mass(q, keys, query, key, scale=scale, lse=lse, implementation=name)
                if not torch.equal(again, mass):
                    raise Wrong("two calls on the same input differ")
    return {"right": True}


def judge_lse(q, k, query: Partition, scale: float, lse: torch.Tensor) -> None:
    """Raise `Wrong` unless an LSE ``[B, H, S]`` is right in sampled query blocks, against fp32."""
    for b, h, m, logits in _sampled(q, k, query, scale):
        exact = logits.logsumexp(-1)
        found = lse[b, h, m * query.size : (m + 1) * query.size]
        if not ((found - exact).abs() <= SLACK + 1e-5 * exact.abs()).all():
            raise Wrong(f"the LSE is off in query block {m} of head {h}")


def _sampled(q, k, query: Partition, scale: float) -> Iterator[tuple[int, int, int, torch.Tensor]]:
    """Batch item, head and query block, with its logits ``[rows, Sk]`` in fp32."""
    heads = q.shape[2]
    for h in sorted({0, heads // 2, heads - 1}):
        for m in sorted({0, query.count // 3, query.count - 1}):
            b, rows = h % q.shape[0], slice(m * query.size, (m + 1) * query.size)
            yield b, h, m, (q[b, rows, h].float() * scale) @ k[b, :, h].float().T


def judge(q, k, query: Partition, key: Partition, scale: float, mass: torch.Tensor) -> float:
    """Worst relative error of a mass ``[B, H, Mq, Nk]`` on sampled query blocks, against fp32.

    Raises:
        Wrong: when a block or the sum of a row of blocks is off.
    """
    if not mass.isfinite().all():
        raise Wrong("the mass is not finite everywhere")
    sizes = query.sizes(mass.device).float()
    if not ((mass.sum(-1) - sizes).abs() <= SLACK * sizes).all():
        raise Wrong("a row of blocks does not sum to its queries")
    worst = 0.0
    for b, h, m, logits in _sampled(q, k, query, scale):
        of_keys = logits.softmax(-1).sum(0)
        wanted = torch.nn.functional.pad(of_keys, (0, key.count * key.size - key.length))
        wanted = wanted.view(key.count, key.size).sum(-1)
        # Relative to each block, however little it holds; what holds next to nothing may be off by FAINT.
        error = ((mass[b, h, m] - wanted).abs() / (wanted + FAINT / SLACK)).max().item()
        worst = max(worst, error)
        if not error <= SLACK:
            raise Wrong(f"block mass is off by {error:.1e} of itself in query block {m} of head {h}")
    return worst


def mass_faster(job: dict[str, Any], at: At) -> dict[str, Any]:
    """Milliseconds of the kernel and of Triton's, in turn, once both are right; "speedup" of the first."""
    stop_if_broken(job, MASS, TRITON)
    device, scale = torch.device(job["device"]), job["head_dim"] ** -0.5
    q, k, _ = make_tensors(job["heads"], job["tokens"], job["head_dim"], getattr(torch, job["dtype"]), device)
    query, key = (Partition(job["tokens"], job[name]) for name in ("query_block", "key_block"))
    names = {{"hopper": MASS, "triton": TRITON}.get(name, name): name for name in job.get("kernels", KERNELS)}
    calls = {}
    for said, name in names.items():
        at(said, 60)
        lse = None
        if job["call"] == ONE_PASS:
            lse = measure_lse(q, k, scale=scale, implementation=name)
        call = {"scale": scale, "lse": lse, "implementation": name}
        with poisoned():
            mass = measure_block_mass(q, k, query, key, **call)
        judge(q, k, query, key, scale, mass)
        calls[said] = lambda call=call: measure_block_mass(q, k, query, key, **call)
    times = burst(calls, device, job["seconds"], tell=lambda name: at(name, 30))
    return {"times": times, **speedup(times)}
