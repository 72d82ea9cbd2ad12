"""The measures against other people's programs: ffmpeg's filters on lossless files, scikit-image, plain NumPy."""

import re
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import convolve1d, gaussian_filter

from dittools.pipelines import saving
from dittools.quality import measure, ms_ssim, psnr, ssim, temporal_psnr, vmaf
from dittools.quality.perceptual import why_not_lpips, why_not_vmaf


@pytest.fixture(scope="module")
def pair():
    """Two videos of 3 x 176 x 208: smooth shapes that move, and the same a little blurred and noisy; uint8."""
    rng = np.random.default_rng(0)
    field = gaussian_filter(rng.standard_normal((3, 176, 208, 3)), (1, 5, 5, 0))
    field = (field - field.min()) / (field.max() - field.min())
    spoiled = gaussian_filter(field, (0, 1.5, 1.5, 0)) + 0.02 * rng.standard_normal(field.shape)
    return tuple((x.clip(0, 1) * 255).round().astype(np.uint8) for x in (spoiled, field))


@pytest.fixture(scope="module")
def floats(pair):
    return tuple(x.astype(np.float32) / 255 for x in pair)


@pytest.fixture(scope="module")
def ffmpeg_says(pair, tmp_path_factory):
    """Values for every frame from an ffmpeg filter, of the two videos as lossless files."""
    folder = tmp_path_factory.mktemp("lossless")
    for name, frames in zip("ab", pair, strict=True):
        saving.write(frames, folder / f"{name}.mkv", "mkv", 16)

    def run(name, pattern):
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", "a.mkv", "-i", "b.mkv"]
        command += ["-lavfi", f"{name}=stats_file=stats.txt", "-f", "null", "-"]
        subprocess.run(command, cwd=folder, check=True)
        return [float(value) for value in re.findall(pattern, (folder / "stats.txt").read_text())]

    return run


def test_psnr_is_ffmpegs(floats, ffmpeg_says):
    assert psnr(*floats).per_frame == pytest.approx(ffmpeg_says("psnr", r"psnr_avg:(\S+)"), abs=0.01)


def test_psnr_is_scikit_images(floats):
    metrics = pytest.importorskip("skimage.metrics")
    expected = [metrics.peak_signal_noise_ratio(b, a, data_range=1) for a, b in zip(*floats, strict=True)]
    assert psnr(*floats).per_frame == pytest.approx(expected, abs=1e-3)


def test_ssim_is_scikit_images(floats):
    metrics = pytest.importorskip("skimage.metrics")
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    expected = [metrics.structural_similarity(a, b, channel_axis=-1, **options) for a, b in zip(*floats, strict=True)]
    assert ssim(*floats).per_frame == pytest.approx(expected, abs=1e-5)


def test_ssim_with_ffmpegs_window_is_ffmpegs(pair, ffmpeg_says):
    """ffmpeg's windows are flat, 8 x 8 and 4 pixels apart: the same formula over those gives what it prints."""
    expected = []
    for frames in zip(*pair, strict=True):
        a, b = (sliding_window_view(x.astype(np.float64), (8, 8), (0, 1))[::4, ::4] for x in frames)
        mean_a, mean_b = a.mean((-1, -2)), b.mean((-1, -2))
        both = 64 / 63 * ((a * b).mean((-1, -2)) - mean_a * mean_b)
        spread = 64 / 63 * (a.var((-1, -2)) + b.var((-1, -2)))
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        value = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (spread + c2))
        expected.append(value.mean())
    assert ffmpeg_says("ssim", r"All:(\S+)") == pytest.approx(expected, abs=1e-3)


def test_ssim_is_near_ffmpegs(floats, ffmpeg_says):
    assert ssim(*floats).per_frame == pytest.approx(ffmpeg_says("ssim", r"All:(\S+)"), abs=0.06)


def structure(a, b):
    """SSIM and its contrast-structure part of one channel, as in the paper, where the window fits."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(x):
        return convolve1d(convolve1d(x, window, 0), window, 1)[5:-5, 5:-5]

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, both = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    contrast = (2 * both + 0.03**2) / (var_a + var_b + 0.03**2)
    light = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    return (light * contrast).mean(), contrast.mean()


def test_ms_ssim_is_the_papers_formula(floats):
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    expected = []
    for a, b in zip(*floats, strict=True):
        parts = np.zeros((5, 2))
        x, y = a.astype(np.float64), b.astype(np.float64)
        for scale in range(5):
            parts[scale] = np.mean([structure(x[..., c], y[..., c]) for c in range(3)], 0)
            if scale < 4:
                x, y = ((v[::2, ::2] + v[1::2, ::2] + v[::2, 1::2] + v[1::2, 1::2]) / 4 for v in (x, y))
        values = [*parts[:4, 1], parts[4, 0]]
        expected.append(np.prod([value**weight for value, weight in zip(values, weights, strict=True)]))
    assert ms_ssim(*floats).per_frame == pytest.approx(expected, abs=1e-5)


def test_temporal_psnr_is_the_psnr_of_what_changes(floats):
    a, b = floats
    error = ((np.diff(a, axis=0) - np.diff(b, axis=0)) ** 2).mean((1, 2, 3))
    assert temporal_psnr(a, b).per_frame == pytest.approx(list(-10 * np.log10(error)), abs=1e-3)
    still = b + np.float32(0.1)  # a change that stands still is no flicker
    assert temporal_psnr(still, b).mean > 100 > psnr(still, b).mean


@pytest.mark.skipif(why_not_vmaf(176, 208) is not None, reason=str(why_not_vmaf(176, 208)))
def test_vmaf_of_two_streams_is_ffmpegs_of_two_files(floats, pair, tmp_path):
    yuv = "scale=out_color_matrix=bt709:out_range=tv,format=yuv420p"
    for name, frames in zip("ab", pair, strict=True):
        saving.write(frames, tmp_path / f"{name}.mkv", "mkv", 16)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", "a.mkv", "-i", "b.mkv", "-lavfi"]
    command += [f"[0]{yuv}[a];[1]{yuv}[b];[a][b]libvmaf=log_fmt=csv:log_path=v.csv", "-f", "null", "-"]
    subprocess.run(command, cwd=tmp_path, check=True)
    head, *lines = (line.split(",") for line in (tmp_path / "v.csv").read_text().splitlines())
    expected = [float(line[head.index("vmaf")]) for line in lines]
    assert vmaf(*floats).per_frame == pytest.approx(expected, abs=1e-3)


def test_what_cannot_be_measured_says_why():
    assert "too small" in why_not_vmaf(16, 16)


@pytest.mark.skipif(why_not_vmaf(64, 64) is not None, reason=str(why_not_vmaf(64, 64)))
@pytest.mark.parametrize("size", [64, 192])
def test_vmaf_says_nothing_where_the_reference_has_no_detail(size):
    noise = np.random.default_rng(0).random((2, size, size, 3), dtype=np.float32)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    late = noise.copy()
    late[1] = 0.5
    ramp = np.repeat(np.stack([0.1 + 0.2 * x] * 3, -1)[None], 2, 0)
    for reference, frame in ((np.zeros_like(noise), 1), (late, 2), (ramp, 1)):
        found = measure(noise, reference)
        assert "vmaf" not in found.scores and f"nearly flat in frame {frame}" in found.left_out["vmaf"]
        with pytest.raises(ValueError, match="nearly flat"):
            vmaf(noise, reference)
    disc = np.repeat(np.stack([0.3 + 0.6 * ((y - 0.5) ** 2 + (x - 0.5) ** 2 < 0.03)] * 3, -1)[None], 2, 0)
    disc = disc.astype(np.float32)
    assert vmaf(noise, disc).mean < 20 and vmaf(disc, disc).mean > 97
    reason = why_not_lpips(256, 256)
    assert reason is None or "torchvision" in reason or "AlexNet" in reason
