"""Calibrate a model once, then let a method that decides ahead use the profile.

    python examples/calibrate.py

`paro` finds for each head an order of the tokens and the blocks that matter, in dense runs of a few prompts. The
profile holds for one model at one size and number of steps.
"""

import sys

import torch
from diffusers import WanPipeline

import dittools
from dittools.cli.main import main
from dittools.pipelines.embedded import weights_path

SIZE = "--frames 17 --height 128 --width 128 --steps 4"
code = main(["calibrate", "--weights", "embedded", *SIZE.split(), "--method", "paro", "--prompts", "builtin:1",
             "--output", "profile.json"])  # fmt: skip
if code:
    sys.exit(code)

pipe = WanPipeline.from_pretrained(weights_path(), dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
fast = dittools.accelerate(pipe, method="paro", sparsity=0.6, profile="profile.json")
pipe(
    "a small purple triangle moving right on a dark gradient background",
    num_frames=17,
    height=128,
    width=128,
    num_inference_steps=4,
    max_sequence_length=32,
    output_type="latent",
)
print(fast.summary())
record = fast.record()
