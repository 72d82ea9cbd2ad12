"""What several GPUs would make of a denoiser call that was measured on one: an estimate by arithmetic.

A call's attention goes by heads (Ulysses) and by queries (ring), all else by tokens, and the exchange is volume over
bandwidth. Nothing overlaps, no launch and no message has a latency, and heads are equally costly: what is left out
makes several GPUs slower, but for overlap.

Source of the volumes: Jacobs et al., "DeepSpeed Ulysses", arXiv 2309.14509, section 3.2, four tensors of which each
rank keeps a share of 1 / ranks; Liu et al., "Ring Attention", arXiv 2310.01889, keys and values of all other ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dittools.profiles.calls import MeasuredCall

ELEMENT = 2
"""Bytes of a number in bf16 and fp16."""
GPUS_A_MACHINE = 8
PAYS = 0.5
"""Least share of several GPUs' time that does what one GPU did, for them to be worth it."""


@dataclass(frozen=True)
class Links:
    """How fast GPUs send to each other, in GB/s a GPU and direction.

    Args:
        inside: of one machine. 300 is two thirds of the 450 that the fourth NVLink of an H200 has each way.
        between: machines. 50 is one 400 Gb/s adapter a GPU, as in a DGX H200.
        gpus: of one machine.
    """

    inside: float = 300.0
    between: float = 50.0
    gpus: int = GPUS_A_MACHINE


@dataclass(frozen=True)
class Layout:
    """How GPUs share a step: guidance branches first, tokens by ring in each, heads by Ulysses in each of those."""

    cfg: int = 1
    ulysses: int = 1
    ring: int = 1

    @property
    def gpus(self) -> int:
        return self.cfg * self.ulysses * self.ring

    def __str__(self) -> str:
        degrees = {"cfg": self.cfg, "ulysses": self.ulysses, "ring": self.ring}
        return ",".join(f"{name}:{degree}" for name, degree in degrees.items() if degree > 1) or "-"


@dataclass(frozen=True)
class Work:
    """A call as it is to be split.

    Args:
        call: what was measured.
        tokens: of the sequence asked for.
        attention, rest: seconds of one call on one GPU in self-attention and in all else.
    """

    call: MeasuredCall
    tokens: int
    attention: float
    rest: float


@dataclass(frozen=True)
class Split:
    """A step on several GPUs. Seconds are of one denoiser call on the slowest GPU, but for those of the step.

    Args:
        layout: how they share it.
        heads: of the GPU that has most.
        attention, exchange, rest: seconds; the exchange is that of all layers.
        exchanged_gb: sent by a GPU in one call, by Ulysses and by ring.
        step: seconds of all guidance branches.
        memory_gb: a GPU: weights, its share of what a call needs, and what is exchanged of one layer.
    """

    layout: Layout
    heads: int
    attention: float
    exchange: float
    rest: float
    exchanged_gb: tuple[float, float]
    step: float
    memory_gb: float


def work_of(call: MeasuredCall, tokens: int, sparsity: float | None, dense_layers: int) -> Work:
    """Seconds of a call with these tokens on one GPU: attention by pairs, the rest by tokens.

    Args:
        call: measured.
        tokens: of the sequence.
        sparsity: of the sparse layers, whose kernel goes by the pairs it keeps; None for a dense call.
        dense_layers: layers at the start that stay dense.
    """
    pairs, by_token = (tokens / call.tokens) ** 2, tokens / call.tokens
    if sparsity is None:
        return Work(call, tokens, call.dense_attention * pairs, (call.dense_seconds - call.dense_attention) * by_token)
    rest = (call.sparse_seconds - call.sparse_attention) * by_token
    dense_layers = min(dense_layers, call.layers)
    dense = call.dense_attention / call.layers
    chosen = call.sparse_attention - call.dense_layers * dense - call.kernel
    kernel = call.kernel * (1 - sparsity) / (1 - call.sparsity)
    sparse = (kernel + chosen) * (call.layers - dense_layers) / (call.layers - call.dense_layers)
    return Work(call, tokens, (dense_layers * dense + sparse) * pairs, rest)


def exchanged_bytes(call: MeasuredCall, tokens: int, layout: Layout) -> tuple[float, float]:
    """Bytes that the busiest GPU sends in one layer, by Ulysses and by ring.

    Ulysses: q, k and v to other heads' GPUs and the output back, ``4 t h D (U - 1)`` numbers for t tokens of a GPU and
    h heads of the busiest, which is ``4 S H D / P (U - 1) / U`` where all divides. Ring: k and v of its heads from
    every other part of the sequence, all blocks of them. Text of a cross-attention is on every GPU.
    """
    own, heads = _tokens(tokens, layout), _heads(call, layout)
    numbers = own * heads * call.head_dim * ELEMENT
    return 4 * numbers * (layout.ulysses - 1), 2 * numbers * layout.ulysses * (layout.ring - 1)


def split(work: Work, layout: Layout, links: Links) -> Split:
    """One step in one layout. Heads or tokens that do not divide make the busiest GPU's share larger."""
    call = work.call
    own, heads = _tokens(work.tokens, layout), _heads(call, layout)
    by_ulysses, by_ring = exchanged_bytes(call, work.tokens, layout)
    attention = work.attention * heads / call.heads * own * layout.ulysses / work.tokens
    rest = work.rest * own / work.tokens
    exchange = call.layers * (_ulysses_seconds(by_ulysses, layout, links) + _ring_seconds(by_ring, layout, links))
    activations = (call.peak_gb - call.weights_gb) * own / call.tokens
    buffers = 0.0 if layout.gpus == layout.cfg else 4 * own * call.heads * call.head_dim * ELEMENT + by_ring
    return Split(
        layout=layout,
        heads=heads,
        attention=attention,
        exchange=exchange,
        rest=rest,
        exchanged_gb=(call.layers * by_ulysses / 1e9, call.layers * by_ring / 1e9),
        step=(attention + exchange + rest) * call.branches / layout.cfg,
        memory_gb=call.weights_gb + activations + buffers / 1e9,
    )


def fastest(work: Work, gpus: int, links: Links) -> Split:
    """The layout that makes a step fastest on so many GPUs; of equal ones the one with less ring."""
    found = [split(work, layout, links) for layout in _layouts(work.call, gpus, links)]
    return min(found, key=lambda one: (one.step, one.layout.ring, one.layout.cfg))


def numbers_of_gpus(most: int) -> list[int]:
    """1, 2, 4 and so on, and the most."""
    return sorted({2**i for i in range(most.bit_length()) if 2**i <= most} | {most})


def efficiency(one: Split, several: Split) -> float:
    """Share of the time of several GPUs that does what one GPU did."""
    return one.step / several.step / several.layout.gpus


def _tokens(tokens: int, layout: Layout) -> int:
    return -(-tokens // (layout.ulysses * layout.ring))


def _heads(call: MeasuredCall, layout: Layout) -> int:
    return -(-call.heads // layout.ulysses)


def _layouts(call: MeasuredCall, gpus: int, links: Links) -> Iterator[Layout]:
    """Every way to share, without GPUs that have no head; a Ulysses group fills machines or fits into one."""
    for cfg in {1, min(2, call.branches)}:
        for ulysses in range(1, min(call.heads, gpus) + 1):
            whole = links.gpus % ulysses == 0 or ulysses % links.gpus == 0 or gpus <= links.gpus
            if gpus % (cfg * ulysses) == 0 and whole:
                yield Layout(cfg, ulysses, gpus // (cfg * ulysses))


def _ulysses_seconds(sent: float, layout: Layout, links: Links) -> float:
    """An all-to-all: to GPUs of the same machine and then to others, each at its bandwidth."""
    if layout.ulysses == 1:
        return 0.0
    near = min(layout.ulysses, links.gpus) - 1
    share = near / (layout.ulysses - 1)
    return sent * (share / links.inside + (1 - share) / links.between) / 1e9


def _ring_seconds(sent: float, layout: Layout, links: Links) -> float:
    """A ring: as slow as its slowest link."""
    inside = layout.ulysses * layout.ring <= links.gpus
    return sent / (links.inside if inside else links.between) / 1e9
