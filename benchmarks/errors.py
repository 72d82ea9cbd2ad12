"""How far every sparse call of a run is from the dense one, and what its own exact rows say of that.

    python -m dittools.benchmarks.errors --correction none sampled --sharper 1 2 4 --json errors.json
    python -m dittools.benchmarks.errors --max-error 0.1 0.2 --json bound.json

The embedded model draws prompts dense and in each setting. After every sparse call the model's own attention runs on
the same queries, keys and values, and the difference is the true error, which the run itself knows by a few rows alone.
With ``--sharper`` the logits of self-attention are scaled, which no trained model of ours is: 2 doubles them, 2:3 those
of the first three heads of each layer, and 95% finds the power of two at which a block of keys holds 95 % of a row.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import dittools
from dittools import files, provenance
from dittools.call_info import AttentionInputs
from dittools.json_numbers import number, read_number
from dittools.pipelines import embedded, loading, stages
from dittools.pipelines.embedded import captions
from dittools.pipelines.embedded import vocabulary as voc
from dittools.quality.metrics import mean_psnr, psnr

SHARPEST = 512
LOOK_AT = 4
"""Steps of a run that tell how sharp attention is."""
ROWS = 64


class TrueErrors:
    """The relative error of each sparse call of a run, by the model's own attention: stands in for ``attend_inputs``.

    Attributes:
        cells: sums of squared differences and of squared dense outputs, by (step, layer): ``[2]``.
    """

    def __init__(self, runtime: Any):
        self._runtime, self._attend = runtime, runtime.attend_inputs
        runtime.attend_inputs = self
        self.cells: dict[tuple[int, int], torch.Tensor] = {}

    def __call__(self, call: AttentionInputs, dense: Callable[[], torch.Tensor], why_dense: str | None = None):
        run = self._runtime.run
        before = 0 if run is None else len(run.calls)
        out = self._attend(call, dense, why_dense)
        new = run.calls[before:]
        if new and new[-1].kernel is not None:
            exact = dense().double()
            sums = torch.stack(((out.double() - exact).square().sum(), exact.square().sum()))
            place = new[-1].step, new[-1].layer
            self.cells[place] = self.cells.get(place, 0.0) + sums
        return out

    def errors(self) -> dict[tuple[int, int], float]:
        """The true relative error of each step and layer. Waits for the device."""
        if not self.cells:
            return {}
        wrong, whole = torch.stack(list(self.cells.values())).T.cpu()
        return dict(zip(self.cells, (wrong / whole).sqrt().tolist(), strict=True))


class BestBlocks:
    """Share of a row's weight that the best block of keys holds, on average: put it among the watchers."""

    def __init__(self, block: int = 128):
        self._block = block
        self.shares: list[torch.Tensor] = []

    def __call__(self, event: Any) -> None:
        q, k = event.q[0], event.k[0]  # [S, H, D]
        rows = torch.linspace(0, len(q) - 1, ROWS, device=q.device).long()
        logits = torch.einsum("rhd,shd->hrs", q[rows].float(), k.float()) * event.scale
        weights = torch.nn.functional.pad(logits.softmax(-1), (0, -logits.shape[-1] % self._block))
        self.shares.append(weights.unflatten(-1, (-1, self._block)).sum(-1).amax(-1).mean(1))  # [H]

    def by_head(self) -> torch.Tensor:
        """``[H]``, the mean over the calls that were looked at."""
        return torch.stack(self.shares).mean(0)


class Sharp:
    """The embedded model, whose attention can be made sharper than it was trained to be.

    Args:
        transformer: diffusers' WanTransformer3DModel.
    """

    def __init__(self, transformer: torch.nn.Module):
        self._weights = [block.attn1.norm_q.weight for block in transformer.blocks]
        self._were = [weight.detach().clone() for weight in self._weights]
        self._heads = transformer.config.num_attention_heads

    @torch.no_grad()
    def scale(self, factor: float, heads: int | None = None) -> None:
        """Logits of the first ``heads`` heads of each layer times this; the queries' norm has a weight a channel."""
        for weight, was in zip(self._weights, self._were, strict=True):
            scaled = was.clone().view(self._heads, -1)
            scaled[:heads] *= factor
            weight.copy_(scaled.view(-1))


class Model:
    """Draws with the embedded model, dense or accelerated."""

    def __init__(self, size: Sequence[int], steps: int, device: torch.device):
        self.device = device
        dtype = loading.pick_dtype("auto", device)
        self.pipe = loading.load(embedded.weights_path(), device=device, dtype=dtype, offload="none")
        self.pipe.set_progress_bar_config(disable=True)
        self.sharp = Sharp(self.pipe.transformer)
        self._size, self._steps, self._guidance = tuple(size), steps, embedded.DEFAULTS["guidance"]

    def draw(self, prompt: str, seed: int, only_steps: int | None = None) -> torch.Tensor:
        embeds = stages.encode(self.pipe, prompt, "", self._guidance, voc.MAX_TOKENS)
        shot = self.shot(seed)
        return stages.denoise(self.pipe, embeds, shot, only_steps=only_steps)

    def frames(self, latents: torch.Tensor):
        return stages.decode(self.pipe, latents, self.shot(0))

    def shot(self, seed: int) -> stages.Shot:
        return stages.Shot(*self._size, self._steps, self._guidance, seed)

    def best_blocks(self, prompt: str) -> torch.Tensor:
        """Share of a row in its best block, by head, over the first steps of a dense run."""
        watch = BestBlocks()
        with dittools.accelerate(self.pipe, method="dense") as fast:
            fast.runtime.watchers.append(watch)
            self.draw(prompt, 0, only_steps=LOOK_AT)
        return watch.by_head()


def sharpen(model: Model, wanted: str, prompt: str) -> dict[str, Any]:
    """Make attention as sharp as ``wanted`` says, and tell how sharp it is then.

    Raises:
        ValueError: for what is no factor and no share, or a share that no factor reaches.
    """
    what, _, heads = wanted.partition(":")
    some = int(heads) if heads else None
    if what.endswith("%"):
        share, factor = float(what[:-1]) / 100, 1.0
        while True:
            model.sharp.scale(factor, some)
            found = model.best_blocks(prompt)
            if float(found[:some].mean()) >= share:
                break
            factor *= 2
            if factor > SHARPEST:
                raise ValueError(f"--sharper {wanted}: the best block holds {float(found[:some].mean()):.0%} of a row "
                                 f"with logits {SHARPEST} times as large: ask for less")  # fmt: skip
    else:
        factor = float(what)
        model.sharp.scale(factor, some)
        found = model.best_blocks(prompt)
    return {"asked": wanted, "factor": factor, "heads": some, "best_block": [number(x) for x in found.tolist()]}


def accelerated(model: Model, config: dict[str, Any], prompt: str, seed: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """Latents of one run, and what is known of its errors."""
    with dittools.accelerate(model.pipe, **config) as fast:
        watch = TrueErrors(fast.runtime)
        latents = model.draw(prompt, seed)
        record = fast.record()
    true = watch.errors()
    cells = [] if record["attention_error"] is None else record["attention_error"]["cells"]
    told = {(step, layer): known for step, layer, *known in cells}
    heads: Counter = Counter()
    for one in record["heads"]:
        heads.update({name: count for name, count in one.items() if name in ("sampled", "not sampled")})
    bound = config.get("max_error")
    return latents, {
        "skipped": number(record["sparsity"]["sparse_calls"]),
        "skipped_of_all": number(record["sparsity"]["overall"]),
        "sparse_calls": record["calls"]["sparse"],
        "dense_calls": record["calls"]["dense"],
        "fallbacks": record["fallbacks"],
        "heads": dict(heads),
        "error": number(_mean(true.values())),
        "largest_error": number(max(true.values(), default=0.0)),
        "above_bound": None if bound is None else sum(error > bound for error in true.values()),
        # [step, layer, true error, what the run's own rows say, what they leave open]
        "cells": [
            [*place, *map(_short, (error, *told.get(place, (None, None))))] for place, error in sorted(true.items())
        ],
        "notes": record["notes"],
    }


def _short(error: float | None) -> float | None:
    return None if error is None else number(round(error, 5))


def _mean(errors: Iterable[float]) -> float:
    squares = [error**2 for error in errors]
    return (sum(squares) / len(squares)) ** 0.5 if squares else 0.0


def _average(values: Iterable[float | None]) -> float | None:
    """Of runs that have the value; None where none has."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def settings_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every combination of what the command line lists, for `dittools.accelerate`."""
    lists = {name: getattr(args, name) for name in ("method", "sparsity", "correction", "max_error")}
    made = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    more = {"error_rows": args.error_rows, "dense_steps": args.dense_steps}
    return [{**{name: value for name, value in one.items() if value is not None}, **more} for one in made]


def main(argv: Sequence[str] | None = None) -> None:
    """Draw every prompt dense and in each setting, and write what is known after each."""
    parser = argparse.ArgumentParser(prog="dittools.benchmarks.errors", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--size", type=int, nargs=3, metavar=("FRAMES", "HEIGHT", "WIDTH"),
                        default=[embedded.DEFAULTS[name] for name in ("frames", "height", "width")])  # fmt: skip
    parser.add_argument("--steps", type=int, default=embedded.DEFAULTS["steps"])
    parser.add_argument("--prompts", nargs="+", default=captions.BUILTIN[:1], metavar="TEXT")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sharper", nargs="+", default=["1"], metavar="FACTOR|SHARE%[:HEADS]")
    parser.add_argument("--method", nargs="+", default=["auto"])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.8])
    parser.add_argument("--correction", nargs="+", default=["auto"])
    parser.add_argument("--max-error", type=float, nargs="+", default=[None])
    parser.add_argument("--error-rows", type=int, default=64)
    parser.add_argument("--dense-steps", type=float, default=0.2)
    args = parser.parse_args(argv)
    if args.dense_steps >= 1:
        args.dense_steps = int(args.dense_steps)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, settings = Model(args.size, args.steps, device), settings_of(args)
    result: dict[str, Any] = {
        "kind": "errors",
        "dittools": provenance.dittools_version(),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "device": provenance.device_facts(device),
        "command": ["python", "-m", "dittools.benchmarks.errors", *(argv or sys.argv[1:])],
        "model": "embedded",
        "size": args.size,
        "steps": args.steps,
        "prompts": list(args.prompts),
        "seeds": args.seeds,
        "rows": [],
    }
    for wanted in args.sharper:
        sharp = sharpen(model, wanted, args.prompts[0])
        runs: list[list[dict[str, Any]]] = [[] for _ in settings]
        for prompt, seed in itertools.product(args.prompts, args.seeds):
            reference = model.frames(model.draw(prompt, seed))
            for setting, found in zip(settings, runs, strict=True):
                latents, facts = accelerated(model, setting, prompt, seed)
                facts["psnr"] = number(psnr(model.frames(latents), reference).mean)
                found.append({"prompt": prompt, "seed": seed, **facts})
                print(wanted, _line(setting, facts), flush=True)
        for setting, found in zip(settings, runs, strict=True):
            row = {
                "sharper": sharp,
                "setting": setting,
                "psnr": number(mean_psnr(read_number(one["psnr"]) for one in found)),
                **{name: _average(one[name] for one in found) for name in ("skipped", "skipped_of_all")},
                "error": number(_mean(one["error"] for one in found)),
                "runs": found,
            }
            result["rows"].append(row)
            print(wanted, _line(setting, row), flush=True)
        files.write_json(args.json, result)


def _line(setting: dict[str, Any], facts: dict[str, Any]) -> str:
    names = " ".join(f"{name}={value}" for name, value in setting.items() if name not in ("error_rows", "dense_steps"))
    heads = f", heads {facts['heads']}" if facts.get("heads") else ""
    skipped = (
        "nothing" if facts["skipped"] is None else f"{facts['skipped']:.3f} ({facts['skipped_of_all']:.3f} of all)"
    )
    most = f", at most {facts['largest_error']:.3f}" if "largest_error" in facts else ""
    return f"{names}: {read_number(facts['psnr']):.2f} dB, error {facts['error']:.4f}{most}, {skipped} skipped{heads}"


if __name__ == "__main__":
    main()
