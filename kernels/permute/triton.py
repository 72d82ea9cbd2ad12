"""Permutation of up to three tensors in one Triton pass: the order is read once, each row once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

BLOCK_BYTES = 16 << 10


@triton.jit
def _copy_rows(p_in, p_out, o_from, o_to, o_d, live, stride_is, stride_os, D: tl.constexpr):
    inside = live[:, None] & (o_d[None, :] < D)
    b_x = tl.load(p_in + o_from[:, None] * stride_is + o_d[None, :], mask=inside)  # [BS, BD]
    tl.store(p_out + o_to[:, None] * stride_os + o_d[None, :], b_x, mask=inside)


@triton.jit
def _permute(
    p_x, p_y, p_z, p_x_out, p_y_out, p_z_out, p_order, tokens, heads,
    stride_xb, stride_xs, stride_xh, stride_yb, stride_ys, stride_yh, stride_zb, stride_zs, stride_zh,
    stride_ob, stride_os, stride_oh, stride_pb, stride_ph,
    D: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr, TENSORS: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles, heads, batches). The outputs share their strides."""
    i_h = tl.program_id(1).to(tl.int64)
    i_b = tl.program_id(2).to(tl.int64)
    o_s = tl.program_id(0).to(tl.int64) * BS + tl.arange(0, BS)
    o_d = tl.arange(0, BD)
    live = o_s < tokens
    o_token = tl.load(p_order + i_b * stride_pb + i_h * stride_ph + o_s, mask=live, other=0).to(tl.int64)  # [BS]
    if BACK:
        o_from = o_s
        o_to = o_token
    else:
        o_from = o_token
        o_to = o_s
    out = i_b * stride_ob + i_h * stride_oh
    _copy_rows(p_x + i_b * stride_xb + i_h * stride_xh, p_x_out + out, o_from, o_to, o_d, live, stride_xs, stride_os, D)
    if TENSORS > 1:
        _copy_rows(
            p_y + i_b * stride_yb + i_h * stride_yh, p_y_out + out, o_from, o_to, o_d, live, stride_ys, stride_os, D
        )
    if TENSORS > 2:
        _copy_rows(
            p_z + i_b * stride_zb + i_h * stride_zh, p_z_out + out, o_from, o_to, o_d, live, stride_zs, stride_os, D
        )


def triton_permute(tensors: Sequence[torch.Tensor], order: torch.Tensor, *, back: bool) -> tuple[torch.Tensor, ...]:
    """Launch the kernel. Args and returns as `dittools.kernels.gather_tokens`, already validated."""
    batches, tokens, heads, dim = tensors[0].shape
    tensors = [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]
    outs = [torch.empty((batches, tokens, heads, dim), dtype=x.dtype, device=x.device) for x in tensors]
    order = order if order.stride(-1) == 1 else order.contiguous()
    lane_strides = (0 if size == 1 else step for size, step in zip(order.shape[:2], order.stride()[:2], strict=True))
    padding = 3 - len(tensors)
    ins, padded = [*tensors, *tensors[:1] * padding], [*outs, *outs[:1] * padding]
    wide = triton.next_power_of_2(dim)
    rows = max(1, min(128, BLOCK_BYTES // (wide * max(x.element_size() for x in tensors))))
    _permute[(triton.cdiv(tokens, rows), heads, batches)](
        *ins, *padded, order, tokens, heads,
        *(step for x in ins for step in x.stride()[:3]), *outs[0].stride()[:3], *lane_strides,
        D=dim, BD=wide, BS=rows, TENSORS=len(tensors), BACK=back, num_warps=4,
    )  # fmt: skip
    return tuple(outs)
