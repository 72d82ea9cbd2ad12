"""Attention kernels, each beside its oracle, and the choice among them. Importing this imports no Triton."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys

_HOME = {
    "Clusters": "kmeans.dispatch",
    "Runs": "kmeans.dispatch",
    "Sample": "block_sparse.sample",
    "block_lists": "block_sparse.lists",
    "block_sparse_attention": "block_sparse.dispatch",
    "block_sparse_attention_op": "block_sparse.custom_op",
    "choose": "choice",
    "cluster_runs": "kmeans.dispatch",
    "cluster_tokens": "kmeans.dispatch",
    "dense_attention": "dense",
    "dense_kernel_name": "dense",
    "draw_sample": "block_sparse.sample",
    "draw_samples": "block_sparse.sample",
    "from_keep": "block_sparse.lists",
    "from_mass": "block_sparse.lists",
    "from_top_k": "block_sparse.lists",
    "gather_tokens": "permute.dispatch",
    "implementations": "choice",
    "keep_mass": "block_sparse.lists",
    "keep_top_k": "block_sparse.lists",
    "measure_antidiagonals": "antidiagonal.dispatch",
    "measure_block_mass": "block_mass.dispatch",
    "measure_lse": "block_mass.dispatch",
    "merge": "attn_merge",
    "nearest_centroids": "kmeans.dispatch",
    "pool_blocks": "segment_mean.pooling",
    "segment_means": "segment_mean.dispatch",
    "scatter_tokens": "permute.dispatch",
    "schedule": "block_sparse.lists",
    "sort_by_label": "counting_sort.dispatch",
    "stratified_start": "kmeans.dispatch",
    "to_keep": "block_sparse.lists",
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
