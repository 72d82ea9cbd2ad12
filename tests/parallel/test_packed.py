"""A packed sequence with text in front of sound and video, split over ranks as it stands."""

import pytest
import torch
import torch.distributed as dist

from dittools import summary
from dittools.config import Config
from dittools.pipelines.attach import attach
from tests.families_tiny import minimax_h3
from tests.parallel.scenes import Scene, difference

GRID, SOUND = (3, 9, 15), 4  # with 7 rows of text 420 rows, which 4 ranks divide
CASES = [("draft", 0.0), ("draft", 0.6), ("svg2", 0.6)]


class Document(Scene):
    """A tiny MiniMax-H3."""

    def __init__(self, degree: int, ring: int = 1):
        super().__init__("minimax-h3", degree, grid=GRID, ring=ring)

    def draw(self) -> torch.Tensor:
        with torch.no_grad():
            return self.transformer(**minimax_h3(GRID, 1, sound=SOUND), return_dict=False)[0]


def outputs(degree: int, ring: int) -> list[tuple[float, dict, dict]]:
    """Of each case the difference from one device, and the records of both."""
    alone, shared = Document(1), Document(degree, ring)
    shared.share()
    found = []
    for method, sparsity in CASES:
        drawn = []
        for scene in (alone, shared):
            attachment = attach(scene, Config(method, sparsity, dense_steps=0, dense_layers=0, block_size=64))
            out = scene.draw()
            drawn.append((out, summary.record(attachment.runtime)))
            attachment.detach()
        found.append((difference(drawn[0][0], drawn[1][0]), drawn[0][1], drawn[1][1]))
    dist.barrier()
    return found


@pytest.mark.parametrize(("degree", "ring"), [(2, 1), (4, 2)], ids=["ulysses", "ulysses and ring"])
def test_ranks_that_share_a_document_draw_what_one_device_draws(pool, degree, ring):
    for rank in pool.run(outputs, degree, ring):
        for (method, sparsity), (differs, alone, shared) in zip(CASES, rank, strict=True):
            assert differs < 1e-5, method
            assert shared["calls"] == alone["calls"] and shared["fallbacks"] == [] and shared["grid"] == alone["grid"]
            assert shared["sparsity"]["by_parts"] == pytest.approx(alone["sparsity"]["by_parts"], abs=1e-6)
            assert (alone["sparsity"]["sparse_calls"] > 0.3) == (sparsity > 0)
