"""LPIPS and VMAF: measures that need more than arithmetic, and that say what they lack.

Each `why_not_...` is None where the measure can run, else the reason. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch

from dittools.quality.metrics import Score, pair

_LPIPS_TRUNK = "alexnet-owt-7be5be79.pth"
_LPIPS_SIDE = 64
_VMAF_SIDE = 32
_BLOCK, _DETAIL = 8, 16.0
"""A frame has detail where the brightness of some block deviates by so many of 256 levels: below, VMAF's features are
close to 1 whatever the video shows (noise against black: 97)."""
_LUMA = (0.2126, 0.7152, 0.0722)
_VMAF_GRAPH = (
    "split[top][bottom];[top]crop=iw:ih/2:0:0,{yuv}[video];[bottom]crop=iw:ih/2:0:ih/2,{yuv}[reference];"
    "[video][reference]libvmaf=log_fmt=json:log_path={log}:n_threads={threads}"
)
_YUV = "scale=out_color_matrix=bt709:out_range=tv,format=yuv420p"


def why_not_lpips(height: int, width: int) -> str | None:
    """What LPIPS lacks for frames of this size, or None."""
    if importlib.util.find_spec("torchvision") is None:
        return "torchvision is not installed"
    weights = Path(torch.hub.get_dir()) / "checkpoints" / _LPIPS_TRUNK
    if not weights.is_file():
        return f"the AlexNet weights are not in torch's hub cache ({_LPIPS_TRUNK})"
    if min(height, width) < _LPIPS_SIDE:
        return f"frames of {height} x {width} are too small (at least {_LPIPS_SIDE} x {_LPIPS_SIDE})"
    return None


def lpips(video: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor) -> Score:
    """Learned perceptual distance (Zhang et al. 2018) with AlexNet features; 0 is identical, lower is better.

    Shapes as in `psnr`. Raises ValueError where `why_not_lpips` gives a reason.
    """
    a, b = pair(video, reference)
    _refuse("LPIPS", why_not_lpips(*a.shape[1:3]))
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as distance

    values = []
    for x, y in zip(a, b, strict=True):
        x, y = (frame.float().permute(2, 0, 1)[None].clamp(0, 1) for frame in (x, y))  # [1, 3, H, W]
        values.append(float(distance(x, y, net_type="alex", normalize=True)))
    return Score(math.fsum(values) / len(values), values)


def why_not_vmaf(height: int, width: int) -> str | None:
    """What VMAF lacks for frames of this size, or None."""
    reason = _ffmpeg()[1]
    if reason is None and min(height, width) < _VMAF_SIDE:
        return f"frames of {height} x {width} are too small (at least {_VMAF_SIDE} x {_VMAF_SIDE})"
    return reason


def why_not_vmaf_of(reference: torch.Tensor) -> str | None:
    """What a reference `[T, H, W, 3]` in [0, 1] lacks for VMAF to say anything of a video, or None.

    Its features are the shares of the reference's detail that are left, so they call anything good where it has none.
    """
    for number, frame in enumerate(reference, 1):
        light = (frame.float() * 255) @ frame.new_tensor(_LUMA, dtype=torch.float32)
        blocks = light.unfold(0, _BLOCK, _BLOCK).unfold(1, _BLOCK, _BLOCK).flatten(-2)
        if blocks.std(-1).max() < _DETAIL:
            return f"the reference is nearly flat in frame {number}, and it measures how much of its detail is left"
    return None


def vmaf(video: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor, threads: int = 0) -> Score:
    """VMAF by ffmpeg's libvmaf and its built-in model, on brightness alone; up to 100, higher is better.

    The model was made for 1080p seen from three screen heights: on smaller frames read it as an order, not as a
    grade. Identical videos score a little below 100, and what is added where the reference is flat hardly counts.
    Shapes as in `psnr`; `threads` 0 takes as many as torch.

    Raises ValueError where `why_not_vmaf` or `why_not_vmaf_of` gives a reason, RuntimeError for what ffmpeg says no to.
    """
    a, b = pair(video, reference)
    _refuse("VMAF", why_not_vmaf(*a.shape[1:3]) or why_not_vmaf_of(b))
    # one stream with the two videos one above the other: no large files, no second pipe
    stacked = (torch.cat((a, b), dim=1).float().clamp(0, 1) * 255).round().to(torch.uint8)
    _, height, width, _ = stacked.shape
    with tempfile.TemporaryDirectory(prefix="dittools-") as folder:
        log = Path(folder) / "vmaf.json"
        graph = _VMAF_GRAPH.format(yuv=_YUV, log=log.name, threads=threads or torch.get_num_threads())
        command = [_ffmpeg()[0], "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-s", f"{width}x{height}", "-i", "-", "-lavfi", graph, "-f", "null", "-"]
        raw = memoryview(stacked.contiguous().cpu().numpy()).cast("B")
        done = subprocess.run(command, input=raw, capture_output=True, check=False, cwd=folder)
        if done.returncode or not log.exists():
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"ffmpeg could not measure VMAF ({said[-1] if said else done.returncode})")
        frames = json.loads(log.read_text())["frames"]
    values = [float(frame["metrics"]["vmaf"]) for frame in frames]
    return Score(math.fsum(values) / len(values), values)


@cache
def _ffmpeg() -> tuple[str, str | None]:
    """The ffmpeg to use, and why it cannot measure VMAF (None if it can)."""
    try:
        import imageio_ffmpeg

        path = imageio_ffmpeg.get_ffmpeg_exe()
        listed = subprocess.run([path, "-hide_banner", "-filters"], capture_output=True, text=True, check=False).stdout
    except (ImportError, RuntimeError, OSError):
        return "", "no ffmpeg was found"
    return path, None if " libvmaf " in listed else "this ffmpeg is built without libvmaf"


def _refuse(name: str, reason: str | None) -> None:
    if reason is not None:
        raise ValueError(f"{name} cannot be measured: {reason}")
