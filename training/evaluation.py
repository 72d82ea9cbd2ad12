"""Held-out captions to test generation with, and how well the judge reads ground truth."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from dittools.pipelines.embedded import vocabulary as voc
from dittools.training import judge, world

ATTRIBUTES = ("shape", "colour", "motion")


def held_out_combinations() -> list[tuple[int, int, int]]:
    """Every (shape, colour, motion) that training never shows and that can be seen."""
    return [
        (shape, colour, motion)
        for shape in range(len(voc.SHAPES))
        for colour in range(len(voc.COLOURS))
        for motion in range(len(voc.MOTIONS))
        if voc.held_out(shape, colour, motion) and (voc.MOTIONS[motion] != "spin" or voc.can_spin(shape))
    ]


def evaluation_captions(seed: int = 0, n: int = 64) -> list[tuple[str, list[voc.Thing]]]:
    """``n`` captions of combinations that are held out of training, with the objects they ask for.

    Three in four have one object, the rest two of different colours; single objects all differ in
    (shape, colour, motion) as long as there are such. Motions, shapes, colours and backgrounds are spread
    evenly. Objects are of medium or large size and mostly plain; the camera stands still.
    """
    generator = torch.Generator().manual_seed(seed)

    def chance() -> float:
        return float(torch.rand((), generator=generator))

    def thing(combination: tuple[int, int, int]) -> voc.Thing:
        shape, colour, motion = combination
        size = voc.SIZES.index("large") if chance() < 0.35 else voc.SIZES.index("")
        texture = 1 + int(chance() < 0.5) if chance() < 0.1 else 0
        return voc.Thing(shape, colour, size, texture, motion)

    scenes = [(tone, kind) for kind in range(len(voc.BACKGROUNDS)) for tone in range(len(voc.TONES))]
    scenes = [scenes[i] for i in torch.randperm(len(scenes), generator=generator).tolist()]
    doubles = n // 4
    singles = _evenly(held_out_combinations(), generator)
    firsts, seconds = (_evenly(held_out_combinations(), generator) for _ in range(2))
    chosen = []
    for i in range(n):
        if i < n - doubles:
            things = [thing(next(singles))]
        else:
            first = next(firsts)
            second = next(c for c in seconds if c[1] != first[1])
            things = [thing(first), thing(second)]
        chosen.append((voc.caption(things, scenes[i % len(scenes)]), things))
    return chosen


def _evenly(combinations: list[tuple[int, int, int]], generator: torch.Generator) -> Iterator[tuple[int, int, int]]:
    """Endless combinations in random order, always one whose three values were least used so far."""
    used = tuple(Counter() for _ in ATTRIBUTES)
    left: list[tuple[int, int, int]] = []
    while True:
        if not left:
            left = [combinations[i] for i in torch.randperm(len(combinations), generator=generator).tolist()]
        best = min(left, key=lambda c: sum(count[value] ** 2 for count, value in zip(used, c, strict=True)))
        left.remove(best)
        for count, value in zip(used, best, strict=True):
            count[value] += 1
        yield best


def ground_truth(
    n: int, seed: int, frames: int = 33, height: int = 256, width: int = 256, holdout: bool = False
) -> Iterator[tuple[torch.Tensor, list[voc.Thing]]]:
    """``n`` rendered videos ``[T, H, W, 3]`` in [0, 1] without camera motion, with the objects in them."""
    scenes = world.sample(n, torch.Generator().manual_seed(seed), holdout=holdout)
    scenes.camera.zero_()
    for i in range(n):
        video = world.render(scenes.select(slice(i, i + 1)), frames, height, width)[0]
        yield (video.permute(1, 2, 3, 0) + 1) / 2, scenes.things(i)


def _blur(video: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of a video ``[T, H, W, 3]`` by ``sigma`` pixels of a 256 pixel frame."""
    sigma *= min(video.shape[1:3]) / 256
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    x = video.permute(0, 3, 1, 2).flatten(0, 1)[:, None]  # [T * 3, 1, H, W]
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    x = F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), kernel.view(1, 1, -1, 1))
    return x[:, 0].unflatten(0, (-1, 3)).permute(0, 2, 3, 1)


def _blocks(video: torch.Tensor, side: int, part: float) -> torch.Tensor:
    """Moves every block of ``side`` pixels towards its mean by ``part``."""
    x = video.permute(0, 3, 1, 2)
    size = x.shape[-2:]
    mean = F.interpolate(F.avg_pool2d(x, side, ceil_mode=True), scale_factor=side)[..., : size[0], : size[1]]
    return (x + part * (mean - x)).permute(0, 2, 3, 1)


def _noise(video: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    return video + sigma * torch.randn(video.shape, generator=generator)


def _tint(video: torch.Tensor, generator: torch.Generator, degrees: float, amount: float) -> torch.Tensor:
    """Turns hues by up to ``degrees``, scales brightness by up to ``amount``, fades by up to that."""
    turn, gain, fade = torch.rand(3, generator=generator).tolist()
    angle = math.radians(degrees) * (2 * turn - 1)
    grey = video.mean(-1, keepdim=True)
    colour = video - grey
    # A turn about the grey axis (Rodrigues' formula).
    across = (colour.roll(-1, -1) - colour.roll(1, -1)) / math.sqrt(3)
    colour = colour * math.cos(angle) + across * math.sin(angle)
    return (grey + colour * (1 - amount * fade)) * (1 + amount * (2 * gain - 1))


def _ghosts(video: torch.Tensor) -> torch.Tensor:
    """Every frame mixed with its two neighbours, as a decoder that compresses time does."""
    before, after = torch.cat((video[:1], video[:-1])), torch.cat((video[1:], video[-1:]))
    return (before + 2 * video + after) / 4


def _soft(video: torch.Tensor, side: int) -> torch.Tensor:
    """Shrinks by ``side`` and enlarges again: blobs without outlines."""
    x = video.permute(0, 3, 1, 2)
    small = F.avg_pool2d(x, side, ceil_mode=True)
    return F.interpolate(small, size=x.shape[-2:], mode="bilinear").permute(0, 2, 3, 1)


def _wobble(video: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Bends every frame by up to about 4 pixels of 256, smoothly over space and time."""
    frames, height, width = video.shape[:3]
    coarse = torch.randn(1, 2, max(2, frames // 6), 8, 8, generator=generator) * (2 * 1.5 / 256)
    field = F.interpolate(coarse, size=(frames, height, width), mode="trilinear", align_corners=True)[0]
    y = (torch.arange(height) + 0.5) / height * 2 - 1
    x = (torch.arange(width) + 0.5) / width * 2 - 1
    y, x = torch.meshgrid(y, x, indexing="ij")
    grid = torch.stack((x, y), -1) + field.permute(1, 2, 3, 0)
    bent = F.grid_sample(video.permute(0, 3, 1, 2), grid, padding_mode="border", align_corners=False)
    return bent.permute(0, 2, 3, 1)


def _moderate(video: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    video = _blocks(_blur(_ghosts(video), 1.5), 8, 0.3)
    return _noise(_tint(video, generator, 6, 0.12), 0.03, generator)


def _severe(video: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return _noise(_tint(_soft(_ghosts(video), 8), generator, 10, 0.2), 0.05, generator)


DEGRADATIONS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "clean": lambda video, generator: video,
    "blur 1.5": lambda video, generator: _blur(video, 1.5),
    "blur 3": lambda video, generator: _blur(video, 3.0),
    "noise": lambda video, generator: _noise(video, 0.06, generator),
    "blocks 4": lambda video, generator: _blocks(video, 4, 0.8),
    "blocks 8": lambda video, generator: _blocks(video, 8, 0.6),
    "tint": lambda video, generator: _tint(video, generator, 10, 0.2),
    "ghosts": lambda video, generator: _ghosts(video),
    "wobble": _wobble,
    "moderate": _moderate,
    "severe": _severe,
}
"""Ways to spoil a video ``[T, H, W, 3]`` as a small decoder might. ``moderate`` mixes most of them."""


def degrade(video: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """A spoiled copy of a video ``[T, H, W, 3]`` in [0, 1]; ``kind`` is a key of `DEGRADATIONS`."""
    return DEGRADATIONS[kind](video, generator).clamp(0, 1)


class Tally:
    """Counts what was asked and what was read, per attribute and value."""

    def __init__(self) -> None:
        self.asked = {name: Counter() for name in ATTRIBUTES}
        self.right = {name: Counter() for name in ATTRIBUTES}
        self.confused = {name: Counter() for name in ATTRIBUTES}
        self.videos = self.counts_right = self.all_right = self.objects = 0

    def add(self, sightings: list[judge.Sighting], things: list[voc.Thing]) -> None:
        """Adds one video. Objects pair up by `judge.compare`'s assignment."""
        result = judge.compare(sightings, things)
        self.videos += 1
        self.counts_right += result["count"]
        for thing, verdict, index in zip(things, result["objects"], result["assigned"], strict=True):
            self.objects += 1
            self.all_right += all(verdict.values())
            for name, values in (("shape", voc.SHAPES), ("colour", voc.COLOURS), ("motion", voc.MOTIONS)):
                asked = values[getattr(thing, name)]
                self.asked[name][asked] += 1
                self.right[name][asked] += verdict[name]
                if not verdict[name]:
                    was = "nothing" if index is None else getattr(sightings[index], name)
                    self.confused[name][f"{asked} read as {was}"] += 1

    def summary(self) -> dict[str, Any]:
        """Accuracies in [0, 1] and the confused pairs, most frequent first."""
        table: dict[str, Any] = {
            "videos": self.videos,
            "objects": self.objects,
            "count": self.counts_right / max(self.videos, 1),
            "all three": self.all_right / max(self.objects, 1),
        }
        for name in ATTRIBUTES:
            asked, right = self.asked[name], self.right[name]
            table[name] = sum(right.values()) / max(sum(asked.values()), 1)
            table[f"per {name}"] = {value: right[value] / asked[value] for value in sorted(asked)}
            table[f"confused {name}"] = dict(self.confused[name].most_common())
        return table


def judge_accuracy(
    n: int, seed: int, size: tuple[int, int, int] = (33, 256, 256), kinds: list[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Accuracy tables of the judge on ``n`` ground-truth videos of ``size`` (T, H, W), by degradation."""
    kinds = kinds or list(DEGRADATIONS)
    tallies = {kind: Tally() for kind in kinds}
    spent = dict.fromkeys(kinds, 0.0)
    for i, (video, things) in enumerate(ground_truth(n, seed, *size)):
        if i and i % 32 == 0:
            print(f"judged {i} of {n} ground-truth videos", file=sys.stderr, flush=True)
        for kind in kinds:
            spoiled = degrade(video, kind, torch.Generator().manual_seed(seed * 100_003 + i))
            start = time.perf_counter()
            sightings = judge.read(spoiled)
            spent[kind] += time.perf_counter() - start
            tallies[kind].add(sightings, things)
    return {kind: tallies[kind].summary() | {"seconds a video": spent[kind] / max(n, 1)} for kind in kinds}


def report(n: int, seed: int, size: tuple[int, int, int], kinds: list[str], path: str | None) -> None:
    """Prints one line a degradation and writes the full tables as JSON to ``path``."""
    tables = judge_accuracy(n, seed, size, kinds)
    columns = (*ATTRIBUTES, "all three", "count", "seconds a video")
    print(" ".join(f"{name:>15}" for name in ("", *columns)))
    for kind, table in tables.items():
        print(" ".join([f"{kind:>15}", *(f"{table[name]:15.3f}" for name in columns)]))
    if path:
        Path(path).write_text(json.dumps({"size": size, "seed": seed, "tables": tables}, indent=2) + "\n")
        print(f"Wrote {path}", file=sys.stderr)


def main() -> None:
    """Measures the judge itself on ground truth, clean and degraded."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--videos", type=int, default=256, help="scenes to render (default 256)")
    parser.add_argument("--seed", type=int, default=7, help="seed of the scenes and the degradations (default 7)")
    parser.add_argument("--size", type=int, nargs=3, default=(33, 256, 256), metavar=("T", "H", "W"))
    parser.add_argument("--kinds", nargs="+", default=list(DEGRADATIONS), help="degradations to apply")
    parser.add_argument("--json", help="file to write the full tables to")
    args = parser.parse_args()
    report(args.videos, args.seed, tuple(args.size), args.kinds, args.json)


if __name__ == "__main__":
    main()
