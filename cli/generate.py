"""`dittools generate`: a video from a prompt with most of the attention skipped, and a record of it."""

from __future__ import annotations

from typing import Annotated

import typer

from dittools.cli.flags import Debug, Json
from dittools.cli.output import Output

NAME = "generate"
SHORT = "Draw a video with sparse attention."
HELP = """Draw a video from a prompt with sparse attention, and write a record of the run beside it.

The path of the video, or with --json the record, goes to stdout; progress and notes go to stderr."""
EXAMPLES = """\b
Examples:
  dittools generate --model wan --sparsity 0.8 --weights embedded --output out.mp4
  dittools generate --sparsity 0.8 --prompt "a cat playing piano" --compare-dense
  dittools generate --weights Wan-AI/Wan2.1-T2V-14B-Diffusers --offload model --steps 30
  dittools generate --weights embedded --method dense --cache easycache --compare-dense
  dittools generate --weights ./my-pipeline --method dense --output frames/ --json

\b
Output, by the name's ending: .mp4, .gif, .webp, .mkv (lossless), .npy (uint8 array), .png (with
--frames 1), or a folder of PNG frames. The record lies beside it: out.mp4, out.json. Both
replace those of an earlier run, and no other file unless --overwrite says so."""

Flag = typer.Option


def command(
    ctx: typer.Context,
    model: Annotated[str, Flag(help="Model family; `dittools models` lists them.")] = "wan",
    sparsity: Annotated[
        float | None, Flag(help="Share of attention to skip in sparse calls, in [0, 1).  [default: 0.8]")
    ] = None,
    prompt: Annotated[str | None, Flag(help="What to draw.  [default: one that suits the weights]")] = None,
    weights: Annotated[
        str,
        Flag(
            metavar="auto|embedded|REPO|PATH",
            help="auto: the local hub cache, else with a CUDA GPU a download, else the small embedded model.",
        ),
    ] = "auto",
    method: Annotated[
        str | None,
        Flag(help="How to choose what is skipped; `dittools methods` lists them.  [default: auto]"),
    ] = None,
    cache: Annotated[
        str | None,
        Flag(
            metavar="NAME[:OPTION=VALUE...]",
            help="Reuse steps, such as easycache:threshold=0.05; `dittools caches` lists them.  [default: none]",
        ),
    ] = None,
    correction: Annotated[
        str | None, Flag(help="What makes up for what is skipped; `dittools methods` lists them.  [default: none]")
    ] = None,
    steps: Annotated[int | None, Flag(help="Denoising steps.  [default: the model's]")] = None,
    height: Annotated[int | None, Flag(help="Pixels.  [default: the model's]")] = None,
    width: Annotated[int | None, Flag(help="Pixels.  [default: the model's]")] = None,
    frames: Annotated[int | None, Flag(help="Frames, 4n + 1 for Wan.  [default: the model's]")] = None,
    guidance: Annotated[
        float | None, Flag(help="Classifier-free guidance; 1 turns it off.  [default: the model's]")
    ] = None,
    negative_prompt: Annotated[str | None, Flag(help="What not to draw.  [default: nothing]")] = None,
    seed: Annotated[int, Flag(help="Fixes the noise; the same on every device.")] = 0,
    output: Annotated[str, Flag("--output", "-o", help="File or folder; see below.")] = "out.mp4",
    overwrite: Annotated[
        bool, Flag("--overwrite", help="Also replace a video or JSON that dittools did not write.")
    ] = False,
    compare_dense: Annotated[
        bool,
        Flag(
            "--compare-dense",
            help="Also run densely with the same seed: PSNR, SSIM and, on a quiet machine, speed-up.",
        ),
    ] = False,
    dense_steps: Annotated[
        str | None,
        Flag(metavar="SHARE|COUNT", help="Dense steps at the start: 0.2 is a share, 5 a count.  [default: 0.2]"),
    ] = None,
    dense_layers: Annotated[int | None, Flag(help="First layers that stay dense.  [default: 1]")] = None,
    refresh: Annotated[int | None, Flag(help="Steps for which a choice is used.  [default: 1]")] = None,
    config: Annotated[str | None, Flag(metavar="FILE", help="JSON of a dittools.Config; flags win over it.")] = None,
    profile: Annotated[str | None, Flag(metavar="FILE", help="Of dittools calibrate, or a name that ships.")] = None,
    device: Annotated[str, Flag(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, Flag(help="auto, bf16, fp16 or fp32. auto: bf16 on CUDA, fp32 on the CPU.")] = "auto",
    compile_: Annotated[bool, Flag("--compile", help="torch.compile the repeated blocks first.")] = False,
    offload: Annotated[str, Flag(help="none, model or group: keep weights off the GPU while unused.")] = "none",
    strict: Annotated[bool, Flag("--strict", help="Stop at a non-finite sparse result, not redo it dense.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    from dittools.cli.asked import Asked

    asked = Asked(
        model=model,
        prompt=prompt,
        weights=weights,
        method=method,
        sparsity=sparsity,
        dense_steps=dense_steps,
        dense_layers=dense_layers,
        refresh=refresh,
        strict=strict,
        cache=cache,
        correction=correction,
        profile=profile,
        config=config,
        steps=steps,
        height=height,
        width=width,
        frames=frames,
        guidance=guidance,
        negative_prompt=negative_prompt,
        seed=seed,
        output=output,
        compare_dense=compare_dense,
        device=device,
        dtype=dtype,
        offload=offload,
        compile=compile_,
        overwrite=overwrite,
    )
    place = asked.check()  # first what answers at once: the rest imports PyTorch

    from dittools.cli.closing import closing
    from dittools.cli.request import check
    from dittools.cli.run import run

    request = check(asked, place)
    sink = Output(as_json)
    record = run(request, ctx.obj["command"], sink)
    for line in closing(record, request.output.record, said=sink.notes):
        sink.line(line)
    sink.data(record, lambda: record["output"])
