"""Each online method in a pipeline: odd grids, batches, with and without guidance, every budget met."""

import pytest
import torch

import dittools
from tests.tiny import draw, tiny_pipeline

ONLINE = ["adaspa", "draft", "jenga", "nabla", "sparge", "sparsed", "vmoba", "xattention", "oracle", "random"]
every = pytest.mark.parametrize("name", ONLINE)


@pytest.fixture(scope="module")
def shared():
    """One pipeline for tests that restore it."""
    return tiny_pipeline()


@pytest.fixture(scope="module")
def dense(shared):
    return draw(shared, steps=2)


@every
def test_a_full_budget_gives_the_dense_result(shared, dense, name):
    with dittools.accelerate(shared, method=name, sparsity=0.0, dense_steps=0, dense_layers=0) as fast:
        out = draw(shared, steps=2)
    assert fast.record()["calls"] == {"dense": 0, "sparse": 12, "reused": 0, "expected": 12}
    torch.testing.assert_close(out, dense, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [(17, 160, 176), (13, 240, 208)], ids=["5x10x11", "4x15x13"])
@every
def test_sparse_calls_skip_what_was_asked(shared, name, size):
    frames, height, width = size
    with dittools.accelerate(shared, method=name, sparsity=0.7, dense_steps=1) as fast:
        out = draw(shared, frames=frames, height=height, width=width, steps=3)
    record = fast.record()
    assert record["sparsity"]["sparse_calls"] == pytest.approx(0.7, abs=0.02)
    assert record["fallbacks"] == [] and out.isfinite().all()


@every
def test_a_batch_without_guidance_gives_each_video_what_it_gets_alone(shared, name):
    made = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 16, 5, 20, 22, generator=made)
    asked = {"steps": 2, "guidance_scale": 1.0}
    with dittools.accelerate(shared, method=name, sparsity=0.7, dense_steps=1) as fast:
        alone = [draw(shared, latents=x[None].clone(), **asked) for x in latents]
        both = draw(shared, latents=latents.clone(), prompt=["a red circle moves left"] * 2, **asked)
    assert fast.record()["calls"] == {"dense": 4, "sparse": 2, "reused": 0, "expected": 6}
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-3, atol=1e-4)


@every
def test_a_kept_selection_serves_later_steps(shared, name):
    with dittools.accelerate(shared, method=name, sparsity=0.7, dense_steps=1, refresh=2) as fast:
        draw(shared, steps=3)
    assert "4 plans used again" in fast.summary()
    assert fast.record()["sparsity"]["sparse_calls"] == pytest.approx(0.7, abs=0.02)
