"""Every static method through a whole pipeline: ragged grids, a batch of two, with and without guidance."""

import pytest
import torch

import dittools
from tests.tiny import draw, tiny_pipeline

SMALL = {"frames": 9, "height": 144, "width": 176, "steps": 2}  # 3 x 9 x 11 = 297 tokens
STATIC = ("gna", "sta", "clear", "radial", "todo", "attention_tile")


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def untouched(pipe):
    return draw(pipe, **SMALL)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("method", STATIC)
def test_a_run_skips_what_was_asked_and_gives_a_whole_video(pipe, method, guidance):
    with dittools.accelerate(pipe, method=method, sparsity=0.6, dense_steps=1, block_size=64) as fast:
        latents = draw(pipe, **SMALL, guidance_scale=guidance, num_videos_per_prompt=2)
        record = fast.record()
    assert latents.shape[0] == 2 and latents.isfinite().all()
    assert record["sparsity"]["sparse_calls"] == pytest.approx(0.6, abs=0.02)
    assert record["calls"]["sparse"] == (4 if guidance > 1 else 2) and not record["fallbacks"]
    assert any(note.startswith(f"{method}: ") for note in record["notes"])


@pytest.mark.parametrize("method", STATIC)
def test_nothing_skipped_draws_what_the_untouched_pipeline_draws(pipe, untouched, method):
    with dittools.accelerate(pipe, method=method, sparsity=0.0, dense_steps=0, dense_layers=0):
        torch.testing.assert_close(draw(pipe, **SMALL), untouched, rtol=1e-3, atol=1e-3)


def test_a_kept_plan_with_fewer_keys_is_used_again(pipe):
    settings = {"method": "todo", "sparsity": 0.6, "dense_steps": 0}
    drawn = []
    for refresh in (1, 3):
        with dittools.accelerate(pipe, refresh=refresh, **settings) as fast:
            drawn.append(draw(pipe, **SMALL))
            assert ("used again" in fast.summary()) == (refresh == 3)
    assert torch.equal(*drawn)
