"""How the processes of one run are split, and diffusers' context parallelism put onto a pipeline."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dittools.naming import unknown
from dittools.pipelines.components import config_of
from dittools.pipelines.errors import BadInput
from dittools.pipelines.parallel.plans import PLANS, check_degrees, check_variant, why_whole
from dittools.provenance import version_of
from dittools.scaling import Layout

if TYPE_CHECKING:
    import torch

    from dittools.pipelines.family import Family

FLAG = "--parallel"
NAMES = ("ulysses", "ring", "cfg")
TIMEOUT = timedelta(minutes=10)
"""After which a collective that one rank never came to is an error on the others."""
_BRANCHES = 2
"""Of classifier-free guidance."""


@dataclass(frozen=True)
class Spec(Layout):
    """How the ranks of a run share its work: `ulysses` ranks share the heads of every attention call, each with all
    tokens of its heads; `ring` ranks the keys, each with its part of the tokens; `cfg` ranks, or groups of them, have
    one branch of classifier-free guidance each.
    """

    @property
    def ranks(self) -> int:
        return self.gpus

    @property
    def splits(self) -> int:
        """Parts that the tokens of a video are cut into."""
        return self.ulysses * self.ring

    def __str__(self) -> str:
        return ",".join(f"{name}:{getattr(self, name)}" for name in NAMES if getattr(self, name) > 1) or "ulysses:1"

    def facts(self) -> dict[str, int]:
        """As a record has them."""
        return {"ranks": self.ranks, "ulysses": self.ulysses, "ring": self.ring, "cfg": self.cfg}


def parse(text: str | None, world: int, heads: int | None = None) -> Spec:
    """What ``--parallel`` asks for, such as "ulysses:4" or "cfg:2,ulysses:2".

    Args:
        text: None asks for Ulysses over all ranks.
        world: how many ranks there are.
        heads: of the model's self-attention; None where nobody knows.

    Raises:
        BadInput: for what is no such text, or does not fit the ranks or heads.
    """
    if text is None:
        spec = Spec(ulysses=world)
        if heads is not None and heads % world:
            fitting = " or ".join(str(count) for count in range(2, world) if heads % count == 0)
            less = f"use {fitting} ranks, or " if fitting else ""
            other = f"ulysses:{world}, which deals them unevenly" if world <= heads else f"ring:{world}"
            raise BadInput(f"{heads} heads cannot be dealt evenly to {world} ranks: {less}say {FLAG} {other}")
        return spec
    spec = Spec(**_degrees(text))
    if spec.ranks != world:
        here = "this is one process" if world == 1 else f"there are {world}"
        remedy = f"use --gpus {spec.ranks}" if spec.ranks > 1 else f"leave {FLAG} out"
        remedy += f", or start it by torchrun --nproc-per-node {spec.ranks}" if world == 1 and spec.ranks > 1 else ""
        raise BadInput(f"{FLAG} {text} is for {spec.ranks} ranks, and {here}: {remedy}")
    if heads is not None and spec.ulysses > heads:
        raise BadInput(
            f"{FLAG} {text} deals heads to {spec.ulysses} ranks, and the model has {heads}: at most ulysses:{heads}"
        )
    if heads is not None and heads % spec.ulysses and spec.ring > 1:
        raise BadInput(
            f"{FLAG} {text}: beside ring, ulysses has to divide the model's {heads} heads, and {spec.ulysses} does not"
        )
    return spec


def _degrees(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in text.split(","):
        name, colon, degree = (one.strip() for one in part.partition(":"))
        if not colon or not re.fullmatch(r"[0-9]{1,6}", degree) or int(degree) < 1:
            raise BadInput(f"{FLAG} must be such as ulysses:4 or ulysses:2,ring:2, got {text!r}")
        if name not in NAMES:
            raise BadInput(unknown(f"part of {FLAG}", name, NAMES))
        if name in found:
            raise BadInput(f"{FLAG} {text} says {name} twice: once is enough")
        found[name] = int(degree)
    if found.get("cfg", 1) > _BRANCHES:
        raise BadInput(f"{FLAG} cfg:{found['cfg']}: guidance has {_BRANCHES} branches, so cfg is at most {_BRANCHES}")
    return found


def _splits_text(plan: dict[str, Any]) -> bool:
    """Whether a plan of diffusers' splits text that is no part of the self-attention's sequence."""
    return any("encoder_hidden_states" in inputs for inputs in plan.values() if isinstance(inputs, dict))


def heads_of(family: Family, folder: Path | None) -> int | None:
    """Heads of a model's self-attention, by the config in a pipeline's folder, else by the family's record."""
    for component in family.components if folder is not None else ():
        told = config_of(folder / component).get("num_attention_heads")
        if type(told) is int and told > 0:
            return told
    return family.heads


class Place(NamedTuple):
    """Where a process stands among those of its run; ``local`` numbers those of its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0


def place() -> Place:
    """What torchrun and its like say in the environment; one process alone where they say nothing.

    Raises:
        BadInput: where it is no such number.
    """
    found = {}
    for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", None)):
        text = os.environ.get(name, "")
        if text and not re.fullmatch(r"[0-9]{1,6}", text):
            raise BadInput(f"{name} is {text!r} in the environment, and should be a number as torchrun sets it")
        found[name] = int(text) if text else default
    rank, size, local = found.values()
    if not rank < size:
        raise BadInput(f"RANK is {rank} and WORLD_SIZE {size} in the environment: start the ranks by torchrun")
    return Place(rank, size, rank if local is None else local)


def check_diffusers(spec: Spec, family: Family) -> None:
    """Whether this diffusers can split the transformer of a family. Raises BadInput where it cannot."""
    import diffusers

    if not hasattr(diffusers, "ContextParallelConfig") or not hasattr(diffusers.ModelMixin, "enable_parallelism"):
        raise BadInput(
            f"{FLAG} {spec} needs diffusers' context parallelism, which diffusers {version_of('diffusers')} has not: "
            "pip install --upgrade diffusers"
        )
    plan, ours = getattr(getattr(diffusers, family.transformer, None), "_cp_plan", None), family.transformer in PLANS
    if spec.splits > 1 and plan is None and not ours:
        raise BadInput(f"{FLAG} {spec}: {why_whole(family)}, so this model runs on one GPU")
    check_degrees(family.transformer, spec.ulysses, spec.ring)
    if spec.ring > 1 and not ours and family.text_position == "none" and _splits_text(plan):
        raise BadInput(
            f"{FLAG} {spec}: diffusers splits the text of {family.name} too, and attends to it by a ring of its own, "
            f"which PyTorch's attention cannot do: use ulysses:{spec.ranks}"
        )
    if spec.cfg > 1 and family.guidance_passes == "none":
        raise BadInput(
            f"{FLAG} {spec}: {family.name} is drawn without classifier-free guidance, so it has no second branch: "
            f"use ulysses:{spec.ranks}"
        )


def check_guidance(spec: Spec, scale: float | None) -> None:
    """Whether there are two branches to share. Raises BadInput where there are not.

    Args:
        scale: of classifier-free guidance; None where nobody knows.
    """
    if spec.cfg > 1 and scale is not None and scale <= 1:
        raise BadInput(
            f"{FLAG} {spec} gives each branch of guidance to other ranks, and with --guidance {scale:g} there is one: "
            f"use ulysses:{spec.ranks}, or guidance above 1"
        )


def check_folder(spec: Spec, family: Family, folder: Path | None) -> None:
    """Raises BadInput where the transformers of a pipeline's folder are of a kind that is not split."""
    for component in family.components if folder is not None and spec.splits > 1 else ():
        check_variant(family.transformer, config_of(folder / component))


class World:
    """All processes of one run, after they have found each other.

    Args:
        spec: how they are split.
        place: which of them this one is.
        device: where this one runs.
    """

    def __init__(self, spec: Spec, place: Place, device: torch.device):
        self.spec, self.place, self.device = spec, place, device

    @property
    def leads(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.place.rank == 0

    def enable(self, models: list[Any], uneven: bool) -> None:
        """Split the tokens of transformers over the ranks, and give guidance branches to groups of them.

        Args:
            models: of one pipeline, diffusers' own classes.
            uneven: whether heads or tokens leave a rest when they are divided.
        """
        spec, options = self.spec, {}
        mesh = self._mesh()
        if spec.cfg > 1:
            from dittools.pipelines.parallel.share import share

            share(models, mesh["cfg"].get_group())
        if spec.splits == 1:
            return
        from diffusers import ContextParallelConfig

        from dittools.pipelines.parallel import enabling

        if uneven:
            options = {"ulysses_anything": True} if spec.ring == 1 else {"ring_anything": True}
        for model in models:
            config = ContextParallelConfig(
                ulysses_degree=spec.ulysses, ring_degree=spec.ring, mesh=mesh["ring", "ulysses"], **options
            )
            enabling.enable(model, config)

    def _mesh(self) -> Any:
        from torch.distributed.device_mesh import init_device_mesh

        names, shape = ("cfg", "ring", "ulysses"), (self.spec.cfg, self.spec.ring, self.spec.ulysses)
        return init_device_mesh(self.device.type, shape, mesh_dim_names=names)

    def share(self, value: Any) -> list[Any]:
        """The values of all ranks in their order, the same on every rank. Anything that can be pickled."""
        import torch.distributed as dist

        found = [None] * self.place.size
        dist.all_gather_object(found, value)
        return found

    def meet(self) -> None:
        """Wait until all ranks have come here."""
        import torch.distributed as dist

        dist.barrier()

    def close(self) -> None:
        """Part: the other ranks are heard no more. All of them come here before one goes on."""
        import torch.distributed as dist

        self.meet()
        dist.destroy_process_group()


def start(spec: Spec, device: torch.device, timeout: timedelta = TIMEOUT) -> World:
    """Find the other ranks: NCCL between GPUs, gloo between CPUs.

    Args:
        spec: how the ranks are split.
        device: of this rank.
        timeout: after which a collective that one rank never came to is an error on the others.

    Raises:
        BadInput: where torch has no such backend.
    """
    import torch.distributed as dist

    backend = "nccl" if device.type == "cuda" else "gloo"
    if not dist.is_available() or not getattr(dist, f"is_{backend}_available", lambda: True)():
        raise BadInput(f"{FLAG} {spec} needs torch.distributed with {backend}, which this PyTorch is built without")
    options = {}
    if device.type == "cuda":
        import torch

        torch.cuda.set_device(device)
        options["device_id"] = device
    dist.init_process_group(backend, timeout=timeout, **options)
    return World(spec, place(), device)


def uneven(spec: Spec, heads: int | None, tokens: int, text: int = 0, gloo: bool = False) -> bool:
    """Whether heads or tokens leave a rest when they are divided.

    Args:
        heads: of the model's self-attention; None where nobody knows.
        tokens: of the picture.
        text: tokens that share its sequence.
        gloo: whether ranks talk by it, which gathers parts of one size alone.

    Raises:
        BadInput: where tokens do so, and Ulysses and ring are used together, or those of the picture on gloo.
    """
    rest = [count for count in (tokens, text) if count % spec.splits]
    if rest and spec.ulysses > 1 and spec.ring > 1:
        raise BadInput(
            f"{FLAG} {spec} cuts {rest[0]} tokens into {spec.splits} parts, which leaves a rest: use ulysses or ring "
            "alone, or another size"
        )
    if gloo and tokens % spec.splits:
        raise BadInput(
            f"{FLAG} {spec} cuts {tokens} tokens into {spec.splits} parts, which leaves a rest, and CPUs (gloo) cannot "
            "gather uneven ones: use another size"
        )
    return bool(rest) or bool((heads or 0) % spec.ulysses)
