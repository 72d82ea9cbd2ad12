"""Frame and size rules, and the nearest values that fit."""

import json

import pytest

from dittools.pipelines.errors import BadInput
from dittools.pipelines.limits import SizeRule, nearest


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


def write_configs(folder, vae, transformer):
    for name, config in (("vae", vae), ("transformer", transformer)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


def test_the_rule_is_read_from_the_models_own_configs(tmp_path):
    vae = {"scale_factor_temporal": 4, "scale_factor_spatial": 16}
    folder = write_configs(tmp_path, vae, {"patch_size": [1, 2, 2]})
    assert SizeRule.from_folder(folder) == SizeRule(4, 32, 32)  # Wan 2.2 5B


def test_configs_that_do_not_say_mean_wan(tmp_path):
    assert SizeRule.from_folder(tmp_path) == SizeRule(4, 16, 16)
    assert SizeRule.from_folder(write_configs(tmp_path, {}, [])) == SizeRule(4, 16, 16)


def test_folder_and_pipeline_agree(tmp_path):
    from tests.tiny import tiny_pipeline

    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    assert SizeRule.from_folder(tmp_path) == SizeRule.from_pipeline(pipe) == SizeRule(4, 16, 16)
