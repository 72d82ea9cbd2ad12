"""Profiles: which model one is of, and what is refused."""

import json

import pytest

from dittools import caches
from dittools.caches import Model
from dittools.profiles import caches as profiles


def wan(layers=40, heads=40, channels=16, **more):
    config = {"num_layers": layers, "num_attention_heads": heads, "in_channels": channels}
    return Model("WanTransformer3DModel", config, **more)


@pytest.mark.parametrize(
    "model, cache, name",
    [
        (wan(30, 12), "teacache", "Wan2.1-T2V-1.3B"),
        (wan(), "teacache", "Wan2.1-T2V-14B"),
        (wan(channels=36, frame_tokens=1560), "teacache", "Wan2.1-I2V-14B-480P"),
        (wan(channels=36, frame_tokens=3600), "magcache", "Wan2.1-I2V-14B-720P"),
        (wan(experts=2), "magcache", "Wan2.2-T2V-A14B"),
        (wan(30, 24, 48), "magcache", "Wan2.2-TI2V-5B"),
    ],
)
def test_a_model_is_known_by_its_class_size_and_resolution(model, cache, name):
    assert caches.create(cache, {}).bind(model).entry["model"] == name


def flux(pipeline="FluxPipeline", channels=64, distilled=True):
    config = {"num_layers": 19, "in_channels": channels, "guidance_embeds": distilled}
    return Model("FluxTransformer2DModel", config, pipeline=pipeline, block_input=True)


def hunyuan(channels=16, frame_tokens=3600, condition=None):
    config = {"num_layers": 20, "in_channels": channels, "image_condition_type": condition}
    return Model("HunyuanVideoTransformer3DModel", config, frame_tokens=frame_tokens, block_input=True)


def qwen(pipeline):
    return Model("QwenImageTransformer2DModel", {"num_layers": 60, "in_channels": 64}, pipeline=pipeline)


def cosmos(heads=32, channels=16, learnt="learnable"):
    config = {"num_layers": 28, "num_attention_heads": heads, "in_channels": channels, "extra_pos_embed_type": learnt}
    return Model("CosmosTransformer3DModel", config, block_input=True)


@pytest.mark.parametrize(
    "model, teacache, magcache",
    [
        (flux(), "FLUX.1-dev", "FLUX.1-dev"),
        (flux("FluxImg2ImgPipeline"), "FLUX.1-dev", "FLUX.1-dev"),
        (flux(distilled=False), None, None),  # schnell
        (flux("FluxFillPipeline", 384), None, None),
        (flux("FluxControlPipeline", 128), None, None),
        (flux("FluxKontextPipeline"), None, "FLUX.1-Kontext-dev"),
        (hunyuan(), "HunyuanVideo", "HunyuanVideo-720p"),
        (hunyuan(frame_tokens=2040), "HunyuanVideo", "HunyuanVideo-544p"),
        (hunyuan(33, condition="latent_concat"), None, None),
        (hunyuan(condition="token_replace"), None, None),
        (qwen("QwenImagePipeline"), None, "Qwen-Image"),
        (qwen("QwenImageEditPipeline"), None, "Qwen-Image-Edit"),
        (qwen("QwenImageEditPlusPipeline"), None, None),
        (cosmos(), "Cosmos-1.0-Diffusion-7B", None),
        (cosmos(channels=17), "Cosmos-1.0-Diffusion-7B", None),
        (cosmos(heads=16, learnt=None), None, None),  # Cosmos-Predict2
    ],
    ids=lambda value: f"{value} {value.pipeline}" if isinstance(value, Model) else str(value),
)
def test_a_profile_fits_no_model_but_the_one_it_was_made_of(model, teacache, magcache):
    for cache, name in (("teacache", teacache), ("magcache", magcache)):
        if name is None:
            with pytest.raises(ValueError, match=f"{cache} has no profile for {model.transformer}"):
                caches.create(cache, {}).bind(model)
        else:
            assert caches.create(cache, {}).bind(model).entry["model"] == name


def test_frames_of_another_size_than_a_profiles_are_noted():
    for tokens, noted in ((2040, False), (600, True), (8160, True)):
        model = hunyuan(frame_tokens=tokens)
        notes = caches.create("magcache", {}).bind(model).why_not(run(50, model))
        assert any("frames of" in note for note in notes) == noted


def test_magcache_says_where_it_does_not_know_when_the_second_expert_takes_over():
    unknown, known = wan(experts=2), wan(experts=2, takes_over=lambda timesteps: 26)
    for model, notes in ((unknown, 1), (known, 0)):
        found = caches.create("magcache", {}).bind(model).why_not(run(40, model))
        assert sum("second expert" in note for note in found) == notes


@pytest.mark.parametrize("model", [wan(7, 3), wan(experts=2), Model("OtherModel")], ids=str)
def test_a_model_without_a_profile_is_an_error_that_says_what_to_do(model):
    with pytest.raises(ValueError, match=r"teacache has no profile for .*dittools calibrate --cache"):
        caches.create("teacache", {}).bind(model)


def test_a_threshold_of_zero_needs_no_profile():
    for name in ("teacache", "magcache"):
        assert caches.create(name, {"threshold": 0}).bind(Model("OtherModel")).never()


def test_the_profiles_defaults_hold_unless_something_else_is_asked():
    bound = caches.create("magcache", {"max_consecutive_skips": 7}).bind(wan(30, 12))
    assert (bound.threshold, bound.max_consecutive_skips, bound.warmup_steps) == (0.12, 7, 0.2)


@pytest.fixture
def profile(tmp_path):
    def write(**changes):
        found = {
            "schema": 1,
            "kind": "cache",
            "model": "small",
            "match": {"transformer": "WanTransformer3DModel", "experts": 1, "config": {"num_layers": 30}},
            "steps": 6,
            "magcache": {"ratios": [1.0] * 6, "threshold": 0.1, "max_skips": 2, "first": 1},
            "masks": {"6": {"mask": "110101"}},
            **changes,
        }
        path = tmp_path / "profile.json"
        path.write_text(json.dumps(found))
        return str(path)

    return write


def run(steps, model):
    return caches.Trajectory(steps, tuple(range(steps, 0, -1)), (True, *[False] * (steps - 1)), model)


def test_a_profile_of_another_model_is_refused_naming_both(profile):
    with pytest.raises(ValueError, match=r"profile of small, and this is WanTransformer3DModel \(num_layers 40"):
        caches.create("magcache", {"profile": profile()}).bind(wan())
    with pytest.raises(ValueError, match="profile of small"):
        caches.create("taylorseer", {"schedule": profile()}).mask(run(6, wan()))


@pytest.mark.parametrize(
    "changes, says", [({"schema": 2}, "schema 2"), ({"kind": "heads"}, "no cache profile"), ({"magcache": None}, "")]
)
def test_a_file_of_another_kind_or_schema_is_refused(profile, changes, says):
    path = profile(**changes)
    if says:
        with pytest.raises(ValueError, match=says):
            profiles.read(path)
    else:
        with pytest.raises(ValueError, match="holds nothing for teacache"):
            caches.create("teacache", {"profile": path}).bind(wan(30))


@pytest.mark.parametrize("text, says", [(None, "cannot be read"), ("{", "is no JSON"), ("[1]", "no cache profile")])
def test_a_file_that_is_no_profile_is_refused(tmp_path, text, says):
    path = tmp_path / "p.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=says):
        profiles.read(str(path))


def test_a_mask_is_refused_for_another_number_of_steps_and_ratios_are_resampled_with_a_note(profile):
    path, model = profile(), wan(30)
    with pytest.raises(ValueError, match="no mask for 8 steps"):
        caches.create("taylorseer", {"schedule": path}).mask(run(8, model))
    assert caches.create("taylorseer", {"schedule": path}).mask(run(6, model)) == [True, True, False, True, False, True]
    bound = caches.create("magcache", {"profile": path}).bind(model)
    assert len(bound.mask(run(8, model))) == 8
    assert bound.why_not(run(6, model)) == []
    assert "is of 6 steps, and this run has 8" in bound.why_not(run(8, model))[0]


@pytest.mark.parametrize("table", ["teacache", "magcache", "masks"])
def test_what_ships_names_its_source(table):
    assert len(profiles.builtin(table)["source"]) > 20
