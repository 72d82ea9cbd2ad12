"""The judge reads ground truth right, clean or spoiled, and is not talked into what it does not see."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import ndimage

from dittools.pipelines.embedded import vocabulary as voc
from dittools.training import evaluation, judge, judge_motion, judge_objects, judge_shapes, world


def thing(shape: str, colour: str, motion: str, size: str = "", texture: str = "") -> voc.Thing:
    return voc.Thing(
        voc.SHAPES.index(shape),
        voc.COLOURS.index(colour),
        voc.SIZES.index(size),
        voc.TEXTURES.index(texture),
        voc.MOTIONS.index(motion),
    )


def film(
    things: list[voc.Thing], frames: int = 33, height: int = 256, width: int = 256, background: int = 0
) -> torch.Tensor:
    """A rendered video ``[T, H, W, 3]`` in [0, 1] of the given objects."""
    empty = [voc.Thing(-1, -1, -1, -1, -1)] * (3 - len(things))
    rows = {
        name: torch.tensor([[getattr(t, name) for t in [*things, *empty]]])
        for name in ("shape", "colour", "size", "texture", "motion")
    }
    scene = world.Scenes(
        count=torch.tensor([len(things)]),
        **rows,
        jitter=torch.zeros(1, 3, 2),
        tone=torch.tensor([3]),
        background=torch.tensor([background]),
        phase=torch.full((1, 4), 0.2),
        camera=torch.zeros(1, dtype=torch.long),
    )
    return (world.render(scene, frames, height, width)[0].permute(1, 2, 3, 0) + 1) / 2


def sighting(shape: str, colour: str, motion: str) -> judge.Sighting:
    return judge.Sighting(shape, colour, motion, np.zeros((33, 2)), np.ones(33))


@pytest.fixture(scope="module")
def truth() -> list[tuple[torch.Tensor, list[voc.Thing]]]:
    """Videos as bytes, the way they come from a file."""
    videos = evaluation.ground_truth(20, seed=21)
    return [((video * 255).round().to(torch.uint8), things) for video, things in videos]


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        ("clean", 0.98),
        ("blur 3", 0.95),
        ("noise", 0.95),
        ("moderate", 0.95),
        ("wobble", 0.95),
        ("severe", 0.85),
    ],
)
def test_reads_ground_truth(truth, kind, least):
    tally = evaluation.Tally()
    for i, (video, things) in enumerate(truth if kind == "clean" else truth[:6]):
        if kind != "clean":
            video = evaluation.degrade(video / 255, kind, torch.Generator().manual_seed(i))
        tally.add(judge.read(video), things)
    table = tally.summary()
    assert min(table["shape"], table["colour"], table["motion"]) >= least, table
    assert table["count"] >= least


@pytest.mark.parametrize(("height", "width"), [(240, 416), (300, 200), (128, 128)])
def test_reads_other_frame_sizes(height, width):
    asked = [thing("star", "yellow", "spin"), thing("cross", "orange", "up", texture="spotted")]
    result = judge.score(film(asked, 33, height, width, background=2), asked)
    assert all(all(verdict.values()) for verdict in result["objects"])
    assert result["count"]


def test_measures_place_and_area_in_units_of_the_shorter_side():
    (seen,) = judge.read(film([thing("circle", "blue", "right")], 33, 192, 320))
    assert seen.centre.shape == (33, 2) and seen.area.shape == (33,)
    np.testing.assert_allclose(seen.area, math.pi * (0.92 * 0.20) ** 2, rtol=0.05)
    np.testing.assert_allclose(seen.centre[:, 1], 0, atol=0.01)
    assert seen.centre[0, 0] == pytest.approx(-0.5, abs=0.01)


@pytest.mark.parametrize("picture", ["grey", "noise", "brown background"])
def test_sees_nothing_where_there_is_nothing(picture):
    video = torch.full((9, 96, 96, 3), 0.5)
    if picture == "noise":
        video = video + 0.1 * torch.randn(video.shape, generator=torch.Generator().manual_seed(0))
    if picture == "brown background":
        video = film([], 9, 96, 96, background=1)
    assert judge.read(video.clamp(0, 1)) == []
    result = judge.score(video, [thing("star", "red", "spin")])
    assert result["objects"] == [{"shape": False, "colour": False, "motion": False}]
    assert result["missing"] == 1 and result["assigned"] == [None] and not result["count"]


def test_every_wrong_attribute_is_caught_by_itself():
    video = film([thing("circle", "red", "left")])
    for shape, colour, motion in [
        ("square", "red", "left"),
        ("circle", "blue", "left"),
        ("circle", "red", "up"),
    ]:
        (verdict,) = judge.score(video, [thing(shape, colour, motion)])["objects"]
        assert verdict == {"shape": shape == "circle", "colour": colour == "red", "motion": motion == "left"}


def test_colours_exchanged_between_objects_are_caught():
    video = film([thing("circle", "red", "left"), thing("square", "blue", "grow")])
    result = judge.score(video, [thing("circle", "blue", "left"), thing("square", "red", "grow")])
    expected = {"shape": True, "colour": False, "motion": True}
    assert result["objects"] == [expected, expected]


def test_the_reading_does_not_depend_on_what_is_asked():
    video = film([thing("ring", "green", "orbit", size="small")], background=3)
    first, second = judge.read(video), judge.read(video.clone())
    assert [(s.shape, s.colour, s.motion) for s in first] == [("ring", "green", "orbit")]
    assert first[0].confidence == second[0].confidence


def test_a_video_that_stops_moving_is_still():
    video = film([thing("square", "purple", "spin")])
    frozen = video[:1].expand(33, -1, -1, -1)
    assert judge.read(frozen)[0].motion == "still"
    assert judge.read(video)[0].motion == "spin"


def test_playing_backwards_turns_the_motion_round():
    video = film([thing("triangle", "cyan", "grow"), thing("star", "red", "down")])
    assert sorted(s.motion for s in judge.read(video.flip(0))) == ["shrink", "up"]


def test_an_object_that_only_flashes_is_not_counted():
    video = film([thing("circle", "red", "still")])
    video[:5, :40, :40] = torch.tensor(world.RGB["blue"])
    assert [s.colour for s in judge.read(video)] == ["red"]


def test_extra_objects_cannot_help():
    seen = [sighting("circle", "red", "left"), sighting("star", "blue", "spin")]
    result = judge.compare(seen, [thing("star", "blue", "spin")])
    assert result["objects"] == [{"shape": False, "colour": False, "motion": False}]
    assert result["extra"] == 1 and not result["count"]


def test_objects_pair_up_by_what_they_share_in_any_order():
    seen = [sighting("circle", "red", "left"), sighting("star", "blue", "spin")]
    result = judge.compare(seen, [thing("star", "blue", "up"), thing("circle", "red", "left")])
    assert result["assigned"] == [1, 0]
    assert result["objects"] == [
        {"shape": True, "colour": True, "motion": False},
        {"shape": True, "colour": True, "motion": True},
    ]


def test_refuses_what_is_not_a_video():
    with pytest.raises(ValueError, match=r"\[T, H, W, 3\].*\(3, 9, 64, 64\)"):
        judge.read(torch.zeros(3, 9, 64, 64))


@pytest.mark.parametrize("density", [0.2, 0.4, 0.7])
def test_connected_parts_are_those_of_scipy(density):
    mask = np.random.default_rng(0).random((7, 23, 31)) < density
    labels, count = judge_objects.connected(mask)
    expected, expected_count = ndimage.label(mask)
    assert count == expected_count
    pairs = set(zip(labels.ravel().tolist(), expected.ravel().tolist(), strict=True))
    assert len(pairs) == count + 1


@pytest.mark.parametrize("name", voc.SHAPES)
@pytest.mark.parametrize("degrees", [0, 17, 31])
def test_a_turned_shape_is_still_that_shape(name, degrees):
    axis = torch.from_numpy(judge_objects.patch_axis()) * 1.35
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    shape = voc.SHAPES.index(name)
    inside = world.shape_distance(x * cos + y * sin, y * cos - x * sin, shape) < 0
    patch = inside.float().numpy()[None]
    assert judge_shapes.match(patch, np.ones(1)).argmax() == shape


@pytest.mark.parametrize("frames", [33, 81])
@pytest.mark.parametrize("name", voc.MOTIONS)
def test_names_motions_of_shaky_tracks(name, frames):
    """Other amplitudes, phases and periods than the world's, a radius of 8 pixels, some noise."""
    rng = np.random.default_rng(3)
    time = np.arange(frames) / 16
    u = time / time[-1]
    across, along = 5 * (2 * u - 1), 12 * np.abs(np.sin(math.pi * (time / 1.15 + 0.2)))
    turn = 2 * math.pi * time / 2.2 + 1
    zero = np.zeros(frames)
    x = {"left": -across, "right": across, "orbit": 3 * np.cos(turn)}.get(name, zero)
    y = {"up": -across, "down": across, "orbit": 3 * np.sin(turn), "bounce": -along}.get(name, zero)
    radius = 8 + {"grow": 3 * u, "shrink": -3 * u}.get(name, zero)
    angle = 2.2 * time if name == "spin" else zero
    centre = np.stack((x, y), 1) + 0.3 * rng.standard_normal((frames, 2))
    radius, angle = radius + 0.3 * rng.standard_normal(frames), angle + 0.03 * rng.standard_normal(frames)
    centre[4], radius[4] = np.nan, np.nan
    assert judge_motion.name_motion(centre, radius, angle, np.full(frames, 0.3), 16)[0] == name


def test_evaluation_captions_are_held_out_and_can_be_asked():
    captions = evaluation.evaluation_captions()
    assert Counter(len(things) for _, things in captions) == {1: 48, 2: 16}
    for text, things in captions:
        assert not voc.unknown_words(text) and not voc.too_long(text)
        assert text.startswith(" and ".join(voc.describe(t) for t in things))
        assert all(voc.held_out(t.shape, t.colour, t.motion) for t in things)
        assert all(t.motion != voc.MOTIONS.index("spin") or voc.can_spin(t.shape) for t in things)
        assert len({t.colour for t in things}) == len(things)
        assert all(voc.SIZES[t.size] != "small" for t in things)
    assert len({text for text, _ in captions}) == 64
    assert captions == evaluation.evaluation_captions()
    assert captions != evaluation.evaluation_captions(seed=1)


def test_evaluation_captions_are_spread_evenly():
    singles = [things[0] for _, things in evaluation.evaluation_captions() if len(things) == 1]
    assert len({(t.shape, t.colour, t.motion) for t in singles}) == 48
    for name, values in (("shape", voc.SHAPES), ("colour", voc.COLOURS), ("motion", voc.MOTIONS)):
        counts = Counter(getattr(t, name) for t in singles)
        assert len(counts) == len(values)
        assert max(counts.values()) - min(counts.values()) <= 3, (name, counts)
