"""Accelerate a pipeline: skip 80 % of the attention, and see what that did.

    python examples/sparse_attention.py

Runs on a CPU, at a small size. For a model of your own, load it in place of the embedded one:

    pipe = WanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", dtype=torch.bfloat16).to("cuda")
"""

import torch
from diffusers import WanPipeline

import dittools
from dittools.pipelines.embedded import weights_path
from dittools.quality import psnr

PROMPT = "a large yellow star bouncing on a dark striped background"
SIZE = dict(num_frames=17, height=128, width=128, num_inference_steps=4, max_sequence_length=32)

pipe = WanPipeline.from_pretrained(weights_path(), dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)


def generate():
    """Frames [T, H, W, 3] in [0, 1], of the same noise every time."""
    return pipe(PROMPT, **SIZE, generator=torch.Generator().manual_seed(0), output_type="np").frames[0]


dense = generate()
with dittools.accelerate(pipe, method="svg", sparsity=0.8) as fast:
    sparse = generate()
    print(fast.summary())
    record = fast.record()
again = generate()  # at the end of the block the pipeline is what it was

print(f"\nskipped in sparse calls: {record['sparsity']['sparse_calls']:.2f}")
print(f"PSNR against dense: {psnr(sparse, dense).mean:.1f} dB")
print(f"restored to the bit: {(again == dense).all()}")
