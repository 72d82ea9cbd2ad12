"""Arithmetic of single caches against simpler code: Taylor series, the Wiener filter, frequencies, memory."""

import numpy as np
import pytest
import torch

from dittools import caches
from dittools.caches import Shapes
from dittools.caches.base import add_latents
from dittools.caches.fastercache import reweighted
from dittools.caches.forecast import differences, forecast
from dittools.caches.sea import wiener


def test_a_straight_line_is_forecast_exactly_at_order_1_whatever_the_gaps():
    line = lambda step: [torch.full((2, 3), 3.0 + 0.5 * step)]  # noqa: E731
    factors = differences(line(0), [], 0, 1)
    factors = differences(line(2), factors, 2, 1)
    factors = differences(line(7), factors, 5, 1)
    for ahead in (0, 1, 4):
        torch.testing.assert_close(forecast(factors, ahead)[0], line(7 + ahead)[0])


def test_order_0_is_the_last_value_and_one_step_knows_no_slope():
    now, then = torch.randn(2, 4), torch.randn(2, 4)
    factors = differences([now], differences([then], [], 0, 0), 3, 0)
    assert len(factors) == 1 and torch.equal(forecast(factors, 5)[0], now)
    assert torch.equal(forecast(differences([now], [], 0, 2), 5)[0], now)


def test_a_second_difference_is_that_of_the_published_rule():
    values = [torch.tensor(v) for v in (1.0, 4.0, 9.0)]  # at steps 0, 2, 4
    factors = []
    for i, v in enumerate(values):
        factors = differences([v], factors, 2 if i else 0, 2)
    slope, before = (9 - 4) / 2, (4 - 1) / 2
    bend = (slope - before) / 2
    assert [t[0].item() for t in factors] == [9, slope, bend]
    assert forecast(factors, 3)[0] == pytest.approx(9 + slope * 3 + bend * 9 / 2)


def test_latents_are_added_to_the_channels_that_speak_of_them_and_to_no_others():
    x, out = torch.randn(1, 36, 3, 4, 5), torch.randn(1, 16, 3, 4, 5)
    given = out.clone()
    add_latents(given, x, -1)
    assert torch.equal(given, out - x[:, :16])
    variances = torch.randn(1, 40, 3, 4, 5)  # behind what speaks of the latents
    given = variances.clone()
    add_latents(given, x, 1)
    assert torch.equal(given[:, :36], variances[:, :36] + x) and torch.equal(given[:, 36:], variances[:, 36:])
    for other in (torch.zeros(1, 16, 3, 2, 5), torch.zeros(1, 36, 3, 4)):
        with pytest.raises(ValueError, match="use reuse=output"):
            add_latents(other, x, 1)


def test_the_wiener_filter_is_the_one_of_the_formula():
    x, noise, power = torch.randn(1, 2, 3, 4, 6), 0.6, 3.0
    frequencies = np.meshgrid(*(np.fft.fftfreq(n) for n in (3, 4, 6)), indexing="ij")
    f = np.maximum(np.sqrt(sum(axis**2 for axis in frequencies)), 1 / 6)
    prior = f**-power
    gain = (1 - noise) * prior / ((1 - noise) ** 2 * prior + noise**2)
    expected = np.fft.ifftn(np.fft.fftn(x.numpy(), axes=(2, 3, 4)) * gain, axes=(2, 3, 4)).real
    np.testing.assert_allclose(wiener(x, noise, power).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_without_noise_the_filter_changes_nothing_and_pure_noise_leaves_nothing():
    x = torch.randn(1, 2, 3, 4, 6)
    torch.testing.assert_close(wiener(x, 0.0, 3.0), x)
    assert wiener(x, 1.0, 3.0).abs().max() < 1e-6
    tokens = torch.randn(1, 8, 12)
    torch.testing.assert_close(wiener(tokens, 0.0, 2.0), tokens)


def test_frequencies_with_equal_factors_are_a_plain_factor_and_a_constant_is_all_low():
    x = torch.randn(1, 3, 2, 10, 12)
    torch.testing.assert_close(reweighted(x, 1.3, 1.3), 1.3 * x)
    torch.testing.assert_close(reweighted(torch.ones(1, 1, 10, 10), 2.0, 7.0), 2 * torch.ones(1, 1, 10, 10))
    stripes = torch.tensor([1.0, -1.0]).repeat(5).expand(1, 1, 10, 10).contiguous()
    torch.testing.assert_close(reweighted(stripes, 2.0, 7.0), 7 * stripes)


def test_frequencies_up_to_a_fifth_of_the_shorter_side_are_low():
    def wave(cycles, height=10, width=30):
        return torch.cos(2 * torch.pi * cycles * torch.arange(width) / width).expand(1, 1, height, width).contiguous()

    for cycles, gain in ((0, 2.0), (2, 2.0), (3, 7.0), (5, 7.0)):
        torch.testing.assert_close(reweighted(wave(cycles), 2.0, 7.0), gain * wave(cycles))


@pytest.mark.parametrize(
    "timesteps, low, high",
    [
        ((420, 360, 290, 230), 4, 2),
        ((200, 140, 80, 30), 2, 4),
        ((930, 910, 880, 850), 2, 0),
        ((901, 900, 100, 99), 2, 2),
        ((302, 301, 300, 0), 3, 2),
    ],
)
def test_gains_count_the_uses_within_their_windows_and_stay(timesteps, low, high):
    cache, state = caches.create("fastercache", {"low_gain": 1.5, "high_gain": 2.0}), caches.BranchState()
    for _ in range(2):  # the first use after a computed branch starts anew
        for state.skips, t in enumerate(timesteps, 1):
            found = cache.raise_gains(state, t)
        assert found == pytest.approx((1.5**low, 2.0**high))
    assert cache.raise_gains(caches.BranchState(skips=5), 950) == (1.0, 1.0)  # of another branch
    assert cache.raise_gains(state, 950) == pytest.approx(found)


# Wan 14B at 720p, 81 frames: 21 x 45 x 80 tokens of 5,120, latents 16 x 21 x 90 x 160, both guidance branches.
WAN_720P = Shapes(latents=16 * 21 * 90 * 160, tokens=21 * 45 * 80, width=5120, lanes=2, layers=40)
MAP = WAN_720P.tokens * WAN_720P.width * WAN_720P.bytes
MIB = 2**20


@pytest.mark.parametrize("name", ["teacache", "magcache", "easycache", "taylorseer", "sea", "first_block"])
def test_at_wan_14b_720p_a_root_level_cache_holds_less_than_one_feature_map_a_branch(name):
    held = caches.create(name, {}).bytes_held(WAN_720P)
    assert pytest.approx(738 * MIB, rel=0.001) == MAP
    assert held < WAN_720P.lanes * MAP * 0.2


def test_memory_at_wan_14b_720p_by_the_formula():
    def held(name, **options):
        return round(caches.create(name, options).bytes_held(WAN_720P) / MIB, 1)

    latent = 16 * 21 * 90 * 160 * 2 / MIB  # 9.2
    assert held("magcache") == round(2 * latent, 1) == 18.5
    assert held("taylorseer") == round(2 * latent, 1) and held("taylorseer", taylor_order=1) == round(4 * latent, 1)
    assert held("easycache") == round(5 * latent, 1)
    assert held("magcache", reuse="stack") == round(2 * MAP / MIB, 1) == 1476.6
    assert held("pab") == round(2 * 40 * MAP / MIB, 1)
