"""Tokens, text and heads that ranks cannot share evenly, and what no exchange can do."""

import contextlib
import functools

import pytest
import torch
import torch.distributed as dist

from dittools import summary
from dittools.config import Config
from dittools.pipelines.attach import attach
from dittools.pipelines.parallel.joint import places_of
from dittools.ranks import stretches
from dittools.tokens import Layout, Part
from tests.parallel.scenes import Scene, compare

CASES = [{"method": name} for name in ("draft", "nabla", "xattention", "adaspa", "random")]
SIZES = {
    "wan": {"grid": (3, 11, 17), "heads": 6, "anything": True},
    "flux": {"grid": (1, 23, 22), "heads": 6, "text": 7, "anything": True},
    "qwen-image": {"grid": (1, 23, 22), "heads": 5, "text": 7, "anything": True},
    "hunyuan-video": {"grid": (3, 9, 13), "heads": 5, "text": 7, "anything": True},
    "hunyuan-video-1.5": {"grid": (3, 9, 13), "anything": True},
}


@functools.cache
def found(pool, family):
    made = pool.run(functools.partial(compare, **SIZES[family]), family, (2, 4), CASES)[0]
    return {(one["degree"], one["case"]["method"]): one for one in made}


@pytest.mark.parametrize("name", [case["method"] for case in CASES])
@pytest.mark.parametrize("degree", (2, 4))
@pytest.mark.parametrize("family", SIZES)
def test_ranks_with_more_or_fewer_tokens_and_heads_draw_what_one_device_draws(family, degree, name, pool):
    one = found(pool, family)[degree, name]
    assert {each["error"] for each in one["ranks"]} == {one["alone"]["error"]} == {None}
    assert one["difference"] <= 1e-5
    expected = one["alone"]["record"]
    for each in one["ranks"]:
        for fact in ("calls", "heads", "fallbacks", "grid"):
            assert each["record"][fact] == expected[fact]
        assert each["record"]["sparsity"]["sparse_calls"] == pytest.approx(
            expected["sparsity"]["sparse_calls"], abs=1e-6
        )


def test_heads_alone_that_do_not_divide_need_nothing_of_diffusers(pool):
    one = pool.run(functools.partial(compare, heads=6), "wan", (4,), CASES[:1])[0][0]
    assert one["difference"] <= 1e-5 and one["ranks"][0]["record"]["calls"]["sparse"] > 0


def too_few_heads():
    scene = Scene("wan", 4, heads=2)
    scene.share()
    attachment = attach(scene, Config("draft", 0.6, dense_steps=0, dense_layers=0))
    with contextlib.suppress(RuntimeError):  # diffusers cannot run it either
        scene.draw()
    fallbacks = summary.record(attachment.runtime)["fallbacks"]
    attachment.detach()
    dist.barrier()
    return fallbacks


def test_fewer_heads_than_ranks_run_as_diffusers_runs_them_with_the_reason(pool):
    assert pool.run(too_few_heads) == [[{"reason": "4 ranks share 2 heads", "count": 1}]] * 4


@pytest.mark.parametrize("tokens, layout, wanted", [
    ([3, 3], None, [[(0, 3)], [(3, 3)]]),
    ([4, 3], Layout(1, 1, 7), [[(0, 4)], [(4, 3)]]),
    ([5, 4], Layout(1, 2, 3, before=None), [[(0, 2), (3, 3)], [(2, 1), (6, 3)]]),
    ([5, 4], Layout(1, 2, 3, after=3), [[(0, 3), (6, 2)], [(3, 3), (8, 1)]]),
    ([4, 3], Layout(1, 1, 4, None, (Part.of("reference", 1, 1, 1),)), [[(0, 1), (2, 3)], [(1, 1), (5, 2)]]),
])  # fmt: skip
def test_text_and_picture_of_every_rank_have_their_places(tokens, layout, wanted):
    assert places_of(tokens, layout) == wanted


@pytest.mark.parametrize("total, count", [(7, 3), (8, 4), (2, 4), (0, 2)])
def test_stretches_are_those_of_torch(total, count):
    assert [stop - start for start, stop in stretches(total, count)] == [
        len(part) for part in torch.arange(total).tensor_split(count)
    ]
