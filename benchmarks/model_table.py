"""Rows of `dittools bench model` as lines and tables."""

from __future__ import annotations

from typing import Any

from dittools.naming import with_options

NAMED = "speed only: random weights"
MEASURED = "measured on the random weights"
"""In place of the profile that a method needs and nobody gave."""
COLUMNS = ("call", "median s", "least", "most", "first s", "peak GB", "against dense", "against compiled", "kernels")
COST_COLUMNS = (
    "method, share of its attention", "order", "select", "lists", "permute", "correct", "all", "attention ms",
)  # fmt: skip


def cells_of(row: dict[str, Any]) -> list[Any]:
    """A row of results as a line of the table of calls."""
    if "error" in row:
        return [f"{row['id']}: error: {row['error']}", *[None] * 8]
    gain = row.get("speedup", {})
    kernels = ", ".join(f"{name} {count}" for name, count in row.get("kernels", {}).items()) or None
    return [
        row["id"] + _taken(row), *(f"{row[name]:.3f}" for name in ("median", "least", "most", "first_seconds")),
        None if row["peak_gb"] is None else f"{row['peak_gb']:.1f}",
        *(f"{gain[name]:.2f}x" if name in gain else None for name in ("dense", "dense compiled")), kernels,
    ]  # fmt: skip


def cost_cells_of(row: dict[str, Any]) -> list[Any]:
    """A row of results as a line of the table of what methods cost besides attention."""
    costs = row["costs"]
    shares = (f"{100 * costs[name]:.1f} %" if name in costs else None for name in COST_COLUMNS[1:-1])
    made_up = f", {row['job']['correction']}" if "correction" in row["job"] else ""
    return [row["job"]["method"] + _taken(row) + made_up, *shares, f"{1000 * row['parts']['attention']:.1f}"]


def _taken(row: dict[str, Any]) -> str:
    """What auto took, with its options."""
    if row["job"].get("method") != "auto" or "method" not in row:
        return ""
    return f" -> {with_options(row['method'], row['method_options'])}"


def line_of(kind: str, row: dict[str, Any]) -> str:
    """A row of results in one line, as it comes."""
    if "error" in row:
        return f"{kind}: error: {row['error']}"
    gain = "".join(f", {value:.2f}x against {name}" for name, value in row.get("speedup", {}).items())
    parts = "".join(f", {name} {1000 * seconds:.1f} ms" for name, seconds in row.get("parts", {}).items())
    if "no_parts" in row:
        parts = f", parts not known: {row['no_parts']}"
    return f"{kind}{_taken(row)}: {row['median']:.3f} s over {len(row['seconds'])} calls{gain}{parts}"
