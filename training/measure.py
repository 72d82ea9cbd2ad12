"""Speed and fidelity of sparse attention on the embedded model, and how concentrated its attention is.

    python -m dittools.training.measure --json docs/measured/svg_480p.json --size 81 480 832

For each prompt: a dense run, then one at each sparsity, the whole round repeated; seconds are medians over rounds.
Fidelity is against the dense run of the same prompt and seed, on decoded frames.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dittools
from dittools import files, provenance
from dittools.json_numbers import number
from dittools.kernels.choice import implementations
from dittools.kernels.dense import dense_kernel_name
from dittools.pipelines import embedded, stages
from dittools.pipelines.embedded import captions
from dittools.pipelines.embedded import vocabulary as voc
from dittools.quality import psnr, ssim
from dittools.quality.attention_mass import block_mass, top_share
from dittools.training import judge
from dittools.training.evaluate import load

PROMPTS = (
    "a large red star spinning and a blue circle moving left on a dark checkered background",
    "a large yellow ring orbiting on a slate striped background",
    "a green triangle growing on a pale cloudy background",
)
SHARES = (0.2, 0.1, 0.05)


def timed(pipe: Any, embeds: dict, shot: stages.Shot, device: torch.device) -> tuple[torch.Tensor, float]:
    """Latents and denoise seconds."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    begun = now()
    latents = stages.denoise(pipe, embeds, shot)
    return latents, now() - begun


def attention_mass(pipe: Any, embeds: dict, shot: stages.Shot, block: int) -> list[dict]:
    """Share of mass in the best blocks, a layer: mean, least and most over its heads, guided branch, three steps."""
    found: dict[int, list[torch.Tensor]] = {}
    chosen = {round(shot.steps * at) for at in (0.25, 0.5, 0.75)}
    with dittools.accelerate(pipe, method="dense") as fast:
        attend, forwards = fast.runtime.attend, [-1]

        def watch(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **call: Any) -> torch.Tensor:
            forwards[0] += layer == 0
            step, uncond = divmod(forwards[0], 2 if shot.guidance > 1 else 1)
            if step in chosen and not uncond:
                mass = block_mass(q, k, block)
                found.setdefault(layer, []).append(torch.stack([top_share(mass, s)[0] for s in SHARES]).cpu())
            return attend(layer, q, k, v, **call)

        fast.runtime.attend = watch
        stages.denoise(pipe, embeds, shot)
    rows = []
    for layer, values in sorted(found.items()):
        by_head = torch.stack(values).mean(0)  # [shares, H]
        rows.append(
            dict(
                layer=layer,
                **{
                    f"top_{round(100 * share)}": dict(
                        mean=by_head[i].mean().item(), least=by_head[i].min().item(), most=by_head[i].max().item()
                    )
                    for i, share in enumerate(SHARES)
                },
            )
        )
    return rows


def strip(video: np.ndarray, count: int = 5) -> np.ndarray:
    """A few frames side by side."""
    return np.concatenate([video[i] for i in np.linspace(0, len(video) - 1, count).round().astype(int)], 1)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="dittools.training.measure", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--size", type=int, nargs=3, default=(81, 480, 832), metavar=("FRAMES", "HEIGHT", "WIDTH"))
    parser.add_argument("--sparsity", type=float, nargs="+", default=(0.5, 0.7, 0.8, 0.9))
    parser.add_argument("--method", default="svg")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=embedded.DEFAULTS["steps"])
    parser.add_argument("--block", type=int, default=128, help="block side for the attention mass")
    parser.add_argument("--pictures", type=Path, help="folder for strips of frames: dense above, each sparsity below")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe = load(device)
    dim = pipe.transformer.config.attention_head_dim
    able = [name for name, why in implementations(device, pipe.transformer.dtype, dim) if why is None]
    result: dict[str, Any] = dict(
        command=["python", "-m", "dittools.training.measure", *(argv or sys.argv[1:])],
        dittools=provenance.dittools_version(),
        versions=provenance.versions(),
        device=provenance.device_facts(device),
        size=list(args.size),
        steps=args.steps,
        method=args.method,
        dtype=str(pipe.transformer.dtype).removeprefix("torch."),
        dense_kernel=dense_kernel_name(device, pipe.transformer.dtype, dim),
        sparse_kernel=able[0] if device.type == "cuda" else "portable",
        runs=[],
    )

    def keep() -> None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(args.json, result)

    settings = ["dense", *args.sparsity]
    for seed, prompt in enumerate(PROMPTS[: args.prompts]):
        embeds = stages.encode(pipe, prompt, "", embedded.DEFAULTS["guidance"], voc.MAX_TOKENS)
        shot = stages.Shot(*args.size, args.steps, embedded.DEFAULTS["guidance"], seed=seed)
        if seed == 0:  # kernels compile and caches fill outside the clock
            few = stages.Shot(*args.size, 3, shot.guidance, 0)
            stages.denoise(pipe, embeds, few)
            for sparsity in args.sparsity:
                with dittools.accelerate(pipe, method=args.method, sparsity=sparsity, dense_steps=1):
                    stages.denoise(pipe, embeds, few)
            result["attention_mass"] = attention_mass(pipe, embeds, shot, args.block)
            keep()
        seconds: dict[Any, list[float]] = {s: [] for s in settings}
        kept, records = {}, {}
        for _ in range(args.rounds):
            for setting in settings:
                if setting == "dense":
                    kept[setting], spent = timed(pipe, embeds, shot, device)
                else:
                    with dittools.accelerate(pipe, method=args.method, sparsity=setting) as fast:
                        kept[setting], spent = timed(pipe, embeds, shot, device)
                        records[setting] = fast.record()
                seconds[setting].append(spent)
        videos = {setting: stages.decode(pipe, latents, shot) for setting, latents in kept.items()}
        dense_seconds = statistics.median(seconds["dense"])
        for setting in settings:
            row: dict[str, Any] = dict(prompt=prompt, seed=seed, setting=setting, seconds=seconds[setting])
            row["judge"] = judge.score(videos[setting], captions.parse(prompt))["objects"]
            if setting != "dense":
                row |= {key: records[setting][key] for key in ("sparsity", "calls", "heads", "fallbacks", "notes")}
                row["psnr"] = number(psnr(videos[setting], videos["dense"], device).mean)
                row["ssim"] = ssim(videos[setting], videos["dense"], device).mean
                row["speedup"] = dense_seconds / statistics.median(seconds[setting])
            result["runs"].append(row)
            shown = {k: row[k] for k in ("setting", "seconds", "psnr", "ssim", "speedup", "judge") if k in row}
            print(json.dumps(shown), flush=True)
        keep()
        if args.pictures:
            from PIL import Image

            args.pictures.mkdir(parents=True, exist_ok=True)
            rows = np.concatenate([strip(videos[s]) for s in settings])
            picture = Image.fromarray((rows * 255).round().astype(np.uint8))
            picture.thumbnail((1600, 1600))
            picture.save(args.pictures / f"{seed}.png")


if __name__ == "__main__":
    main()
