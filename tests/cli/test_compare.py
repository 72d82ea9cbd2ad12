"""`dittools compare`: two finished videos."""

import numpy as np
import pytest

from dittools.pipelines import saving
from tests.cli.test_bad_input import one_error


@pytest.fixture
def videos(tmp_path):
    """a.npy, a.mkv and frames/ hold one video, b.npy another, c.npy a shorter and d.npy a smaller one."""
    rng = np.random.default_rng(0)
    a = (rng.random((4, 48, 64, 3)) * 255).astype(np.uint8)
    b = a.copy()
    b[2] = 255 - b[2]
    for name, frames in {"a.npy": a, "a.mkv": a, "a.mp4": a, "b.npy": b, "c.npy": a[:3], "d.npy": a[:, :32]}.items():
        saving.write(frames, tmp_path / name, name[-3:], 16)
    saving.write(a, tmp_path / "frames", "folder", 16)
    return a, b


def test_people_get_a_table_with_the_worst_frame(cli, videos):
    result = cli("compare", "b.npy", "a.npy")
    assert result.code == 0
    head, first, *_ = result.out.splitlines()
    assert head.split("  ")[0] == "measure" and first.startswith("PSNR") and first.endswith(" 3")
    assert "MS-SSIM was not measured: frames of 48 x 64 are too small" in result.err


def test_json_has_every_frame(cli, videos):
    a, b = (x.astype(float) / 255 for x in videos)
    found = cli("compare", "b.npy", "a.npy", "--json").json
    assert (found["frames"], found["height"], found["width"]) == (4, 48, 64)
    psnr = found["scores"]["psnr"]
    assert psnr["per_frame"] == ["inf", "inf", pytest.approx(-10 * np.log10(((a[2] - b[2]) ** 2).mean())), "inf"]
    assert found["left_out"]["ms_ssim"]


@pytest.mark.parametrize("name", ["a.npy", "a.mkv", "frames"])
def test_identical_videos_are_said_to_be_identical_in_every_lossless_form(cli, videos, name):
    result = cli("compare", name, "a.npy")
    assert result.code == 0 and "PSNR           identical" in result.out
    assert cli("compare", name, "a.npy", "--json").json["scores"]["psnr"]["mean"] == "inf"


def test_a_lossy_file_is_compared_with_a_note(cli, videos):
    result = cli("compare", "a.mp4", "a.npy")
    assert result.code == 0 and "lossy" in result.err


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("c.npy", "a.npy"), ["c.npy has 3 frames of 48 x 64", "a.npy 4 frames", "same frames"]),
        (("d.npy", "a.npy"), ["4 frames of 32 x 64", "4 frames of 48 x 64"]),
        (("gone.mp4", "a.npy"), ["there is no gone.mp4"]),
        (("bad.mp4", "a.npy"), ["bad.mp4 cannot be read as a video"]),
        (("bad.npy", "a.npy"), ["bad.npy cannot be read as a video"]),
        (("bad.png", "a.npy"), ["bad.png cannot be read as a video"]),
        (("cut.mp4", "a.npy"), ["cut.mp4 cannot be read as a video"]),
        (("flat.npy", "a.npy"), ["flat.npy has shape [3]"]),
        (("empty", "a.npy"), ["empty has no images"]),
        (("list.m3u8", "a.npy"), ["list.m3u8 cannot be read"]),
    ],
)
def test_what_cannot_be_compared_is_one_clear_line(cli, videos, tmp_path, names, said):
    for name in ("bad.mp4", "bad.npy", "bad.png"):
        (tmp_path / name).write_bytes(b"not a video at all")
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:900])
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n")
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "flat.npy", np.zeros(3))
    line = one_error(cli("compare", *names))
    for part in said:
        assert part in line


@pytest.mark.parametrize(("rate", "noted"), [(16, False), (24, True)])
def test_a_rate_that_the_format_rounds_is_no_other_rate(cli, videos, tmp_path, rate, noted):
    saving.write(videos[0][:3], tmp_path / "e.gif", "gif", 16)  # 60, 60 and 70 ms: 15.8 a second
    saving.write(videos[0][:3], tmp_path / "f.mp4", "mp4", rate)
    result = cli("compare", "e.gif", "f.mp4")
    assert result.code == 0 and ("frames a second" in result.err) == noted
