"""Write a method of your own, and run it: every block sees its nearest neighbours and every fourth block.

    python examples/own_method.py

A method is a frozen dataclass whose fields are its options, with one function: `plan`. docs/architecture.md walks
through one line by line.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import WanPipeline

import dittools
from dittools.methods.base import Method, block_plan
from dittools.options import option
from dittools.pipelines.embedded import weights_path
from dittools.selection.ordered_blocks import ordered_blocks


@dittools.register
@dataclass(frozen=True)
class Strided(Method):
    """Order: raster. Selector: distance in the sequence, and a stride. Budget: the same for every row."""

    name: ClassVar[str] = "strided"
    summary: ClassVar[str] = "the nearest blocks, and every few blocks one more"

    stride: int = option(4, "every how many blocks one is wanted whatever its distance", min=1)

    def plan(self, q, k, v, call):
        blocks = ordered_blocks(call, q.device, "raster")  # tokens cut into blocks; text and tails are taken care of
        at = torch.arange(blocks.partition.count, device=q.device)
        scores = -(at[:, None] - at).abs().float()  # [M, M]: how much every query block wants every key block
        scores[:, :: self.stride] += 2
        keep = blocks.select_topk(scores[None, None], call.density, force=blocks.force)  # as many as the budget pays
        return block_plan(blocks, keep)


pipe = WanPipeline.from_pretrained(weights_path(), dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
fast = dittools.accelerate(pipe, method="strided", sparsity=0.6, stride=3)
pipe(
    "a green triangle growing on a pale cloudy background",
    num_frames=17,
    height=128,
    width=128,
    num_inference_steps=4,
    max_sequence_length=32,
    output_type="latent",
)
record = fast.record()
print(f"{record['calls']['sparse']} sparse calls skipped {record['sparsity']['sparse_calls']:.2f} of their pairs")
