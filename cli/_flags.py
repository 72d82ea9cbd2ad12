"""Flags, each written once: verbs put together those that they take. Settings come from the table of `Config`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer

from dittools.config import Config
from dittools.options import options_of

VIDEO, INPUT, SETTINGS, MODEL, RESULT, OTHER = (
    *("Video", "Inputs beside text", "Acceleration"),
    *("Model and device", "Output", "Other"),
)
_TABLE = options_of(Config)


def flag(names: str, help: str, panel: str, metavar: str | None = None) -> Any:
    """A flag.

    Args:
        names: one or more, with spaces between.
        help: what it does.
        panel: section of the help it stands in.
        metavar: what its value looks like; None for a switch.
    """
    known = names.split()
    complete = _values(known[0], metavar)
    return typer.Option(*known, help=help, rich_help_panel=panel, metavar=metavar, autocompletion=complete)


def _values(name: str, metavar: str | None) -> Callable[[str], list[str]] | None:
    """What a shell offers as values of a flag; None: files."""

    def known(begun: str) -> list[str]:
        if name in ("--method", "--cache", "--correction"):
            values = import_module(f"dittools.{name[2:]}s").names()
        elif name == "--model":
            values = [family.name for family in import_module("dittools.pipelines.families").FAMILIES]
        else:
            values = [value for value in (metavar or "").split("|") if value.isalnum() and not value.isupper()]
        return [value for value in values if value.startswith(begun)]

    return known if metavar and ("|" in metavar or metavar.startswith("NAME")) else None


def setting(name: str, metavar: str | None = None, names: str = "", note: str = "") -> Any:
    """The flag of a `Config` field, which is None where it is not given: a --config file may have it."""
    about = _TABLE[name]
    empty = about.default in (None, {})
    default = "" if empty else f"  [default: {str(about.default).lower() if about.kind == 'switch' else about.default}]"
    text = f"{about.help[:1].upper()}{about.help[1:]}{note}.{default}"
    dashed = name.replace("_", "-")
    own = f"--{dashed}/--no-{dashed}" if about.kind == "switch" else f"--{dashed}"
    return flag(names or own, text, SETTINGS, metavar)


NAMED = "NAME[:OPTION=VALUE...]"
OPTIONS = "OPTION=VALUE[:...]"

Model = Annotated[str, flag("--model", "Family; `dittools models` lists them.", MODEL, "NAME")]
Device = Annotated[str, flag("--device", "Where to run.", MODEL, "auto|cpu|cuda[:N]")]
Dtype = Annotated[str, flag("--dtype", "auto: bf16 on CUDA, fp32 on a CPU.", MODEL, "auto|bf16|fp16|fp32")]
Gpus = Annotated[
    int | None, flag("--gpus", "Draw one video on N GPUs of this machine: N processes.  [default: 1]", MODEL, "N")
]
Parallel = Annotated[
    str | None,
    flag(
        "--parallel",
        "How N GPUs share it: ulysses:N (heads), ring:N (keys), or a product such as ulysses:2,ring:2.  "
        "[default: ulysses:N]",
        MODEL,
        "HOW:N[,HOW:N]",
    ),
]
Compile = Annotated[bool, flag("--compile", "torch.compile the repeated blocks first.", MODEL)]

Prompt = Annotated[str | None, flag("--prompt", "What to show.  [default: by the weights]", VIDEO, "TEXT")]
Steps = Annotated[int | None, flag("--steps", "Denoising steps.  [default: the model's]", VIDEO, "N")]
Height = Annotated[int | None, flag("--height", "Pixels.  [default: the model's]", VIDEO, "N")]
Width = Annotated[int | None, flag("--width", "Pixels.  [default: the model's]", VIDEO, "N")]
Frames = Annotated[int | None, flag("--frames", "Frames, 4n + 1 for Wan.  [default: the model's]", VIDEO, "N")]
Seed = Annotated[int, flag("--seed", "Fixes the noise, the same on every device.", VIDEO, "N")]
Prompts = Annotated[str, flag("--prompts", "A text file, one prompt a line; or N of ours.", VIDEO, "FILE|builtin[:N]")]

OutputFile = Annotated[str, flag("--output -o", "File or folder; see below.", RESULT, "PATH")]
OutputFolder = Annotated[str, flag("--output -o", "A new or empty folder.", RESULT, "FOLDER")]
Overwrite = Annotated[bool, flag("--overwrite", "Also replace files that dittools did not write.", RESULT)]


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every verb takes."""

    as_json: Annotated[bool, flag("--json", "Print one JSON object to stdout.", RESULT)] = False
    quiet: Annotated[bool, flag("--quiet -q", "No progress and no notes, only result and errors.", OTHER)] = False
    verbose: Annotated[bool, flag("--verbose -v", "A line for each step, and what libraries say.", OTHER)] = False
    debug: Annotated[bool, flag("--debug", "Show the traceback of an error.", OTHER)] = False


@dataclass(frozen=True, kw_only=True)
class Run(Common):
    """What a verb takes that runs a model. Flags that some of them have not are as these run without them."""

    prompt = None
    seed = 0
    compile = False

    negative_prompt: Annotated[
        str | None, flag("--negative-prompt", "What not to show.  [default: nothing]", VIDEO, "TEXT")
    ] = None
    steps: Steps = None
    height: Height = None
    width: Width = None
    frames: Frames = None
    guidance: Annotated[
        float | None,
        flag("--guidance", "Classifier-free guidance; 1 turns it off.  [default: the model's]", VIDEO, "X"),
    ] = None
    model: Model = "wan"
    weights: Annotated[
        str,
        flag(
            "--weights",
            "auto: the hub's cache, else with a GPU a download, else the small embedded model.",
            MODEL,
            "auto|embedded|REPO|PATH",
        ),
    ] = "auto"
    device: Device = "auto"
    dtype: Dtype = "auto"
    offload: Annotated[str, flag("--offload", "Keep weights off the GPU while unused.", MODEL, "none|model|group")] = (
        "none"
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A flag for each field of `Config`; None where it was not given."""

    config: Annotated[
        str | None,
        flag("--config", "JSON of a dittools.Config, or the record of a run; flags win over it.", SETTINGS, "FILE"),
    ] = None
    method: Annotated[str | None, setting("method", NAMED, note="; `dittools methods` lists them")] = None
    options: Annotated[str | None, setting("options", OPTIONS)] = None
    sparsity: Annotated[float | None, setting("sparsity", "X", note=", in [0, 1)")] = None
    dense_steps: Annotated[str | None, setting("dense_steps", "SHARE|COUNT")] = None
    dense_last_steps: Annotated[str | None, setting("dense_last_steps", "SHARE|COUNT")] = None
    dense_layers: Annotated[int | None, setting("dense_layers", "N")] = None
    refresh: Annotated[int | None, setting("refresh", "N")] = None
    cache: Annotated[
        str | None, setting("cache", NAMED, note=", such as easycache:threshold=0.05; `dittools caches` lists them")
    ] = None
    cache_options: Annotated[str | None, setting("cache_options", OPTIONS)] = None
    correction: Annotated[str | None, setting("correction", NAMED)] = None
    correction_options: Annotated[str | None, setting("correction_options", OPTIONS)] = None
    profile: Annotated[str | None, setting("profile", "FILE")] = None
    plans: Annotated[str | None, setting("plans", "FILE")] = None
    share_branches: Annotated[bool | None, setting("share_branches")] = None
    block_size: Annotated[str | None, setting("block_size", "auto|64|128")] = None
    error_rows: Annotated[int | None, setting("error_rows", "N")] = None
    max_error: Annotated[float | None, setting("max_error", "SHARE")] = None
    method_seed: Annotated[int | None, setting("seed", "N", "--method-seed")] = None
    strict: Annotated[bool | None, setting("strict")] = None
