"""`dittools inspect`: maps, classes, masks and recall of a live run, as a page and pictures."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from dittools.attention_maps.classes import Shares, head_shares
from dittools.attention_maps.images import map_image
from dittools.tokens import TokenGrid
from tests.cli.test_bad_input import one_error
from tests.methods.test_profiled import heads

SIZE = ("--frames", 17, "--height", 160, "--width", 176, "--steps", 4)


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def inspect(cli, tiny_weights):
    return lambda *flags: cli("inspect", "--weights", tiny_weights, *SIZE, *flags)


def test_a_run_becomes_a_page_pictures_and_a_record(inspect, tmp_path):
    flags = ("--method", "svg", "--layers", "0,2", "--heads", "1", "--at", "2,3", "--sparsity", 0.6)
    result = inspect(*flags, "--prompt", "<script>alert(1)</script> a red circle", "--output", "maps", "--json")
    assert result.code == 0, result.err
    record = result.json
    assert record == json.loads((tmp_path / "maps" / "record.json").read_text())
    found = {(head["step"], head["layer"], head["head"]): head for head in record["heads"]}
    assert set(found) == {(2, 0, 1), (2, 2, 1), (3, 0, 1), (3, 2, 1)}
    for (_, layer, _), head in found.items():
        assert head["class"] and head["name"] == f"transformer.blocks.{layer}.attn1"
        if layer == 0:  # dense_layers is 1
            assert head["density"] is None and head["recall"] is None
        else:
            assert head["density"] == pytest.approx(0.4, abs=0.02) and head["density"] - 0.1 < head["recall"] < 1
    html = (tmp_path / "maps" / "index.html").read_text()
    page = Page(html)
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 6 and all(uri.startswith("data:image/png;base64,") for uri in images)
    # the page's own script alone, which its policy names by a hash
    assert [attributes for tag, attributes in page.tags if tag in ("script", "link", "iframe")] == [{}]
    assert "<script>alert(1)</script> a red circle" in page.words
    assert record["recall"] in " ".join(page.words) and record["recall"] in result.err
    assert record["recall"].startswith("4 heads shown; recall of 2 sparse ones")
    assert "default-src 'none'" in html and "prefers-color-scheme: dark" in html
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    pictures = sorted(path.name for path in (tmp_path / "maps").glob("*.png"))
    assert len(pictures) == 6 and pictures[0] == "step002_layer000_head001_map.png"
    with Image.open(tmp_path / "maps" / "step003_layer002_head001_kept.png") as picture:
        assert picture.size == (288, 288)


def test_all_of_the_attention_is_a_recall_of_one_and_the_run_stops_at_the_last_step_shown(inspect, tmp_path):
    result = inspect("--method", "svg", "--sparsity", 0, "--layers", 1, "--at", 1, "--dense-steps", 0, "--output", "m")
    assert result.code == 0, result.err
    assert "recall of 2 sparse ones 100.0% on average" in result.err
    assert "step 3/4" not in result.err
    assert result.out == "m/index.html\n"


@pytest.mark.parametrize("method", ["svg2", "todo"])
def test_clusters_and_fewer_keys_are_shown_too(inspect, tmp_path, method):
    flags = ("--layers", 1, "--heads", "0,1", "--at", 1, "--dense-steps", 0, "--json")
    for sparsity, out in ((0, "all"), (0.6, "some")):
        result = inspect("--method", method, *flags, "--sparsity", sparsity, "--output", out)
        assert result.code == 0, result.err
        for head in result.json["heads"]:
            assert head["density"] == pytest.approx(1 - sparsity, abs=0.03)
            assert head["recall"] == pytest.approx(1, abs=1e-5) if sparsity == 0 else 0.2 < head["recall"] < 0.999
        assert len(list((tmp_path / out).glob("*_kept.png"))) == 2


def test_a_correction_and_a_kept_choice_run_as_in_generate(inspect, tmp_path):
    flags = ("--method", "random", "--layers", 1, "--heads", 0, "--at", "1,2", "--dense-steps", 0, "--json")
    result = inspect(*flags, "--refresh", 4, "--correction", "rettention", "--output", "kept")
    assert result.code == 0, result.err
    config = result.json["config"]
    assert (config["refresh"], config["correction"]) == (4, "rettention")
    assert any("one sparse step in 5" in note for note in result.json["notes"])  # the correction ran


@pytest.mark.parametrize("cache, told", [
    ({"cache": "easycache"}, "cache easycache of --config c.json is left out"),
    ({"cache": "easycache", "cache_options": {"threshold": 0.3}}, "cache easycache (threshold=0.3) of --config c.json"),
])  # fmt: skip
def test_a_step_cache_of_a_config_file_is_left_out_with_a_note(cache, told, inspect, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"version": 1, "method": "random", **cache}))
    result = inspect("--config", "c.json", "--layers", 1, "--heads", 0, "--at", 1, "--output", "c", "--json")
    assert result.code == 0, result.err
    assert f"note: {told}" in result.err and result.err.count("easycache") == 1
    assert any(told in note for note in result.json["notes"])
    assert result.json["config"]["cache"] == "none" and result.json["config"]["method"] == "random"


def test_the_options_that_auto_chose_are_on_the_page(inspect, tmp_path):
    size = ("--height", 288, "--width", 288, "--steps", 2)
    result = inspect(*size, "--layers", 1, "--heads", 0, "--at", 1, "--output", "m", "--json")
    assert result.code == 0, result.err
    assert (result.json["method"], result.json["method_options"]) == ("adaspa", {"rows": 8})
    assert "adaspa (rows=8), sparsity 0.8" in Page((tmp_path / "m" / "index.html").read_text()).words


def test_a_dense_run_shows_maps_alone(inspect, tmp_path):
    result = inspect("--method", "dense", "--layers", 1, "--heads", 0, "--at", 0, "--output", "m")
    assert result.code == 0 and "1 heads shown, all from dense calls" in result.err
    assert [path.name for path in (tmp_path / "m").glob("*.png")] == ["step000_layer001_head000_map.png"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--layers", "1,x"], ["--layers", "'1,x'", "0,3"]),
        (["--layers", "-1"], ["--layers"]),
        (["--layers", "3"], ["--layers 3", "3 layers, 0 to 2"]),
        (["--heads", "2"], ["--heads 2", "2 heads, 0 to 1"]),
        (["--at", "4"], ["--at 4", "4 steps, 0 to 3"]),
        (["--output", "gone/maps"], ["no folder gone"]),
        (["--method", "paro"], ["paro needs a profile"]),
        (["--sparsity", "2"], ["sparsity"]),
    ],
)
def test_a_wrong_flag_is_one_line_and_nothing_is_written(inspect, tmp_path, flags, said):
    line = one_error(inspect(*flags))
    assert all(part in line for part in said)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(inspect, tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "mine.txt").write_text("mine")
    assert "not empty" in one_error(inspect("--output", "maps"))
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("grid", [TokenGrid(8, 8, 8), TokenGrid(6, 8, 10, 16, "last")], ids=str)
def test_heads_are_classed_by_where_they_attend(grid):
    q, k, _ = heads(grid, ("row", "place", "flat"))
    first = torch.zeros(1, grid.tokens, 1, 32)
    first[..., 0] = 12.0
    key = torch.zeros_like(first)
    key[:, grid.video_start : grid.video_start + grid.frame, :, 0] = 12.0
    q, k = torch.cat((q, first), 2), torch.cat((k, key), 2)
    shares = head_shares(q, k, grid, 0.2, 16)
    assert [found.name for found in shares] == ["spatial", "temporal", "spread", "first frame"]
    assert shares[2].first_frame == pytest.approx(grid.frame / grid.tokens, abs=0.01)
    assert shares[2].text == pytest.approx(grid.text / grid.tokens, abs=0.01)
    assert Shares(0.2, 0.2, 0.1, 0.6).name == "text"


def test_a_head_of_several_classes_is_told_with_all_of_them():
    both = Shares(0.2, 0.64, 0.53, 0.1)
    assert (both.name, both.also, both.told) == ("first frame", ("temporal",), "first frame, also temporal")
    assert Shares(0.6, 0.7, 0.1, 0.0).told == "temporal, also spatial"
    assert Shares(0.5, 0.5, 0.5, 0.5).told == "spread" and Shares(0.51, 0.1, 0.1, 0.1).told == "spatial"


def test_more_mass_is_lighter_and_skipped_blocks_are_grey():
    mass = torch.tensor([[8.0, 0.1], [1.0, 8.0]])
    keep = torch.tensor([[True, True], [False, True]])
    picture = map_image(mass, keep).astype(int)
    assert picture.shape == (288, 288, 3)
    heavy, light, skipped = picture[0, 0].sum(), picture[0, -1].sum(), picture[-1, 0]
    assert heavy > light and skipped.tolist() == [176, 182, 189]


def test_a_map_of_many_blocks_is_summed_up():
    mass = torch.zeros(600, 600)
    mass[:300] = 1.0
    picture = map_image(mass)
    assert picture.shape[0] <= 288
    assert picture[0, 0].sum() > picture[-1, -1].sum() and np.array_equal(picture[0, 0], picture[10, 50])
