"""Attention kernels, each beside its oracle, and the choice among them. Importing this imports no Triton."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys

_HOME = {
    "Clusters": "kmeans",
    "Runs": "kmeans",
    "block_lists": "lists",
    "block_sparse_attention": "dispatch",
    "block_sparse_attention_op": "custom_op",
    "choose": "dispatch",
    "cluster_runs": "kmeans",
    "cluster_tokens": "kmeans",
    "dense_attention": "dispatch",
    "dense_kernel_name": "dispatch",
    "from_keep": "lists",
    "from_mass": "lists",
    "from_top_k": "lists",
    "gather_tokens": "permute",
    "implementations": "dispatch",
    "keep_mass": "lists",
    "keep_top_k": "lists",
    "measure_antidiagonals": "antidiagonal",
    "measure_block_mass": "block_mass",
    "measure_lse": "block_mass",
    "nearest_centroids": "kmeans",
    "pool_blocks": "pooling",
    "run_means": "run_means",
    "scatter_tokens": "permute",
    "schedule": "lists",
    "sort_by_label": "counting_sort",
    "stratified_start": "kmeans",
    "to_keep": "lists",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _hand_over() -> None:
    """Leave the name to a package that is installed as ``kernels``, which diffusers and transformers ask for.

    Python that is started in the checkout finds this folder in its place.
    """
    here = os.path.realpath(os.path.dirname(os.path.dirname(__file__)))
    elsewhere = [place for place in sys.path if os.path.realpath(place or os.curdir) != here]
    spec = importlib.machinery.PathFinder.find_spec(__name__, elsewhere)
    if spec is not None and spec.loader is not None:
        sys.modules[__name__] = found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)


if __name__ == "kernels":
    _hand_over()
