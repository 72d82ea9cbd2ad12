"""`dittools plan`: what a run would come to, from the model's record alone: no weights, nothing drawn."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from dittools.cli.flags import Debug, Json
from dittools.cli.output import Output
from dittools.naming import with_options

NAME = "plan"
SHORT = "Say what a run would come to, without weights."
HELP = """Say what a run would come to: tokens, blocks, how much attention would be computed, the most that can be
gained, and which kernel would run or why it would stay dense. Loads no weights and draws nothing.

Shares and gain are of arithmetic, not of seconds: an upper bound, before the cost of choosing what to skip."""
EXAMPLES = """\b
Examples:
  dittools plan --model wan --height 720 --width 1280
  dittools plan --model flux --device cuda
  dittools plan --model hunyuan-video --sparsity 0.9 --json"""

Flag = typer.Option


def command(
    model: Annotated[str, Flag(help="Model family; `dittools models` lists them.")] = "wan",
    height: Annotated[int | None, Flag(help="Pixels.  [default: the model's]")] = None,
    width: Annotated[int | None, Flag(help="Pixels.  [default: the model's]")] = None,
    frames: Annotated[int | None, Flag(help="Frames.  [default: the model's]")] = None,
    steps: Annotated[int | None, Flag(help="Denoising steps.  [default: the model's, else 50]")] = None,
    sparsity: Annotated[float, Flag(help="Share of attention to skip in sparse calls, in [0, 1).")] = 0.8,
    method: Annotated[str, Flag(help="How to choose what is skipped; `dittools methods` lists them.")] = "auto",
    dense_steps: Annotated[str, Flag(metavar="SHARE|COUNT", help="Dense steps at the start.")] = "0.2",
    dense_layers: Annotated[int, Flag(help="First layers that stay dense.")] = 1,
    device: Annotated[str, Flag(help="auto, cpu or cuda; cuda may be planned for without one.")] = "auto",
    dtype: Annotated[str, Flag(help="auto, bf16, fp16 or fp32.")] = "auto",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    from dittools.cli.request import config_of
    from dittools.pipelines.families import find_family

    family = find_family(model)
    config = config_of(method=method, sparsity=sparsity, dense_steps=dense_steps, dense_layers=dense_layers)
    facts = _facts(family, {"frames": frames, "height": height, "width": width}, steps, config, device, dtype)
    Output(as_json).data(facts, lambda: _readable(facts))


def _facts(family: Any, size: dict[str, int | None], steps: int | None, config: Any, device: str, dtype: str) -> dict:
    from dittools import methods
    from dittools.estimate import estimate
    from dittools.methods import auto
    from dittools.pipelines import loading
    from dittools.pipelines.errors import BadInput
    from dittools.pipelines.limits import check_steps
    from dittools.pipelines.sizes import grid_of

    if device not in loading.DEVICES or dtype not in loading.DTYPES:
        raise BadInput(f"--device is one of {', '.join(loading.DEVICES)}, --dtype of {', '.join(loading.DTYPES)}")
    check_steps(steps)
    if family.why_not is not None:
        raise BadInput(f"nothing to plan for {family.name}: {family.why_not}")
    asked = {name: getattr(family, name) if value is None else value for name, value in size.items()}
    grid = grid_of(family, **asked)
    place, kind = _place(device, dtype)
    block = config.block_size if config.block_size != "auto" else 128 if place.type == "cuda" else 64
    steps = steps or family.steps or 50
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
        method = auto.pick(steps, grid.frames, place.type)
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

    place = torch.device("cuda") if device == "cuda" else loading.pick_device(device)
    if dtype == "auto" and place.type == "cuda" and not torch.cuda.is_available():
        return place, torch.bfloat16
    return place, loading.pick_dtype(dtype, place)


def _kernel(place: Any, kind: Any, head_dim: int) -> tuple[str, str]:
    """The kernel a sparse call would run with, and why; as a machine of that kind would choose."""
    import torch

    from dittools.kernels.dispatch import TRITON_HEAD_DIMS, implementations

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
