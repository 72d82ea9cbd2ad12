"""`dittools env`: what this machine is, and which kernels a run would use on it."""

from __future__ import annotations

from typing import Any

import typer

from dittools.cli._command import takes
from dittools.cli._flags import Common
from dittools.cli.output import Output, table

NAME = "env"
SHORT = "Show what this machine can run."
HELP = "Show versions, devices, which kernels can run and why not the others, ffmpeg and the hub cache."
EXAMPLES = """\b
Examples:
  dittools env
  dittools env --json"""

_HEAD_DIM = 128  # Wan's, and most other models'


@takes(Common)
def command(ctx: typer.Context, flags: Common) -> None:
    from huggingface_hub import constants

    from dittools.pipelines.saving import ffmpeg
    from dittools.provenance import dittools_version, versions

    facts = {
        "dittools": dittools_version(),
        "versions": versions(),
        "devices": _devices(),
        "ffmpeg": ffmpeg(),
        "hub_cache": str(constants.HF_HUB_CACHE),
        "hub_offline": bool(constants.HF_HUB_OFFLINE),
    }
    Output.of(flags).data(facts, lambda: _readable(facts))


def _devices() -> list[dict[str, Any]]:
    """Every CUDA GPU, then the CPU, each with its kernels."""
    import torch

    from dittools.pipelines.loading import pick_dtype
    from dittools.provenance import device_facts

    found = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    devices = []
    for device in [*found, torch.device("cpu")]:
        dtype = pick_dtype("auto", device)
        capability = ".".join(map(str, torch.cuda.get_device_capability(device))) if device.type == "cuda" else None
        devices.append(
            {
                **device_facts(device),
                "capability": capability,
                "dtype": str(dtype).removeprefix("torch."),
                **_kernels(device, dtype),
            }
        )
    return devices


def _kernels(device: Any, dtype: Any) -> dict[str, Any]:
    from dittools.kernels import dense_kernel_name, implementations
    from dittools.kernels.choice import hopper_kernels

    able = implementations(device, dtype, _HEAD_DIM)
    proofs = hopper_kernels(device, dtype, _HEAD_DIM)
    return {
        "dense_kernel": dense_kernel_name(device, dtype, _HEAD_DIM),
        "sparse_kernel": next((name for name, reason in able if reason is None), None),
        "kernels": [{"name": name, "can_run": reason is None, "why_not": reason} for name, reason in able],
        "proofs": [{"name": name, "proved": reason is None, "why_not": reason} for name, reason in proofs],
    }


def _readable(facts: dict[str, Any]) -> str:
    rows = [("dittools", facts["dittools"]), *facts["versions"].items()]
    lines = [table(("PACKAGE", "VERSION"), rows)]
    for device in facts["devices"]:
        memory = f", {device['memory_gb']} GB" if device["memory_gb"] else ""
        capability = f", compute capability {device['capability']}" if device["capability"] else ""
        lines.append(f"\n{device['type']}: {device['name']}{memory}{capability}, {device['dtype']} by default")
        lines.append(f"  dense attention: {device['dense_kernel']}")
        for kernel in device["kernels"]:
            state = "can run" if kernel["can_run"] else f"not used: {kernel['why_not']}"
            chosen = " (chosen)" if kernel["name"] == device["sparse_kernel"] else ""
            lines.append(f"  sparse attention, {kernel['name']}: {state}{chosen}")
        for proof in device["proofs"]:
            lines.append(f"  {proof['name']}: {proof['why_not'] or 'proved on this card with this Triton'}")
    lines.append(f"\nffmpeg: {facts['ffmpeg'] or 'not found, so no .mp4: pip install imageio-ffmpeg'}")
    lines.append(f"hub cache: {facts['hub_cache']}" + (" (offline)" if facts["hub_offline"] else ""))
    return "\n".join(lines)
