"""Do the Hopper kernels prove themselves on this card? Right in every case, more than once, and faster than Triton's.

One takes query blocks of 128, one those of 64, one takes clusters, one measures block mass (`proof_mass`), and each
proves itself alone. What comes of it goes into the table of `dittools.kernels.checked`, which decides whether a kernel
is chosen.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from dittools.kernels import block_sparse_attention, checked
from dittools.kernels.block_sparse.sample import Sample, draw_sample
from dittools.kernels.masks.block_mask import BlockMask
from dittools.kernels.masks.cluster_mask import ClusterMask, ClusterPartition
from dittools.kernels.proof.calls import kinds_of_calls, speedup
from dittools.kernels.proof.check import Oracle, Wrong, poisoned, stop_if_broken
from dittools.kernels.proof.inputs import make_mask, make_order, make_tensors
from dittools.kernels.proof.mass import MASS, mass_faster, mass_jobs, prove_mass
from dittools.kernels.supervise import At
from dittools.kernels.timing import burst

BLOCKS, NARROW, CLUSTERS = "hopper", "hopper-64", "hopper-clusters"
KERNELS = (BLOCKS, NARROW, CLUSTERS, MASS)
TRITON = {BLOCKS: "triton", NARROW: "triton, 64 rows", CLUSTERS: "triton, clusters"}
# tokens, heads, batch
SIZES = ((1, 1, 1), (129, 2, 1), (1_000, 3, 2), (4_111, 2, 1), (32_760, 2, 1))
NARROW_SIZES = ((65, 1, 1), (1_000, 3, 2), (32_760, 2, 1))
CLUSTER_SIZES = ((1, 1, 1), (1_000, 3, 2), (4_111, 2, 1), (32_760, 2, 1))
# How clusters share the tokens out.
FAMILIES = ("ragged", "many empty", "one giant")
REPEATS = 5
SAID_BESIDE = {None: "", "bias": " with a bias", "sample": " with a sample"}
SPEED_SHAPE = (12, 32_768)
# Clusters as SVG2 has them at 720p, which is what they are for.
CLUSTERS_SPEED_SHAPE, SPEED_CLUSTERS = (40, 75_600), (300, 1_000)


def jobs(kernel: str | None = None) -> list[dict[str, Any]]:
    """What a kernel has to pass, small cases first, then the two that are timed; those of all when None."""
    if kernel is None:
        return [job for each in KERNELS for job in jobs(each)]
    if kernel == BLOCKS:
        return [*_cases(128, SIZES), *_speeds("speed", 128, 128)]
    if kernel == NARROW:
        return [*_cases(64, NARROW_SIZES), *_speeds("speed of 64 rows", 64, 64)]
    return {CLUSTERS: _cluster_jobs, MASS: mass_jobs}[kernel]()


def _cluster_jobs() -> list[dict[str, Any]]:
    cases = [
        {
            "kind": "clusters-proof", "id": f"clusters, {family}, hd{dim} {dtype} {tokens} tokens",
            "head_dim": dim, "dtype": dtype, "tokens": tokens, "heads": heads, "batch": batch, "family": family,
            "device": "cuda",
        }
        for (tokens, heads, batch), dim, dtype, family in itertools.product(
            CLUSTER_SIZES, (128, 64), ("bfloat16", "float16"), FAMILIES
        )
        if tokens != 32_760 or dtype == "bfloat16"
    ]  # fmt: skip
    heads, tokens = CLUSTERS_SPEED_SHAPE
    speed = {
        "kind": "clusters-faster", "heads": heads, "tokens": tokens, "head_dim": 128, "clusters": SPEED_CLUSTERS,
        "density": 0.2, "dtype": "bfloat16", "device": "cuda", "seconds": 4,
    }  # fmt: skip
    return [*cases, *({**speed, "ordered": yes, "id": f"speed of clusters, {kind_of(yes)}"} for yes in (False, True))]


def _cases(rows: int, sizes: tuple[tuple[int, int, int], ...]) -> list[dict[str, Any]]:
    return [
        {
            "kind": "proof", "id": f"hd{dim} {rows}x{block} {dtype} {tokens} tokens{SAID_BESIDE[beside]}",
            "head_dim": dim, "query_block": rows, "key_block": block, "dtype": dtype, "tokens": tokens, "heads": heads,
            "batch": batch, "biased": beside == "bias", "drawn": block // 16 if beside == "sample" else 0,
            "device": "cuda",
        }
        for (tokens, heads, batch), dim, block, dtype, beside in itertools.product(
            sizes, (128, 64), (128, 64), ("bfloat16", "float16"), SAID_BESIDE
        )
        # A bias and a mask are fp32 beside logits in fp32, whatever the dtype is: they are built for one.
        if not (beside and dtype == "float16") and (tokens != 32_760 or (dtype == "bfloat16" and beside != "bias"))
    ]  # fmt: skip


def _speeds(name: str, rows: int, block: int) -> list[dict[str, Any]]:
    heads, tokens = SPEED_SHAPE
    speed = {
        "kind": "faster", "heads": heads, "tokens": tokens, "head_dim": 128, "query_block": rows, "key_block": block,
        "density": 0.2, "family": "uniform", "dtype": "bfloat16", "device": "cuda", "seconds": 4,
    }  # fmt: skip
    return [{**speed, "ordered": yes, "id": f"{name}, {kind_of(yes)}"} for yes in (False, True)]


def _kernel_of(job: dict[str, Any]) -> str:
    return NARROW if job["query_block"] == 64 else BLOCKS


def kind_of(ordered: bool) -> str:
    return "ordered" if ordered else "raster"


def prove(job: dict[str, Any], at: At) -> dict[str, Any]:
    """One case: right on sampled blocks, without an order and with one, the same bits each time.

    Raises:
        Wrong: when it is not.
    """
    kernel = _kernel_of(job)
    stop_if_broken(job, kernel)
    device = torch.device(job["device"])
    q, k, v = _tensors(job)
    mask = make_mask(job["heads"], job["tokens"], job["query_block"], job["key_block"], 0.3, "ragged", device)
    mask.keep[0, 0, 0], mask.keep[0, -1, -1] = False, True  # an empty row and a full one
    bias = None
    if job["biased"]:
        # Without anything else to see it by, a bias is seen where it takes blocks away.
        bias = torch.zeros(1, job["heads"], mask.key.count, device=device)
        bias[..., ::3] = -torch.inf
    seen = mask if bias is None else BlockMask(mask.keep & bias.isfinite()[:, :, None], mask.query, mask.key)
    scale = job["head_dim"] ** -0.5
    sample = draw_sample(mask.key, job["drawn"], 5, device=device) if job["drawn"] else None
    for order in kinds_of_calls(job, raster=None, ordered=make_order(job["heads"], job["tokens"], device)):
        for drawn in _samples(sample, job["heads"]):
            at(kernel, 60)
            call = {"order": order, "scale": scale, "key_bias": bias, "sample": drawn}
            call["implementation"] = job.get("kernel", "hopper")
            oracle = Oracle(q, k, v, seen, scale, order, sample=drawn)
            _right_each_time(lambda call=call: _attend(q, k, v, mask, **call), oracle)
    return {"right": True}


def _samples(sample: Sample | None, heads: int) -> list[Sample | None]:
    """A sample that all heads see, and one of which each sees another share; none where nothing was drawn."""
    if sample is None or not sample.positions.shape[1]:
        return [None]
    seen = torch.linspace(0, sample.positions.shape[1], heads, device=sample.positions.device).int()
    return [sample, replace(sample, taken=seen[None])]


def prove_clusters(job: dict[str, Any], at: At) -> dict[str, Any]:
    """The same for one case of the kernel for clusters, where one cluster of keys is kept by nobody and poisoned.

    Raises:
        Wrong: when it is not right.
    """
    stop_if_broken(job, CLUSTERS)
    device, tokens, heads = torch.device(job["device"]), job["tokens"], job["heads"]
    q, k, v = _tensors(job)
    mask = random_clusters(job["family"], heads, tokens, (max(1, tokens // 250), max(2, tokens // 75)), 0.3, device)
    mask.keep[0, 0, 0], mask.keep[0, -1, -1] = False, True  # a row that keeps nothing, and one that keeps all
    mask.keep[..., 1] = False
    scale = job["head_dim"] ** -0.5
    shuffled = [random_order(heads, tokens, device, seed) for seed in (1, 2)]
    kinds = {"raster": (None, None), "ordered": (shuffled[0], None), "keys ordered": shuffled}
    for order, key_order in kinds_of_calls(job, **kinds):
        at(CLUSTERS, 60)
        call = {"order": order, "key_order": key_order, "scale": scale, "implementation": job.get("kernel", "hopper")}
        unseen = mask.key.labels() == 1  # [1, H, S]
        by_key = order if key_order is None else key_order
        if by_key is not None:
            unseen = torch.empty_like(unseen).scatter_(2, by_key.long(), unseen)
        unseen = unseen.transpose(1, 2)[..., None]  # [1, S, H, 1]
        tensors = q, k.masked_fill(unseen, torch.nan), v.masked_fill(unseen, 6e4)
        oracle = Oracle(*tensors, mask, scale, order, key_order)
        _right_each_time(lambda tensors=tensors, call=call: _attend(*tensors, mask, **call), oracle)
    return {"right": True}


def random_order(heads: int, tokens: int, device: torch.device, seed: int) -> torch.Tensor:
    """A permutation for each head: int32 ``[1, H, S]``."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.rand(1, heads, tokens, device=device, generator=generator).argsort(-1).int()


def random_clusters(
    family: str, heads: int, tokens: int, clusters: tuple[int, int], density: float, device: torch.device
) -> ClusterMask:
    """Clusters of queries and keys whose sizes are of one of `FAMILIES`, or "even", about as k-means makes them."""
    generator = torch.Generator(device).manual_seed(4)
    sides = []
    for count in clusters:
        share = torch.rand(1, heads, count, device=device, generator=generator)
        if family == "many empty":
            share *= torch.rand(1, heads, count, device=device, generator=generator) < 0.5
            share[..., 0] += 0.01
        elif family == "one giant":
            share[..., count // 3] = 2 * count  # one of those that the oracle looks at
        elif family == "even":
            share += 0.5
        ends = (share.double().cumsum(-1) / share.double().sum(-1, keepdim=True) * tokens).round().int()
        ends[..., -1] = tokens
        sides.append(ClusterPartition(tokens, ends.diff(dim=-1, prepend=torch.zeros_like(ends[..., :1]))))
    keep = torch.rand(1, heads, *clusters, device=device, generator=generator) < density
    return ClusterMask(keep, *sides)


def _tensors(job: dict[str, Any]) -> list[torch.Tensor]:
    generator = torch.Generator(job["device"]).manual_seed(3)
    size = (job["batch"], job["tokens"], job["heads"], job["head_dim"])
    made = {"device": job["device"], "dtype": getattr(torch, job["dtype"]), "generator": generator}
    return [torch.randn(size, **made) for _ in range(3)]


def _attend(q, k, v, mask, **call) -> tuple[torch.Tensor, torch.Tensor]:
    return block_sparse_attention(q, k, v, mask, return_lse=True, **call)


def _right_each_time(call: Callable[[], tuple[torch.Tensor, torch.Tensor]], oracle: Oracle) -> None:
    """Raise `Wrong` unless a call is right, and gives the same bits each time."""
    with poisoned():
        out, lse = call()
    oracle.judge(out, lse)
    for _ in range(REPEATS):
        again = call()
        if not (torch.equal(again[0], out) and torch.equal(again[1], lse)):
            raise Wrong("two calls on the same input differ")


def faster(job: dict[str, Any], at: At) -> dict[str, Any]:
    """Milliseconds of the kernel and of Triton's on one case, in turn, once both are right."""
    kernel, device = _kernel_of(job), torch.device(job["device"])
    stop_if_broken(job, kernel, TRITON[kernel])
    names = ("heads", "tokens", "query_block", "key_block", "density", "family")
    mask = make_mask(*(job[name] for name in names), device)
    order = make_order(job["heads"], job["tokens"], device) if job["ordered"] else None
    return _compare(job, mask, {"order": order}, at, kernel)


def clusters_faster(job: dict[str, Any], at: At) -> dict[str, Any]:
    """The same for the kernels for clusters. Each call makes its lists anew; those with orders permute as well."""
    stop_if_broken(job, CLUSTERS, TRITON[CLUSTERS])
    device, heads, tokens = torch.device(job["device"]), job["heads"], job["tokens"]
    mask = random_clusters("even", heads, tokens, job["clusters"], job["density"], device)
    orders = [random_order(heads, tokens, device, seed) if job["ordered"] else None for seed in (1, 2)]
    orders = dict(zip(("order", "key_order"), orders, strict=True))
    return _compare(job, mask, orders, at, CLUSTERS)


def _compare(job, mask, orders, at: At, kernel: str) -> dict[str, Any]:
    """Milliseconds of the job's "kernels", in turn, else of the Hopper and of Triton's; "speedup" of the first."""
    said, scale = {"hopper": kernel, "triton": TRITON[kernel]}, job["head_dim"] ** -0.5
    tensors = make_tensors(
        job["heads"], job["tokens"], job["head_dim"], getattr(torch, job["dtype"]), torch.device(job["device"])
    )
    oracle = Oracle(*tensors, mask, scale, *orders.values())
    calls = {}
    for name in job.get("kernels", ("hopper", "triton")):
        at(said.get(name, name), 60)
        call = {**orders, "scale": scale, "implementation": name}
        with poisoned():
            out, lse = _attend(*tensors, mask, **call)
        oracle.judge(out, lse)
        calls[name] = lambda call=call: block_sparse_attention(*tensors, mask, **call)
    times = burst(calls, tensors[0].device, job["seconds"], tell=lambda name: at(said.get(name, name), 30))
    return {"times": times, **speedup(times)}


def entry(results: dict[str, dict[str, Any]], facts: dict[str, Any], kernel: str = BLOCKS) -> dict[str, Any]:
    """The entry of a kernel for the table, from results by id.

    Args:
        facts: where it was measured; "capability" is one of them.

    Raises:
        Wrong: when anything of this kernel failed or is missing, with the first of it.
    """
    asked = jobs(kernel)
    for job in asked:
        result = results.get(job["id"], {"error": "not run"})
        if "error" in result:
            raise Wrong(f"{job['id']}: {result['error']}")
    return {
        "implementation": kernel,
        "source": checked.fingerprint(kernel),
        "triton": checked.triton_minor(),
        "cases": len(asked) - 2,
        "speedup_over_triton": {
            job.get("call") or kind_of(job["ordered"]): round(results[job["id"]]["speedup"], 3) for job in asked[-2:]
        },
        **facts,
    }


# What each kind of job of a proof does.
KINDS: dict[str, Callable[[dict[str, Any], At], object]] = {
    "proof": prove,
    "clusters-proof": prove_clusters,
    "mass-proof": prove_mass,
    "faster": faster,
    "clusters-faster": clusters_faster,
    "mass-faster": mass_faster,
}
