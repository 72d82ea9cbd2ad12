"""What heads share, what a profile says of each, and what makes up for skipped pairs: all as on one device."""

import functools
import json

import pytest

from dittools.corrections import CORRECTIONS
from dittools.methods import METHODS
from dittools.selection.budget import POOLED
from tests.parallel.scenes import calibrated, compare

PROFILED = ("paro", "sparse_vdit", "sta", "attention_tile", "svg")
SCOPED = [name for name, kind in METHODS.items() if hasattr(kind, "scope") and kind.profile_use == "none"]


def case(name, **options):
    settings = {
        key: options.pop(key) for key in ("correction", "refresh", "share_branches", "dense_layers") if key in options
    }
    return {"method": name, **settings, "options": options}


POOLS = [case(name, scope=scope) for name in SCOPED for scope in POOLED if (name, scope) != ("vmoba", "adaptive")]
SHARES = [
    case("vmoba", tau=0.4, scope="layer"),
    case("xattention", tau=0.5),
    case("sparge", tau=0.5),
    case("sparge", similarity=0.3),
    case("jenga", top_p=0.5),
    case("nabla", top_p=0.4),
    case("svg2", top_p=0.6),
    case("svg_ear", top_p=0.6),
    case("todo", pick="random"),
    case("adaspa", scope="row", search_at=[0.3, 0.6]),
    case("adaspa", rows=8),
    case("sparsed", rows=8, scope="layer"),
    case("draft", refresh=2),
    case("random", share_branches=False),
    case("xattention", refresh=3, dense_layers=1),
]
CORRECTED = [case(name, correction=one) for one in CORRECTIONS for name in ("draft", "gna", "nabla")]
CORRECTED += [case("svg2", correction="centroids"), case("svg_ear", correction="centroids")]
CORRECTED += [case("adaspa", correction="sampled"), case("svg2", correction="sampled")]


def check(one):
    assert {each["error"] for each in one["ranks"]} == {one["alone"]["error"]} == {None}
    expected = one["alone"]["record"]
    assert one["difference"] <= 1e-5
    for each in one["ranks"]:
        record = each["record"]
        for fact in ("calls", "heads", "fallbacks", "kernels", "method", "method_options", "correction"):
            assert record[fact] == expected[fact]
        assert sorted(record["notes"]) == sorted(expected["notes"])
        assert record["calls"]["sparse"] > 0
        for fact in ("sparse_calls", "overall", "per_step", "per_layer", "by_parts", "pairs_by_parts"):
            assert record["sparsity"][fact] == pytest.approx(expected["sparsity"][fact], abs=1e-6)
    return expected


@functools.cache
def _found(pool, family, named, steps):
    cases = json.loads(named)
    made = pool.run(functools.partial(compare, steps=steps), family, (2, 4), cases)[0]
    return {(one["degree"], json.dumps(one["case"])): one for one in made}


def found(pool, family, cases, degree, asked, steps=3):
    return _found(pool, family, json.dumps(cases), steps)[degree, json.dumps(asked)]


def name_of(asked):
    more = {**asked["options"], **{key: value for key, value in asked.items() if key not in ("method", "options")}}
    return "-".join([asked["method"], *(f"{key}={value}" for key, value in more.items())])


@pytest.mark.parametrize("asked", [*POOLS, *SHARES, *CORRECTED], ids=name_of)
@pytest.mark.parametrize("degree", (2, 4))
@pytest.mark.parametrize("family", ("wan", "flux"))
def test_whatever_heads_share_is_shared_by_those_of_all_ranks(family, degree, asked, pool):
    check(found(pool, family, [*POOLS, *SHARES, *CORRECTED], degree, asked))


@pytest.fixture(scope="module")
def profile(pool, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("profile") / "tiny.json")
    pool.run(calibrated, "wan", PROFILED, path, 4)
    return path


@pytest.mark.parametrize("name", PROFILED)
@pytest.mark.parametrize("degree", (2, 4))
def test_a_profile_is_cut_by_heads(degree, name, pool, profile):
    cases = [{"method": each, "profile": profile} for each in PROFILED]
    expected = check(found(pool, "wan", cases, degree, {"method": name, "profile": profile}, steps=4))
    assert expected["sparsity"]["sparse_calls"] == pytest.approx(0.6, abs=0.05)
