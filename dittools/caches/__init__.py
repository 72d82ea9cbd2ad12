"""The step caches by name. A new one is a file here and a line in `CACHES`."""

from __future__ import annotations

from dittools.caches.base import Cache
from dittools.caches.easycache import EasyCache
from dittools.caches.fastercache import FasterCache
from dittools.caches.first_block import FirstBlock
from dittools.caches.magcache import MagCache
from dittools.caches.pab import PyramidAttentionBroadcast
from dittools.caches.sea import Sea
from dittools.caches.state import BranchState, Model, Shapes, StepCall, Trajectory
from dittools.caches.taylorseer import TaylorSeer
from dittools.caches.teacache import TeaCache
from dittools.registry import Placeholder, Registry

__all__ = [
    "CACHES",
    "BranchState",
    "Cache",
    "Model",
    "Shapes",
    "StepCall",
    "Trajectory",
    "create",
    "describe",
    "names",
    "options",
    "read",
]

NONE = "none"
CACHES = Registry(
    "cache",
    Cache,
    (TeaCache, FirstBlock, MagCache, TaylorSeer, EasyCache, PyramidAttentionBroadcast, FasterCache, Sea),
    (Placeholder(NONE, "compute every step"),),
    "dittools caches",
)
names, options, describe, create, read = CACHES.names, CACHES.options, CACHES.describe, CACHES.create, CACHES.read
