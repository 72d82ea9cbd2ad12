"""Every Triton and Gluon kernel once, on small ragged inputs: what compute-sanitizer watches.

    compute-sanitizer --tool memcheck python tests/kernels/small_cases.py hopper

Run through ``python tests/on_a_gpu.py --sanitizer``, which does so for each of `CASES`.
"""

import sys

import torch
from cases import inputs, random_mask, random_order, rms_error

from dittools.kernels import (
    block_sparse_attention,
    cluster_tokens,
    draw_sample,
    from_mass,
    from_top_k,
    gather_tokens,
    measure_antidiagonals,
    measure_block_mass,
    pool_blocks,
    scatter_tokens,
    sort_by_label,
)

TOKENS, HEADS = 333, 2


def attention(name, key_block=128, dims=(64, 128), query_block=128):
    for dim in dims:
        q, k, v = inputs(1, TOKENS, HEADS, dim, torch.bfloat16, device="cuda")
        mask = random_mask(TOKENS, query_block, key_block, heads=HEADS, density=0.6, device="cuda")
        bias = torch.randn(1, HEADS, mask.key.count, device="cuda")
        order = random_order(1, HEADS, TOKENS, device="cuda")
        sample = draw_sample(mask.key, key_block // 16, 1, device="cuda")
        for call in ({}, {"key_bias": bias}, {"order": order}, {"sample": sample}, {"sample": sample, "order": order}):
            found = block_sparse_attention(q, k, v, mask, implementation=name, **call)
            same(found, block_sparse_attention(q, k, v, mask, implementation="naive", **call))


def clusters(name="triton"):
    from test_clustered import random_clusters

    for dim in (64, 128):
        q, k, v = inputs(1, TOKENS, HEADS, dim, torch.bfloat16, device="cuda")
        mask = random_clusters(TOKENS, TOKENS, (5, 16), (1, HEADS)).to("cuda")
        order, key_order = (random_order(1, HEADS, TOKENS, seed, "cuda") for seed in (1, 2))
        orders = {"order": order, "key_order": key_order}
        found = block_sparse_attention(q, k, v, mask, implementation=name, **orders)
        same(found, block_sparse_attention(q, k, v, mask, implementation="naive", **orders))


def kv_blocks():
    scores = torch.rand(1, HEADS, 37, 41, device="cuda")
    for make, much in ((from_top_k, 7), (from_mass, 0.5)):
        (counts, found), (want_counts, want) = (make(scores, much, implementation=n) for n in ("triton", "portable"))
        assert torch.equal(counts, want_counts)
        live = torch.arange(found.shape[-1], device="cuda") < counts[..., None]
        assert torch.equal(found[live], want[live])


def fill():
    from test_fill import case

    from dittools.kernels.topk_mask.dispatch import topk_mask_per_head, topk_mask_per_row

    scores, queries, keys, force = case((37, 41), device="cuda")
    for forced in (force, None):
        for make in (topk_mask_per_row, topk_mask_per_head):
            found = [make(scores, queries, keys, 0.3, force=forced, implementation=n) for n in ("triton", "portable")]
            assert torch.equal(*found)


def permute():
    x = inputs(1, TOKENS, HEADS, 64, torch.bfloat16, device="cuda")
    order = random_order(1, HEADS, TOKENS, device="cuda")
    there = gather_tokens(x, order, implementation="triton")
    for back, was in zip(scatter_tokens(there, order, implementation="triton"), x, strict=True):
        assert torch.equal(back, was)


def kmeans():
    x = inputs(HEADS, TOKENS, 1, 64, torch.bfloat16, device="cuda")[0][:, :, 0]
    found = cluster_tokens(x, 17, implementation="triton")
    order, offsets = sort_by_label(found.labels, 17, implementation="triton")
    assert torch.equal(order.sort(-1).values, torch.arange(TOKENS, device="cuda", dtype=torch.int32).expand(HEADS, -1))
    assert (offsets[:, -1] == TOKENS).all()


def mass(name="triton"):
    for dim, block, passes in ((64, 64, 2), (128, 128, 2), (64, 64, 1)):
        q, k, _ = inputs(1, TOKENS, HEADS, dim, torch.bfloat16, device="cuda")
        if passes == 2:
            k[:, :200, 0] *= 40  # a head whose sums overflow, for the repair to do again
        mask = random_mask(TOKENS, 128, block, heads=HEADS, device="cuda")
        found = measure_block_mass(q, k, mask.query, mask.key, passes=passes, implementation=name)
        sizes = mask.query.sizes("cuda").float()
        torch.testing.assert_close(found.sum(-1), sizes.expand(1, HEADS, -1), atol=0.5, rtol=0.01)


def antidiagonals():
    q, k, _ = inputs(1, TOKENS, HEADS, 64, torch.bfloat16, device="cuda")
    for order in (None, random_order(1, 1, TOKENS, device="cuda")):
        for stride in (4, 8):
            call = (q, k, random_mask(TOKENS, 128, 128).query, stride)
            found, want = (measure_antidiagonals(*call, order=order, implementation=n) for n in ("triton", "portable"))
            torch.testing.assert_close(found, want, atol=5e-3, rtol=0.05)


def pooling():
    x = inputs(1, TOKENS, HEADS, 64, torch.bfloat16, device="cuda")[0]
    assert pool_blocks(x, random_mask(TOKENS, 128, 64).key).isfinite().all()


def probe():
    from test_probe import drawn_masks

    from dittools.kernels.probe.dispatch import pack_masks, pack_rows, probe_errors
    from dittools.kernels.probe.naive import naive_probe_errors

    for dim, rows in ((64, 64), (96, 17), (128, 64)):
        q, k, v = inputs(1, TOKENS, HEADS, dim, torch.bfloat16, device="cuda")
        masks = drawn_masks(3, rows, TOKENS).cuda()
        found = probe_errors(q[:, :rows], k, v, pack_masks(masks), implementation="triton")
        assert rms_error(found, naive_probe_errors(q[:, :rows], k, v, masks)) < 0.02
    keep, block = drawn_masks(2, 17, 5).cuda(), torch.randint(5, (2, TOKENS), device="cuda")
    packed = [pack_rows(keep, block, implementation=name) for name in ("triton", "portable")]
    assert torch.equal(*packed)


def likeness():
    from test_likeness import offsets_of

    from dittools.kernels.cosine_similarity.dispatch import intra_block_cosine_similarity
    from dittools.kernels.cosine_similarity.naive import naive_intra_block_cosine_similarity

    x = inputs(1, TOKENS, HEADS, 64, torch.bfloat16)[0]
    order, offsets = random_order(1, 1, TOKENS), offsets_of((0, 0, 128, 256, TOKENS))
    found = intra_block_cosine_similarity(x.cuda(), order.cuda(), offsets.cuda(), implementation="triton")[1]
    assert rms_error(found.cpu(), naive_intra_block_cosine_similarity(x, order, offsets)) < 1e-3


def means():
    from test_segment_means import check, offsets_of

    x = inputs(1, 5 * TOKENS, HEADS, 64, torch.bfloat16)
    for order in (None, random_order(1, HEADS, 5 * TOKENS)):
        check(("triton", "cuda"), x, order, offsets_of((0, 0, 70, 71, TOKENS, 5 * TOKENS)))


def compensation():
    from test_compensation import RUNS, case, check, offsets_of

    for runs in RUNS.values():
        check(("triton", "cuda"), *case(200, 128, torch.bfloat16), random_order(1, 2, 200), offsets_of(runs)[None])


def skipped():
    from test_skipped import moved, prepared

    from dittools.kernels.residual.dispatch import residual_attention
    from dittools.kernels.residual.naive import naive_residual_attention
    from dittools.kernels.residual.sample import sampled_keys

    case = prepared("clusters", 150, 128, torch.bfloat16, True)
    q, out, lse, blocks, means, scale = case
    draws = torch.rand(blocks.keep.shape[2], 5)
    for some in (means, sampled_keys(q, out, blocks, draws)):
        case = (q, out, lse, blocks, some, scale)
        found = residual_attention(*(moved(x, "cuda") for x in case), implementation="triton")
        assert rms_error(found.cpu(), naive_residual_attention(*case)) < 6e-3


def same(found, want):
    assert rms_error(found, want) < 0.02


CASES = {
    "hopper": lambda: [attention("hopper", keys, query_block=rows) for rows in (64, 128) for keys in (64, 128)],
    "triton": lambda: [attention("triton", block, (64, 96, 128)) for block in (64, 128)],
    "clusters": clusters,
    "compensation": compensation,
    "hopper-clusters": lambda: clusters("hopper"),
    "likeness": likeness,
    "lists": kv_blocks,
    "fill": fill,
    "permute": permute,
    "kmeans": kmeans,
    "mass": mass,
    "hopper-mass": lambda: mass("hopper"),
    "means": means,
    "antidiagonals": antidiagonals,
    "pooling": pooling,
    "probe": probe,
    "skipped": skipped,
}

if __name__ == "__main__":
    with torch.no_grad():
        CASES[sys.argv[1]]()
    torch.cuda.synchronize()
    print("right")
