"""A contact sheet of what a training run can draw so far.

python -m dittools.training.preview --work DIR --out sheet.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from dittools.pipelines.embedded import vocabulary as voc
from dittools.training import architecture, world

PROMPTS = (
    "a large red star spinning and a blue circle moving left on a dark checkered background",
    "a green triangle growing on a pale cloudy background",
    "a yellow ring moving up on a slate striped background",
    "a purple cross orbiting on a grey gradient background",
    "a large blue square bouncing on a brown checkered background",
    "a cyan star moving right on a dark gradient background",
    "an orange circle shrinking and a red triangle moving down on a pale striped background",
    "a large striped green star spinning on a grey cloudy background",
)


def _fill(module: nn.Module, values: list[torch.Tensor]) -> list[torch.Tensor]:
    """Copy averaged weights in parameter order; returns what is left."""
    params = list(module.parameters())
    for p, value in zip(params, values, strict=False):
        p.data.copy_(value)
    return values[len(params) :]


def from_checkpoint(work: Path, name: str, device: torch.device, sizes: architecture.Sizes) -> object:
    """The pipeline of the averaged weights in ``<work>/vae.pt`` and ``<work>/<name>.pt``."""
    pipe = architecture.build_pipeline(sizes)
    _fill(pipe.vae, torch.load(work / "vae.pt", map_location="cpu", weights_only=True)["mean"])
    state = torch.load(work / f"{name}.pt", map_location="cpu", weights_only=True)
    _fill(pipe.text_encoder, _fill(pipe.transformer, state["mean"]))
    mean, std = state["scale"].cpu().tolist()
    pipe.vae.register_to_config(latents_mean=mean, latents_std=std)
    return pipe.to(device)


def sheet(pipe: object, height: int, width: int, frames: int, steps: int, guidance: float) -> np.ndarray:
    """Rows of five frames, one prompt a row, in two columns."""
    rows = []
    for i, prompt in enumerate(PROMPTS):
        video = pipe(
            prompt,
            height=height,
            width=width,
            num_frames=frames,
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=voc.MAX_TOKENS,
            generator=torch.Generator().manual_seed(i),
        ).frames[0]
        picks = np.linspace(0, frames - 1, 5).round().astype(int)
        rows.append(np.concatenate([video[j] for j in picks], 1))
    half = len(rows) // 2
    return np.concatenate((np.concatenate(rows[:half]), np.concatenate(rows[half:])), 1)


@torch.no_grad()
def reconstructions(vae: nn.Module, device: torch.device) -> np.ndarray:
    """World clips above, what the autoencoder makes of them below."""
    scenes = world.sample(6, torch.Generator().manual_seed(5)).to(device)
    video = world.render(scenes, 17, 256, 256)
    back = vae.decode(vae.encode(video).latent_dist.mean).sample
    lines = [torch.cat(list(torch.cat(list(clip[:, :, j]), -1) for j in (0, 1, 16)), 1) for clip in (video, back)]
    return ((torch.cat(lines, 1).permute(1, 2, 0) + 1) / 2).clamp(0, 1).float().cpu().numpy()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="dittools.training.preview", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", default="denoiser", help="checkpoint; 'vae' shows reconstructions")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, nargs=3, default=(33, 256, 256), metavar=("FRAMES", "HEIGHT", "WIDTH"))
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--guidance", type=float, default=4.0)
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.name == "vae":
        vae = architecture.build_vae(architecture.FULL)
        _fill(vae, torch.load(args.work / "vae.pt", map_location="cpu", weights_only=True)["mean"])
        picture = reconstructions(vae.to(device), device)
    else:
        pipe = from_checkpoint(args.work, args.name, device, architecture.FULL)
        pipe.set_progress_bar_config(disable=True)
        frames, height, width = args.size
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            picture = sheet(pipe, height, width, frames, args.steps, args.guidance)
    image = Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))
    image.thumbnail((1600, 1600))
    image.save(args.out)


if __name__ == "__main__":
    main()
