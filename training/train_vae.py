"""Stage one of training: the autoencoder, on random windows of world clips."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import nn

from dittools.training import architecture, vae_sequence, world
from dittools.training.optim import Average
from dittools.training.training_log import Log, Progress, rate

SETTINGS = dict(lr=1.2e-3, kl=2e-4, first_frame=3.0, motion=0.5, window=128, batch=32, frames=17)
FRAME_SIZES = ((256, 256), (256, 256), (480, 832))


def reconstruction_loss(decoded: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error, the first frame counted more, and the error of frame differences."""
    error = decoded.float() - video
    per_frame = error.abs().mean((0, 1, 3, 4)) + 2 * error.square().mean((0, 1, 3, 4))
    weight = torch.ones_like(per_frame)
    weight[0] = SETTINGS["first_frame"]
    motion = (error[:, :, 1:] - error[:, :, :-1]).abs().mean()
    return (per_frame * weight).sum() / weight.sum() + SETTINGS["motion"] * motion


def psnr(decoded: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
    """Of each frame of each clip ``[N, T]``, in dB, for clips ``[N, 3, T, H, W]`` in [-1, 1]."""
    error = ((decoded.float().clamp(-1, 1) - video) / 2).square().mean((1, 3, 4))
    return -10 * error.log10()


def _window(step: int, settings: dict, device: torch.device) -> torch.Tensor:
    """A batch of windows of world clips; fewer pixels, many scenes."""
    rng = random.Random(step)
    height, width = rng.choice(FRAME_SIZES)
    side = min(settings["window"], height)
    top, left = rng.randrange(0, height - side + 1), rng.randrange(0, width - side + 1)
    frames, duration = settings["frames"], world.SHORT_CLIP
    first = rng.randrange(0, duration - frames + 1)
    scenes = world.sample(settings["batch"], torch.Generator().manual_seed(step)).to(device)
    return world.render(scenes, frames, height, width, first=first, duration=duration, crop=(top, left, side, side))


def train(work: Path, minutes: float, sizes: architecture.Sizes, device: torch.device, log: Log) -> nn.Module:
    """Train for ``minutes`` (over all sessions) and leave ``vae.pt`` in ``work``; returns the average."""
    torch.manual_seed(0)
    cuda = device.type == "cuda"
    settings = SETTINGS if cuda else SETTINGS | dict(window=64, batch=2)
    vae = architecture.build_vae(sizes).to(device)
    if cuda:
        layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
        for p in vae.parameters():
            if p.ndim in layouts:
                p.data = p.data.contiguous(memory_format=layouts[p.ndim])
    average = Average([vae], decay=0.998)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=settings["lr"], betas=(0.9, 0.99), weight_decay=1e-4, fused=cuda)
    path, step, progress = work / "vae.pt", 0, Progress(minutes)
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimiser.load_state_dict(state["optimiser"])
        average.mean, average.steps, step = state["mean"], state["average_steps"], state["step"]
        progress = Progress(minutes, state["seconds"])
    if cuda:
        torch._dynamo.config.cache_size_limit = 128
        for module in vae.modules():
            if type(module).__name__ == "WanResidualBlock":
                module.compile(dynamic=False)

    def save() -> None:
        state = dict(vae=vae.state_dict(), mean=average.mean, average_steps=average.steps, step=step)
        torch.save(state | dict(optimiser=optimiser.state_dict(), seconds=progress.seconds), path)

    with vae_sequence.whole_clips(vae):
        while progress.share < 1:
            video = _window(step, settings, device)
            for group in optimiser.param_groups:
                group["lr"] = settings["lr"] * rate(progress.share, step, 100, 0.65, 0.02)
            with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
                mean, log_variance = vae_sequence.encode(vae, video)
                mean, log_variance = mean.float(), log_variance.float()
                latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
                decoded = vae_sequence.decode(vae, latents)
            kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
            loss = reconstruction_loss(decoded, video) + settings["kl"] * kl
            loss.backward()
            norm = nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            average.update()
            if step % 100 == 0:
                quality = psnr(decoded.detach(), video).mean(0)
                log(
                    stage="vae",
                    step=step,
                    seconds=progress.seconds,
                    loss=loss.item(),
                    kl=kl.item(),
                    psnr=quality.mean().item(),
                    psnr_first=quality[0].item(),
                    grad=norm.item(),
                )
            step += 1
            if step % 1000 == 0:
                save()
        save()
    average.swap()
    plain = architecture.build_vae(sizes).to(device)  # without the compiled blocks, for the class's own walk
    plain.load_state_dict(vae.state_dict())
    return plain.eval()


@torch.no_grad()
def measure(vae: nn.Module, device: torch.device, clips: int = 32, height: int = 256, width: int = 256) -> dict:
    """PSNR of unseen clips through the class's own encode and decode, per frame and the worst clip."""
    scenes = world.sample(clips, torch.Generator().manual_seed(10**6), holdout=False).to(device)
    rows = []
    for i in range(0, clips, 4):
        video = world.render(scenes.select(slice(i, i + 4)), 33, height, width)
        latents = vae.encode(video.to(vae.dtype)).latent_dist.mean
        rows.append(psnr(vae.decode(latents).sample, video))
    per_clip = torch.cat(rows)
    return dict(
        clips=clips,
        height=height,
        width=width,
        psnr=per_clip.mean().item(),
        psnr_worst_clip=per_clip.mean(1).min().item(),
        psnr_per_frame=[round(x, 3) for x in per_clip.mean(0).tolist()],
    )
