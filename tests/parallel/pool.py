"""Processes that share a gloo group, started once and given one job after the other."""

from __future__ import annotations

import gc
import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

SIZE = 4
PATIENCE = 60  # seconds after which a collective that others do not join is an error


class Pool:
    """`SIZE` processes of one group.

    Args:
        folder: where they find each other.
    """

    def __init__(self, folder):
        # Imported once, in a process that is forked before it has threads.
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(["tests.parallel.imports"])
        self._ends, self._processes = [], []
        for rank in range(SIZE):
            mine, theirs = server.Pipe()
            process = server.Process(target=_serve, args=(rank, str(folder / "store"), theirs), daemon=True)
            process.start()
            self._ends.append(mine)
            self._processes.append(process)

    def run(self, job: Callable[..., Any], *args: Any) -> list[Any]:
        """What every rank gives for ``job(*args)``.

        Raises:
            AssertionError: with the traceback of the first rank on which it failed.
        """
        for end in self._ends:
            end.send((job, args))
        answers = []
        for rank, end in enumerate(self._ends):
            assert end.poll(5 * PATIENCE), f"rank {rank} does not answer"
            answers.append(end.recv())
        failed = [text for good, text in answers if not good]
        assert not failed, failed[0]
        return [value for _, value in answers]

    def close(self) -> None:
        for end in self._ends:
            end.send(None)
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()


def _serve(rank: int, store: str, end: Any) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=SIZE, timeout=timedelta(seconds=PATIENCE)
    )
    gc.freeze()  # what was imported stays
    while (asked := end.recv()) is not None:
        job, args = asked
        try:
            end.send((True, job(*args)))
        except Exception:
            end.send((False, f"rank {rank}\n{traceback.format_exc()}"))
        _let_go_of_groups()
    dist.destroy_process_group()


def _let_go_of_groups() -> None:
    """End all groups but that of all ranks: each has threads of gloo's, which wake up all the time."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d as state

    from tests.parallel import scenes

    scenes.mesh.cache_clear()
    for group, name in list(state._world.pg_names.items()):
        # One made by some ranks alone is named by them, and its like would find what it left in the store.
        if group is not dist.group.WORLD and name.isdigit():
            dist.destroy_process_group(group)
    gc.collect()  # what holds on to them may be a circle
