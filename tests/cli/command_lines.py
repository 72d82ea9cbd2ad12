"""Command lines to draw from: the verbs and flags that the parser has, with values good, odd and bad."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from dittools.cli._command import ALIASES
from dittools.cli.app import command

BAD = (
    "", " ", "-", "--", ".", "..", "/", "~", "-1", "0", "1", "2", "2.5", "1e400", "nan", "-inf", "1_000", "0x10", "٣",
    "9" * 30, "9" * 4000, "x" * 300, "none", "None", "null", "true", "[]", "{}", "a,b", ",", "a=b", "=", ":", "a:b=c",
    "a:b=1:b=2", "%s", "$HOME", "é", "😀", "\udcff", "\u202e", "line\nline", "\x1b[31m", "<b>", "*", "../x", "gone/x",
    "/dev/null", "/dev/full/x", "/proc/x", "user.txt", "user.json", "config.json", "deep.json", "prompts.txt",
    "profile.json", "v.npy", "v.gif", "full", "empty", "link", "owner/name", "https://x.y/z", "SVG", "Auto",
)  # fmt: skip
"""Values that no flag is meant for, or one alone."""

GOOD: dict[str, tuple[str, ...]] = {
    "--model": ("wan", "flux", "cogvideox", "ltx", "latte", "sd3", "wann"),
    "--weights": ("embedded", "embedded", "auto", "./user", "full"),
    "--prompt": ("a red circle", "", "x" * 5000),
    "--prompts": ("builtin", "builtin:1", "builtin:0", "prompts.txt"),
    "--method": ("auto", "dense", "svg", "draft", "radial", "paro", "gna", "svg2:iterations=2", "svg,draft"),
    "--cache": ("none", "easycache", "sea:power=1", "teacache:threshold=0.1", "magcache:profile=profile.json"),
    "--correction": ("none", "centroids", "rettention:every=4", "sampled:share=0.3"),
    "--sparsity": ("0", "0.5", "0.8", "0.999", "1", "80", "-0.1"),
    "--sweep": ("sparsity=0.5,0.8", "method=svg,dense", "cache=none,sea", "profile=p.json", "sparsity=1,1", "frames=1"),
    "--image": ("user.txt", "v.npy", "none.png"),
    "--video": ("v.npy", "v.gif"),
    "--strength": ("0.5", "1", "0"),
    "--set": ("max_sequence_length=16", "steps=2", "num_inference_steps=2"),
    "--lora": ("user.txt", "none.safetensors:0.5"),
    "--num-videos": ("1", "2", "0"),
    "--fps": ("8", "0"),
    "--shift": ("3", "-1"),
    "--quantize": ("none", "fp8", "int3"),
    "--steps": ("1", "2", "8", "1000", "1001"),
    "--fewer-steps": ("1", "3"),
    "--height": ("16", "64", "256", "4096", "4112", "100"),
    "--width": ("16", "64", "256", "4096", "1000000"),
    "--frames": ("1", "5", "33", "1021", "1025", "4"),
    "--guidance": ("1", "4", "-1"),
    "--dense-steps": ("0", "0.2", "1", "1.0", "5"),
    "--dense-layers": ("0", "1", "99"),
    "--refresh": ("1", "3"),
    "--seed": ("0", "7", "9223372036854775807", "9223372036854775808"),
    "--seeds": ("0", "1", "-1"),
    "--output": (
        *("a.npy", "a.gif", "a.webp", "a.png", "frames/", "a.mp5", "v.npy", "user.txt", "link"),
        *("new", "new.json", "full", "empty", "profile.json", "plans.json"),
    ),
    "--options": ("probe_rows=8", "iterations=2:scope=head", "order=curve"),
    "--cache-options": ("threshold=0.1", "interval=3"),
    "--correction-options": ("every=4", "anchored=false"),
    "--dense-last-steps": ("0", "1", "0.1"),
    "--block-size": ("auto", "64", "128", "96"),
    "--method-seed": ("0", "7", "-1"),
    "--config": ("config.json", "record.json", "user.json", "deep.json"),
    "--plans": ("plans.json", "plans.json", "profile.json", "record.json"),
    "--profile": ("profile.json", "embedded_33x256x256_16", "user.json"),
    "--device": ("auto", "cpu", "cuda", "cuda:1"),
    "--dtype": ("auto", "bf16", "fp32"),
    "--offload": ("none", "model"),
    "--gpus": ("1", "1", "2", "4", "65"),
    "--parallel": ("ulysses:1", "ulysses:2", "ring:2", "ulysses:2,ring:2", "cfg:2", "ulysses"),
    "--phase": ("run", "quality", "render", "all"),
    "--share": ("1/1", "2/4", "5/4"),
    "--join": ("full", "empty"),
    "--plan": ("config.json", "plan.yaml"),
    "--layers": ("0", "1,2", "99"),
    "--heads": ("0", "0,1", "99"),
    "--at": ("0", "1", "99"),
    "--port": ("7860", "0", "65536"),
    "--size": ("tiny", "14b"),
    "--grid": ("3x8x8", "4x4", "2"),
    "--window": ("2", "3x3x3"),
    "--tile": ("2x2x2", "4"),
    "--computed": ("0.5", "1", "0"),
    "--reuse": ("output", "delta"),
    "--repeats": ("1", "2"),
}  # fmt: skip
"""Values that flags are meant for, and near misses; a flag without any takes what is bad for others."""

SHORT = {"-o": "--output"}
SMALL = ("--weights", "embedded", "--frames", "5", "--height", "64", "--width", "64", "--steps", "2")
"""Flags of verbs that draw, so that some lines get far."""


@cache
def verbs() -> dict[tuple[str, ...], Any]:
    """Every command of the parser by its words."""
    found = {}
    for name, one in command().commands.items():
        inner = getattr(one, "commands", None)
        found |= {(name, sub): part for sub, part in inner.items()} if inner else {(name,): one}
    if find_spec("gradio") is not None:  # its page stays open until somebody ends it
        del found["demo",]
    return found


@st.composite
def lines(draw: Any) -> list[str]:
    """The arguments of one command line."""
    known = verbs()
    words = draw(st.sampled_from([*sorted(known), *[("generate",)] * 5]))
    tame = draw(st.booleans())  # values that are meant for their flags alone: such lines get far
    flags = {flag: one for one in known[words].params for flag in one.opts if flag.startswith("-")}
    found = [*words]
    if {"--weights", "--frames"} <= set(flags) and (tame or draw(st.booleans())):
        found += SMALL
    for one in known[words].params:
        if not one.opts[0].startswith("-"):  # an argument
            found += draw(st.lists(st.sampled_from(("v.npy", "gna", "svg", *BAD)), max_size=2))
    usual = [flag for flag in flags if flags[flag].is_flag or SHORT.get(flag, flag) in GOOD]
    choice = sorted(set(usual if tame else flags) - {"--debug", "--help", "-h"}) or ["--json"]
    for flag in draw(st.lists(st.sampled_from(choice), max_size=3 if tame else 4, unique=tame)):
        one = flags[flag]
        found.append(draw(st.sampled_from([flag, *(old for old, new in ALIASES.items() if new == flag)])))
        if not (one.is_flag or one.count):
            good = GOOD.get(SHORT.get(flag, flag), ())
            found.append(draw(st.sampled_from(good if tame else (*good, *good, *good, *BAD))))
    if not tame and draw(st.integers(0, 19)) == 0:
        found.insert(draw(st.integers(0, len(found))), draw(st.sampled_from(("--no-such", "-x", "stray", *BAD))))
    return [part for part in found if "\0" not in part]


def make_place(folder: Path) -> None:
    """Files of a user's, as good and as bad as they come."""
    folder.mkdir()
    (folder / "user.txt").write_text("mine")
    (folder / "user.json").write_text('{"mine": 1}')
    (folder / "config.json").write_text('{"method": "dense", "dense_layers": 2}')
    record = {"dittools": "0.1.0", "model": "wan", "config": {"version": 1, "method": "svg", "sparsity": 0.5}}
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "plan.yaml").write_text("seeds: [0, 1]\nsweep: {sparsity: [0.5]}\n")
    (folder / "prompts.txt").write_text("\ufeffa red circle\n\na blue square\n", encoding="utf-8")
    profile = {"schema": 1, "kind": "cache", "model": "m", "match": {}, "steps": 6, "masks": {"6": {"mask": "1" * 6}}}
    (folder / "profile.json").write_text(json.dumps(profile))
    model = {"transformer": "WanTransformer3DModel", "fingerprint": "0" * 16, "layers": 8, "heads": 6}
    plans = {"dittools_plans": 1, "kind": "plans", "model": model, "made": {"weights": "w", "steps": 2}, "steps": 2}
    plans |= {"grids": [{"frames": 2, "height": 4, "width": 4}], "config": {"method": "dense", "cache": "sea"}}
    plans |= {"method": {"name": "dense", "options": {}}, "plans": [], "uses": [], "dense": [], "tables": {}}
    plans["cache"] = {"reuse": "output", "taylor_order": 0, "calls": [{"part": 0, "branch": "cond", "steps": "Cr"}]}
    (folder / "plans.json").write_text(json.dumps(plans))
    np.save(folder / "v.npy", np.zeros((2, 16, 16, 3), np.uint8))
    (folder / "full").mkdir()
    (folder / "full" / "mine.txt").write_text("mine")
    (folder / "empty").mkdir()
    (folder / "link").symlink_to("user.txt")


def contents(folder: Path) -> dict[str, bytes | str]:
    """What a folder holds, by path: bytes of files, where links lead, and folders."""
    return {
        str(path.relative_to(folder)): f"-> {path.readlink()}" if path.is_symlink() else
        path.read_bytes() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }  # fmt: skip
