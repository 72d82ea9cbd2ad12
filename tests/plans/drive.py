"""A stand-in for a pipeline of three attention layers, whose output depends on all that its runtime decides."""

from pathlib import Path

import torch
import torch.nn.functional as F

from dittools.attention_profile import Model
from dittools.call_info import CallInfo, Reusable, Timing
from dittools.config import Config
from dittools.plans.export import export
from dittools.runtime import Layer, Runtime
from dittools.tokens import TokenGrid

GRID = TokenGrid(5, 8, 10)
MODEL = Model("Tiny", "0123456789abcdef", 3, 2, 3.0)
STEPS = 6


def dense(q, k, v):
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


class Drawer:
    """Asks a runtime as `pipelines/` does. Settings are of `Config`; by default every step and layer may be sparse."""

    def __init__(self, model=MODEL, **settings):
        if "plans" not in settings:
            settings = {"dense_steps": 1, "dense_layers": 0, "sparsity": 0.6} | settings
        self.runtime = Runtime(Config(**settings), [Layer(f"blocks.{i}", i) for i in range(3)], identity=model)
        made = torch.Generator().manual_seed(7)
        self.weights = [torch.randn(3, 16, 16, generator=made) / 4 for _ in range(3)]

    def draw(self, prompt=0, grid=GRID, steps=STEPS, branches=("cond", "uncond"), batch=1):
        """The latents ``[batch, tokens, 32]`` of a run."""
        made = torch.Generator().manual_seed(prompt)
        x = torch.randn(batch, grid.tokens, 32, generator=made) * 2
        timesteps = torch.linspace(1000, 100, steps)
        for t in timesteps:
            outs = [self.forward(x * (1 + 0.1 * number), t, timesteps, branch, grid) for number, branch in
                    enumerate(branches)]  # fmt: skip
            x = x + 0.2 * sum(outs)
        return x

    def forward(self, x, t, timesteps, branch, grid):
        runtime = self.runtime
        reusable = None if runtime.cache is None else Reusable([x.movedim(-1, 1)], lambda step, steps: 1 - step / steps)
        info = CallInfo(Timing(t, timesteps, branch), grid, x.device, x.dtype, reusable=reusable)
        if runtime.begin_call(info) is False:
            out = runtime.run.reuse.predict([x.movedim(-1, 1)])[0].movedim(1, -1)
            runtime.end_reused()
            return out
        while True:
            y = x
            for layer, weights in enumerate(self.weights):
                lanes = y.unflatten(-1, (2, 16))
                q, k, v = ((lanes @ w).contiguous() for w in weights)
                y = y + runtime.attend(layer, q, k, v, dense=lambda q=q, k=k, v=v: dense(q, k, v)).flatten(2)
            if not runtime.end_call():
                break
        out = y - x
        if runtime.run.reuse is not None:
            runtime.run.reuse.update([x.movedim(-1, 1)], [out.movedim(-1, 1)])
        return out


def exported(path, grid=GRID, draw=None, model=MODEL, **settings):
    """What a run drew, with its plans in a file."""
    one = Drawer(model, **settings)
    one.runtime.keep_plans()
    out = one.draw(grid=grid, **(draw or {}))
    return out, export(one.runtime, Path(path)), one
