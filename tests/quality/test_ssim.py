"""SSIM: fp32 is enough, edges do not count, and frames do not see each other."""

import pytest
import torch
import torch.nn.functional as F

from dittools.quality import psnr, ssim


def in_double(x, y):
    """SSIM of frames ``[T, C, H, W]`` by its formula, in fp64 and with two-dimensional windows."""
    taps = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / 4.5)
    window = (taps[:, None] * taps)[None, None] / taps.sum() ** 2

    def mean(z):
        return F.conv2d(z.flatten(0, 1)[:, None], window).unflatten(0, x.shape[:2])

    x, y = x.double(), y.double()
    a, b = mean(x), mean(y)
    xx, yy, xy = mean(x * x) - a * a, mean(y * y) - b * b, mean(x * y) - a * b
    value = (2 * a * b + 0.01**2) * (2 * xy + 0.03**2) / ((a * a + b * b + 0.01**2) * (xx + yy + 0.03**2))
    return value.mean((1, 2, 3, 4))


@pytest.mark.parametrize("level, noise", [(0.5, 0.2), (0.98, 0.004), (0.01, 0.002), (1.0, 0.0)])
def test_fp32_keeps_what_little_differs_in_dark_and_bright_frames(level, noise):
    made = torch.Generator().manual_seed(0)
    x, y = (level + noise * torch.randn(2, 3, 40, 50, generator=made) for _ in range(2))
    found = ssim(*(z.permute(0, 2, 3, 1) for z in (x, y))).per_frame
    assert found == pytest.approx(in_double(x, y).tolist(), abs=2e-5)


def test_frames_do_not_see_each_other():
    x, y = torch.rand(2, 4, 30, 41, 3, generator=torch.Generator().manual_seed(0))
    alone = [ssim(x[n : n + 1], y[n : n + 1]).mean for n in range(4)]
    assert ssim(x, y).per_frame == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_the_device_can_be_named(metric):
    x, y = torch.rand(2, 3, 16, 20, 3, generator=torch.Generator().manual_seed(0))
    assert metric(x.numpy(), y.numpy(), "cpu") == metric(x, y, torch.device("cpu")) == metric(x, y)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("metric, atol", [(psnr, 1e-4), (ssim, 1e-5)])
def test_a_gpu_measures_as_the_cpu_does(metric, atol):
    made = torch.Generator().manual_seed(0)
    x = torch.rand(40, 120, 130, 3, generator=made)
    y = (x + 0.05 * torch.randn(x.shape, generator=made)).clamp(0, 1)
    assert metric(x, y, "cuda").per_frame == pytest.approx(metric(x, y).per_frame, abs=atol)
