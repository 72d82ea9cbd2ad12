"""Does the Hopper kernel prove itself on this card? Right in every case, more than once, and faster than Triton's.

What comes of it goes into the table of `dittools.kernels.checked`, which decides whether the kernel is chosen.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from dittools.bench.attention import Shape
from dittools.bench.check import Oracle, Wrong, poisoned
from dittools.bench.inputs import make_mask, make_order
from dittools.bench.timing import burst
from dittools.blocks import BlockMask
from dittools.kernels import block_sparse_attention, checked
from dittools.kernels.supervise import At

KERNEL = "hopper"
# tokens, heads, batch
SIZES = ((1, 1, 1), (129, 2, 1), (1_000, 3, 2), (4_111, 2, 1), (32_760, 2, 1))
REPEATS = 5
SPEED_SHAPE = (12, 32_768)


def jobs() -> list[dict[str, Any]]:
    """Small cases first, then the two that are timed."""
    cases = [
        {
            "kind": "proof", "id": f"hd{dim} 128x{block} {dtype} {tokens} tokens{' with a bias' if biased else ''}",
            "head_dim": dim, "key_block": block, "dtype": dtype, "tokens": tokens, "heads": heads, "batch": batch,
            "biased": biased, "device": "cuda",
        }
        for (tokens, heads, batch), dim, block, dtype, biased in itertools.product(
            SIZES, (128, 64), (128, 64), ("bfloat16", "float16"), (False, True)
        )
        if tokens != 32_760 or (dtype == "bfloat16" and not biased)
    ]  # fmt: skip
    heads, tokens = SPEED_SHAPE
    speed = {
        "kind": "faster", "heads": heads, "tokens": tokens, "head_dim": 128, "query_block": 128, "key_block": 128,
        "density": 0.2, "family": "uniform", "dtype": "bfloat16", "device": "cuda", "seconds": 4,
    }  # fmt: skip
    return [*cases, *({**speed, "ordered": yes, "id": f"speed, {kind_of(yes)}"} for yes in (False, True))]


def kind_of(ordered: bool) -> str:
    return "ordered" if ordered else "raster"


def prove(job: dict[str, Any], at: At) -> dict[str, Any]:
    """One case: right on sampled blocks, without an order and with one, the same bits each time.

    Raises:
        Wrong: when it is not.
    """
    _stop_if_broken(job)
    device, dtype = torch.device(job["device"]), getattr(torch, job["dtype"])
    generator = torch.Generator(device).manual_seed(3)
    size = (job["batch"], job["tokens"], job["heads"], job["head_dim"])
    q, k, v = (torch.randn(size, device=device, dtype=dtype, generator=generator) for _ in range(3))
    mask = make_mask(job["heads"], job["tokens"], 128, job["key_block"], 0.3, "ragged", device)
    mask.keep[0, 0, 0], mask.keep[0, -1, -1] = False, True  # an empty row and a full one
    bias = None
    if job["biased"]:
        # Without anything else to see it by, a bias is seen where it takes blocks away.
        bias = torch.zeros(1, job["heads"], mask.key.count, device=device)
        bias[..., ::3] = -torch.inf
    seen = mask if bias is None else BlockMask(mask.keep & bias.isfinite()[:, :, None], mask.query, mask.key)
    scale = job["head_dim"] ** -0.5
    for order in (None, make_order(job["heads"], job["tokens"], device)):
        at(KERNEL, 60)
        call = {"order": order, "scale": scale, "key_bias": bias, "return_lse": True}
        with poisoned():
            out, lse = block_sparse_attention(q, k, v, mask, implementation=job.get("kernel", KERNEL), **call)
        Oracle(q, k, v, seen, scale, order).judge(out, lse)
        for _ in range(REPEATS):
            again = block_sparse_attention(q, k, v, mask, implementation=job.get("kernel", KERNEL), **call)
            if not (torch.equal(again[0], out) and torch.equal(again[1], lse)):
                raise Wrong("two calls on the same input differ")
    return {"right": True}


def faster(job: dict[str, Any], shape: Shape, at: At) -> dict[str, Any]:
    """Milliseconds of the kernel and of Triton's on one case, in turn, once both are right."""
    _stop_if_broken(job)
    mask = make_mask(
        job["heads"], job["tokens"], job["query_block"], job["key_block"], job["density"], job["family"], shape.device
    )
    order = make_order(job["heads"], job["tokens"], shape.device) if job["ordered"] else None
    oracle = Oracle(shape.q, shape.k, shape.v, mask, shape.scale, order)
    calls = {}
    for name in job.get("kernels", (KERNEL, "triton")):
        at(name, 60)
        call = {"order": order, "scale": shape.scale, "implementation": name}
        with poisoned():
            out, lse = block_sparse_attention(shape.q, shape.k, shape.v, mask, return_lse=True, **call)
        oracle.judge(out, lse)
        calls[name] = lambda call=call: block_sparse_attention(shape.q, shape.k, shape.v, mask, **call)
    times = burst(calls, shape.device, job["seconds"], tell=lambda name: at(name, 30))
    first, second = (times[name]["ms"] for name in calls)
    return {"times": times, "speedup": second / first}


def _stop_if_broken(job: dict[str, Any]) -> None:
    """A case that brought a process down is not tried again."""
    for name, why in job.get("without", {}).items():
        raise Wrong(f"{name}: {why}")


def entry(results: dict[str, dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    """The entry for the table, from results by id.

    Args:
        facts: where it was measured; "capability" is one of them.

    Raises:
        Wrong: when anything failed or is missing, with the first of it.
    """
    for job in jobs():
        result = results.get(job["id"], {"error": "not run"})
        if "error" in result:
            raise Wrong(f"{job['id']}: {result['error']}")
    return {
        "implementation": KERNEL,
        "source": checked.fingerprint(KERNEL),
        "triton": checked.triton_minor(),
        "cases": len(jobs()) - 2,
        "speedup_over_triton": {
            kind_of(yes): round(results[f"speed, {kind_of(yes)}"]["speedup"], 3) for yes in (False, True)
        },
        **facts,
    }
