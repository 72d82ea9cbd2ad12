"""Reuse whole steps with a step cache, alone and beside sparse attention, and compare the settings.

python examples/step_caches.py
"""

import torch
from diffusers import WanPipeline

import dittools
from dittools.pipelines.embedded import weights_path
from dittools.quality import psnr

PROMPT = "a large yellow star bouncing on a dark striped background"
SIZE = dict(num_frames=17, height=128, width=128, num_inference_steps=8, max_sequence_length=32)
SETTINGS = {
    "easycache": dict(method="dense", cache="easycache:threshold=0.4"),
    "easycache and svg": dict(method="svg", sparsity=0.8, cache="easycache", cache_options={"threshold": 0.4}),
}

pipe = WanPipeline.from_pretrained(weights_path(), dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)


def generate():
    """Frames [T, H, W, 3] in [0, 1], of the same noise every time."""
    return pipe(PROMPT, **SIZE, generator=torch.Generator().manual_seed(0), output_type="np").frames[0]


dense = generate()
found = {}
for name, settings in SETTINGS.items():
    with dittools.accelerate(pipe, **settings) as fast:
        frames = generate()
        cache = fast.record()["cache"]
    found[name] = (cache["computed_steps"], cache["reused_steps"], psnr(frames, dense).mean)

print(f"{'setting':20} {'computed':>8} {'reused':>6}  PSNR against dense")
for name, (computed, reused, distance) in found.items():
    print(f"{name:20} {len(computed):8} {len(reused):6}  {distance:.1f} dB")
