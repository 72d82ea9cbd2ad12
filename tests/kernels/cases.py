"""Inputs, a plain low-precision reference, and the tolerance that all kernel tests share."""

import torch

from dittools.kernels import block_sparse_attention
from dittools.kernels.masks.block_mask import BlockMask, Partition


def inputs(batches, tokens, heads, dim, dtype=torch.float32, keys=None, seed=0, device="cpu"):
    """q, k, v in ``[B, S, H, D]``."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (tokens, keys or tokens, keys or tokens)
    return [torch.randn(batches, n, heads, dim, generator=generator).to(device=device, dtype=dtype) for n in sizes]


def random_mask(tokens, query_block, key_block, batches=1, heads=1, density=0.4, keys=None, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    query, key = Partition(tokens, query_block), Partition(keys or tokens, key_block)
    keep = torch.rand(batches, heads, query.count, key.count, generator=generator) < density
    return BlockMask(keep.to(device), query, key)


def random_order(batches, heads, tokens, seed=0, device="cpu"):
    """int32 ``[batches, heads, tokens]``, a permutation each."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batches, heads, tokens, generator=generator).argsort(-1).int().to(device)


def token_mask(mask, order, batches, heads):
    """The mask between tokens instead of positions: bool ``[B, H, Sq, Sk]``."""
    rows = range(mask.query.length)
    kept = torch.stack([torch.stack([mask.to_tokens(b, h, rows) for h in range(heads)]) for b in range(batches)])
    if order is None:
        return kept
    position = order.long().argsort(-1).expand(batches, heads, -1)
    kept = kept.gather(-2, position[..., :, None].expand_as(kept))
    return kept.gather(-1, position[..., None, :].expand_as(kept))


def plain_attention(q, k, v, kept, scale=None):
    """Softmax attention with every step in the dtype of q; rows without a key give zeros."""
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * (scale or q.shape[-1] ** -0.5)
    weights = logits.masked_fill(~kept, -torch.inf).softmax(-1).nan_to_num(0.0)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)


def rms_error(found, wanted):
    """RMS of the difference over the RMS of the wanted."""
    found, wanted = found.double(), wanted.double()
    return ((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt().clamp_min(1e-12)).item()


def check(implementation, q, k, v, mask, *, order=None, scale=None, key_bias=None, sample=None):
    """Run one call against the fp32 oracle; return (out, lse).

    The error may be at most twice that of plain low-precision attention, and 1e-5 in fp32.
    """
    call = {"order": order, "scale": scale, "key_bias": key_bias, "sample": sample, "return_lse": True}
    out, lse = block_sparse_attention(q, k, v, mask, implementation=implementation, **call)
    exact, exact_lse = block_sparse_attention(q.float(), k.float(), v.float(), mask, implementation="naive", **call)
    assert out.shape == q.shape and out.dtype == q.dtype
    assert lse.shape == (q.shape[0], q.shape[2], q.shape[1]) and lse.dtype == torch.float32
    allowed = 1e-5
    if q.dtype != torch.float32:
        plain = plain_attention(q, k, v, token_mask(mask, order, q.shape[0], q.shape[2]), scale)
        exact_without_bias = exact
        if key_bias is not None or sample is not None:
            call |= {"key_bias": None, "sample": None}
            exact_without_bias, _ = block_sparse_attention(
                q.float(), k.float(), v.float(), mask, implementation="naive", **call
            )
        allowed += 2 * rms_error(plain, exact_without_bias)
    error = rms_error(out, exact)
    assert error <= allowed, f"RMS error {error:.2e}, allowed {allowed:.2e}"
    empty = exact_lse.isneginf()
    assert torch.equal(lse.isneginf(), empty)
    assert (out.transpose(1, 2)[empty] == 0).all()
    # PyTorch's CPU operator sums 16-bit weights, so that their LSE is a little off.
    loose = 2e-5 if q.dtype == torch.float32 else 2e-4
    torch.testing.assert_close(lse[~empty], exact_lse[~empty], atol=loose, rtol=1e-6)
    return out, lse
