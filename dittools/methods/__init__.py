"""The methods by name. A new one is a file here and a line in `METHODS`."""

from __future__ import annotations

from dittools.methods import auto
from dittools.methods.adaspa import AdaSpa
from dittools.methods.attention_tile import AttentionTile
from dittools.methods.base import AttentionCall, Method, Plan, StayDense
from dittools.methods.clear import Clear
from dittools.methods.dense import Dense
from dittools.methods.draft import Draft
from dittools.methods.gna import GNA
from dittools.methods.jenga import Jenga
from dittools.methods.nabla import Nabla
from dittools.methods.oracle import Oracle
from dittools.methods.paro import PARO
from dittools.methods.radial import Radial
from dittools.methods.random_blocks import RandomBlocks
from dittools.methods.sparge import Sparge
from dittools.methods.sparse_vdit import SparseVDiT
from dittools.methods.sparsed import SparseD
from dittools.methods.sta import STA
from dittools.methods.svg import SVG
from dittools.methods.svg2 import SVG2
from dittools.methods.svg_ear import SVGEAR
from dittools.methods.todo import ToDo
from dittools.methods.trained import Trained
from dittools.methods.vmoba import VMoBA
from dittools.methods.xattention import XAttention
from dittools.registry import Placeholder, Registry

__all__ = ["METHODS", "AttentionCall", "Method", "Plan", "StayDense", "create", "describe", "names", "options"]

STATIC = (GNA, STA, Clear, Radial, ToDo, AttentionTile)
_ONLINE = (SVG, SVG2, SVGEAR, AdaSpa, Draft, Jenga, Nabla, Sparge, SparseD, VMoBA, XAttention, Trained)
_PROFILED = (PARO, SparseVDiT)
_YARDSTICKS = (Oracle, RandomBlocks)

METHODS = Registry(
    "method",
    Method,
    (Dense, *_ONLINE, *STATIC, *_PROFILED, *_YARDSTICKS),
    (Placeholder("auto", auto.SUMMARY, lambda: auto.CANDIDATES[0]()),),
    "dittools methods",
)
names, options, describe, create = METHODS.names, METHODS.options, METHODS.describe, METHODS.create
