"""The rows of the kernel table: what is measured, at which shapes, and what it should reach on an H100.

Goals and floors are of r = dense time x density / sparse time unless the unit says otherwise.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dittools.naming import unknown

CUDA_SHAPES = ((12, 32_768), (40, 75_648))
WAN_720P = (40, 75_600)
CPU_SHAPES = ((2, 4_096),)
# Kinds of rows whose cases differ in density; of samples it counts what was drawn.
WITH_DENSITY = ("attention", "order", "schedule", "clusters", "sample", "sample-order")


@dataclass(frozen=True)
class Row:
    """One row of the table, or a few that differ in density.

    Args:
        name: what `--rows` calls it.
        title: what the table calls it.
        kind: how it is measured, a key of `dittools.benchmarks.work.KINDS`.
        densities: kept shares of the pairs.
        family: how the kept blocks spread over rows and heads, see `dittools.kernels.proof.inputs.make_mask`.
        head_dim, query_block, key_block: sizes.
        clusters: k-means clusters, (of queries, of keys).
        goal, floor: on an H100 in bf16; None where none was set.
        unit: of goal, floor and the row's value.
        shapes: heads x tokens on a CUDA card; `CUDA_SHAPES` when empty.
    """

    name: str
    title: str
    kind: str = "attention"
    densities: tuple[float, ...] = (0.2,)
    family: str = "uniform"
    head_dim: int = 128
    query_block: int = 128
    key_block: int = 128
    clusters: tuple[int, int] | None = None
    goal: float | None = None
    floor: float | None = None
    unit: str = "r"
    shapes: tuple[tuple[int, int], ...] = ()


ROWS = (
    Row("dense", "our kernel run dense", densities=(1.0,), goal=1.0, floor=0.88),
    Row("uniform", "128 x 128 lists, uniform", densities=(0.2, 0.1, 0.25, 0.5), goal=1.0, floor=0.90),
    Row("ragged", "ragged rows, 0.2 to 1.8 of the mean", family="ragged", goal=0.92, floor=0.84),
    Row("heavy", "one head three times denser", family="heavy head", goal=0.92, floor=0.84),
    Row("128x64", "128 x 64 lists", key_block=64, goal=0.92, floor=0.84),
    Row("64x64", "64 x 64 lists", query_block=64, key_block=64, goal=0.80, floor=0.65),
    Row("hd64", "head dim 64, 128 x 128", head_dim=64, goal=0.90, floor=0.80),
    Row("order", "with an order for each head", kind="order"),
    Row("sample", "1/16 of the skipped keys drawn beside 128 x 128 lists", kind="sample", goal=1.05, floor=1.0),
    Row("sample-order", "the same with an order for each head", kind="sample-order"),
    Row("sample-64x64", "1/16 of the skipped keys drawn beside 64 x 64 lists", kind="sample", query_block=64,
        key_block=64),
    Row("sample-hd64", "1/16 of the skipped keys drawn, head dim 64", kind="sample", head_dim=64),
    Row("schedule", "ragged rows, longest first", kind="schedule", family="ragged"),
    Row("lists", "lists and schedule", kind="lists", goal=50, floor=150, unit="µs", shapes=(CUDA_SHAPES[1],)),
    Row("permute", "permute in and out, of the attention at 20 % kept", kind="permute", goal=3, floor=8, unit="%"),
    Row("mass", "measured block mass, two passes", kind="mass", goal=1.4, floor=1.8, unit="x dense"),
    Row("mass-lse", "measured block mass, LSE known", kind="mass", goal=0.6, floor=0.9, unit="x dense"),
    Row("kmeans-keys", "k-means of keys, 2 iterations", kind="kmeans", clusters=(0, 1000), goal=3.5, floor=6,
        unit="ms", shapes=(WAN_720P,)),
    Row("kmeans-queries", "k-means of queries, 2 iterations", kind="kmeans", clusters=(0, 300), goal=2, floor=3.2,
        unit="ms", shapes=(WAN_720P,)),
    Row("clusters", "k-means clusters, kernel only", kind="clusters", clusters=(300, 1000), goal=0.85, floor=0.72,
        shapes=(WAN_720P,)),
    Row("clusters-all", "k-means clusters, with permutes and lists", kind="clusters", clusters=(300, 1000),
        goal=0.78, floor=0.65, shapes=(WAN_720P,)),
)  # fmt: skip


def select(names: list[str] | None) -> list[Row]:
    """The rows with these names, in the table's order; all by default.

    Raises:
        ValueError: for an unknown name, naming the nearest.
    """
    known = [row.name for row in ROWS]
    for name in names or []:
        if name not in known:
            raise ValueError(unknown("row", name, known))
    return [row for row in ROWS if not names or row.name in names]


def jobs(
    rows: list[Row],
    *,
    device: str,
    dtype: str,
    shapes: list[tuple[int, int]] | None = None,
    head_dim: int | None = None,
    densities: list[float] | None = None,
    implementation: str | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Every case of these rows in the order of its interest: the small shape of all rows first.

    Args:
        device: "cuda" or "cpu"; a CPU gets small shapes unless told otherwise.
        dtype: "bfloat16", "float16" or "float32".
        shapes: heads x tokens in place of the rows' own. head_dim, densities: likewise.
        implementation: only this kernel of ours; all that can run when None.
        settings: further keys of every job: what decides a figure belongs here.
    """
    found = []
    for row in rows:
        own = (row.shapes or CUDA_SHAPES) if device == "cuda" else CPU_SHAPES
        for turn, (heads, tokens) in enumerate(shapes or own):
            kept = densities if densities and row.densities != (1.0,) else row.densities
            for density in kept:
                job = {
                    **asdict(row), "heads": heads, "tokens": tokens, "density": density, "dtype": dtype,
                    "device": device, "implementation": implementation, **settings,
                }  # fmt: skip
                job["head_dim"] = head_dim or row.head_dim
                if row.clusters and tokens < 20_000:
                    job["clusters"] = tuple(min(c, max(1, tokens // 75)) for c in row.clusters)
                del job["densities"], job["shapes"]
                job["id"] = _id(job)
                found.append((turn, job))
    return [job for _, job in sorted(found, key=lambda pair: pair[0])]


def _id(job: dict[str, Any]) -> str:
    kept = f" {job['density']:g}" if job["kind"] in WITH_DENSITY else ""
    only = f" {job['implementation']}" if job["implementation"] else ""
    return f"{job['name']} {job['heads']}x{job['tokens']} hd{job['head_dim']}{kept} {job['dtype']}{only}"
