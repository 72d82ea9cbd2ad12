"""Frame and size rules, and the nearest values that fit."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dittools
from dittools.pipelines import limits
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import find_family
from dittools.pipelines.limits import SizeRule, check_memory, check_steps, nearest
from dittools.pipelines.sizes import size_rule, with_text
from tests.pipelines_tiny import PIPELINES, pipeline
from tests.tiny import tiny_pipeline


@pytest.mark.parametrize(
    ("value", "step", "rest", "found"),
    [
        (16, 4, 1, (13, 17)),
        (2, 4, 1, (1, 5)),
        (82, 4, 1, (81, 85)),
        (100, 16, 0, (96, 112)),
        (7, 16, 0, (None, 16)),
    ],
)
def test_nearest_values_below_and_above(value, step, rest, found):
    assert nearest(value, step, rest) == found


def test_what_fits_or_is_left_open_passes():
    for frames, height, width in [(1, 16, 16), (81, 480, 832), (33, 256, None), (None, None, None)]:
        SizeRule().check(frames, height, width)


def test_everything_wrong_is_named_at_once():
    with pytest.raises(BadInput, match=r"--frames 80 .*77 or 81; --height 481 .*480 or 496; --width 9 .*use 16$"):
        SizeRule().check(80, 481, 9)


def write_configs(folder, vae, transformer, scheduler=None):
    for name, config in (
        ("vae/config", vae),
        ("transformer/config", transformer),
        ("scheduler/scheduler_config", scheduler),
    ):
        path = folder / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(config))
    return folder


def steps_of(rule):
    return rule.frames, rule.height, rule.width, rule.first


WAN = find_family("wan")


def test_the_rule_is_read_from_the_models_own_configs(tmp_path):
    vae = {"scale_factor_temporal": 4, "scale_factor_spatial": 16}
    rule = size_rule(WAN, write_configs(tmp_path, vae, {"patch_size": [1, 2, 2], "rope_max_seq_len": 256}))
    assert steps_of(rule) == (4, 32, 32, 1) and rule.positions == 256  # Wan 2.2 5B, but for the positions


@pytest.mark.parametrize(
    "transformer", [None, [], {"patch_size": "8"}, {"patch_size": [1, 2]}, {"patch_size": [0, 0, 0]}]
)
def test_configs_that_do_not_say_mean_the_familys_own(tmp_path, transformer):
    for folder in (None, tmp_path, write_configs(tmp_path, {"scale_factor_spatial": True}, transformer)):
        assert size_rule(WAN, folder) == SizeRule(positions=1024)


def test_a_length_that_the_positions_end_before_is_told_with_the_last_one_that_fits():
    rule = SizeRule(positions=8)
    rule.check(29, 128, 128)
    with pytest.raises(BadInput, match=r"--frames 33 .* 4n \+ 1 up to 29: use 29; --height 144 .* up to 128: use 128$"):
        rule.check(33, 144, 128)
    with pytest.raises(BadInput, match=r"--width 130 .*: use 128$"):
        SizeRule(positions=8).check(None, None, 130)


@given(
    st.sampled_from((1, 4, 8)), st.sampled_from((4, 8, 16, 32)), st.tuples(*[st.integers(1, 4)] * 3),
    st.none() | st.integers(1, 40), st.sampled_from((1, 8, 16, 32)), st.booleans(),
    st.tuples(*[st.integers(1, 10**7)] * 3),
)  # fmt: skip
def test_what_is_advised_fits_and_nothing_between_does(temporal, spatial, patch, positions, multiple, filled, asked):
    rule = SizeRule._of(temporal, spatial, patch, positions, multiple, filled)
    if positions is not None and positions * spatial * min(patch[1:]) < max(rule.height, rule.width):
        return  # a model that can draw nothing
    try:
        rule.check(*asked)
        said = ""
    except BadInput as error:
        said = str(error)
    for place, (flag, value) in enumerate(zip(("--frames", "--height", "--width"), asked, strict=True)):
        alone = [None] * 3
        told = [part for part in said.split("; ") if part.startswith(f"{flag} ")]
        advised = [int(text) for text in told[0].rpartition(": use ")[2].split(" or ")] if told else [value]
        for fitting in advised:
            alone[place] = fitting
            rule.check(*alone)
        for between in range(min(*advised, value) + 1, max(*advised, value)) if len(advised) == 2 else ():
            alone[place] = between
            with pytest.raises(BadInput):
                rule.check(*alone)
    if not said:
        latents = ((asked[0] - 1) // temporal + 1, asked[1] // spatial, asked[2] // spatial)
        tokens = rule.layout(*asked)
        whole = (tokens.frames * patch[0], tokens.height * patch[1], tokens.width * patch[2])
        assert whole[1:] == latents[1:] and (filled or whole[0] == latents[0])
        assert positions is None or max(tokens.frames, tokens.height, tokens.width) <= positions


def drawn(pipe, family, folder, frames, height, width):
    """The grid of one step that really runs, and the one that is known before."""
    given = {"num_frames": frames} if family.draws == "video" else {}
    with dittools.accelerate(pipe, method="dense") as fast:
        pipe(
            "a red circle", num_inference_steps=1, height=height, width=width, output_type="latent",
            max_sequence_length=family.text_tokens or 16, **given,
        )  # fmt: skip
    found = fast.record()["grid"]
    known = with_text(family, size_rule(family, folder).layout(frames, height, width))
    return [found[axis] for axis in ("frames", "height", "width", "text")], [*known.shape, known.text]


@pytest.mark.parametrize("name", PIPELINES)
def test_sizes_that_fit_run_and_have_the_tokens_that_are_known_before(name, tmp_path):
    pipe, family = pipeline(name), find_family(name)
    pipe.save_pretrained(tmp_path)
    rule = size_rule(family, tmp_path)
    for frames in (rule.first, rule.first + rule.frames) if family.draws == "video" else (1,):
        ran, known = drawn(pipe, family, tmp_path, frames, rule.height, 3 * rule.width)
        assert ran == known


@pytest.mark.parametrize("patch", [(1, 2, 2), (1, 3, 1), (2, 2, 3)])
def test_sizes_of_a_wan_fit_up_to_its_last_position_and_not_beyond(patch, tmp_path):
    pipe = tiny_pipeline(layers=1)
    pipe.transformer = pipe.transformer.from_config(
        {**pipe.transformer.config, "patch_size": patch, "rope_max_seq_len": 6}
    )
    pipe.save_pretrained(tmp_path)
    rule = size_rule(WAN, tmp_path)
    for frames, height in ((rule.first, rule.height), (rule.most()[0], rule.height)):
        rule.check(frames, height, rule.width)
        ran, known = drawn(pipe, WAN, tmp_path, frames, height, rule.width)
        assert ran == known
    beyond = (rule.most()[0] + rule.frames, rule.height, rule.width)
    with pytest.raises(BadInput, match="up to"):
        rule.check(*beyond)
    with pytest.raises(RuntimeError):
        drawn(pipe, WAN, tmp_path, *beyond)


def test_a_picture_larger_than_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "memory_bytes", lambda: 12 * 100 * 64 * 64)
    check_memory(100, 64, 64)
    with pytest.raises(BadInput, match="101 x 64 x 64 take"):
        check_memory(101, 64, 64)


def test_steps_are_at_most_the_noise_levels_that_the_scheduler_has(tmp_path):
    check_steps(None)
    check_steps(1000)
    for steps in (0, -5, 1001, 10**4000, -(10**5000)):
        with pytest.raises(BadInput, match="--steps must be at") as error:
            check_steps(steps)
        assert len(str(error.value)) < 150
    folder = write_configs(tmp_path, {}, {}, {"num_train_timesteps": 40})
    check_steps(40, folder)
    with pytest.raises(BadInput, match="at most 40"):
        check_steps(41, folder)
