"""Ring and unified attention against one device: the same latents, counts and notes, and the bytes sent."""

import functools
import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist

from dittools import summary
from dittools.config import Config
from dittools.methods import METHODS
from dittools.methods.draft import Draft
from dittools.pipelines.attach import attach
from tests.parallel.scenes import GRIDS, HEADS, STEPS, Scene, calibrated, compare
from tests.parallel.test_agreement import HOW, Fault, nan_in
from tests.parallel.test_settings import PROFILED, case, check, name_of

RING, UNIFIED = 2, 4  # ranks of which two share the queries of the same heads
KINDS = pytest.mark.parametrize("degree", (RING, UNIFIED), ids=("ring", "unified"))
PLAIN = [case(name) for name, kind in METHODS.items() if kind.profile_use != "needed" and name != "trained"]
MORE = [
    case("svg", correction="rettention", refresh=2),
    case("draft", correction="centroids"),
    case("gna", correction="centroids"),
    case("sparge", correction="sampled"),
    case("radial", correction="rettention"),
    case("svg2", correction="centroids"),
    case("nabla", scope="layer"),
    case("xattention", scope="adaptive"),
    case("draft", refresh=2),
    case("vmoba", share_branches=False),
    case("todo", pick="random"),
]
LAYERS, WIDTH = 2, 12  # of tiny Wan


@functools.cache
def _found(pool, family, named, degree, options):
    made = pool.run(functools.partial(compare, ring=2, **dict(options)), family, (degree,), json.loads(named))[0]
    return {json.dumps(one["case"]): one for one in made}


def found(pool, family, cases, degree, asked, **options):
    return _found(pool, family, json.dumps(cases), degree, tuple(options.items()))[json.dumps(asked)]


PLACES = [
    pytest.param(family, degree, asked, id=f"{family}-{degree}-{name_of(asked)}")
    for family in GRIDS
    for degree in (RING, UNIFIED)
    if (family, degree) != ("flux-2", RING)  # split as FLUX is
    for asked in (*PLAIN, *MORE)
    if GRIDS[family][0] > 1 or not METHODS[asked["method"]].video_only
]


@pytest.mark.parametrize(("family", "degree", "asked"), PLACES)
def test_ranks_of_a_ring_draw_what_one_device_draws(family, degree, asked, pool):
    one = found(pool, family, [*PLAIN, *MORE], degree, asked)
    assert {each["error"] for each in one["ranks"]} == {one["alone"]["error"]}
    if asked["method"] == "dense":
        assert one["difference"] <= 1e-5 and one["ranks"][0]["record"]["calls"] == one["alone"]["record"]["calls"]
    else:
        check(one)
    assert len(one["ranks"]) == degree and all(each["record"]["parallel"]["ranks"] == degree for each in one["ranks"])


@pytest.mark.parametrize("name", ("draft", "gna", "svg2"))
@pytest.mark.parametrize("family", ("wan", "flux", "qwen-image"))
def test_ranks_may_have_more_or_fewer_tokens(family, name, pool):
    size = {"grid": (3, 11, 17)} if family == "wan" else {"grid": (1, 23, 22), "text": 7}
    cases = [case(each) for each in ("draft", "gna", "svg2")]
    check(found(pool, family, cases, RING, case(name), anything=True, **size))


def bytes_of(record):
    return record["parallel"]["exchanged_bytes"]


def test_bytes_are_those_of_what_planning_reads_and_of_the_keys_that_a_rank_keeps(pool):
    tokens = GRIDS["wan"][0] * GRIDS["wan"][1] * GRIDS["wan"][2]
    half = tokens // 2 * HEADS * WIDTH * 4  # bytes of one rank's queries
    records = {one: found(pool, "wan", [*PLAIN, *MORE], RING, case(one))["ranks"] for one in ("dense", "svg", "gna")}
    for each in records["dense"]:
        assert bytes_of(each["record"]) == 2 * half * LAYERS * STEPS
    for each in records["svg"]:  # reads queries, keys and values in every sparse step
        assert bytes_of(each["record"]) == half * LAYERS * (2 + 3 * (STEPS - 1))
    for each in records["gna"]:  # reads none, and keeps the keys nearby
        assert 2 * half * LAYERS < bytes_of(each["record"]) < 2 * half * LAYERS * (1 + 0.9 * (STEPS - 1))


def test_an_error_that_a_ring_cannot_tell_is_said_to_be_untold(pool):
    asked = {**case("gna"), "error_rows": 8}
    one = found(pool, "wan", [asked], RING, asked)
    assert one["alone"]["record"]["attention_error"]["rows"] == 8
    for each in one["ranks"]:
        assert each["record"]["attention_error"] is None
        assert [note for note in each["record"]["notes"] if note.startswith("error_rows: nothing is told")]


def test_every_rank_tells_what_all_computed(pool):
    for one in (found(pool, "wan", [*PLAIN, *MORE], RING, case(name)) for name in ("gna", "svg2", "todo")):
        first, second = (each["record"]["parallel"]["density_by_rank"] for each in one["ranks"][:2])
        assert first == second and len(first) == RING
        skipped = one["alone"]["record"]["sparsity"]["sparse_calls"]
        assert 1 - sum(first) / RING == pytest.approx(skipped, abs=1e-6)


@pytest.fixture(scope="module")
def profile(pool, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("profile") / "tiny.json")
    pool.run(calibrated, "wan", PROFILED, path, 4)
    return path


@pytest.mark.parametrize("name", PROFILED)
@KINDS
def test_a_profile_serves_every_rank(degree, name, pool, profile):
    cases = [{"method": each, "profile": profile} for each in PROFILED]
    check(found(pool, "wan", cases, degree, {"method": name, "profile": profile}, steps=4))


CACHED = [
    {"method": "draft", "cache": "pab", "cache_options": {"interval": 2}},
    {"method": "draft", "cache": "first_block", "cache_options": {"threshold": 0.7}},
    {"method": "gna", "cache": "easycache", "cache_options": {"threshold": 0.7}},
]


@pytest.mark.parametrize("asked", CACHED, ids=lambda asked: asked["cache"])
@pytest.mark.parametrize("family", ("wan", "flux"))
def test_step_caches_reuse_the_same_steps(family, asked, pool):
    one = found(pool, family, CACHED, UNIFIED, asked, steps=8, branches=2)
    expected = check(one)
    for each in one["ranks"]:
        for fact in ("computed_steps", "reused_steps", "attention_reused_steps"):
            assert each["record"]["cache"][fact] == expected["cache"][fact]


def test_nothing_is_sent_for_attention_that_a_cache_keeps(pool):
    one = found(pool, "wan", CACHED, UNIFIED, CACHED[0], steps=8, branches=2)
    record, all_calls = one["ranks"][0]["record"], LAYERS * 8 * 2
    assert record["calls"]["dense"] + record["calls"]["sparse"] < all_calls
    tokens = GRIDS["wan"][0] * GRIDS["wan"][1] * GRIDS["wan"][2]
    quarter = tokens // 4 * HEADS * WIDTH * 4
    ulysses = quarter // 2 * 4  # half of the heads of q, k and v go, and half of the output's
    ring = {"dense": quarter * 2, "sparse": quarter * 3}  # most that planning and attention want: q, k and v
    most = sum(record["calls"][kind] * (ulysses + each) for kind, each in ring.items())
    assert 0.5 * most < bytes_of(record) <= most


def dealt(degree):
    """Latents, and which heads each rank of a row had at last, by layer."""
    scene = Scene("wan", degree, ring=2 if degree > 1 else 1, steps=4, heads=8)
    if degree > 1:
        scene.share()
    with torch.no_grad():  # heads of which some see little but themselves
        for block in scene.transformer.blocks:
            block.attn1.norm_k.weight.view(8, -1)[:4] *= 6
    attachment = attach(scene, Config("xattention", **HOW, options={"tau": 0.6}))
    out = scene.draw()
    deals = dict(attachment.runtime.run.deals)
    attachment.detach()
    return out, deals


def test_heads_are_dealt_to_the_ranks_of_a_row_alike_in_all_rows(pool):
    wanted, _ = pool.run(dealt, 1)[0]
    answers = pool.run(dealt, UNIFIED)
    natural = ((0, 1, 2, 3), (4, 5, 6, 7))
    assert any(heads != natural for heads in answers[0][1].values())
    for out, deals in answers:
        assert deals == answers[0][1] and all(len(heads) == 2 for heads in deals.values())
        torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)


def with_nan(degree, rank):
    """Latents, record and non-finite layers; ``rank`` None: on one device."""
    scene = Scene("wan", degree, ring=2 if degree > 1 else 1)
    if degree > 1:
        scene.share()
    with nan_in(1, 2, rank is None or dist.get_rank() % degree == rank):
        attachment = attach(scene, Config("svg", **HOW))
        out = scene.draw()
    record = summary.record(attachment.runtime)
    attachment.detach()
    return out, record["calls"], sorted(attachment.runtime.run.dense_from)


@KINDS
def test_a_nan_on_one_rank_runs_the_forward_again_on_all(degree, pool):
    wanted, calls, places = pool.run(with_nan, 1, None)[0]
    for out, mine, found_ in pool.run(with_nan, degree, 0):  # whose first query is in its own rows
        assert mine == calls and found_ == places == [(2, 1)]
        torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)


@dataclass(frozen=True)
class Fails(Draft):
    """Raises on the last rank of all alone, in one call."""

    name: ClassVar[str] = "fails"

    def plan(self, q, k, v, call):
        if call.step == 2 and call.layer == 0 and dist.get_rank() == dist.get_world_size() - 1:
            raise Fault("out of luck")
        return super().plan(q, k, v, call)


def failing(degree):
    """What was raised, and what the ranks draw afterwards."""
    METHODS["fails"] = Fails
    scene = Scene("wan", degree, ring=2)
    scene.share()
    try:
        scene.accelerated(method="fails")
        said = None
    except Exception as error:
        said = type(error).__name__
    del METHODS["fails"]
    return said, scene.accelerated(method="draft")[0]


@KINDS
def test_an_error_in_the_planning_of_one_rank_ends_all_and_leaves_their_group_whole(degree, pool):
    answers = pool.run(failing, degree)
    for rank, (said, out) in enumerate(answers):
        others = "FailedElsewhere" if rank // degree == (len(answers) - 1) // degree else None
        assert said == ("Fault" if rank == len(answers) - 1 else others)
        assert torch.isfinite(out).all() and torch.equal(out, answers[0][1])


def test_what_a_method_reads_is_part_of_it():
    assert (
        METHODS["svg"].reads == ("q", "k", "v") and METHODS["draft"].reads == ("q", "k") and METHODS["gna"].reads == ()
    )
