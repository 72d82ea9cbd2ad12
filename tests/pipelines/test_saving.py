"""Every output format round-trips, and a failed write leaves nothing behind."""

import errno
import os

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from dittools.pipelines import animations, places, saving
from dittools.pipelines.errors import BadInput, RunFailed


@pytest.fixture(scope="module")
def frames():
    """Five 48 x 64 frames: smooth colour ramps with a moving white square."""
    y, x = np.mgrid[0:48, 0:64]
    video = np.empty((5, 48, 64, 3), np.uint8)
    for t in range(5):
        video[t] = np.stack([y * 5, x * 3, np.full_like(x, 40 * t)], -1).astype(np.uint8)
        video[t, 10:20, 8 * t : 8 * t + 10] = 255
    return video


def save(frames, name, fps=16):
    output = saving.plan(str(name), len(frames))
    with saving.whole(output.path) as part:
        saving.write(frames, part, output.kind, fps)
    return output


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


def read_animation(path):
    image, frames, milliseconds = Image.open(path), [], []
    for number in range(image.n_frames):
        image.seek(number)
        image.load()
        frames.append(np.asarray(image.convert("RGB")))
        milliseconds.append(image.info["duration"])
    return np.stack(frames), milliseconds


def test_npy_is_exact(tmp_path, frames):
    assert np.array_equal(np.load(save(frames, tmp_path / "a.npy").path), frames)


def test_png_frames_are_exact_and_sort_in_time_order(tmp_path, frames):
    output = save(frames, f"{tmp_path}/clip/")
    files = sorted(output.path.iterdir())
    assert [file.name for file in files] == [f"{n:05d}.png" for n in range(5)]
    assert np.array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), frames)


def test_png_of_one_frame_is_exact(tmp_path, frames):
    assert np.array_equal(np.asarray(Image.open(save(frames[:1], tmp_path / "a.png").path)), frames[0])


def test_mp4_keeps_count_size_rate_and_colours(tmp_path, frames):
    reader = imageio_ffmpeg.read_frames(str(save(frames, tmp_path / "a.mp4").path))
    meta = next(reader)
    back = [np.frombuffer(raw, np.uint8).reshape(48, 64, 3) for raw in reader]
    assert meta["size"] == (64, 48) and meta["fps"] == 16 and meta["pix_fmt"].startswith("yuv420p")
    assert len(back) == 5
    assert psnr(np.stack(back), frames) > 28  # half the colour resolution is lost on the square's edges


def test_mp4_of_odd_sizes_gains_one_edge_row_and_column(tmp_path, frames):
    reader = imageio_ffmpeg.read_frames(str(save(frames[:, :47, :63], tmp_path / "a.mp4").path))
    assert next(reader)["size"] == (64, 48)


@pytest.mark.parametrize("fps", [16, 24, 8])
@pytest.mark.parametrize(("suffix", "unit", "floor"), [("gif", 10, 25), ("webp", 1, 28)])
def test_animations_keep_count_size_and_total_time(tmp_path, frames, suffix, unit, floor, fps):
    back, milliseconds = read_animation(save(frames, tmp_path / f"a.{suffix}", fps).path)
    assert back.shape == frames.shape
    assert psnr(back, frames) > floor
    assert abs(sum(milliseconds) - 5000 / fps) <= unit


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_animations_keep_frames_that_repeat(tmp_path, frames, suffix):
    still = np.repeat(frames[:1], 7, 0)
    for name, video in (("still", still), ("pauses", frames[[0, 0, 1, 2, 2, 2, 3, 0, 0]])):
        back, milliseconds = read_animation(save(video, tmp_path / f"{name}.{suffix}").path)
        assert len(back) == len(video) and set(milliseconds) <= {60, 70, 62, 63}
        assert psnr(back, video) > 25
        same = [(video[i] == video[i + 1]).all() for i in range(len(video) - 1)]
        assert [(back[i] == back[i + 1]).all() for i in range(len(video) - 1)] == same


@pytest.mark.parametrize(("count", "fps", "unit"), [(33, 16, 10), (49, 24, 10), (9, 30, 1), (5, 8, 10), (7, 120, 10)])
def test_times_of_frames_add_up_and_none_is_nothing(count, fps, unit):
    found = animations.durations(count, fps, unit)
    assert len(found) == count and min(found) >= unit and all(time % unit == 0 for time in found)
    if 1000 / fps >= unit:
        assert abs(sum(found) - 1000 * count / fps) <= unit / 2 and max(found) - min(found) <= unit


@pytest.mark.parametrize(
    ("milliseconds", "counts"),
    [
        ([60, 60, 70, 60], [1, 1, 1, 1]),
        ([500, 60, 60, 70], [8, 1, 1, 1]),  # eight frames of 16 a second that were merged
        ([60, 60, 1060, 70, 60], [1, 1, 17, 1, 1]),
        ([100, 100, 350], [2, 2, 7]),
        ([41, 42, 42], [1, 1, 1]),
        ([0, 100], None),
        ([10] * 2 + [60_000], None),
    ],
)
def test_merged_frames_are_counted_by_their_time(milliseconds, counts):
    assert animations.at_one_rate(milliseconds) == counts


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp", ".png", ".npy"])
def test_a_single_frame_fits_every_format(tmp_path, frames, suffix):
    assert save(frames[:1], tmp_path / f"one{suffix}").path.stat().st_size > 0


def test_record_lies_beside_the_video(tmp_path):
    assert saving.plan(f"{tmp_path}/out.mp4", 5).record == tmp_path / "out.json"
    assert saving.plan(f"{tmp_path}/clip", 5).record == tmp_path / "clip.json"
    assert saving.plan(f"{tmp_path}/run.1/", 5).record == tmp_path / "run.1.json"


def test_suffixes_are_read_in_any_case(tmp_path):
    assert saving.plan(f"{tmp_path}/OUT.MP4", 5).kind == "mp4"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("out.mp5", "did you mean .*out.mp4"),
        ("out.json", "no known format.*.mp4, .gif, .webp, .npy, .png, .mkv or a folder"),
        ("out.png", "--frames is 5: use --frames 1"),
        ("gone/out.mp4", "there is no folder .*gone: make it first"),
        ("", "names no file"),
        (".mp4", "is an ending without a name: use a name such as out.mp4"),
        ("a\udcff.npy", "is no text in this system's encoding"),
        ("x" * 300 + ".npy", r"File name too long.*use another name"),
        ("x" * 251 + ".npy", "File name too long"),  # 255 bytes, and the record's name has one more
    ],
)
def test_bad_names_say_what_would_work(tmp_path, name, said):
    with pytest.raises(BadInput, match=said) as error:
        saving.plan(f"{tmp_path}/{name}" if name else "", 5)
    assert list(tmp_path.iterdir()) == [] and len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("-", "--output - would be the standard output"),
        ("/dev/null", "is a device or a pipe"),
        ("/proc/x.mp4", "/proc cannot be written"),
        ("/proc/x", "/proc cannot be written"),
    ],
)
def test_places_that_hold_no_files_are_refused(name, said):
    with pytest.raises(BadInput, match=said):
        saving.plan(name, 5)


def test_a_pipe_and_links_that_lead_nowhere_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "round.npy").symlink_to("round.npy")
    (tmp_path / "far.npy").symlink_to("gone/far.npy")
    for name, said in (("pipe", "a device or a pipe"), ("round", "leads nowhere"), ("far", "there is no folder")):
        with pytest.raises(BadInput, match=said):
            saving.plan(f"{tmp_path}/{name}.npy", 5)


def kept(folder, name, reads=(), overwrite=False):
    """What is said of writing a video there; None where it may be."""
    try:
        saving.plan(f"{folder}/{name}", 5).keep(reads, overwrite)
    except BadInput as error:
        return str(error)


def test_a_long_path_is_told_with_its_start_and_its_end():
    told = places.shown("/first/" + 300 * "x" + "/last.gif")
    assert told.startswith("/first/x") and told.endswith("x/last.gif (316 characters)") and len(told) < 240


def test_files_that_dittools_did_not_write_are_kept(tmp_path):
    (tmp_path / "mine.gif").write_bytes(b"x")
    (tmp_path / "package.json").write_text('{"name": "x"}')
    assert "mine.gif, which is not the video that a record beside it (mine.json)" in kept(tmp_path, "mine.gif")
    assert "package.json, which is not a record of package.npy" in kept(tmp_path, "package.npy")
    assert "package.json, which is not a record of package" in kept(tmp_path, "package")
    for name in ("mine.gif", "package.npy", "new.mp4"):
        assert kept(tmp_path, name, overwrite=True) is None
    (tmp_path / "link.gif").symlink_to("mine.gif")
    assert "link.gif, which is not the video" in kept(tmp_path, "link.gif")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_that_is_read_is_never_replaced_whatever_its_name(tmp_path, overwrite):
    (tmp_path / "a.json").write_text('{"method": "dense"}')
    (tmp_path / "b.json").symlink_to("a.json")
    os.link(tmp_path / "a.json", tmp_path / "c.json")
    for name in ("a.npy", "b.npy", "c.npy", f"../{tmp_path.name}/a.npy"):
        read = [("--config", tmp_path / "." / "a.json")]
        assert "which is the file of --config: use another name" in kept(tmp_path, name, read, overwrite)
    assert kept(tmp_path, "d.npy", [("--config", tmp_path / "a.json")]) is None
    assert "the file of --prompts" in kept(tmp_path, "new.npy", [("--prompts", tmp_path / "new.json")])


def test_a_folder_with_files_is_never_touched(tmp_path, frames):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(BadInput, match="use a new or empty folder"):
        saving.plan(f"{tmp_path}/mine", 5)
    (tmp_path / "empty.d").mkdir()
    assert len(list(save(frames, tmp_path / "empty.d").path.iterdir())) == 5


def test_a_file_or_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "notes").write_text("x")
    with pytest.raises(BadInput, match="is a file"):
        saving.plan(f"{tmp_path}/notes", 5)
    (tmp_path / "out.json").mkdir()
    with pytest.raises(BadInput, match="replace the folder"):
        saving.plan(f"{tmp_path}/out.mp4", 5)


def test_an_unwritable_folder_is_found_before_the_run(tmp_path, monkeypatch):
    def refuse(self, data):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    with pytest.raises(BadInput, match=r"cannot be written \(Permission denied\): choose another folder"):
        saving.plan(f"{tmp_path}/out.mp4", 5)


@pytest.mark.parametrize("suffix", [".npy", ".gif", "/"])
def test_a_disk_that_fills_up_midway_leaves_the_old_file_and_no_part(tmp_path, frames, suffix, monkeypatch):
    target = f"{tmp_path}/out{suffix}"
    if suffix != "/":
        (tmp_path / f"out{suffix}").write_text("older")

    def fill(frames, path, kind, fps):
        if kind == "folder":
            path.mkdir()
            (path / "00000.png").write_bytes(b"half")
        else:
            path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(saving, "write", fill)
    with pytest.raises(RunFailed, match="the disk is full"):
        save(frames, target)
    left = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert left == ({} if suffix == "/" else {f"out{suffix}": "older"})


def test_an_interrupt_while_writing_leaves_nothing(tmp_path, frames):
    output = saving.plan(f"{tmp_path}/a.npy", 5)
    with pytest.raises(KeyboardInterrupt), saving.whole(output.path) as part:
        part.write_bytes(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_ffmpeg_on_a_full_disk_is_told_apart(frames, tmp_path):
    link = tmp_path / "full.mp4"
    link.symlink_to("/dev/full")
    with pytest.raises((OSError, RunFailed)) as caught:
        saving.write(frames, link, "mp4", 16)
    assert getattr(caught.value, "errno", None) == errno.ENOSPC


def test_no_ffmpeg_is_said_early_with_the_other_formats(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "ffmpeg", lambda: None)
    with pytest.raises(BadInput, match=r"pip install imageio-ffmpeg, or use .gif, .webp, .npy"):
        saving.plan(f"{tmp_path}/out.mp4", 5)
    assert saving.plan(f"{tmp_path}/out.gif", 5).kind == "gif"


def test_rounding_to_bytes_is_to_the_nearest_level():
    levels = saving.to_uint8(np.array([-0.1, 0.0, 0.1 / 255, 0.6 / 255, 1.0, 1.2]))
    assert levels.tolist() == [0, 0, 0, 1, 255, 255]
