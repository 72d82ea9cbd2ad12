"""The embedded world: scenes, captions and pictures say the same."""

import pytest
import torch

from dittools.pipelines.embedded import vocabulary as voc
from dittools.training import world


def scenes(n, seed=0, **options):
    return world.sample(n, torch.Generator().manual_seed(seed), **options)


def test_held_out_combinations_never_occur_in_training_and_do_occur_without_the_rule():
    def found(holdout):
        drawn = scenes(3000, holdout=holdout)
        return sum(voc.held_out(t.shape, t.colour, t.motion) for i in range(3000) for t in drawn.things(i))

    assert found(True) == 0
    assert found(False) > 300


def test_every_pair_of_attributes_is_left_in_training():
    kept = [
        (s, c, m)
        for s in range(len(voc.SHAPES))
        for c in range(len(voc.COLOURS))
        for m in range(len(voc.MOTIONS))
        if not voc.held_out(s, c, m) and (voc.MOTIONS[m] != "spin" or voc.can_spin(s))
    ]
    spins = [s for s in range(len(voc.SHAPES)) if voc.can_spin(s)]
    assert {(s, c) for s, c, _ in kept} == {(s, c) for s in range(6) for c in range(7)}
    assert {(c, m) for _, c, m in kept} == {(c, m) for c in range(7) for m in range(10)}
    spin = voc.MOTIONS.index("spin")
    assert {(s, m) for s, _, m in kept} == {(s, m) for s in range(6) for m in range(10) if m != spin or s in spins}


def test_no_circle_or_ring_spins():
    drawn = scenes(2000)
    spinning = {t.shape for i in range(2000) for t in drawn.things(i) if voc.MOTIONS[t.motion] == "spin"}
    assert spinning == {1, 2, 3, 5}


def test_objects_of_one_scene_differ_in_colour():
    drawn = scenes(500)
    for i in range(500):
        colours = [t.colour for t in drawn.things(i)]
        assert len(set(colours)) == len(colours) == int(drawn.count[i])


def test_the_tokenizer_knows_every_word_of_every_caption():
    drawn = scenes(2000)
    for text in world.captions(drawn, torch.Generator().manual_seed(1)):
        assert voc.unknown_words(text) == []
        assert not voc.too_long(text)


def test_unknown_words_are_named_once_in_order():
    assert voc.unknown_words("A zebra, and a RED zebra playing piano") == ["zebra", "playing", "piano"]


def test_the_same_seed_draws_the_same_video():
    first, second = (world.render(scenes(2, seed=3), 5, 48, 64) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, world.render(scenes(2, seed=4), 5, 48, 64))


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (90, 52)])
def test_a_crop_is_a_crop_and_a_stretch_of_frames_is_a_stretch(size):
    drawn = scenes(3, seed=5)
    whole = world.render(drawn, 9, *size)
    window = world.render(drawn, 4, *size, first=3, crop=(8, 12, 24, 32))
    torch.testing.assert_close(window, whole[:, :, 3:7, 8:32, 12:44])


def test_pictures_hold_the_colours_that_captions_name():
    drawn = scenes(40, seed=6)
    video = (world.render(drawn, 1, 96, 96)[:, :, 0] + 1) / 2
    for i in range(40):
        for thing in drawn.things(i):
            named = torch.tensor(world.RGB[voc.COLOURS[thing.colour]]).view(3, 1, 1)
            nearest = (video[i] - named).abs().amax(0).min()
            assert nearest < 0.12, voc.describe(thing)


def test_objects_stay_inside_the_picture():
    drawn = scenes(400, seed=7)
    for height, width in ((256, 256), (480, 832)):
        centre, radius, _ = world.trajectory(drawn, torch.arange(33), 33, height, width)
        used = (drawn.shape >= 0)[:, None].expand_as(radius)
        for axis, side in ((0, width), (1, height)):
            edge = side / min(height, width) / 2
            out = (centre[..., axis].abs() + 0.5 * radius - edge)[used]
            assert out.max() <= 0
