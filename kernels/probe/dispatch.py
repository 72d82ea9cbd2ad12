"""What masks lose on a few query rows: the rows attend to all keys, and to those that each mask keeps."""

from __future__ import annotations

import torch

from dittools.kernels.capability import why_not_triton_probe
from dittools.kernels.checks import check_alike
from dittools.kernels.choice import picks_triton

# Largest working set of one chunk of heads on the plain path.
CHUNK_BYTES = 256 << 20


def pack_masks(masks: torch.Tensor) -> torch.Tensor:
    """Masks as bits, 32 keys a word: bool ``[C, n, S]`` -> int32 ``[C, 2 ceil(S / 64), n]``, first key lowest."""
    words = []
    for mask in masks:  # one by one: 32 times the bytes of a word stand for a moment
        bits = torch.nn.functional.pad(mask, (0, -mask.shape[-1] % 64)).T.unflatten(0, (-1, 32)).int()  # [words, 32, n]
        words.append((bits << _shifts(mask.device)).sum(1, dtype=torch.int32))
    return torch.stack(words)


def pack_rows(keep: torch.Tensor, block: torch.Tensor, *, implementation: str | None = None) -> torch.Tensor:
    """`pack_masks` of rows of block masks: a row keeps the keys whose block it keeps.

    Args:
        keep: bool ``[C, n, M]``, which blocks each row keeps.
        block: int64 ``[C, S]``, block of each key, below M.
        implementation: "triton" or "portable"; chosen when None.
    """
    if picks_triton(implementation, keep):
        from dittools.kernels.probe.triton import triton_pack_rows

        return triton_pack_rows(keep, block)
    return pack_masks(keep.gather(2, block[:, None].expand(-1, keep.shape[1], -1)))


def unpack_masks(kept: torch.Tensor, keys: int) -> torch.Tensor:
    """The inverse of `pack_masks`: bool ``[C, n, keys]``."""
    bits = (kept[:, :, None] >> _shifts(kept.device)) & 1  # [C, words, 32, n]
    return bits.flatten(1, 2)[:, :keys].bool().transpose(1, 2)


def _shifts(device: torch.device) -> torch.Tensor:
    return torch.arange(32, dtype=torch.int32, device=device)[:, None]


def probe_errors(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kept: torch.Tensor,
    *,
    scale: float | None = None,
    implementation: str | None = None,
) -> torch.Tensor:
    """Mean squared error of the output that each mask makes on some query rows, against their dense output.

    Args:
        q: the rows, ``[B, n, H, D]``. k, v: ``[B, S, H, D]``, same dtype and device. Any strides.
        kept: which keys each row keeps under each of C masks: `pack_masks`, int32 ``[C, words, n]``.
        scale: factor on the logits, ``1 / sqrt(D)`` by default.
        implementation: "triton" or "portable"; chosen when None.

    Returns:
        fp32 ``[C, B, H]``, means over rows and D. Sums and errors are fp32, products run in the dtype of q with fp32
        accumulation. A mask that keeps nothing of a row's mass loses that row's whole output.

    Raises:
        ValueError: when shapes, dtypes or devices do not fit together, or ``implementation`` cannot run.
    """
    _check(q, k, v, kept)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if picks_triton(implementation, q, k, v, reason=why_not_triton_probe(q)):
        from dittools.kernels.probe.triton import triton_probe_errors

        return triton_probe_errors(q, k, v, kept.contiguous(), scale)
    batches, rows, heads, _ = q.shape
    masks = unpack_masks(kept, k.shape[1])
    each = batches * rows * k.shape[1] * (3 + len(masks)) * q.element_size()  # logits, weights and those of each mask
    step = max(1, min(heads, CHUNK_BYTES // each))
    parts = zip(*(x.split(step, dim=2) for x in (q, k, v)), strict=True)
    found = [_errors(*part, masks, scale) for part in parts]
    return found[0] if len(found) == 1 else torch.cat(found, -1)


def _errors(q, k, v, masks: torch.Tensor, scale: float) -> torch.Tensor:
    """fp32 ``[C, B, h]`` of q ``[B, n, h, D]`` and k, v ``[B, S, h, D]``."""
    lanes = q.shape[0], q.shape[2]
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # [L, n or S, D], L = B h
    logits = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)  # [L, n, S]
    # Masking the dense weights and normalising again is the masked softmax, for one softmax instead of many.
    weights = logits.softmax(-1)[:, None]  # [L, 1, n, S]
    lost = _outputs(weights * masks, v) - _outputs(weights, v)  # fp32 [L, C, n, D]
    return lost.square().mean((-1, -2)).T.unflatten(1, lanes)


def _outputs(weights: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Means of v ``[L, S, D]`` under weights ``[L, C, n, S]``, not normalised yet: fp32 ``[L, C, n, D]``."""
    # A mask that keeps nothing of the mass fp32 can see loses the whole output.
    total = weights.sum(-1, keepdim=True, dtype=torch.float32).clamp_min(torch.finfo(torch.float32).tiny)
    return (weights.flatten(1, 2) @ v).unflatten(1, weights.shape[1:3]) / total


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kept: torch.Tensor) -> None:
    check_alike(q=q, k=k, v=v)
    if k.shape != v.shape or (k.shape[0], *k.shape[2:]) != (q.shape[0], *q.shape[2:]):
        raise ValueError(f"k {list(k.shape)} and v {list(v.shape)} do not go with q {list(q.shape)}")
    words = 2 * -(-k.shape[1] // 64)
    fits = kept.ndim == 3 and len(kept) > 0 and tuple(kept.shape[1:]) == (words, q.shape[1])
    if not fits or kept.dtype != torch.int32 or kept.device != q.device:
        raise ValueError(
            f"kept must be torch.int32 [masks, {words}, {q.shape[1]}] on {q.device}, "
            f"got {kept.dtype} {list(kept.shape)} on {kept.device}"
        )
