"""Step caches on several ranks: the same steps are computed and reused as on one device, alone and beside sparsity."""

import functools
import json

import pytest

from dittools.caches import CACHES
from dittools.pipelines.families import find_family
from tests.parallel.scenes import compare

STEPS = 8
CACHED = [
    ("easycache", {"threshold": 0.7}),
    ("easycache", {"threshold": 3.5, "reuse": "output"}),
    ("first_block", {"threshold": 0.7}),
    ("first_block", {"threshold": 3.0}),
    ("first_block", {"threshold": 0.7, "reuse": "stack"}),
    ("sea", {"threshold": 0.5}),
    ("sea", {"threshold": 3.0}),
    ("taylorseer", {"interval": 3, "start": 0, "taylor_order": 1, "warmup_steps": 1}),
    ("taylorseer", {"interval": 3, "start": 0, "taylor_order": 0, "warmup_steps": 1, "reuse": "stack"}),
    ("pab", {"interval": 2}),
    ("fastercache", {"interval": 2}),
]
CASES = [
    {"method": method, "cache": name, "cache_options": options}
    for name, options in CACHED
    for method in (("draft", "dense") if name in ("easycache", "pab") else ("draft",))
]


@functools.cache
def found(pool, family):
    made = pool.run(functools.partial(compare, steps=STEPS, branches=2, batch=1), family, (2, 4), CASES)[0]
    return {(one["degree"], json.dumps(one["case"])): one for one in made}


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join(map(str, (case["method"], case["cache"], *case["cache_options"].values())))
)
@pytest.mark.parametrize("degree", (2, 4))
@pytest.mark.parametrize("family", ("wan", "qwen-image"))
def test_the_same_steps_are_reused(family, degree, case, pool):
    one = found(pool, family)[degree, json.dumps(case)]
    expected = alike(one)
    enough = case["cache_options"].get("threshold", 9) > 1 or family == "wan"  # whose steps differ less
    assert not enough or expected is None or expected["calls"]["reused"] > 0


def alike(one):
    """The record of one device, after those of the ranks were held against it; None where the cache is refused."""
    assert {each["error"] for each in one["ranks"]} == {one["alone"]["error"]}
    if one["alone"]["error"]:
        assert "reuse=stack works on" in one["alone"]["error"]
        return None
    expected = one["alone"]["record"]
    assert one["difference"] <= 1e-5
    for each in one["ranks"]:
        record = each["record"]
        for fact in ("calls", "notes", "fallbacks"):
            assert record[fact] == expected[fact]
        for fact in ("computed_steps", "reused_steps", "attention_reused_steps"):
            assert record["cache"][fact] == expected["cache"][fact]
        for branch, lane in record["cache"]["branches"].items():
            pairs = zip(lane["signals"], expected["cache"]["branches"][branch]["signals"], strict=True)
            assert all(one is other is None or one == pytest.approx(other, rel=1e-4) for one, other in pairs)
    return expected


def by_input(threshold):
    """TeaCache by what the first block is given, of which a change is worth itself."""
    entry = {"signal": "block_input", "coefficients": [0, 0, 0, 1.0, 0], "valid": [0, 100], "first": 1}
    return "teacache", entry | {"threshold": threshold}


BY_TIME = {
    "signal": "time_embedding",
    "coefficients": [0, 0, 0, 0, 1.0],
    "valid": [0, 10],
    "threshold": 2.5,
    "first": 2,
}
BY_MAGNITUDE = {"ratios": [1.0] * 4 + [0.9] * 4, "threshold": 0.25, "max_skips": 3, "first": 2}
PROFILED = [
    ("wan", "teacache", BY_TIME),
    ("wan", "magcache", BY_MAGNITUDE),
    *((family, *by_input(threshold)) for family, threshold in (("ltx", 2.0), ("flux", 2.0), ("hunyuan-video", 0.5))),
]


@pytest.mark.parametrize(
    ("family", "name", "entry"), PROFILED, ids=[f"{one[0]}-{one[1]}-{i}" for i, one in enumerate(PROFILED)]
)
def test_by_a_profile_the_same_steps_are_reused(family, name, entry, pool, tmp_path):
    match = {"transformer": find_family(family).transformer, "experts": 1, "config": {}}
    profile = {"schema": 1, "kind": "cache", "model": "tiny", "match": match, "steps": STEPS, name: entry}
    (tmp_path / "cache.json").write_text(json.dumps(profile))
    cases = [{"method": "draft", "cache": name, "cache_options": {"profile": str(tmp_path / "cache.json")}}]
    for one in pool.run(functools.partial(compare, steps=STEPS, branches=2, batch=1), family, (2, 4), cases)[0]:
        calls = alike(one)["calls"]
        assert calls["reused"] > 0 and calls["reused"] < calls["expected"] - 6


def test_every_cache_is_here():
    assert set(CACHES) == {name for name, _ in CACHED} | {name for _, name, _ in PROFILED}
