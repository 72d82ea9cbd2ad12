"""Write trained parts as a standard pipeline folder: safetensors only, shards below 16 MiB."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from dittools.training import architecture


def export(folder: Path, vae: nn.Module, transformer: nn.Module, text_encoder: nn.Module, scale: torch.Tensor) -> None:
    """Save everything at ``folder``; the denoiser in bf16, the small parts in fp16 (they load in any)."""
    from diffusers import WanPipeline

    mean, std = scale.cpu().tolist()
    vae.register_to_config(latents_mean=[round(x, 5) for x in mean], latents_std=[round(x, 5) for x in std])
    vae = vae.to(torch.float16).to(memory_format=torch.contiguous_format)
    pipeline = WanPipeline(
        tokenizer=architecture.build_tokenizer(),
        text_encoder=text_encoder.to(torch.float16).eval(),
        vae=vae.eval(),
        transformer=transformer.to(torch.bfloat16).eval(),
        scheduler=architecture.build_scheduler(),
    )
    pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size="16MB")
    # The name of the tokenizer's class that transformers 4 and 5 both know.
    _edit(folder / "model_index.json", tokenizer=["transformers", "PreTrainedTokenizerFast"])
    _edit(folder / "tokenizer" / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    for path in folder.rglob("*"):
        if path.name == "config.json":
            _edit(path, _name_or_path=None)
        path.chmod(0o755 if path.is_dir() else 0o644)


def _edit(path: Path, **values: object) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | values
    content = {key: value for key, value in content.items() if not (key in values and value is None)}
    path.write_text(json.dumps(content, indent=2) + "\n")


def load_vae(folder: Path, device: torch.device) -> nn.Module:
    """An autoencoder's folder as fp32."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan.from_pretrained(folder).float().to(device).eval()


def load(folder: Path, device: torch.device) -> tuple[nn.Module, nn.Module, nn.Module, torch.Tensor]:
    """The vae, transformer, text encoder (fp32) and latent scale of an exported folder."""
    from diffusers import WanTransformer3DModel
    from transformers import UMT5EncoderModel

    vae = load_vae(folder / "vae", device)
    transformer = WanTransformer3DModel.from_pretrained(folder / "transformer").float().to(device)
    text_encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder").float().to(device)
    scale = torch.tensor([vae.config.latents_mean, vae.config.latents_std], device=device)
    return vae, transformer, text_encoder, scale
