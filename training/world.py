"""An endless source of short captioned videos, drawn from signed distances, on any device.

Lengths are in units of the shorter frame side, x to the right, y down, the origin in the middle. A clip
of at most 33 frames runs at a fixed pace (its motion is that of the first frames of a 33-frame clip);
in a longer clip the same path is spread over its whole length. Periodic motions keep their period in
seconds at 16 frames a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

from dittools.pipelines.embedded import vocabulary as voc

FPS = 16
SHORT_CLIP = 33
BOUNCE_PERIOD = 1.25
TURN_PERIOD = 2.5
ORBIT_PERIOD = 2.0

RGB = {
    "red": (0.90, 0.10, 0.12),
    "orange": (0.98, 0.52, 0.05),
    "yellow": (0.97, 0.92, 0.12),
    "green": (0.12, 0.70, 0.18),
    "cyan": (0.08, 0.82, 0.86),
    "blue": (0.14, 0.26, 0.95),
    "purple": (0.62, 0.12, 0.85),
}
TONE_RGB = {
    "grey": ((0.54, 0.54, 0.55), (0.38, 0.38, 0.39)),
    "dark": ((0.24, 0.24, 0.27), (0.11, 0.11, 0.13)),
    "pale": ((0.88, 0.87, 0.85), (0.72, 0.72, 0.71)),
    "brown": ((0.48, 0.39, 0.33), (0.32, 0.26, 0.22)),
    "slate": ((0.40, 0.46, 0.53), (0.26, 0.31, 0.37)),
}
RADII = torch.tensor([[0.14, 0.20, 0.26], [0.10, 0.13, 0.165], [0.08, 0.10, 0.12]])
"""Radius by number of objects (one, two, three) and size word (small, none, large)."""

_M = {name: i for i, name in enumerate(voc.MOTIONS)}
_HORIZONTAL = (_M["left"], _M["right"])
_VERTICAL = (_M["up"], _M["down"], _M["bounce"])


@dataclass
class Scenes:
    """A batch of scenes; object fields are ``[N, 3]``, the rest ``[N]``. Unused objects have index -1."""

    count: torch.Tensor
    shape: torch.Tensor
    colour: torch.Tensor
    size: torch.Tensor
    texture: torch.Tensor
    motion: torch.Tensor
    jitter: torch.Tensor  # [N, 3, 2] in [-1, 1], where in its cell an object starts
    tone: torch.Tensor
    background: torch.Tensor
    phase: torch.Tensor  # [N, 4] in [0, 1), of the background's pattern
    camera: torch.Tensor

    def __len__(self) -> int:
        return self.count.shape[0]

    def select(self, index: slice | torch.Tensor) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def things(self, i: int) -> list[voc.Thing]:
        names = ("shape", "colour", "size", "texture", "motion")
        rows = [getattr(self, name)[i].tolist() for name in names]
        return [voc.Thing(*(row[j] for row in rows)) for j in range(int(self.count[i]))]


def sample(n: int, generator: torch.Generator, holdout: bool = True) -> Scenes:
    """Draw ``n`` scenes on the CPU. With ``holdout`` no held-out combination occurs."""

    def pick(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape or (n,), generator=generator)

    def chance(*shape: int) -> torch.Tensor:
        return torch.rand(shape or (n,), generator=generator)

    count = 1 + (chance() < 0.40).long() + (chance() < 0.08).long()
    shape, motion = pick(len(voc.SHAPES), n, 3), pick(len(voc.MOTIONS), n, 3)
    # Three different colours: what a caption says of two objects is then never ambiguous.
    colour = torch.rand(n, len(voc.COLOURS), generator=generator).argsort(1)[:, :3]
    cannot_spin = (shape == 0) | (shape == 4)
    for _ in range(8):
        bad = cannot_spin & (motion == _M["spin"])
        if holdout:
            bad |= (shape + 2 * colour + 3 * motion) % 7 == 0
        motion = torch.where(bad, pick(len(voc.MOTIONS), n, 3), motion)
    bad = (cannot_spin & (motion == _M["spin"])) | (holdout & ((shape + 2 * colour + 3 * motion) % 7 == 0))
    if bad.any():  # eight draws left a few: take any motion that is allowed
        for i, j in bad.nonzero().tolist():
            allowed = [
                m
                for m in range(len(voc.MOTIONS))
                if not voc.held_out(int(shape[i, j]), int(colour[i, j]), m) and m != _M["spin"]
            ]
            motion[i, j] = allowed[int(pick(len(allowed), 1))]
    size = torch.where(chance(n, 3) < 0.5, 1, 2 * pick(2, n, 3))
    texture = torch.where(chance(n, 3) < 0.6, 0, 1 + pick(2, n, 3))

    used = torch.arange(3)[None] < count[:, None]
    at_rest = ((motion == _M["still"]) | (motion == _M["spin"]) | ~used).all(1)
    camera = torch.where(at_rest & (chance() < 0.5), 1 + pick(3), 0)
    keep = lambda x: torch.where(used, x, -1)  # noqa: E731
    return Scenes(
        count=count,
        shape=keep(shape),
        colour=keep(colour),
        size=keep(size),
        texture=keep(texture),
        motion=keep(motion),
        jitter=chance(n, 3, 2) * 2 - 1,
        tone=pick(len(voc.TONES)),
        background=pick(len(voc.BACKGROUNDS)),
        phase=chance(n, 4),
        camera=camera,
    )


def captions(scenes: Scenes, generator: torch.Generator) -> list[str]:
    """One caption a scene: sometimes with a synonym, sometimes silent about the background."""
    n = len(scenes)
    phrase = (torch.rand(n, 3, generator=generator) < 0.15).long().tolist()
    silent = (torch.rand(n, generator=generator) < 0.1).tolist()
    tone, kind, camera = scenes.tone.tolist(), scenes.background.tolist(), scenes.camera.tolist()
    texts = []
    for i in range(n):
        things = scenes.things(i)
        background = None if silent[i] else (tone[i], kind[i])
        texts.append(voc.caption(things, background, camera[i], phrase[i][: len(things)]))
    return texts


def trajectory(
    scenes: Scenes, frames: torch.Tensor, duration: int, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centre ``[N, T, 3, 2]`` (x, y), radius ``[N, T, 3]`` and angle ``[N, T, 3]`` at these frame numbers."""
    device = scenes.count.device
    unit = min(height, width)
    half_w, half_h = width / unit / 2, height / unit / 2
    n_obj = scenes.count[:, None].float()
    motion = scenes.motion
    horizontal = sum((motion == m) for m in _HORIZONTAL).sum(1, keepdim=True)
    vertical = sum((motion == m) for m in _VERTICAL).sum(1, keepdim=True)
    rows = horizontal > vertical  # objects that move sideways lie above one another, others side by side
    slot = (torch.arange(3, device=device)[None] + 0.5) / n_obj * 2 - 1  # [N, 3] in [-1, 1]
    cell_w = torch.where(rows, half_w, half_w / n_obj)  # half widths and heights of a cell
    cell_h = torch.where(rows, half_h / n_obj, half_h)
    centre_x = torch.where(rows, 0.0, slot * half_w)
    centre_y = torch.where(rows, slot * half_h, 0.0)

    radius = RADII.to(device)[scenes.count[:, None] - 1, scenes.size.clamp(min=0)]  # [N, 3]
    reach = radius * 1.1 + 0.015
    free_w, free_h = (cell_w - reach).clamp(min=0), (cell_h - reach).clamp(min=0)
    travel_w, travel_h = free_w.clamp(max=0.30 * half_w / 0.5), free_h.clamp(max=0.30)
    orbit = torch.minimum(free_w, free_h).clamp(max=0.17)
    bounce = free_h.clamp(max=0.15)

    frames = frames.to(device=device, dtype=torch.float32)
    u = (frames / max(duration - 1, 1)).view(1, -1, 1)
    t = (frames / FPS).view(1, -1, 1)

    def at(x: torch.Tensor) -> torch.Tensor:  # [N, 3] -> [N, 1, 3]
        return x[:, None]

    def when(name: str) -> torch.Tensor:
        return at((motion == _M[name]).float())

    sideways = when("right") - when("left")
    downwards = when("down") - when("up")
    turn = 2 * math.pi * t / ORBIT_PERIOD
    dx = sideways * at(travel_w) * (2 * u - 1) + when("orbit") * at(orbit) * torch.cos(turn)
    hop = 1 - 2 * torch.sin(math.pi * t / BOUNCE_PERIOD).abs()
    dy = (
        downwards * at(travel_h) * (2 * u - 1)
        + when("orbit") * at(orbit) * torch.sin(turn)
        + when("bounce") * at(bounce) * hop
    )
    # Jitter only along an axis the object does not travel, and only as far as its cell allows.
    moves_x = sum((motion == m) for m in (*_HORIZONTAL, _M["orbit"])) > 0
    moves_y = sum((motion == m) for m in (*_VERTICAL, _M["orbit"])) > 0
    jitter_x = torch.where(moves_x, 0.0, scenes.jitter[..., 0] * free_w.clamp(max=0.08))
    jitter_y = torch.where(moves_y, 0.0, scenes.jitter[..., 1] * free_h.clamp(max=0.08))
    x = at(centre_x + jitter_x) + dx
    y = at(centre_y + jitter_y) + dy
    swell = when("grow") * (0.55 + 0.60 * u) + when("shrink") * (1.15 - 0.60 * u)
    swell = torch.where(swell == 0, 1.0, swell)
    angle = when("spin") * 2 * math.pi * t / TURN_PERIOD
    return torch.stack((x, y), -1), at(radius) * swell, angle.expand_as(x)


def shape_distance(x: torch.Tensor, y: torch.Tensor, shape: int) -> torch.Tensor:
    """Distance to the outline of a shape of unit radius, negative inside (exact or a close bound)."""
    name = voc.SHAPES[shape]
    if name == "circle":
        return torch.hypot(x, y) - 0.92
    if name == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.82
    if name == "ring":
        return (torch.hypot(x, y) - 0.72).abs() - 0.26
    if name == "cross":
        a, b = x.abs(), y.abs()
        return torch.minimum(torch.maximum(a - 1.0, b - 0.34), torch.maximum(a - 0.34, b - 1.0))
    if name == "triangle":
        side = math.sqrt(3) / 2
        return torch.maximum(x.abs() * side - y * 0.5, y) * 1.0 - 0.52
    # Star: fold the plane into one tenth, then the distance to the edge from tip to notch.
    radius, turn = torch.hypot(x, y), torch.atan2(x, -y)
    fold = (torch.remainder(turn + math.pi / 5, 2 * math.pi / 5) - math.pi / 5).abs()
    px, py = radius * torch.cos(fold), radius * torch.sin(fold)
    tip, notch = 1.12, 0.50
    nx, ny = notch * math.cos(math.pi / 5), notch * math.sin(math.pi / 5)
    length = math.hypot(nx - tip, ny)
    return ((px - tip) * -ny + py * (nx - tip)) / -length


def _background(scenes: Scenes, x: torch.Tensor, y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """RGB ``[N, T, h, w, 3]`` of the background at world coordinates ``[N, T, h, w]``."""
    tones = torch.tensor([TONE_RGB[name] for name in voc.TONES], device=x.device)[scenes.tone]  # [N, 2, 3]
    phase = scenes.phase.view(-1, 1, 1, 1, 4)

    def smooth(value: torch.Tensor, sharpness: float) -> torch.Tensor:
        return torch.sigmoid(value * sharpness)

    wave_x = torch.sin(2 * math.pi * (x / 0.36 + phase[..., 0]))
    wave_y = torch.sin(2 * math.pi * (y / 0.36 + phase[..., 1]))
    gradient = (0.5 + 0.9 * torch.where(phase[..., 0] < 0.5, y, -y)).clamp(0, 1)
    striped = smooth(wave_x, 12.0)
    checkered = smooth(wave_x * wave_y, 14.0)
    drift = x - 0.10 * t
    cloudy = sum(
        torch.sin(2 * math.pi * (kx * drift + ky * y + phase[..., i]))
        for i, (kx, ky) in enumerate(((1.1, 0.4), (-0.7, 1.3), (1.9, -0.9), (0.6, 2.1)))
    )
    cloudy = 0.5 + 0.16 * cloudy
    kind = scenes.background.view(-1, 1, 1, 1)
    mix = torch.where(kind == 0, gradient, torch.where(kind == 1, striped, torch.where(kind == 2, checkered, cloudy)))
    first, second = tones[:, 0].view(-1, 1, 1, 1, 3), tones[:, 1].view(-1, 1, 1, 1, 3)
    return first * (1 - mix[..., None]) + second * mix[..., None]


def _surface(scenes: Scenes, j: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """RGB of object ``j`` at its own coordinates: colour, texture, and light from the upper left."""
    palette = torch.tensor([RGB[name] for name in voc.COLOURS], device=x.device)
    base = palette[scenes.colour[:, j].clamp(min=0)].view(-1, 1, 1, 1, 3)
    texture = scenes.texture[:, j].view(-1, 1, 1, 1)
    stripes = torch.sigmoid(10 * torch.sin(2 * math.pi * x / 0.62))
    spots = torch.sigmoid(14 * (torch.sin(2 * math.pi * x / 0.7) * torch.sin(2 * math.pi * y / 0.7) - 0.25))
    dark = torch.where(texture == 1, stripes, torch.where(texture == 2, spots, torch.zeros_like(x)))
    light = (1.0 - 0.10 * (x + y)).clamp(0.78, 1.08)
    return base * ((1 - 0.42 * dark) * light)[..., None]


def render(
    scenes: Scenes,
    frames: int,
    height: int,
    width: int,
    *,
    first: int = 0,
    duration: int | None = None,
    crop: tuple[int, int, int, int] | None = None,
) -> torch.Tensor:
    """Video ``[N, 3, T, h, w]`` in [-1, 1], fp32, of frames ``first .. first + frames - 1``.

    ``crop`` is (top, left, height, width) in pixels of the whole ``height`` x ``width`` frame; ``duration``
    is the length in frames of the clip the motion is planned for.
    """
    device = scenes.count.device
    duration = duration or max(SHORT_CLIP, first + frames)
    top, left, rows, columns = crop or (0, 0, height, width)
    unit = min(height, width)
    ys = (torch.arange(top, top + rows, device=device) + 0.5 - height / 2) / unit
    xs = (torch.arange(left, left + columns, device=device) + 0.5 - width / 2) / unit
    number = torch.arange(first, first + frames, device=device)
    u = (number / max(duration - 1, 1)).view(1, -1, 1, 1)
    t = (number / FPS).view(1, -1, 1, 1)

    camera = scenes.camera.view(-1, 1, 1, 1)
    pan = torch.where(camera == 1, -0.22, torch.where(camera == 2, 0.22, 0.0)) * (u - 0.5)
    zoom = torch.where(camera == 3, 1 + 0.35 * u, torch.ones_like(u))
    x = xs.view(1, 1, 1, -1) / zoom + pan
    y = ys.view(1, 1, -1, 1) / zoom + torch.zeros_like(pan)
    x, y = torch.broadcast_tensors(x, y)

    picture = _background(scenes, x, y, t)
    centre, radius, angle = trajectory(scenes, number, duration, height, width)
    for j in range(int(scenes.count.max())):
        for s in range(len(voc.SHAPES)):
            some = (scenes.shape[:, j] == s).nonzero().flatten()
            if len(some) == 0:
                continue
            near = zoom.expand(len(scenes), -1, -1, -1)[some]
            r = radius[some, :, j, None, None]
            ox = (x[some] - centre[some, :, j, 0, None, None]) / r
            oy = (y[some] - centre[some, :, j, 1, None, None]) / r
            cos, sin = torch.cos(angle[some, :, j, None, None]), torch.sin(angle[some, :, j, None, None])
            ox, oy = ox * cos + oy * sin, oy * cos - ox * sin
            cover = (0.5 - shape_distance(ox, oy, s) * r * unit * near).clamp(0, 1)[..., None]
            picture[some] = torch.lerp(picture[some], _surface(scenes.select(some), j, ox, oy), cover)
    return picture.clamp(0, 1).permute(0, 4, 1, 2, 3) * 2 - 1
