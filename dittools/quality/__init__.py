"""How far a video is from a reference video: PSNR and SSIM."""

from dittools.quality.metrics import Score, psnr, ssim

__all__ = ["Score", "psnr", "ssim"]
