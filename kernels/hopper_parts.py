"""What the Hopper kernels share, in Gluon."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

LOG2_E = gl.constexpr(1.4426950408889634)
LN_2 = gl.constexpr(0.6931471805599453)
WG_ROWS = gl.constexpr(64)
CONSUMERS = gl.constexpr(2)  # of the kernels that always have two


@gluon.jit
def advance(stage, phase, STAGES: gl.constexpr):
    """The next ring slot; the phase flips when the ring wraps."""
    wraps = stage == STAGES - 1
    return gl.where(wraps, 0, stage + 1), gl.where(wraps, phase ^ 1, phase)


@gluon.jit
def partial_sums(b_p, BN: gl.constexpr, SUMS: gl.constexpr):
    """Sums over the keys that one thread holds, ``[64, 8]``: lanes are added up once, at the end of a tile."""
    b_parts = b_p.reshape([WG_ROWS, BN // 8, 8])
    return gl.convert_layout(gl.sum(b_parts, 1), SUMS, assert_trivial=True)
