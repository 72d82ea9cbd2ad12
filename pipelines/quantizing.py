"""Weights of a transformer in fewer bits, by what diffusers has for it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dittools.naming import unknown
from dittools.pipelines.errors import BadInput

if TYPE_CHECKING:
    import torch

NONE, FP8 = "none", "fp8"
KINDS = {
    NONE: "",
    FP8: "stored in float8, computed in the run's dtype (diffusers' layerwise casting)",
    "int8": "int8 weights (torchao)",
    "nf4": "4-bit weights on a CUDA GPU (bitsandbytes)",
}
_PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}


def check(kind: str, device: torch.device) -> None:
    """Raises BadInput for a kind that there is not, or not here."""
    if kind not in KINDS:
        raise BadInput(unknown("--quantize", kind, KINDS))
    package = _PACKAGES.get(kind)
    if package is not None and find_spec(package) is None:
        raise BadInput(f"--quantize {kind} needs {package}, which is not installed: pip install {package}")
    if kind == "nf4" and device.type != "cuda":
        raise BadInput(f"--quantize nf4 runs on a CUDA GPU, and this run is on {device.type}: use int8 or fp8")


def loading_of(kind: str, dtype: torch.dtype) -> dict[str, Any]:
    """What a transformer's ``from_pretrained`` is given beside its dtype."""
    if kind == "int8":
        from diffusers import TorchAoConfig
        from torchao.quantization import Int8WeightOnlyConfig

        return {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
    if kind == "nf4":
        from diffusers import BitsAndBytesConfig

        sizes = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
        return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **sizes)}
    return {}


def cast(kind: str, model: Any, dtype: torch.dtype) -> None:
    """Store a loaded transformer in fewer bits, where that is done after loading."""
    if kind == FP8:
        import torch

        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
