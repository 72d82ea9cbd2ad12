"""`dittools plan`: what a run would come to, from the model's record alone: no weights, nothing drawn."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from dittools.cli import _flags as f
from dittools.cli._command import takes
from dittools.cli.output import Output
from dittools.naming import with_options

NAME = "plan"
SHORT = "Say what a run would come to, without weights."
HELP = """Say what a run would come to: tokens, blocks, how much attention would be computed, the most that can be
gained, and which kernel would run or why it would stay dense. Loads no weights and draws nothing.

Shares and gain are of arithmetic, not of seconds: an upper bound, before the cost of choosing what to skip.

With --gpus: one step on 1, 2, 4 and so on up to N GPUs, seconds of attention and of exchange, memory a GPU, and where
more GPUs stop paying. It is an estimate, from a call that was measured on one GPU at the model's real shape."""
EXAMPLES = """\b
Examples:
  dittools plan --model wan --height 720 --width 1280
  dittools plan --model flux --device cuda
  dittools plan --model hunyuan-video --sparsity 0.9 --json
  dittools plan --model wan --gpus 16 --nodes 2 --bandwidth 300,50"""

GPUS = "Several GPUs"
Gpus = Annotated[int | None, f.flag("--gpus", "Split a measured call over up to so many GPUs, 64 at most.", GPUS, "N")]
Nodes = Annotated[int | None, f.flag("--nodes", "Machines they are in.  [default: one for each 8]", GPUS, "N")]
Bandwidth = Annotated[
    str | None,
    f.flag("--bandwidth", "GB/s of a GPU in a machine, and between machines.  [default: 300,50]", GPUS, "GB/S[,GB/S]"),
]


@dataclass(frozen=True, kw_only=True)
class Flags(f.Settings, f.Common):
    steps: f.Steps = None
    height: f.Height = None
    width: f.Width = None
    frames: f.Frames = None
    model: f.Model = "wan"
    device: f.Device = "auto"
    dtype: f.Dtype = "auto"
    gpus: Gpus = None
    nodes: Nodes = None
    bandwidth: Bandwidth = None


@takes(Flags)
def command(ctx: typer.Context, flags: Flags) -> None:
    from dittools.cli import plan_gpus
    from dittools.cli.flag_checks import check_place
    from dittools.pipelines.families import find_family

    family = find_family(flags.model)
    check_place(flags.device, flags.dtype)
    if flags.gpus is None:
        plan_gpus.check_alone(flags)

    from dittools.cli.settings import config_of

    config, notes = config_of(flags)
    output = Output.of(flags)
    for note in notes:
        output.note(note)
    if flags.gpus is not None:
        split = plan_gpus.facts(family, flags, config)
        output.data(split, lambda: plan_gpus.readable(split))
        return
    facts = _facts(family, flags, config)
    output.data(facts, lambda: _readable(facts))


def _facts(family: Any, flags: Flags, config: Any) -> dict:
    from dittools import methods
    from dittools.estimate import estimate
    from dittools.methods import auto
    from dittools.pipelines.errors import BadInput
    from dittools.pipelines.limits import check_steps
    from dittools.pipelines.sizes import grid_of

    check_steps(flags.steps)
    if family.why_not is not None:
        raise BadInput(f"nothing to plan for {family.name}: {family.why_not}")
    given = {name: getattr(flags, name) for name in ("frames", "height", "width")}
    asked = {name: getattr(family, name) if value is None else value for name, value in given.items()}
    grid = grid_of(family, **asked)
    place, kind = _place(flags.device, flags.dtype)
    block = config.block_size if config.block_size != "auto" else 128 if place.type == "cuda" else 64
    steps = flags.steps or family.steps or 50
    found = estimate(
        grid,
        config,
        steps=steps,
        layers=family.layers,
        width=family.heads * family.head_dim,
        cross_attention=family.text_position == "none",
        block_size=block,
    )
    if config.method == "auto":
        method = auto.pick(steps, grid, place.type)
        why_dense = auto.why_dense(grid, config.sparsity, block, place, steps)
    else:
        method = methods.create(config.method, config.options)
        why_dense = method.why_not(grid, block)
    if config.method == "dense":
        why_dense = "dense was asked for"
    kernel, why = _kernel(place, kind, family.head_dim)
    if why_dense is None and kernel == "none":
        why_dense = f"no sparse kernel: {why}"
    facts = {
        "model": family.name,
        "size": asked,
        "steps": steps,
        "config": config.to_dict(),
        "method": method.name,
        "method_options": method.changed_options(),
        "grid": {name: getattr(grid, name) for name in ("frames", "height", "width", "text", "tokens")},
        "transformer": {"layers": family.layers, "heads": family.heads, "head_dim": family.head_dim},
        "block_size": block,
        "device": place.type,
        "dtype": str(kind).removeprefix("torch."),
        **dataclasses.asdict(found),
        "kernel": kernel,
        "kernel_why": why,
        "why_dense": why_dense,
        "needs_profile": method.profile_use == "needed",
    }
    if why_dense is not None:
        facts |= {"method": "dense", "method_options": {}, "density": 1.0, "gain": 1.0}
    return facts


def _place(device: str, dtype: str) -> tuple[Any, Any]:
    """Device and dtype to plan for; CUDA may be planned for on a machine without it."""
    import torch

    from dittools.pipelines import loading

    place = torch.device(device) if device.startswith("cuda") else loading.pick_device(device)
    if dtype == "auto" and place.type == "cuda" and not torch.cuda.is_available():
        return place, torch.bfloat16
    return place, loading.pick_dtype(dtype, place)


def _kernel(place: Any, kind: Any, head_dim: int) -> tuple[str, str]:
    """The kernel a sparse call would run with, and why; as a machine of that kind would choose."""
    import torch

    from dittools.kernels.capability import TRITON_HEAD_DIMS
    from dittools.kernels.choice import implementations

    reasons = dict(implementations(place, kind, head_dim))
    if reasons["triton"] is None:
        return "triton", "it can run here"
    if place.type == "cuda" and not torch.cuda.is_available() and head_dim in TRITON_HEAD_DIMS:
        return "triton", "planned for, with no CUDA device here to ask"
    if place.type == "cuda":
        return "none", f"triton: {reasons['triton']}"
    return "portable", f"triton: {reasons['triton']}"


def _readable(facts: dict) -> str:
    grid, size = facts["grid"], facts["size"]
    text = f" + {grid['text']} text" if grid["text"] else ""
    pixels = " x ".join(str(size[name]) for name in ("frames", "height", "width"))
    shape = facts["transformer"]
    lines = [
        f"model      {facts['model']}, {shape['layers']} layers of {shape['heads']} heads x {shape['head_dim']}",
        f"size       {pixels}, {facts['steps']} steps",
        f"tokens     {grid['frames']} x {grid['height']} x {grid['width']}{text} = {grid['tokens']}",
        f"blocks     {facts['blocks']} x {facts['blocks']} of {facts['block_size']} tokens a head",
        f"attention  {facts['attention_share']:.0%} of the transformer's arithmetic when dense",
    ]
    if facts["why_dense"] is not None:
        lines.append(f"runs       dense: {facts['why_dense']}; a step cache may still help")
    else:
        method, asked = with_options(facts["method"], facts["method_options"]), facts["config"]["method"]
        lines += [
            f"method     {method}" + (", which auto takes here" if asked == "auto" else ""),
            f"sparse     {facts['sparse_steps']} of {facts['steps']} steps, {facts['sparse_layers']} of "
            f"{shape['layers']} layers, at density {1 - facts['config']['sparsity']:.2f}",
            f"density    {facts['density']:.2f} over the whole run",
            f"gain       at most {facts['gain']:.2f}x in the transformer, by arithmetic",
        ]
        if facts["needs_profile"]:
            lines.append(f"profile    needed, of this model and size: dittools calibrate --method {facts['method']}")
    lines.append(f"kernel     {facts['kernel']} on {facts['device']} in {facts['dtype']}: {facts['kernel_why']}")
    return "\n".join(lines)
