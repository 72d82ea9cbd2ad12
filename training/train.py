"""Make the embedded model's weights on one GPU.

    python -m dittools.training.train --work DIR --out FOLDER

The denoiser stage also runs on several GPUs: ``torchrun --nproc-per-node 2 -m ... --stages denoiser``.

Two stages, each with a budget in minutes that survives restarts (run the same command again to go on): the
autoencoder, then text encoder and denoiser. Losses go to DIR/log.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from dittools.training import architecture, export, train_denoiser, train_vae
from dittools.training.team import Team
from dittools.training.training_log import Log

STAGES = ("vae", "denoiser")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="dittools.training.train", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and log.jsonl; resumed from if present")
    parser.add_argument("--out", type=Path, required=True, help="pipeline folder to write")
    parser.add_argument("--minutes", type=float, nargs=2, default=(6.0, 40.0), metavar=("VAE", "DENOISER"))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--start-from", type=Path, help="pipeline folder to go on from instead of random weights")
    parser.add_argument("--vae", type=Path, help="folder of a trained autoencoder to use instead of stage vae")
    parser.add_argument("--stop-after", type=float, default=1e9, help="minutes after which the denoiser stage pauses")
    parser.add_argument("--lr", type=float, default=train_denoiser.SETTINGS["lr"], help="of the denoiser stage")
    parser.add_argument("--large", action="store_true", help="train on large clips too (after --start-from)")
    parser.add_argument("--tiny", action="store_true", help="tiny networks and clips, to try the path on a CPU")
    args = parser.parse_args(argv)

    args.work.mkdir(parents=True, exist_ok=True)
    team = Team()
    device = team.device
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    sizes = architecture.TINY if args.tiny else architecture.FULL
    shapes = train_denoiser.SMALL if args.tiny else train_denoiser.LARGE if args.large else train_denoiser.SHAPES
    log = Log(args.work, quiet=not team.leads)
    settings = dict(
        minutes=list(args.minutes),
        lr=args.lr,
        vae=train_vae.SETTINGS,
        denoiser=train_denoiser.SETTINGS,
        shapes=[dataclasses.asdict(s) for s in shapes],
        sizes=dataclasses.asdict(sizes),
        torch=torch.__version__,
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    )
    (args.work / "settings.json").write_text(json.dumps(settings, indent=1))

    vae, start = None, None
    if args.start_from:
        vae, *start = export.load(args.start_from, device)
    if args.vae:
        vae = export.load_vae(args.vae, device)
    if "vae" in args.stages:
        if team.size > 1:
            parser.error("the vae stage runs on one GPU: give --stages vae and start it without torchrun")
        vae = train_vae.train(args.work, args.minutes[0], sizes, device, log)
        log(stage="vae", **train_vae.measure(vae, device, clips=16 if device.type == "cuda" else 1))
    if vae is None:
        parser.error("without the vae stage there is no autoencoder: give --vae or --start-from FOLDER")
    if "denoiser" in args.stages:
        session = train_denoiser.Session(args.work, "denoiser", device, log, team)
        schedule = train_denoiser.Schedule(args.minutes[1], shapes, args.lr, stop_after=args.stop_after)
        start = train_denoiser.train(session, schedule, vae, sizes, tuple(start) if start else None)
    if start is not None and team.leads:
        transformer, text_encoder, scale = start
        export.export(args.out, vae, transformer, text_encoder, scale)
        log(exported=args.out.name)
    team.close()


if __name__ == "__main__":
    main()
