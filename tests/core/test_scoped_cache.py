"""How long what was made is kept, by scope."""

import dataclasses
import gc
import weakref

import torch

from dittools import scoped_cache
from dittools.attention_profile import Made, Model, Profile
from dittools.methods.base import AttentionCall
from dittools.scoped_cache import ScopedCache, process_cached
from dittools.tokens import TokenGrid

GRID = TokenGrid(2, 4, 4)


def test_what_is_kept_is_made_once_for_a_key():
    cache, made = ScopedCache(), []
    for key in ("a", "b", "a"):
        assert cache.get_or_make(key, lambda key=key: made.append(key) or key.upper()) == key.upper()
    assert made == ["a", "b"]
    cache.clear()
    assert cache.get_or_make("a", lambda: 3) == 3


def test_a_process_keeps_the_latest_and_forgets_when_told(monkeypatch):
    monkeypatch.setattr(scoped_cache, "_process", [])
    made = []
    square = process_cached(2)(lambda x: made.append(x) or x * x)
    assert [square(x) for x in (2, 3, 2, 4, 2, 3)] == [4, 9, 4, 16, 4, 9] and made == [2, 3, 4, 3]
    scoped_cache.clear_process_caches()
    assert square(3) == 9 and made == [2, 3, 4, 3, 3]


def test_a_profile_keeps_what_it_decides_for_each_grid_and_block_size_and_no_longer_than_itself():
    profile = Profile(Model("M", "f", 1, 1), GRID, Made("w", 4), {})
    call = AttentionCall(0, 1, "", 0, 1, GRID, 0.5, 1.0, torch.Generator(), 64, profile=profile)
    mask = torch.zeros(3)
    call.profile_cache["mask"] = mask
    later = dataclasses.replace(call, run_cache=ScopedCache(), branch_state={}, step=3)
    assert later.profile_cache["mask"] is mask
    for other in ({"block_size": 128}, {"grid": TokenGrid(2, 4, 8)}):
        assert "mask" not in dataclasses.replace(call, **other).profile_cache
    gone = weakref.ref(mask)
    del profile, call, later, mask
    gc.collect()
    assert gone() is None
