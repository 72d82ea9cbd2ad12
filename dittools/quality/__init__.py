"""How far a video is from a reference video, as functions on arrays `[T, H, W, 3]` in [0, 1]."""

from dittools.quality.metrics import Score, mean_psnr, ms_ssim, psnr, ssim, temporal_psnr
from dittools.quality.perceptual import lpips, vmaf
from dittools.quality.suite import METRICS, Metric, measure

__all__ = [
    "METRICS",
    "Metric",
    "Score",
    "lpips",
    "mean_psnr",
    "measure",
    "ms_ssim",
    "psnr",
    "ssim",
    "temporal_psnr",
    "vmaf",
]
