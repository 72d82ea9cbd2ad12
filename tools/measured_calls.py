"""Make profiles/calls.json, what `dittools plan --gpus` goes by, from docs/measured/model_*.json.

python -m dittools.tools.measured_calls            write it
python -m dittools.tools.measured_calls --check    exit with 1 where it is not what the measurements give
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from dittools import files
from dittools.benchmarks.speed_only import size_of, skeleton
from dittools.pipelines.families import find_family
from dittools.profiles import calls

MEASURED = Path(__file__).parent.parent / "docs" / "measured"
KINDS = ("dense", "dense compiled", "sparse", "sparse compiled")


def made(folder: Path = MEASURED) -> dict[str, Any]:
    """What the file should hold: every call that was measured with all layers, eager and compiled, dense and sparse."""
    found = []
    for path in sorted(folder.glob("model_*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        rows = {row["job"]["kind"]: row for row in result["rows"] if "median" in row}
        if set(KINDS) <= set(rows) and len(result["rows"]) == len(KINDS):
            found.append(_call(result["device"]["name"], rows))
    source = "docs/measured/model_*.json; speed only: random weights"
    return {"schema": 1, "kind": "calls", "source": source, "calls": found}


def _call(card: str, rows: dict[str, dict]) -> dict[str, Any]:
    job = rows["sparse"]["job"]
    layers, first = job["layers"], job["dense_layers"]
    seconds = {kind: row["median"] for kind, row in rows.items()}
    parts = rows["sparse"]["parts"]
    # Eager calls differ in attention alone, and the first layers of the sparse one are dense.
    dense = (seconds["dense"] - seconds["sparse"] + sum(parts.values())) / (1 - first / layers)
    frames, height, width = job["shape"]
    least = min(KINDS[2:], key=lambda kind: seconds[kind])
    numbers = {
        "dense_seconds": min(seconds[kind] for kind in KINDS[:2]),
        "sparse_seconds": seconds[least],
        "dense_attention": dense,
        "sparse_attention": sum(parts.values()) + dense * first / layers,
        "kernel": parts["attention"],
        "weights_gb": _weights_gb(job),
        "peak_gb": rows[least]["peak_gb"],
    }
    return {
        "model": job["model"], "size": job["size"], "card": card,
        "layers": layers, "heads": job["heads"], "head_dim": job["head_dim"],
        "frames": frames, "height": height, "width": width, "tokens": job["tokens"],
        "branches": 1 if find_family(job["model"]).guidance_passes == "none" else 2,
        "method": job["method"], "sparsity": job["sparsity"], "dense_layers": first,
        **{name: round(value, 4) for name, value in numbers.items()},
    }  # fmt: skip


def _weights_gb(job: dict[str, Any]) -> float:
    """Of the transformer as it was measured: bf16, but for what its class keeps in fp32."""
    model = skeleton(size_of(job["model"], job["size"]))
    in_fp32 = tuple(model._keep_in_fp32_modules or ())
    narrow = torch.empty((), dtype=getattr(torch, job["dtype"])).element_size()
    total = 0
    for name, x in model.named_parameters():
        total += x.numel() * (4 if any(part in name.split(".") for part in in_fp32) else narrow)
    return total / 1e9


def main() -> None:
    text = json.dumps(made(), indent=1) + "\n"
    if text == (calls.PATH.read_text(encoding="utf-8") if calls.PATH.exists() else ""):
        return
    if "--check" in sys.argv:
        sys.exit(f"{calls.PATH.name} is not what docs/measured gives: run python -m dittools.tools.measured_calls")
    files.write_text(calls.PATH, text)


if __name__ == "__main__":
    main()
