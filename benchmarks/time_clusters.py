"""Check and time attention between clusters: ``python -m dittools.benchmarks.time_clusters --json PATH``.

Each figure is r = dense time x density / sparse time, dense being PyTorch's fastest kernel in the same process on the
same tensors, in turn with the others. "kernel" has K and V in order already; "call" brings them there, and both write
their lists; "call+centroids" adds skipped clusters as anchored means. "hopper" is what "kernel" is and "hopper call"
what "call" is by the Hopper kernel, where it runs. Nothing is timed before sampled rows of that very case have passed
against fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dittools.benchmarks.time_cases import here, keep_cases, parser_of, timed
from dittools.kernels import block_sparse_attention
from dittools.kernels.capability import why_not_hopper
from dittools.kernels.clusters.hopper import hopper_cluster_attention
from dittools.kernels.clusters.portable import portable_cluster_attention
from dittools.kernels.dense import dense_attention, dense_kernel_name
from dittools.kernels.masks.cluster_mask import ClusterMask, ClusterPartition
from dittools.kernels.permute.dispatch import gather_tokens
from dittools.kernels.residual.dispatch import Blocks, calibrate_at_centroid, residual_attention, summarise
from dittools.methods.base import Plan


def make_plan(heads: int, tokens: int, clusters: tuple[int, int], density: float, device: torch.device) -> Plan:
    """Clusters with the spread of sizes that k-means gives (about half the mean), in random orders."""
    made = torch.Generator().manual_seed(0)
    sides = []
    for count in clusters:
        weight = 0.3 + torch.rand(1, heads, count, generator=made) * 1.4
        ends = (weight.cumsum(-1) / weight.sum(-1, keepdim=True) * tokens).round().int()
        ends[..., -1] = tokens
        sides.append(ClusterPartition(tokens, ends.diff(dim=-1, prepend=torch.zeros_like(ends[..., :1])).to(device)))
    keep = torch.rand(1, heads, *clusters, generator=made) < density
    orders = [torch.rand(1, heads, tokens, generator=made).argsort(-1).int().to(device) for _ in clusters]
    return Plan(orders[0], ClusterMask(keep.to(device), *sides), key_order=orders[1])


def check(q, k, v, plan: Plan, out: torch.Tensor, rows: int = 32) -> float:
    """Worst relative error of sampled query positions against fp32. Raises RuntimeError where it is no rounding."""
    worst, scale = 0.0, q.shape[-1] ** -0.5
    for h in {0, q.shape[2] - 1}:
        positions = torch.linspace(0, q.shape[1] - 1, rows, device=q.device).long()
        kept = plan.mask.to_tokens(0, h, positions)
        tokens, keys = plan.order[0, h, positions].long(), plan.key_order[0, h].long()
        logits = (q[0, tokens, h].float() @ k[0, keys, h].float().T * scale).masked_fill(~kept, -torch.inf)
        wanted = logits.softmax(-1).nan_to_num(0.0) @ v[0, keys, h].float()
        off = (out[0, tokens, h].float() - wanted).norm() / wanted.norm().clamp_min(1e-6)
        worst = max(worst, off.item())
    if not worst < 0.02:
        raise RuntimeError(f"head outputs are off by {worst:.3g} of their size: not timed")
    return worst


def case(heads: int, tokens: int, dim: int, clusters: tuple[int, int], density: float, repeats: int = 10) -> dict:
    """One case: milliseconds and r of each form."""
    device = here()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    made = torch.Generator(device).manual_seed(1)
    q, k, v = (torch.randn(1, tokens, heads, dim, generator=made, device=device).to(dtype) for _ in range(3))
    plan = make_plan(heads, tokens, clusters, density, device)
    scale = dim**-0.5

    def call():
        orders = {"order": plan.order, "key_order": plan.key_order}
        return block_sparse_attention(q, k, v, plan.mask, **orders, scale=scale, return_lse=True)

    def corrected():
        out, lse = call()
        blocks = Blocks.of(plan, q)
        return residual_attention(
            q, out, lse, blocks, calibrate_at_centroid(q, k, v, blocks, summarise(k, v, blocks), scale), scale
        )

    error = check(q, k, v, plan, call()[0])
    placed = gather_tokens((k, v), plan.key_order)

    def kernel():
        if device.type == "cuda":
            from dittools.kernels.clusters.triton import triton_cluster_attention

            return triton_cluster_attention(q, *placed, plan.mask, order=plan.order, scale=scale)
        return portable_cluster_attention(q, *placed, plan.mask, order=plan.order, scale=scale)

    calls = {"dense": lambda: dense_attention(q, k, v), "kernel": kernel, "call": call, "call+centroids": corrected}
    for name, hopper in _hopper_calls(q, k, v, placed, plan, scale).items():
        error = max(error, check(q, k, v, plan, hopper()[0]))
        calls[name] = hopper
    times = timed(calls, device, repeats)
    kept = plan.mask.density().mean().item()
    r = {name: times["dense"] * kept / took for name, took in times.items() if name != "dense"}
    shape = {"heads": heads, "tokens": tokens, "dim": dim, "clusters": list(clusters), "density": kept}
    return {**shape, "error": error, "milliseconds": times, "r": r}


def _hopper_calls(q, k, v, placed: tuple, plan: Plan, scale: float) -> dict[str, Callable]:
    """The Hopper kernel with K and V in order, and with all of a call; none where it cannot run."""
    if why_not_hopper(q.device, q.dtype, q.shape[-1]) is not None:
        return {}
    orders = {"order": plan.order, "key_order": plan.key_order}
    return {
        "hopper": lambda: hopper_cluster_attention(q, *placed, plan.mask, order=plan.order, scale=scale),
        "hopper call": lambda: hopper_cluster_attention(q, k, v, plan.mask, **orders, scale=scale),
    }


def main(arguments: list[str] | None = None) -> None:
    """Time every case and write the JSON after each."""
    parser = parser_of(__doc__, repeats=10)
    parser.add_argument("--clusters", type=int, nargs=2, default=(300, 1000), help="of queries, of keys")
    parser.add_argument("--density", type=float, nargs="+", default=(0.25, 0.1))
    asked = parser.parse_args(arguments)
    dense = dense_kernel_name(here(), torch.bfloat16 if here().type == "cuda" else torch.float32, asked.dim)
    shape = asked.heads, asked.tokens, asked.dim, tuple(asked.clusters)
    cases = (partial(case, *shape, density, asked.repeats) for density in asked.density)
    keep_cases(asked.json, cases, _said, dense=dense)


def _said(found: dict) -> str:
    return " ".join([f"density {found['density']:.3f}", *(f"{n} r {x:.3f}" for n, x in found["r"].items())])


if __name__ == "__main__":
    main()
