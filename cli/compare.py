"""`dittools compare`: how far one finished video is from another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from dittools.cli._command import takes
from dittools.cli._flags import Common
from dittools.cli.output import Output, table

NAME = "compare"
SHORT = "Measure how far one video is from another."
HELP = """Measure how far a finished video is from a reference: PSNR, SSIM and what else can be measured here.

Both are read as 8-bit RGB and need the same frames, height and width. The table, or with --json every frame's
values, goes to stdout."""
EXAMPLES = """\b
Examples:
  dittools compare sparse.mp4 dense.mp4
  dittools compare sparse.npy dense.npy --json
  dittools compare frames/ reference.mkv

\b
Reads .mp4, .mkv and what else ffmpeg knows, .gif, .webp, .png, .npy (uint8,
or floats in [0, 1]) and folders of PNG frames. mp4, gif and webp lose detail:
what they lost is measured too."""

_SAME_RATE = 0.02  # GIF counts in hundredths of a second and WebP in thousandths: 16 a second reads as 16.07 there
_LOSSY = (".mp4", ".gif", ".webp", ".jpg", ".jpeg", ".webm", ".mov", ".avi")


@dataclass(frozen=True, kw_only=True)
class Flags(Common):
    video: Annotated[str, typer.Argument(help="The video to judge.")]
    reference: Annotated[str, typer.Argument(help="The video it should be like.")]


@takes(Flags)
def command(ctx: typer.Context, flags: Flags) -> None:
    from dittools.pipelines import reading
    from dittools.pipelines.errors import BadInput

    video, reference = flags.video, flags.reference
    a, b = (reading.read(name) for name in (video, reference))
    if a.frames.shape != b.frames.shape:
        raise BadInput(
            f"{video} has {a.size} and {reference} {b.size}: compare videos with the same frames, height and width"
        )

    from dittools.json_numbers import number
    from dittools.quality import measure
    from dittools.quality.suite import by_name, shown

    output, metrics = Output.of(flags), by_name()
    if any(name.lower().endswith(_LOSSY) for name in (video, reference)):
        output.note("a lossy file is compared as it is: what its encoder lost counts too")
    if a.fps and b.fps and abs(a.fps - b.fps) > _SAME_RATE * max(a.fps, b.fps):
        output.note(f"{video} runs at {a.fps:g} frames a second and {reference} at {b.fps:g}: compared frame by frame")
    found = measure(a.frames, b.frames)
    for name, why in found.left_out.items():
        output.note(f"{metrics[name].title} was not measured: {why}")
    record = {
        "video": video,
        "reference": reference,
        "frames": len(a.frames),
        "height": a.frames.shape[1],
        "width": a.frames.shape[2],
        "scores": {
            name: {"mean": number(score.mean), "per_frame": [number(value) for value in score.per_frame]}
            for name, score in found.scores.items()
        },
        "left_out": found.left_out,
    }

    def human() -> str:
        rows = []
        for name, score in found.scores.items():
            metric = metrics[name]
            worst = (min if metric.higher_is_better else max)(score.per_frame)
            which = 1 + score.per_frame.index(worst) + len(a.frames) - len(score.per_frame)
            rows.append([metric.title, shown(metric, score.mean), shown(metric, worst), which])
        return table(("measure", "mean", "worst frame", "which"), rows)

    output.data(record, human)
