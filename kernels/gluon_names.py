"""What is called otherwise in other versions of Triton's Gluon, under one name: one source serves all of them.

Triton 3.6 and 3.7 have the longer names of TMA's copies, 3.8 knows both, and 3.9 only the shorter ones; likewise 3.9
has shared memory that is seen in another form as a public method.
"""

from __future__ import annotations

from triton.experimental.gluon.language import shared_memory_descriptor
from triton.experimental.gluon.language.nvidia.hopper import tma

if hasattr(tma, "async_load"):
    async_load, async_store = tma.async_load, tma.async_store
else:
    async_load, async_store = tma.async_copy_global_to_shared, tma.async_copy_shared_to_global
store_wait = tma.store_wait
# (shared memory, dtype, shape, layout)
reinterpret = getattr(shared_memory_descriptor, "reinterpret", None) or shared_memory_descriptor._reinterpret
