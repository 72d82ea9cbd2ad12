"""Several GPUs training as one: torchrun's processes, averaged gradients, one clock."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import nn


class Team:
    """The processes of a run, or this one alone when torchrun did not start it."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0))
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(self.device)
        self._host = None
        if self.size > 1:
            dist.init_process_group("nccl" if cuda else "gloo")
            self._host = dist.new_group(backend="gloo")

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def agree(self, value: float) -> float:
        """The first process's value, told over the host so that no GPU waits."""
        if self.size == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(told, 0, group=self._host)
        return told.item()

    def average_gradients(self, params: list[nn.Parameter]) -> None:
        """Mean gradients over the processes, in one message."""
        if self.size == 1:
            return
        grads = [p.grad for p in params if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= self.size
        for g, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(mean.view_as(g))

    def same_weights(self, params: list[nn.Parameter]) -> None:
        """Give every process the first one's weights, against drift by rounding."""
        if self.size == 1:
            return
        flat = torch.cat([p.detach().flatten() for p in params])
        dist.broadcast(flat, 0)
        for p, value in zip(params, flat.split([p.numel() for p in params]), strict=True):
            p.data.copy_(value.view_as(p))

    def close(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()
