"""What several Triton kernels share: a step of the streaming softmax, tokens of positions, room on the card."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def attend_tile(
    b_q,
    b_acc,
    b_max,
    b_sum,
    p_k,
    p_v,
    o_token,
    o_d,
    live,
    bias,
    scale,
    stride_ks,
    stride_vs,
    D: tl.constexpr,
    BD: tl.constexpr,
    MASKED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One step of the streaming softmax: keys at ``o_token`` [BN], of which ``live`` [BN] count if MASKED."""
    p_bk = p_k + o_token[:, None] * stride_ks + o_d[None, :]
    p_bv = p_v + o_token[:, None] * stride_vs + o_d[None, :]
    # Predicates cost on the hot path: whole tiles, of head dims that are powers of two, do without.
    if MASKED:
        b_k = tl.load(p_bk, mask=live[:, None] & (o_d[None, :] < D), other=0.0)  # [BN, BD]
        b_v = tl.load(p_bv, mask=live[:, None] & (o_d[None, :] < D), other=0.0)  # [BN, BD]
    elif BD != D:
        b_k = tl.load(p_bk, mask=o_d[None, :] < D, other=0.0)  # [BN, BD]
        b_v = tl.load(p_bv, mask=o_d[None, :] < D, other=0.0)  # [BN, BD]
    else:
        b_k = tl.load(p_bk)  # [BN, BD]
        b_v = tl.load(p_bv)  # [BN, BD]
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # [BM, BN]
    if MASKED:
        b_s = tl.where(live[None, :], b_s, float("-inf"))
    b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale + bias)  # [BM]
    b_base = b_new
    if HAS_BIAS:
        # A bias of -inf can leave a row without any live key, and -inf minus -inf is not a number.
        b_base = tl.where(b_new == float("-inf"), 0.0, b_new)
    b_p = tl.exp2(b_s * scale - (b_base - bias)[:, None])  # [BM, BN]
    b_alpha = tl.exp2(b_max - b_base)  # [BM]
    b_sum = b_sum * b_alpha + tl.sum(b_p, 1)
    b_acc = b_acc * b_alpha[:, None]
    b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc, input_precision=PRECISION)  # [BM, BD]
    return b_acc, b_new, b_sum


@triton.jit
def tokens_at(p_order, o_position, length, HAS_ORDER: tl.constexpr, MASKED: tl.constexpr):
    """Tokens at positions, int64. Positions past the end give any valid token."""
    if HAS_ORDER:
        if MASKED:
            return tl.load(p_order + o_position, mask=o_position < length, other=0).to(tl.int64)
        return tl.load(p_order + o_position).to(tl.int64)
    return o_position.to(tl.int64)


def shared_memory(device: torch.device) -> int:
    """Shared memory that one program may use, in bytes."""
    if device.type != "cuda":
        return 0
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", 99 << 10)
