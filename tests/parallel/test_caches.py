"""Step caches on several ranks: the same steps are computed and reused as on one device, alone and beside sparsity."""

import functools
import json

import pytest

from dittools.caches import CACHES
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
    made = pool.run(functools.partial(compare, steps=STEPS, branches=2), family, (2, 4), CASES)[0]
    return {(one["degree"], json.dumps(one["case"])): one for one in made}


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join(map(str, (case["method"], case["cache"], *case["cache_options"].values())))
)
@pytest.mark.parametrize("degree", (2, 4))
@pytest.mark.parametrize("family", ("wan", "qwen-image"))
def test_the_same_steps_are_reused(family, degree, case, pool):
    one = found(pool, family)[degree, json.dumps(case)]
    assert {each["error"] for each in one["ranks"]} == {one["alone"]["error"]}
    if one["alone"]["error"]:
        assert "reuse=stack works on" in one["alone"]["error"]
        return
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
    enough = case["cache_options"].get("threshold", 9) > 1 or family == "wan"  # whose steps differ less
    assert not enough or expected["calls"]["reused"] > 0


def test_every_cache_that_needs_no_profile_of_the_model_is_here():
    assert set(CACHES) - {name for name, _ in CACHED} == {"teacache", "magcache"}
