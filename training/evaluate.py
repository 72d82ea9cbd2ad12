"""Is the right thing drawn? The judge on ground truth, the autoencoder on unseen clips, held-out captions.

    python -m dittools.training.evaluate --json docs/measured/embedded_model.json

Every caption asks for (shape, colour, motion) combinations that training never showed; runs are dense. The file
is written anew after each batch; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dittools import files, provenance
from dittools.pipelines import embedded
from dittools.pipelines.embedded import vocabulary as voc
from dittools.training import evaluation, judge, train_vae


def load(device: torch.device) -> Any:
    """The embedded pipeline: bf16 with an fp32 autoencoder on CUDA, fp32 on the CPU."""
    from dittools.pipelines import loading

    dtype = loading.pick_dtype("auto", device)
    pipe = loading.load(embedded.weights_path(), device=device, dtype=dtype, offload="none")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, prompts: list[str], seeds: list[int], size: tuple[int, int, int], steps: int) -> np.ndarray:
    """Dense videos ``[N, T, H, W, 3]`` in [0, 1], one seed a prompt."""
    frames, height, width = size
    return pipe(
        prompts,
        num_frames=frames,
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=embedded.DEFAULTS["guidance"],
        max_sequence_length=voc.MAX_TOKENS,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    ).frames


def summarise(cases: list[dict]) -> dict[str, float]:
    """Share of asked objects whose shape, colour and motion were read as asked."""
    verdicts = [verdict for case in cases for verdict in case["objects"]]
    shares = {name: sum(v[name] for v in verdicts) / len(verdicts) for name in evaluation.ATTRIBUTES}
    shares["all three"] = sum(all(v.values()) for v in verdicts) / len(verdicts)
    return shares | {"captions": len(cases), "objects": len(verdicts)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="dittools.training.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="result; gone on with if it is there")
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--batch", type=int, default=0, help="captions at once; default 8 on CUDA, 1 on the CPU")
    parser.add_argument("--steps", type=int, default=embedded.DEFAULTS["steps"])
    parser.add_argument("--size", type=int, nargs=3, default=(33, 256, 256), metavar=("FRAMES", "HEIGHT", "WIDTH"))
    parser.add_argument("--videos", type=int, default=256, help="ground-truth videos for the judge; 0 leaves it out")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, batch = tuple(args.size), args.batch or (8 if device.type == "cuda" else 1)
    asked = dict(size=list(size), steps=args.steps, guidance=embedded.DEFAULTS["guidance"], captions=args.captions)
    found = json.loads(args.json.read_text()) if args.json.exists() else {}
    if found and found["asked"] != asked:
        parser.error(f"{args.json} holds a run with {found['asked']}, this one has {asked}: give another file")
    result = found or dict(
        asked=asked,
        command=["python", "-m", "dittools.training.evaluate", *sys.argv[1:]],
        dittools=provenance.dittools_version(),
        versions=provenance.versions(),
        device=provenance.device_facts(device),
        cases=[],
    )

    def keep() -> None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(args.json, result)

    if args.videos and "judge" not in result:
        result["judge"] = evaluation.judge_accuracy(args.videos, 7, kinds=["clean"])["clean"]
        keep()
    pipe = load(device)
    if "vae" not in result:
        result["vae"] = train_vae.measure(pipe.vae, device, clips=32 if device.type == "cuda" else 16)
        keep()
    captions = evaluation.evaluation_captions(n=args.captions)
    for start in range(len(result["cases"]), len(captions), batch):
        some = captions[start : start + batch]
        videos = draw(pipe, [text for text, _ in some], list(range(start, start + len(some))), size, args.steps)
        for i, ((text, things), video) in enumerate(zip(some, videos, strict=True)):
            verdict = judge.score(video, things)
            result["cases"].append(
                dict(caption=text, seed=start + i, objects=verdict["objects"], extra=verdict["extra"])
            )
        result["summary"] = summarise(result["cases"])
        keep()
        print(json.dumps(result["summary"]), flush=True)


if __name__ == "__main__":
    main()
