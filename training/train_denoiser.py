"""Stage two of training: the text encoder and the denoiser, by flow matching on encoded world clips."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dittools.training import architecture, vae_sequence
from dittools.training.fast_attention import fast_attention
from dittools.training.latents import ClipShape, LatentBuffer, latent_scale, tokenise
from dittools.training.optim import Average, optimisers
from dittools.training.team import Team
from dittools.training.training_log import Log, Progress, rate

SETTINGS = dict(lr=2.5e-3, drop_prompt=0.1, shift=3.0, refresh_every=4)

# Pictures first, then short clips, then whole ones: what is where is learned where it is cheap.
SHAPES = (
    ClipShape(1, 256, 256, batch=256, kept=24000, weight=1.0, until=0.14),
    ClipShape(13, 256, 256, batch=64, kept=8000, weight=1.0, since=0.14, until=0.5),
    ClipShape(33, 256, 256, batch=20, kept=4500, weight=1.0, since=0.5),
)
# For a run that goes on from trained weights: the same scenes large and long. Pictures give many captions to a batch:
# what belongs to which object, and how it looks at that size, is learned where it is cheap.
LARGE = (
    ClipShape(1, 256, 256, batch=256, kept=10000, weight=0.1),
    ClipShape(1, 480, 832, batch=40, kept=3000, weight=0.15),
    ClipShape(33, 256, 256, batch=20, kept=2000, weight=0.35),
    ClipShape(81, 480, 832, batch=2, kept=250, weight=0.4, since=0.08),
)
SMALL = (
    ClipShape(9, 64, 64, batch=2, kept=8, weight=0.5),
    ClipShape(5, 64, 96, batch=2, kept=8, weight=0.5, since=0.5),
)


def embed(text_encoder: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Prompt embeddings ``[B, L, C]`` with zeros after the end, as ``WanPipeline`` makes them."""
    mask = (ids != 0).long()
    return text_encoder(ids, mask).last_hidden_state * mask[..., None]


def flow_loss(transformer: nn.Module, latents: torch.Tensor, prompt: torch.Tensor, shift: float) -> torch.Tensor:
    """Squared error ``[B]`` of the predicted velocity (noise minus data) at a random noise level."""
    batch = latents.shape[0]
    # One level from each of B equal slices: less noisy than B independent draws.
    u = (torch.arange(batch, device=latents.device) + torch.rand(batch, device=latents.device)) / batch
    sigma = (shift * u / (1 + (shift - 1) * u)).view(-1, 1, 1, 1, 1)
    noise = torch.randn_like(latents)
    noisy = (1 - sigma) * latents + sigma * noise
    with torch.autocast(latents.device.type, torch.bfloat16, enabled=latents.is_cuda):
        velocity = transformer(noisy, sigma.flatten() * 1000, prompt, return_dict=False)[0]
    return (velocity.float() - (noise - latents)).square().mean((1, 2, 3, 4))


@dataclass(frozen=True)
class Schedule:
    """How long and at what rate the denoiser trains, and on which clips.

    Args:
        minutes: over all sessions.
        shapes: kinds of clips.
        lr: highest learning rate of the matrices; embeddings take half.
        decay_from: share of the time after which the rate falls.
        floor: share of the highest rate at the end.
        stop_after: minutes after which this session ends early.
    """

    minutes: float
    shapes: tuple[ClipShape, ...] = SHAPES
    lr: float = SETTINGS["lr"]
    decay_from: float = 0.55
    floor: float = 0.02
    stop_after: float = 1e9


@dataclass(frozen=True)
class Session:
    """Where a process of the training runs, and where its checkpoint ``<name>.pt`` and its log go."""

    work: Path
    name: str
    device: torch.device
    log: Log
    team: Team


def train(
    session: Session,
    schedule: Schedule,
    vae: nn.Module,
    sizes: architecture.Sizes,
    start: tuple[nn.Module, nn.Module, torch.Tensor] | None = None,
) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """Train the denoiser on latents of drawn clips, going on from the session's checkpoint where there is one.

    Args:
        start: transformer, text encoder and latent scale to go on from.

    Returns:
        The averaged transformer and text encoder, and the latents' scale ``[2, 16]``.
    """
    name, device, log, team, shapes = session.name, session.device, session.log, session.team, schedule.shapes
    torch.manual_seed(1)  # the same start in every process
    cuda = device.type == "cuda"
    tokenizer = architecture.build_tokenizer()
    vae.eval().requires_grad_(False)
    path, step, state = session.work / f"{name}.pt", 0, None
    if start is None:
        transformer, text_encoder = (
            architecture.build_transformer(sizes),
            architecture.build_text_encoder(sizes),
        )
        for block in transformer.blocks:  # residual branches start small, so that deep layers join in gently
            for layer in (block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]):
                nn.init.normal_(layer.weight, std=0.02 / (2 * len(transformer.blocks)) ** 0.5)
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(transformer.proj_out.weight)
        nn.init.zeros_(transformer.proj_out.bias)
        scale = None
    else:
        transformer, text_encoder, scale = start
    transformer, text_encoder = transformer.to(device).train(), text_encoder.to(device).train()
    average = Average([transformer, text_encoder], decay=0.999)
    chain = optimisers(transformer, text_encoder, schedule.lr)
    progress = Progress(schedule.minutes)
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        transformer.load_state_dict(state["transformer"])
        text_encoder.load_state_dict(state["text_encoder"])
        for optimiser, kept in zip(chain, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        average.mean, average.steps, step, scale = (
            state["mean"],
            state["average_steps"],
            state["step"],
            state["scale"],
        )
        progress = Progress(schedule.minutes, state["seconds"])
    if cuda:
        torch._dynamo.config.cache_size_limit = 64
        transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
    this_session = Progress(schedule.stop_after)
    torch.manual_seed(2 + 10 * step + team.rank)

    def save() -> None:
        if not team.leads:
            return
        kept = dict(transformer=transformer.state_dict(), text_encoder=text_encoder.state_dict(), scale=scale)
        kept |= dict(mean=average.mean, average_steps=average.steps, step=step, seconds=progress.seconds)
        partial = path.with_suffix(".part")
        torch.save(kept | dict(optimisers=[o.state_dict() for o in chain]), partial)
        partial.replace(path)

    with vae_sequence.whole_clips(vae), fast_attention(device) as kernel:
        log(stage=name, attention=kernel)
        if scale is None:
            scale = latent_scale(vae, device, max(shapes, key=lambda s: s.frames), 256 if cuda else 8)
        buffers: dict[int, LatentBuffer] = {}
        empty = tokenise(tokenizer, [""]).to(device)
        rng = random.Random(step)
        sums: dict[int, list] = {i: [] for i in range(len(shapes))}
        while (share := team.agree(1.0 if this_session.share >= 1 else progress.share)) < 1:
            for i, shape in enumerate(shapes):
                if not shape.since <= share < shape.until:
                    buffers.pop(i, None)
                elif i not in buffers:
                    buffers[i] = LatentBuffer(
                        shape, vae, tokenizer, scale, seed=1000 * (step + 1) + 100 * team.rank + i
                    )
                    log(
                        stage=name,
                        filled=shape.kept,
                        frames=shape.frames,
                        height=shape.height,
                        seconds=progress.seconds,
                    )
            which = rng.choices(list(buffers), [shapes[i].weight for i in buffers])[0]
            latents, ids = buffers[which].draw()
            dropped = torch.rand(len(ids), device=device) < SETTINGS["drop_prompt"]
            ids = torch.where(dropped[:, None], empty, ids)
            factor = rate(share, step, 150, schedule.decay_from, schedule.floor)
            chain[0].param_groups[0]["lr"], chain[1].param_groups[0]["lr"] = (
                schedule.lr * factor,
                schedule.lr / 2 * factor,
            )
            # Longer and larger clips stay recognisable under more noise.
            shift = SETTINGS["shift"] * (latents[0, 0].numel() / (9 * 32 * 32)) ** 0.25
            loss = flow_loss(transformer, latents, embed(text_encoder, ids), shift)
            loss.mean().backward()
            team.average_gradients(average.live)
            norm = nn.utils.clip_grad_norm_(average.live, 1.0)
            for optimiser in chain:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            average.update()
            sums[which].append(loss.detach().mean())
            if cuda and step % SETTINGS["refresh_every"] == 0:
                buffers[which].refresh(max(1, shapes[which].batch // 4))
            if step % 500 == 0:
                team.same_weights(average.live)
            if step % 200 == 0 and team.leads:
                means = {
                    f"loss_{s.frames}x{s.height}": torch.stack(v).mean().item()
                    for s, v in zip(shapes, sums.values(), strict=True)
                    if v
                }
                log(stage=name, step=step, seconds=progress.seconds, **means, grad=norm.item(), rate=factor)
                sums = {i: [] for i in range(len(shapes))}
            step += 1
            if step % 500 == 0:
                save()
        save()
    average.swap()
    log(stage=name, step=step, seconds=progress.seconds, done=progress.share >= 1)
    return transformer, text_encoder, scale
