"""The public way to share guidance branches: `dittools.share_guidance`."""

from __future__ import annotations

from typing import Any

from dittools.branches import Branches
from dittools.pipelines.attachment import present_on
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import family_of, transformers_of
from dittools.pipelines.parallel import cfg
from dittools.ranks import Ranks

_HOW = "dittools.share_guidance"


def share_guidance(pipe: Any, mesh: Any = None) -> None:
    """Have two ranks, or two groups of ranks, make one branch of classifier-free guidance each.

    Before or after `dittools.accelerate`, which it needs: ``method="dense"`` shares a dense run. Every rank draws the
    same, with the same seed, and gets the whole output. The batch of a pipeline that gives both branches in one is
    halved.

    Args:
        pipe: a diffusers pipeline of a known family.
        mesh: a `torch.distributed.device_mesh.DeviceMesh` of one dimension and two ranks, or a process group: this rank
            and its like in the other group, which has the same part of the heads and tokens. None: the two processes
            that there are.

    Raises:
        ValueError: one line, where the pipeline is of no known family, or there are not two such ranks.
    """
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        raise BadInput(f"{_HOW}: call torch.distributed.init_process_group in every process first")
    family = family_of(pipe)
    if family.why_not is not None:
        raise BadInput(f"{_HOW}: dittools cannot run in {family.name}: {family.why_not}")
    group = dist.group.WORLD if mesh is None else mesh.get_group() if hasattr(mesh, "get_group") else mesh
    pair = dist.get_process_group_ranks(group)
    if len(pair) != 2:
        remedy = ": give a mesh of the two that make the branches of one another" if mesh is None else ""
        raise BadInput(f"{_HOW}: guidance has two branches, and {len(pair)} ranks are to share them{remedy}")
    models = [model for _, model in transformers_of(pipe, family)]
    share(models, group)
    for model in models:
        for _, module in family.attention_in(model):
            present = present_on(module)
            if present is not None:
                present.enter_again()
                break


def share(models: list[Any], group: Any) -> None:
    """Have the transformers of one pipeline share branches.

    Args:
        models: diffusers' own classes.
        group: the process group of this rank and its like. Both come here at the same time.
    """
    import torch.distributed as dist

    pair = dist.get_process_group_ranks(group)
    # Each direction its own: messages of one never wait for those of the other.
    device = next(iter(models[0].parameters())).device
    told = {"timeout": _timeout(group, device), "use_local_synchronization": True}
    groups = tuple(dist.new_group(pair, **told) for _ in range(2))
    cfg.share(models, Branches(Ranks(group, device), groups))


def _timeout(group: Any, device: Any) -> Any:
    """After which a collective of a group gives up; None, for torch's default, where this torch does not say."""
    try:
        return group._get_backend(device).options._timeout
    except (AttributeError, RuntimeError):
        return None
