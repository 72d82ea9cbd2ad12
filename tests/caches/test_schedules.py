"""Schedules that need no model: published ones, reproduced."""

import math
from dataclasses import replace

import pytest
import torch

from dittools import caches
from dittools.caches.attention import in_window
from dittools.caches.base import accumulate
from dittools.caches.magcache import magnitudes, resample
from dittools.caches.masks import every, named
from dittools.caches.state import Model, Trajectory
from dittools.caches.taylorseer import TaylorSeer
from dittools.caches.teacache import polynomial
from dittools.profiles import caches as profiles


def drawn(mask, computed="C", other="s"):
    return "".join(computed if compute else other for compute in mask)


def entry_of(table, model):
    return next(known for known in profiles.builtin(table)["models"] if known["model"] == model)


def free(steps, first=0, last=0, **more):
    """A run in which only the first and last steps are forced."""
    forced = tuple(step < first or step >= steps - last for step in range(steps))
    return Trajectory(steps, tuple(1000.0 - 1000 * s / steps for s in range(steps)), forced, **more)


FLUX = entry_of("magcache", "FLUX.1-dev")["ratios"]


def flux_dev(**config):
    sizes = {"num_layers": 19, "in_channels": 64, "guidance_embeds": True, **config}
    return Model("FluxTransformer2DModel", sizes, pipeline="FluxPipeline")


def published(ratios, steps, threshold, skips, share):
    """MagCache's loop for FLUX, written with numbers."""
    mask, product, error, since = [], 1.0, 0.0, 0
    for step in range(steps):
        skip = False
        if step >= int(share * steps + 0.5):
            product, since = product * ratios[step], since + 1
            error += abs(1 - product)
            skip = error <= threshold and since <= skips and round(step * 27 / (steps - 1)) != 11
            if not skip:
                product, error, since = 1.0, 0.0, 0
        mask.append(not skip)
    return mask


@pytest.mark.parametrize("steps", [20, 28, 50])
@pytest.mark.parametrize("threshold, skips, first", [(0.24, 5, 0.1), (0.06, 3, 0.2), (1e9, 100, 0.1)])
def test_magcache_has_the_schedules_published_for_flux(steps, threshold, skips, first):
    options = {"threshold": threshold, "max_consecutive_skips": skips, "warmup_steps": first, "cooldown_steps": 0}
    cache = caches.create("magcache", options).bind(flux_dev())
    run = Trajectory(steps, tuple(range(steps, 0, -1)), tuple(cache.kept(steps, (0,))), flux_dev())
    assert cache.mask(run) == published(resample(FLUX, steps), steps, threshold, skips, first)


def test_magcache_by_default_on_flux_letter_for_letter():
    cache = caches.create("magcache", {"cooldown_steps": 0}).bind(flux_dev())
    run = Trajectory(28, tuple(range(28, 0, -1)), tuple(cache.kept(28, (0,))), flux_dev())
    assert drawn(cache.mask(run)) == "CCCssCsssCsCsssssCsssssCssCs"


def test_without_its_rule_for_one_step_magcache_has_the_schedules_of_diffusers():
    for threshold, skips, first, schedule in (
        (0.24, 5, 3, "CCCssCsssCsssssCsssssCssssCs"),
        (0.06, 3, 6, "CCCCCCsCsCsssCsssCsssCssCsCC"),
    ):
        assert drawn(magnitudes(FLUX, threshold, skips, [step < first for step in range(28)])) == schedule


def test_an_error_of_the_threshold_itself_computes_where_that_was_published():
    ratios, forced = [1.0, 0.5, 0.5], [True, False, False]  # errors 0.5, and 0.75 more
    assert magnitudes(ratios, 0.5, 0, forced) == [True, False, True]
    assert magnitudes(ratios, 0.5, 0, forced, strict=True) == [True, True, True]
    strict = {known["model"]: known.get("strict", False) for known in profiles.builtin("magcache")["models"]}
    assert all(strict[name] for name in strict if name.startswith(("Wan", "Qwen")))
    assert not any(strict[name] for name in strict if name.startswith(("FLUX", "Hunyuan")))


@pytest.mark.parametrize(
    "begins, first, computed",
    [
        ((0, 26), 0.4, [*range(10), *range(26, 32), 39]),  # 10 of 26 steps, 6 of 14
        ((0, 26), 3, [0, 1, 2, 26, 27, 28, 39]),
        ((0,), 0.4, [*range(16), 39]),
        ((30, 26), 0.4, [*range(30, 34), 39]),  # entered after the switch: 10 steps run
        ((0, 40), 0.4, [*range(16), 39]),  # the second expert never takes over
    ],
)
def test_magcache_keeps_the_first_steps_of_each_expert(begins, first, computed):
    kept = caches.create("magcache", {"warmup_steps": first}).kept(40, begins)
    assert [step for step, must in enumerate(kept) if must and step >= begins[0]] == computed


def test_other_caches_keep_the_first_steps_that_run():
    kept = caches.create("easycache", {"warmup_steps": 0.2, "cooldown_steps": 2}).kept(20, (10, 15))
    assert [step for step, must in enumerate(kept) if must and step >= 10] == [10, 11, 18, 19]


def test_a_ratio_that_is_no_number_computes():
    assert magnitudes([1.0, math.nan, 1.0], 0.5, 5, [True, False, False]) == [True, True, False]


def test_ratio_tables_are_resampled_with_their_ends_on_the_ends():
    assert resample([1, 2, 3, 4, 5], 3) == [1, 3, 5]
    assert resample([1, 2, 3], 3) == [1, 2, 3]
    assert len(resample(FLUX, 50)) == 50 and resample(FLUX, 50)[-1] == FLUX[-1]


POINTS = (0, 0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2)
VALUES = {
    "FLUX.1-dev": (0.264, 0.231, 0.208, 0.193, 0.181, 0.207, 0.243, 0.262),
    "HunyuanVideo": (0.096, 0.071, 0.057, 0.052, 0.062, 0.129, 0.162, 0.134),
    "Wan2.1-T2V-1.3B": (0.138, 0.074, 0.042, 0.037, 0.077, 0.250, 0.212, -0.123),
    "Wan2.1-T2V-14B": (-0.316, 0.052, 0.141, 0.136, 0.219, -2.27, -39.3, -188),
    "Wan2.1-I2V-14B-480P": (0.133, 0.104, 0.180, 0.239, 0.140, 3.09, 40.3, 182),
    "Wan2.1-I2V-14B-720P": (-0.042, 0.089, 0.160, 0.185, 0.174, 0.836, 5.37, 18.4),
    "CogVideoX-5b": (-0.052, 0.015, 0.060, 0.087, 0.106, 0.091, 0.187, 0.451),
    "HiDream-I1-Full": (0.108, 0.195, 0.282, 0.356, 0.359, -2.42, -15.8, -52.2),
}


@pytest.mark.parametrize("model", VALUES)
def test_teacache_polynomials_have_their_published_values_within_their_range_and_its_edge_outside(model):
    known = entry_of("teacache", model)
    low, high = known["valid"]
    for x, value in zip(POINTS, VALUES[model], strict=True):
        found = polynomial(known["coefficients"], x, (-1, 1))
        assert found == pytest.approx(max(value, 0), rel=0.02, abs=0.0006)
        inside = polynomial(known["coefficients"], min(max(x, low), high), (-1, 1))
        assert polynomial(known["coefficients"], x, (low, high)) == inside


@pytest.mark.parametrize("known", profiles.builtin("teacache")["models"], ids=lambda known: known["model"])
def test_no_shipped_polynomial_is_negative_within_its_range(known):
    low, high = known["valid"]
    raw = []
    for i in range(101):
        value = 0.0
        for coefficient in known["coefficients"]:
            value = value * (low + (high - low) * i / 100) + coefficient
        raw.append(value)
    assert min(raw) >= 0


def test_a_polynomial_of_no_number_is_no_number():
    assert math.isnan(polynomial([1, 0], math.nan, (0, 1)))


def test_changes_add_up_until_the_threshold_and_start_again_from_nothing():
    mask = accumulate([0.4] * 8, 1.0, [True, *[False] * 6, True], 0)
    assert drawn(mask) == "CssCssCC"


def test_no_more_than_so_many_steps_are_skipped_in_a_row():
    assert drawn(accumulate([0.0] * 8, 1.0, [True, *[False] * 7], 2)) == "CssCssCs"


def test_a_change_that_is_no_number_computes_and_the_sum_recovers():
    assert drawn(accumulate([0, 0, math.nan, 0, 0], 1.0, [True, *[False] * 4], 0)) == "CsCss"


def test_a_threshold_of_zero_computes_every_step():
    assert all(accumulate([0.0] * 5, 0.0, [False] * 5, 0))


def test_taylorseer_has_the_schedule_of_diffusers_default():
    assert drawn(TaylorSeer(cooldown_steps=0).mask(free(15, first=3)), other="p") == "CCCpCppppCppppC"


def test_taylorseer_has_the_schedule_of_fora():
    fora = TaylorSeer(taylor_order=0, interval=3, warmup_steps=1, cooldown_steps=0, start=0)
    assert drawn(fora.mask(free(9, first=1))) == "CssCssCss"


def test_every_counts_from_its_start_in_both_directions():
    assert drawn(every(9, 4, 2)) == "ssCsssCss"


@pytest.mark.parametrize(
    "name, counts",
    [
        ("slow", {28: 18, 30: 22, 50: 38}),
        ("medium", {28: 15, 30: 18, 50: 29}),
        ("fast", {28: 11, 30: 14, 50: 20}),
        ("ultra", {28: 8, 30: 10, 50: 14}),
    ],
)
def test_named_masks_compute_as_many_steps_as_published(name, counts):
    for steps, count in counts.items():
        mask = TaylorSeer(schedule=name).mask(free(steps))
        assert (len(mask), sum(mask)) == (steps, count) and mask[0] and mask[-1]


def test_a_named_mask_of_28_steps_letter_for_letter():
    assert drawn(named("fast", free(28)), "1", "0") == "1111110100010000100000100001"


@pytest.mark.parametrize("name, says", [("fast", "28, 30, 50 steps, and this run has 16"), ("fats", "unknown mask")])
def test_a_mask_that_does_not_exist_is_refused(name, says):
    with pytest.raises(ValueError, match=says):
        named(name, free(16))


def test_attention_is_reused_only_within_its_window_of_timesteps():
    # timesteps 1000, 900, ..., 100
    assert drawn(in_window(2, 100, 800, free(10))) == "CCCsCsCsCC"
    assert drawn(in_window(4, -1, 681, free(10, last=1))) == "CCCCsssCsC"


def test_a_window_is_of_1000_whatever_a_schedule_counts_in():
    falls = free(10)
    for timesteps in (tuple(t / 1000 for t in falls.timesteps), tuple(1 - t / 1000 for t in falls.timesteps)):
        assert drawn(in_window(2, 100, 800, replace(falls, timesteps=timesteps))) == "CCCsCsCsCC"


def test_without_timesteps_attention_is_never_reused():
    assert all(in_window(2, 100, 800, Trajectory(4, (), (False,) * 4)))


def changing(*changes):
    return Model("WanTransformer3DModel", {"num_layers": 30, "num_attention_heads": 12, "in_channels": 16},
                 time_changes=lambda signal, timesteps: list(changes))  # fmt: skip


def test_teacache_on_wan_is_a_mask_before_sampling():
    model = changing(0, *[0.03] * 7)  # 0.037 each
    cache = caches.create("teacache", {"threshold": 0.1}).bind(model)
    assert cache.signal_source == "nothing"
    assert drawn(cache.mask(free(8, first=1, last=1, model=model))) == "CssCssCC"


def test_teacache_asks_the_model_for_the_signal_its_profile_names():
    asked = []

    def changes(signal, timesteps):
        asked.append(signal)
        return [0.03] * len(timesteps)

    for layers, heads, signal in ((30, 12, "embedding"), (40, 40, "projection")):
        config = {"num_layers": layers, "num_attention_heads": heads, "in_channels": 16}
        model = Model("WanTransformer3DModel", config, time_changes=changes)
        caches.create("teacache", {}).bind(model).mask(free(8, model=model))
        assert asked.pop() == signal


def test_teacache_without_a_known_time_embedding_computes_everything_and_says_so():
    model = Model("WanTransformer3DModel", {"num_layers": 30, "num_attention_heads": 12, "in_channels": 16})
    cache = caches.create("teacache", {}).bind(model)
    run = free(8, model=model)
    assert all(cache.mask(run))
    assert any("time embedding" in note for note in cache.why_not(run))


def test_teacache_takes_the_change_of_the_first_blocks_input_against_what_it_was_before():
    cache = caches.create("teacache", {"sample": 2}).bind(
        Model("MochiTransformer3DModel", {"num_layers": 48}, block_input=True)
    )
    lane, signals = caches.BranchState(), []
    for size in (1.0, 1.05, 1.05):
        seen = torch.full((1, 6, 4), size)
        seen[:, 1::2] = 9.0  # of two tokens one is compared
        signals.append(cache.signal(lane, seen, caches.StepCall(0, 500.0, "cond")))
    at = [polynomial(cache.entry["coefficients"], change, cache.entry["valid"]) for change in (0.05, 0.0)]
    assert signals[0] is None and signals[1:] == pytest.approx(at, rel=1e-4) and at[0] != pytest.approx(at[1])
