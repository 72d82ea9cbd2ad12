"""`dittools demo`: what its page does, without a browser; and that the page builds, where gradio is installed."""

import re
import socket
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from dittools.cli import demo, demo_studio, generation
from dittools.cli.demo_studio import QUALITIES, Asked, open_studio
from dittools.cli.output import Output
from dittools.config import Config
from dittools.pipelines.errors import BadInput
from tests.cli.test_bad_input import one_error

PAGE = Path(__file__).parents[2] / "docs" / "demo.md"
needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed")


@pytest.fixture(scope="module")
def studio(tiny_weights):
    """A studio with the tiny weights, at 5 x 6 x 7 tokens."""
    sizes = {"frames": 17, "height": 96, "width": 112, "steps": 4}
    with open_studio(
        demo.Flags(weights=str(tiny_weights), device="cpu", quiet=True, **sizes), Output(quiet=True)
    ) as it:
        yield it


@pytest.fixture(scope="module")
def drawn(studio):
    told = []
    return studio.draw(Asked("a red circle", quality=0, seed=3), lambda share, text: told.append((share, text))), told


def test_a_drawing_is_two_files_what_was_skipped_and_how_near_it_is(drawn):
    made, told = drawn
    assert made.dense != made.fast and made.dense.read_bytes()[4:8] == b"ftyp" == made.fast.read_bytes()[4:8]
    facts = dict(made.facts)
    assert 5 < made.psnr < 60 and facts["Against dense"].startswith(f"PSNR {made.psnr:.1f} dB, SSIM ")
    assert "in sparse calls" in facts["Attention skipped"] and facts["Method"] == "draft"
    assert "Speed" in facts and facts["Steps reused"].endswith("of 4 (easycache)")
    assert made.heat_map.count('class="cell"') + made.heat_map.count('class="none"') == 4 * 3
    assert "<dt>Against dense</dt>" in made.html and "<svg" in made.html and "Steps downwards" in made.html
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1.0
    assert "denoising densely, to compare, step 4 of 4" in [text for _, text in told]


def test_another_quality_of_the_same_prompt_is_compared_with_the_dense_run_that_is_there(studio, drawn, monkeypatch):
    monkeypatch.setattr(generation, "denoise_dense", lambda *given, **more: pytest.fail("drawn again"))
    same = studio.draw(Asked("a red circle ", quality=4, seed=3))
    assert same.dense == drawn[0].dense and same.psnr is None and dict(same.facts)["Against dense"] == "identical"
    assert same.heat_map == "" and dict(same.facts)["Attention skipped"] == "none" and "<figure" not in same.html


def test_the_command_line_that_is_given_draws_the_same(studio, drawn, cli, tmp_path):
    import shlex

    said = " ".join(drawn[0].command)
    result = cli(*shlex.split(said)[1:], "--output", "again.npy", "--quiet", "--json")
    assert result.code == 0, result.err
    assert abs(result.json["quality"]["psnr"] - drawn[0].psnr) < 1e-3
    assert np.load(tmp_path / "again.npy").shape == (17, 96, 112, 3)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked(" \n"), "the prompt is empty: write what to show"),
        (Asked("a\0b"), "the prompt holds a NUL character"),
        (Asked("a", seed=-1), "the seed must be from 0"),
        (Asked("a", steps=0), "the number of steps must be at least 1, got 0"),
        (Asked("a", method="svgg"), "unknown method 'svgg'"),
        (Asked("a", method="svg", sparsity=1.0), "sparsity must be a number"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(studio, asked, said):
    with pytest.raises(BadInput, match=re.escape(said)) as error:
        studio.draw(asked)
    assert "\n" not in demo_studio.told(error.value) and "<" not in demo_studio.told(BadInput("<b>"))


def test_text_of_others_is_escaped(drawn):
    made = drawn[0]
    html = demo_studio.dataclasses.replace(made, notes=("<script>",), command=("--prompt '<b>'",)).html
    assert "<script>" not in html and "<b>" not in html and "&lt;script&gt;" in html


def test_every_place_on_the_slider_is_a_config_and_stands_in_the_docs():
    text = PAGE.read_text(encoding="utf-8")
    for one in QUALITIES:
        config = Config(**one.settings)
        settings = ", ".join(f"`{name}={value}`" for name, value in one.settings.items())
        assert f"| {one.name} | {one.says} | {settings} |" in text
        assert config.method in demo_studio.method_names() and Config(**Asked("a", method=config.method).settings)
    assert [one.name for one in QUALITIES] == ["draft", "fast", "balanced", "near", "same"]


def test_without_gradio_one_line_says_how_to_get_it_before_anything_is_loaded(cli, tiny_weights, monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    monkeypatch.setattr(generation, "open_model", lambda *given, **more: pytest.fail("loaded"))
    assert "pip install 'dittools[demo]'" in one_error(cli("demo", "--weights", tiny_weights))
    assert "--port must be from 1 to 65535, got 0" in one_error(cli("demo", "--weights", tiny_weights, "--port", 0))


@needs_gradio
def test_the_page_builds_and_shows_an_error_as_a_line(studio, drawn):
    from dittools.cli import demo_page

    blocks = demo_page.page(studio)
    kinds = [type(block).__name__ for block in blocks.blocks.values()]
    assert kinds.count("Video") == 2 and "Slider" in kinds and len(blocks.fns) >= 3
    given = {"prompt": "a red circle", "quality": 4, "method": "by quality", "sparsity": 0.8, "steps": 4, "seed": 3}
    dense, fast, html, error = demo_page.answer(studio, given, lambda share, text: None)
    assert Path(dense).is_file() and Path(fast).is_file() and "identical" in html and error == ""
    *kept, error = demo_page.answer(studio, given | {"prompt": None}, lambda share, text: None)
    assert "the prompt is empty" in error and "dt-error" in error and not any(isinstance(one, str) for one in kept)
    assert 'dt-on">near' in demo_page.slider_text(3)


@needs_gradio
def test_a_port_that_is_taken_is_refused():
    from dittools.cli.demo_page import check_free

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(BadInput, match=r"--port \d+ cannot be used .*: give another"):
            check_free(other.getsockname()[1])


def test_its_help_is_there_without_gradio(cli):
    assert "Ctrl-C ends it" in cli("demo", "--help").out
