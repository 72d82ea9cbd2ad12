"""Check and time antidiagonal scores on this machine: ``python -m dittools.benchmarks.time_antidiagonals --json PATH``.

For each stride, the scores in the order of the tokens and in another, in every variant of the kernel; and "select", the
choice of blocks from them by one threshold for all heads. Milliseconds, and TFLOP/s of the products of one pass.
Nothing is timed before sampled rows of that very form have passed against fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dittools.benchmarks.time_cases import here, in_lines, keep_cases, parser_of, passing, timed
from dittools.kernels.antidiagonal.dispatch import fold, measure_antidiagonals
from dittools.kernels.masks.block_mask import Partition
from dittools.selection.budget import select_topk_blocks


def check(q, k, blocks: Partition, stride: int, order: torch.Tensor | None, mass: torch.Tensor) -> float:
    """Worst relative error of three query blocks of the first and last head. Raises RuntimeError where that is no
    rounding.
    """
    worst, size = 0.0, blocks.size // stride
    for h in {0, q.shape[2] - 1}:
        rows, keys = (x[:1, :, h : h + 1] if order is None else x[:1, order[0, 0].long(), h : h + 1] for x in (q, k))
        rows, keys = fold(rows, stride, backwards=True)[0, :, 0], fold(keys, stride)[0, :, 0]  # [T, s D]
        for m in {0, blocks.count // 2, blocks.count - 1}:
            logits = rows[m * size : (m + 1) * size].float() @ keys.float().T * (q.shape[-1] ** -0.5 / stride)
            share = logits.softmax(-1).mean(0)
            wanted = torch.stack([part.sum() for part in share.split(size)])
            worst = max(worst, ((mass[0, h, m] - wanted).norm() / wanted.norm()).item())
    if not worst < 0.01:
        raise RuntimeError(f"shares are off by {worst:.3g} of their size: not timed")
    return worst


def case(heads: int, tokens: int, dim: int, block: int, stride: int, density: float, repeats: int = 5) -> dict:
    """One stride: milliseconds of each form."""
    device = here()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    made = torch.Generator(device).manual_seed(1)
    q, k = (torch.randn(1, tokens, heads, dim, generator=made, device=device).to(dtype) for _ in range(2))
    blocks = Partition(tokens, block)
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(2)).int().to(device)[None, None]
    forms = _forms(q, k, blocks, stride, order)
    calls, error, left_out = passing(
        {name: call for name, (call, _) in forms.items()},
        lambda name, mass: check(q, k, blocks, stride, forms[name][1], mass),
    )
    mass, sizes = measure_antidiagonals(q, k, blocks, stride), blocks.sizes(device)
    scores = len(calls)
    calls["select"] = lambda: select_topk_blocks(mass, sizes, sizes, density, scope="layer", ranking="cumulative")
    times = timed(calls, device, repeats)
    operations = 2 * heads * dim * stride * (-(-tokens // stride)) ** 2
    rates = {name: operations / ms / 1e9 for name, ms in list(times.items())[:scores]}
    shape = {"heads": heads, "tokens": tokens, "dim": dim, "block": block, "stride": stride, "density": density}
    return {**shape, "error": error, "milliseconds": times, "tflops": rates, "left_out": left_out}


def _forms(
    q, k, blocks: Partition, stride: int, order: torch.Tensor
) -> dict[str, tuple[Callable, torch.Tensor | None]]:
    """Each form, and the order it goes by: the call as it is, and where Triton runs the kernel in its variants."""
    forms: dict[str, tuple[Callable, torch.Tensor | None]] = {}
    for kind, by in (("raster", None), ("order", order)):
        forms[f"{kind}: as called"] = (lambda by=by: measure_antidiagonals(q, k, blocks, stride, order=by)), by
        if q.device.type != "cuda":
            continue
        from dittools.kernels.antidiagonal.triton import Variant, triton_antidiagonals

        variants = [
            Variant(), Variant(lasting=True), Variant(stages=3), Variant(stages=6), Variant(stages=6, lasting=True),
            Variant(256, 128), Variant(256, 128, lasting=True), Variant(128, 128, 4, 3), Variant(128, 128, 8, 3),
        ]  # fmt: skip
        for v in variants:
            if v.stages == 6 and by is None:  # does not fit without the stages that only look up tokens
                continue
            name = f"{kind}: {v.rows} x {v.columns}, {v.warps} warps, {v.stages} stages{', lasting' * v.lasting}"

            def call(v=v, by=by):
                return triton_antidiagonals(q, k, blocks, stride, q.shape[-1] ** -0.5 / stride, by, v)

            forms[name] = call, by
    return forms


def main(arguments: list[str] | None = None) -> None:
    """Time every stride and write the JSON after each."""
    parser = parser_of(__doc__, repeats=5)
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--stride", type=int, nargs="+", default=(8, 16))
    parser.add_argument("--density", type=float, default=0.2)
    asked = parser.parse_args(arguments)
    shape = asked.heads, asked.tokens, asked.dim, asked.block
    cases = (partial(case, *shape, stride, asked.density, asked.repeats) for stride in asked.stride)
    keep_cases(asked.json, cases, lambda found: in_lines(f"stride {found['stride']}", found))


if __name__ == "__main__":
    main()
