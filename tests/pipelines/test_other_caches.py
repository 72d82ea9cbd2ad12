"""A step cache of ours and one of diffusers', in both orders: two are never on without a word."""

import pytest
import torch
from diffusers import FirstBlockCacheConfig, HookRegistry, PyramidAttentionBroadcastConfig
from diffusers.hooks import apply_first_block_cache, apply_pyramid_attention_broadcast
from diffusers.hooks.first_block_cache import _FBC_BLOCK_HOOK, _FBC_LEADER_BLOCK_HOOK
from diffusers.hooks.pyramid_attention_broadcast import _PYRAMID_ATTENTION_BROADCAST_HOOK

import dittools
from dittools.pipelines.errors import BadInput
from tests.tiny import draw, tiny_pipeline

OURS = {"method": "dense", "cache": "taylorseer:interval=2:order=0:first=1:start=0"}
RUN = {"steps": 4, "frames": 5, "height": 64, "width": 64}


def pyramid(pipe):
    step = {"current_timestep_callback": lambda: pipe.current_timestep}
    ranges = {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": (0, 1000)}
    return PyramidAttentionBroadcastConfig(**ranges, **step)


def apart(pipe, *names):
    registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer)
    for name in names:
        registry.remove_hook(name, recurse=True)


FIRST = FirstBlockCacheConfig(threshold=0.3)
THEIRS = {
    "enable_cache": (lambda p: p.transformer.enable_cache(FIRST), lambda p: p.transformer.disable_cache()),
    "apply_first_block_cache": (
        lambda p: apply_first_block_cache(p.transformer, FIRST),
        lambda p: apart(p, _FBC_LEADER_BLOCK_HOOK, _FBC_BLOCK_HOOK),
    ),
    "apply_pyramid_attention_broadcast": (
        lambda p: apply_pyramid_attention_broadcast(p.transformer, pyramid(p)),
        lambda p: apart(p, _PYRAMID_ATTENTION_BROADCAST_HOOK),
    ),
}


@pytest.mark.parametrize("how", THEIRS)
def test_a_cache_of_ours_beside_one_of_diffusers(how):
    on, off = THEIRS[how]
    pipe = tiny_pipeline(layers=2)
    on(pipe)
    theirs = draw(pipe, **RUN)
    with pytest.raises(BadInput, match=r"diffusers' own cache is on .*disable_cache\(\) first"):
        dittools.accelerate(pipe, **OURS)
    with dittools.accelerate(pipe, method="dense") as fast:  # attention alone goes with it
        assert torch.equal(draw(pipe, **RUN), theirs)
    off(pipe)
    dense = draw(pipe, **RUN)
    with dittools.accelerate(pipe, **OURS) as fast:
        ours = draw(pipe, **RUN)
        on(pipe)
        assert torch.equal(draw(pipe, **RUN), theirs)
        assert fast.record()["cache"]["reused_steps"] == []
        assert any("diffusers' own cache is on" in note for note in fast.record()["notes"])
        off(pipe)
        assert torch.equal(draw(pipe, **RUN), ours)
        assert fast.record()["cache"]["reused_steps"] and not any("diffusers" in n for n in fast.record()["notes"])
    assert torch.equal(draw(pipe, **RUN), dense)
    assert not torch.equal(ours, theirs) and not torch.equal(theirs, dense)
