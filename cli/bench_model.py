"""`dittools bench model` from flags to calls, a table and an exit code."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dittools.cli.bench_kernel import open_results
from dittools.cli.output import Output, table
from dittools.naming import unknown
from dittools.pipelines import loading
from dittools.pipelines.errors import BadInput

NAMED = "speed only: random weights"


@dataclass(frozen=True)
class Asked:
    """The flags as given; None where one was not and its default depends on something else."""

    model: str
    size: str
    layers: int | None
    heads: int | None
    height: int | None
    width: int | None
    frames: int | None
    method: str
    sparsity: float
    dense_layers: int
    repeats: int
    compile: bool | None
    dtype: str
    device: str
    path: Path | None
    command: list[str]

    def check(self) -> None:
        """Raise BadInput for flags that make no sense."""
        for flag, value, valid in (
            ("--device", self.device, loading.DEVICES),
            ("--dtype", self.dtype, loading.DTYPES),
        ):
            if value not in valid:
                raise BadInput(unknown(flag, value, valid))
        if self.repeats < 1:
            raise BadInput(f"--repeats must be at least 1, got {self.repeats}")


def measure(asked: Asked, out: Output) -> bool:
    """Measure, print, and say whether all that ran was right."""
    from dittools.bench import model as bench
    from dittools.bench.results import failed
    from dittools.config import Config
    from dittools.pipelines import speed_only
    from dittools.pipelines.families import find_family
    from dittools.pipelines.limits import SizeRule

    asked.check()
    family = find_family(asked.model)
    size = speed_only.size_of(family.name, asked.size, asked.layers, asked.heads)
    settings = {
        "method": asked.method, "sparsity": asked.sparsity, "dense_layers": asked.dense_layers, "dense_steps": 0,
    }  # fmt: skip
    try:
        Config(**settings)
    except ValueError as error:
        raise BadInput(str(error)) from None
    if asked.dense_layers >= size.layers:
        raise BadInput(f"--dense-layers {asked.dense_layers} leaves none of {size.layers} layers sparse: give fewer")
    device = loading.pick_device(asked.device)
    dtype = loading.pick_dtype(asked.dtype, device)
    compiled = device.type == "cuda" if asked.compile is None else asked.compile
    shape = [asked.frames or family.frames, asked.height or family.height, asked.width or family.width]
    SizeRule().check(*shape)
    results = open_results(asked, "model", device)
    results.head["named"] = NAMED
    job = {
        "model": family.name, "size": asked.size, "layers": size.layers, "heads": size.heads,
        "head_dim": size.head_dim, "shape": shape, "dtype": str(dtype).removeprefix("torch."), "device": device.type,
        "repeats": asked.repeats, **settings,
    }  # fmt: skip
    jobs = {kind: _job(job, kind) for kind in kinds(compiled)}
    if all(results.holds(one) and results.rows[one["id"]]["complete"] for one in jobs.values()):
        out.note("every row is there already: nothing to measure")
    else:
        out.note(f"{NAMED}; making {size.layers} layers of {size.heads} heads")
        pipe = speed_only.build(size, device, dtype)
        frames, height, width = shape
        call = speed_only.call_of(pipe, height, width, frames, device, dtype)
        best, ms = fastest_dense(pipe, call, device)
        results.head["dense_attention_ms"], results.head["dense_attention"] = ms, best
        if best is not None:
            out.note(f"dense attention by {best}")
        branch = getattr(pipe.transformer, "cache_context", nullcontext)

        def forward() -> Any:
            with branch("cond"):
                return pipe.transformer(**call)[0]

        def told(kind: str, values: dict[str, Any]) -> None:
            out.line(line_of(kind, results.add(jobs[kind], values)))

        bench.measure(pipe, forward, settings, device=device, repeats=asked.repeats, compiled=compiled, told=told)
    rows = [results.rows[one["id"]] for one in jobs.values() if one["id"] in results.rows]
    print(f"{NAMED}\n{table(COLUMNS, [cells_of(row) for row in rows])}", flush=True)
    return len(rows) == len(jobs) and not any(failed(row) for row in rows)


def kinds(compiled: bool) -> list[str]:
    return ["dense", "dense compiled", "sparse", "sparse compiled"] if compiled else ["dense", "sparse"]


def fastest_dense(pipe: Any, call: dict[str, Any], device: Any) -> tuple[str | None, dict[str, float]]:
    """Set the model to the fastest of diffusers' dense backends, found by timing one layer's shape on this card.

    Returns:
        Its name (None where nothing was to choose: on a CPU), and the milliseconds of each.
    """
    import statistics

    import torch
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    from dittools.bench.timing import once

    if device.type != "cuda":
        return None, {}
    latents, patch = call["hidden_states"].shape[2:], pipe.transformer.config.patch_size
    tokens = 1
    for n, p in zip(latents, patch, strict=True):
        tokens *= n // p
    shape = (1, tokens, pipe.size.heads, pipe.size.head_dim)
    q, k, v = (torch.randn(shape, device=device, dtype=call["hidden_states"].dtype) for _ in range(3))
    ms = {}
    with torch.no_grad():
        for name in ("native", "_native_cudnn", "_native_flash", "_flash_3"):
            try:
                pipe.transformer.set_attention_backend(name)
                times = [once(lambda name=name: dispatch_attention_fn(q, k, v, backend=name), device) for _ in range(5)]
            except (ValueError, RuntimeError):
                continue
            ms[name] = statistics.median(times[1:])
    # What a user runs wins unless another is clearly faster.
    best = min(ms, key=lambda name: ms[name] * (0.98 if name == "native" else 1))
    pipe.transformer.set_attention_backend(best)
    return best, ms


def _job(job: dict[str, Any], kind: str) -> dict[str, Any]:
    frames, height, width = job["shape"]
    what = f"{job['model']} {job['size']} {job['layers']} layers {job['heads']} heads"
    how = "" if "sparse" not in kind else f" {job['method']} {job['sparsity']:g}"
    return {**job, "kind": kind, "id": f"{kind}{how}, {what}, {frames} x {height} x {width} {job['dtype']}"}


COLUMNS = ("call", "median s", "least", "most", "first s", "peak GB", "against dense", "against compiled", "kernels")


def cells_of(row: dict[str, Any]) -> list[Any]:
    """A row of results as a line of the table."""
    if "error" in row:
        return [f"{row['id']}: error: {row['error']}", *[None] * 8]
    gain = row.get("speedup", {})
    kernels = ", ".join(f"{name} {count}" for name, count in row.get("kernels", {}).items()) or None
    return [
        row["id"], *(f"{row[name]:.3f}" for name in ("median", "least", "most", "first_seconds")),
        None if row["peak_gb"] is None else f"{row['peak_gb']:.1f}",
        *(f"{gain[name]:.2f}x" if name in gain else None for name in ("dense", "dense compiled")), kernels,
    ]  # fmt: skip


def line_of(kind: str, row: dict[str, Any]) -> str:
    """A row of results in one line, as it comes."""
    if "error" in row:
        return f"{kind}: error: {row['error']}"
    gain = "".join(f", {value:.2f}x against {name}" for name, value in row.get("speedup", {}).items())
    parts = "".join(f", {name} {1000 * seconds:.1f} ms" for name, seconds in row.get("parts", {}).items())
    return f"{kind}: {row['median']:.3f} s over {len(row['seconds'])} calls{gain}{parts}"
