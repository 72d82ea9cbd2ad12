"""Tiny transformers that draw on one device and on several ranks, and what each of both gave."""

from __future__ import annotations

import contextlib
import functools
import json
import traceback
import types
from typing import Any

import torch
import torch.distributed as dist

from dittools import summary
from dittools.config import Config
from dittools.pipelines.attach import attach
from dittools.pipelines.families import find_family
from dittools.pipelines.parallel import enabling
from dittools.pipelines.parallel.plans import PLANS
from tests import families_tiny
from tests.families_tiny import TINY, noise, shown
from tests.parallel.pool import SIZE

HEADS, TEXT, STEPS = 4, 8, 3
GRIDS = {
    "wan": (4, 9, 16),
    "ltx": (4, 9, 16),
    "flux": (1, 24, 24),
    "flux-2": (1, 24, 24),
    "qwen-image": (1, 24, 24),
    "hunyuan-video": (4, 9, 16),
}
MORE_GRIDS = {
    "cogvideox": (4, 9, 16),
    "skyreels-v2": (4, 9, 16),
    "hunyuan-video-1.5": (4, 9, 16),
    "framepack": (4, 8, 16),
    "mochi": (4, 9, 16),
    "sd3": (1, 24, 24),
    "z-image": (1, 24, 24),
}
BRANCHES = ("cond", "uncond")


class Flow(dict):
    """The config of a scheduler whose sigmas are shares of noise."""

    use_flow_sigmas = True


class Scene:
    """A transformer of a family with a loop around it; as much of a pipeline as an acceleration needs.

    Args:
        name: of the family.
        degree: ranks that share it; 1 for one device.
        batch: samples; two where texts of other lengths make a mask.
        heads: of attention.
        grid: tokens along frames, rows and columns.
        text: tokens of text.
        steps: of its schedule.
        branches: of guidance, one or two.
        anything: whether diffusers is told that tokens and heads need not divide.
        ring: how many of the ranks share the queries of the same heads.
        cfg: groups of so many ranks that share guidance.
        together: whether both branches come in one batch.
    """

    def __init__(
        self, name, degree=1, *, batch=None, heads=HEADS, grid=None, text=TEXT, steps=STEPS, branches=1,
        anything=False, ring=1, cfg=1, together=False,
    ):  # fmt: skip
        self.cfg, self.together = cfg, together
        self.name, self.degree, self.ring, self.batch = name, degree, ring, batch or (2 if name == "qwen-image" else 1)
        self.heads, self.text, self.anything = heads, text, anything
        self.branches = BRANCHES[:branches]
        self.grid = grid or (GRIDS | MORE_GRIDS)[name]
        self.scheduler = types.SimpleNamespace(
            timesteps=torch.linspace(900.0, 100.0, steps),
            sigmas=torch.linspace(0.9, 0.0, steps + 1),
            config=Flow(),
        )
        self.transformer = self.model()

    def model(self) -> torch.nn.Module:
        config = TINY[self.name].config
        before = dict(config)
        if "n_heads" in config:
            config |= {"n_heads": self.heads, "n_kv_heads": self.heads, "dim": 16 * self.heads, "n_layers": 2}
        else:
            config["num_attention_heads"] = self.heads
        if self.name == "hunyuan-video-1.5":
            config["num_layers"] = 2
        if "cross_attention_dim" in config:
            config["cross_attention_dim"] = self.heads * config["attention_head_dim"]
        try:
            return families_tiny.transformer(self.name, find_family(self.name).transformer)
        finally:
            config.clear()
            config.update(before)

    def arguments(self) -> dict[str, Any]:
        given = TINY[self.name].arguments(self.grid, self.batch)
        for name in TINY[self.name].text:
            if not isinstance(given[name], list):
                given[name] = noise(self.batch, self.text, given[name].shape[-1])
        if "txt_ids" in given:
            given["txt_ids"] = torch.zeros(self.text, given["txt_ids"].shape[-1])
        if self.name == "flux-2":  # whose ids have a batch in the pipeline
            given |= {ids: given[ids].expand(self.batch, -1, -1) for ids in ("img_ids", "txt_ids")}
        if "encoder_attention_mask" in given:
            given["encoder_attention_mask"] = padded(self.batch, self.text)
        if "encoder_hidden_states_mask" in given:
            given["encoder_hidden_states_mask"] = shown(self.batch, self.text).bool()
        return given

    def share(self) -> None:
        """Split it among the ranks, as a user does."""
        if self.cfg > 1:
            import dittools

            dittools.share_guidance(self, mesh(self.degree, self.ring, self.cfg)["cfg"])
        if self.degree > 1:
            self._split()

    def _split(self) -> None:
        from diffusers import ContextParallelConfig
        from diffusers.hooks import context_parallel

        context_parallel._all_gather_anything = gather_uneven

        config = ContextParallelConfig(
            ring_degree=self.ring,
            ulysses_degree=self.degree // self.ring,
            mesh=mesh(self.degree, self.ring, self.cfg)["ring", "ulysses"],
            **{("ulysses" if self.ring == 1 else "ring") + "_anything": self.anything},
        )
        if type(self.transformer).__name__ in PLANS:
            enabling.enable(self.transformer, config)
            return
        count, torch.accelerator.device_count = torch.accelerator.device_count, lambda: 1
        try:
            self.transformer.enable_parallelism(config=config)
        finally:
            torch.accelerator.device_count = count

    def draw(self) -> torch.Tensor:
        """The latents after a few steps of both branches."""
        given, clock = self.arguments(), find_family(self.name)
        scale = 1e-3 if given[clock.timestep].max() < 1 else 1.0
        latents, texts = given.pop(clock.latents), TINY[self.name].text
        listed = isinstance(latents, list)
        latents = torch.stack(latents) if listed else latents
        timesteps = self.scheduler.timesteps
        with torch.no_grad():
            for t in timesteps:
                if self.together:
                    text = given["encoder_hidden_states"]
                    asked = {name: doubled(value, self.batch) for name, value in given.items()}
                    asked |= {"hidden_states": latents.repeat(2, *[1] * (latents.ndim - 1))}
                    asked |= {"encoder_hidden_states": torch.cat((text * 0.5, text))}
                    asked |= {clock.timestep: t.expand(2 * self.batch) * scale}
                    with self.transformer.cache_context("cond_uncond"):
                        outs = self.transformer(**asked, return_dict=False)[0].chunk(2)[::-1]
                    latents = latents - 0.3 * (1.5 * outs[0] - 0.5 * outs[-1])
                    continue
                outs = []
                for number, branch in enumerate(self.branches):
                    asked = given | {text: scaled(given[text], 1 - number / 2) for text in texts}
                    asked |= {clock.latents: list(latents) if listed else latents}
                    asked |= {clock.timestep: t.expand(self.batch) * scale}
                    with self.context(branch):
                        out = self.transformer(**asked, return_dict=False)[0]
                        outs.append(torch.stack(out) if listed else out)
                latents = latents - 0.3 * (1.5 * outs[0] - 0.5 * outs[-1])
        return latents

    def context(self, branch: str) -> Any:
        known = hasattr(self.transformer, "cache_context")
        return self.transformer.cache_context(branch) if known else contextlib.nullcontext()

    def accelerated(self, **settings: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        """Latents and record under these settings."""
        how = {"sparsity": 0.6, "dense_steps": 1, "dense_layers": 0}
        attachment = attach(self, Config(**(how | settings)))
        try:
            out = self.draw()
            return out, summary.record(attachment.runtime)
        finally:
            attachment.detach()


def scaled(text: Any, factor: float) -> Any:
    return [one * factor for one in text] if isinstance(text, list) else text * factor


def padded(batch: int, length: int) -> torch.Tensor:
    """A mask of texts that end in padding, each sooner than the one before."""
    return (torch.arange(length) < length - 3 - torch.arange(batch)[:, None]).long()


def gather_uneven(tensor: torch.Tensor, dim: int, group: Any) -> torch.Tensor:
    """What diffusers does with an `all_gather` of other sizes, which gloo does not know."""
    counts = [None] * dist.get_world_size(group)
    dist.all_gather_object(counts, tensor.shape[dim], group=group)
    moved = tensor.movedim(dim, 0)
    padded = torch.cat((moved, moved.new_zeros(max(counts) - len(moved), *moved.shape[1:]))).contiguous()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).movedim(0, dim)


def doubled(value: Any, batch: int) -> Any:
    """An argument for both branches."""
    if not isinstance(value, torch.Tensor) or not value.ndim or len(value) != batch:
        return value
    return value.repeat(2, *[1] * (value.ndim - 1))


@functools.cache
def mesh(degree: int, ring: int = 1, cfg: int = 1):
    """The ranks in groups of ``cfg * degree``; each group has the whole of a model."""
    from torch.distributed.device_mesh import init_device_mesh

    shape = SIZE // (cfg * degree), cfg, ring, degree // ring
    return init_device_mesh("cpu", shape, mesh_dim_names=("groups", "cfg", "ring", "ulysses"))


def compare(name: str, degrees: tuple[int, ...], cases: list[dict[str, Any]], **how: Any) -> list[dict[str, Any]]:
    """For each degree and case the largest difference from one device, and both records. The same on every rank."""
    rank = dist.get_rank()
    found: list[Any] = [None] * SIZE
    expected = by_one_device(name, cases, how)
    answers = []
    for degree in degrees:
        scene = Scene(name, degree, **how)
        scene.share()
        block = degree * scene.cfg
        group = rank // block
        mine = {at: attempt(scene, case) for at, case in enumerate(cases) if at % (SIZE // block) == group}
        dist.all_gather_object(found, mine)
        for at in range(len(cases)):
            outs = [part[at] for part in found if at in part]
            answers.append({"degree": degree, "case": cases[at], "alone": expected[at], "ranks": outs})
    for one in answers:
        one["difference"] = max(difference(one["alone"]["out"], other.pop("out")) for other in one["ranks"])
    for one in answers:
        one["alone"] = {key: value for key, value in one["alone"].items() if key != "out"}
    return answers if rank == 0 else []


_drawn: dict[str, dict[str, Any]] = {}  # by one device, for all tests of this process; the same on every rank


def by_one_device(name: str, cases: list[dict[str, Any]], how: dict[str, Any]) -> list[dict[str, Any]]:
    """What one device draws in each case; ranks share them out."""
    here = {key: value for key, value in how.items() if key not in ("ring", "anything")}
    keys = [json.dumps([name, here, case]) for case in cases]
    new = [at for at, key in enumerate(keys) if key not in _drawn]
    alone = Scene(name, **here) if new else None
    mine = {keys[at]: attempt(alone, cases[at]) for at in new[dist.get_rank() :: SIZE]}
    found: list[Any] = [None] * SIZE
    dist.all_gather_object(found, mine)
    for part in found:
        _drawn.update(part)
    return [_drawn[key] for key in keys]


def attempt(scene: Scene, case: dict[str, Any]) -> dict[str, Any]:
    try:
        out, record = scene.accelerated(**case)
    except Exception as error:
        return {
            "out": None,
            "error": f"{type(error).__name__}: {error}",
            "record": None,
            "where": traceback.format_exc(),
        }
    return {"out": out, "error": None, "record": record}


def difference(one: torch.Tensor | None, other: torch.Tensor | None) -> float:
    if one is None or other is None:
        return float("inf")
    return (one - other).abs().max().item() / one.abs().max().item()


def calibrated(name: str, methods: tuple[str, ...], path: str, steps: int, batch: int | None = None) -> None:
    """Write a profile of these methods for a family's model, on the first rank."""
    from dittools.attention_profile import Made, Profile
    from dittools.calibrate import CALIBRATORS, Size, sparse_vdit

    if dist.get_rank():
        return
    scene = Scene(name, steps=steps, batch=batch)
    sparse_vdit.kernel_cost = lambda *_: {}  # of this machine, which no test is about
    attachment = attach(scene, Config("dense"))
    model = attachment.runtime.identity
    made = {method: CALIBRATORS[method](Size(model.layers, model.heads, steps)) for method in methods}
    for number in range(max(one.rounds for one in made.values())):

        def observe(event, number=number):
            for one in made.values():
                if number < one.rounds:
                    one.observe(event, number)

        attachment.runtime.watchers[:] = [observe]
        scene.draw()
    grid = attachment.runtime.run.grid
    attachment.detach()
    sections, arrays = {}, {}
    for method, one in made.items():
        sections[method], tables = one.tables()
        arrays.update((f"{method}.{key}", value) for key, value in tables.items())
    Profile(model, grid, Made("tiny", steps), sections, arrays).save(path)
