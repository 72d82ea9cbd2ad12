"""A checked weights folder to a pipeline on a device. Never the network, never code from the folder."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dittools.pipelines import components, quantizing
from dittools.pipelines.errors import BadInput, RunFailed, first_line
from dittools.pipelines.folder import read_index

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")
_NUMBERED = re.compile(r"cuda:\d{1,3}")
OFFLOADS = ("none", "model", "group")
DTYPES = {
    "auto": None,
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "float32": "float32",
}


def is_device(asked: str) -> bool:
    """Whether this names a device: one of `DEVICES`, or a GPU by its number, "cuda:1"."""
    return asked in DEVICES or _NUMBERED.fullmatch(asked) is not None


def pick_device(asked: str) -> torch.device:
    """auto: the first CUDA GPU, else the CPU; "cuda:1" the second GPU. Raises BadInput for one that is not there."""
    import torch

    found = torch.cuda.is_available()
    if asked.startswith("cuda") and not found:
        built = "this PyTorch is built without it" if torch.version.cuda is None else "no GPU or driver answers"
        raise BadInput(f"--device {asked} asked, and {built}: use --device cpu, or a machine with CUDA")
    if ":" in asked:
        device, count = torch.device(asked), torch.cuda.device_count()
        if device.index >= count:
            raise BadInput(f"--device {asked} asked, and GPUs here are cuda:0 to cuda:{count - 1}: use one of them")
        return device
    return torch.device("cuda" if found and asked != "cpu" else "cpu")


def pick_dtype(asked: str, device: torch.device) -> torch.dtype:
    """auto: bf16 on CUDA from compute capability 8.0, fp16 before it, fp32 on the CPU."""
    import torch

    name = DTYPES[asked]
    if name is not None:
        return getattr(torch, name)
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def check_offload(offload: str, device: torch.device) -> None:
    """Raises BadInput for offloading where there is nothing to offload from."""
    if offload != "none" and device.type != "cuda":
        raise BadInput(f"--offload {offload} moves weights off a CUDA GPU, and this run is on {device.type}: drop it")


def load(
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    offload: str = "none",
    note: Callable[[str], None] = lambda text: None,
    kind: type | None = None,
    quantize: str = quantizing.NONE,
    prepare: Callable[[Any], None] = lambda pipe: None,
) -> Any:
    """The diffusers pipeline in `folder`, in eval mode on `device`, its VAE in fp32.

    Wan's VAE loses detail in half precision, so it stays in fp32, as diffusers' documentation advises.
    offload: "model" keeps one component at a time on the GPU, "group" one layer at a time; both need CUDA.
    kind: the class to make of its parts; None: the folder's own.
    quantize: of `dittools.pipelines.quantizing.KINDS`.
    prepare: what else is done to the pipeline, before it is moved.
    note: told of weights that are not used. Raises BadInput for files that do not fit together, torch's own error when
    memory runs out.
    """
    import torch
    from diffusers import DiffusionPipeline

    check_offload(offload, device)
    quiet_loading()
    try:
        index = read_index(folder)
        if kind is not None:
            index = {name: value for name, value in index.items() if not isinstance(value, list) or _has(kind, name)}
        kinds = components.check_classes(folder, index)
        models = components.load_models(
            folder,
            kinds,
            lambda name: torch.float32 if name == "vae" else dtype,
            note,
            lambda name: quantizing.loading_of(quantize, dtype) if name in _TRANSFORMERS else {},
        )
        pipe = (kind or DiffusionPipeline).from_pretrained(
            folder,
            **models,
            dtype={"default": dtype, "vae": torch.float32},
            use_safetensors=True,
            local_files_only=True,
        )
    except BadInput:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        if out_of_memory(error):
            raise
        raise BadInput(f"{folder} could not be loaded ({_plain(error)}): get the files again") from error
    pipe.set_progress_bar_config(disable=True)
    for name in _TRANSFORMERS:
        if getattr(pipe, name, None) is not None:
            quantizing.cast(quantize, getattr(pipe, name), dtype)
    prepare(pipe)
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "group":
        pipe.enable_group_offload(
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
            use_stream=True,
        )
    else:
        pipe.to(device)
    return pipe


_TRANSFORMERS = ("transformer", "transformer_2", "unconditional_transformer")


def _has(kind: type, component: str) -> bool:
    return component in inspect.signature(kind.__init__).parameters


def _plain(error: BaseException) -> str:
    """What a library says of an error, without its advice on arguments that nobody here can give."""
    said = [part for part in re.split(r"(?<=[.!?:]) +", first_line(error)) if not _ADVICE.search(part)]
    text = " ".join(said) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


_ADVICE = re.compile(r"trust_remote_code|https?://|low_cpu_mem_usage|mismatched_sizes|[Pp]lease|pass |set `")
_LONGEST = 160


def compile_blocks(pipe: Any) -> None:
    """Compile the repeated blocks of every denoiser; the first forward pays for it."""
    for name in ("transformer", "transformer_2"):
        model = getattr(pipe, name, None)
        if model is None:
            continue
        if not getattr(model, "_repeated_blocks", None):
            raise RunFailed(f"--compile: {type(model).__name__} names no repeated blocks to compile: drop --compile")
        model.compile_repeated_blocks(fullgraph=True)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the GPU or the machine ran out of memory."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def quiet_loading() -> None:
    """No progress bars and no advice from the libraries below: the run says what matters itself."""
    import diffusers
    import transformers

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
