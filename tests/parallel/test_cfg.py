"""One guidance branch a group of ranks, or half of the batch: as on one device, and whatever goes wrong ends both."""

import functools
import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist

import dittools
import dittools.sparse as home
from dittools import summary
from dittools.branches import Elsewhere
from dittools.channel import Channel
from dittools.config import Config
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.methods import METHODS
from dittools.methods.draft import Draft
from dittools.pipelines.attach import attach
from dittools.pipelines.errors import BadInput
from dittools.pipelines.parallel.awaited import Awaited, awaited
from tests.parallel.scenes import BRANCHES, STEPS, Scene, compare, mesh

HOW = {"sparsity": 0.6, "dense_steps": 1, "dense_layers": 0}
RING_NOTE = "error_rows: nothing is told of sparse calls whose queries several ranks share"
# By ranks that share a branch, and how many of them share queries.
LAYOUTS = {"cfg": (1, 1), "cfg-ulysses": (2, 1), "cfg-ring": (2, 2)}
CASES = [
    {"method": "draft", "error_rows": 8},
    {"method": "svg2"},
    {"method": "gna"},
    {"method": "random"},
    {"method": "svg", "share_branches": False},
    {"method": "xattention", "refresh": 2, "dense_layers": 1},
    {"method": "nabla", "options": {"scope": "layer"}, "correction": "centroids"},
    {"method": "dense"},
]
BATCHED = [CASES[0], CASES[1], CASES[3], {"method": "draft", "correction": "rettention"}]
CACHED = [
    {"method": "draft", "cache": "easycache", "cache_options": {"threshold": 0.7}},
    {"method": "draft", "cache": "first_block", "cache_options": {"threshold": 3.0}},
    {
        "method": "draft",
        "cache": "taylorseer",
        "cache_options": {"interval": 3, "start": 0, "taylor_order": 1, "warmup_steps": 1},
    },
    {"method": "draft", "cache": "fastercache", "cache_options": {"interval": 2, "branch_interval": 3}},
]


@functools.cache
def _found(pool, family, layout, named, steps):
    degree, ring = LAYOUTS[layout]
    one_batch = family == "ltx"
    how = {"cfg": 2, "ring": ring, "steps": steps, "together": one_batch, "branches": 1 if one_batch else 2}
    made = pool.run(functools.partial(compare, **how), family, (degree,), json.loads(named))[0]
    return {json.dumps(one["case"]): one for one in made}


def found(pool, family, layout, cases, asked, steps=STEPS):
    return _found(pool, family, layout, json.dumps(cases), steps)[json.dumps(asked)]


def check(one, exact=True, ring=False):
    assert {each["error"] for each in one["ranks"]} == {one["alone"]["error"]} == {None}
    expected = one["alone"]["record"]
    assert one["difference"] <= (0 if exact else 1e-5)
    for each in one["ranks"]:
        record = each["record"]
        for fact in ("calls", "heads", "fallbacks", "kernels", "method", "grid"):
            assert record[fact] == expected[fact]
        untold = [RING_NOTE] if ring and expected["attention_error"] is not None else []
        assert sorted(record["notes"]) == sorted([*expected["notes"], *untold])
        assert record["calls"]["expected"] == sum(record["calls"][kind] for kind in ("dense", "sparse", "reused"))
        for fact in ("sparse_calls", "overall", "per_step", "per_layer", "by_parts", "pairs_by_parts"):
            assert record["sparsity"][fact] == pytest.approx(expected["sparsity"][fact], abs=1e-6)
        if expected["attention_error"] is not None and not ring:  # in a ring it is not told
            assert record["attention_error"]["per_step"] == pytest.approx(expected["attention_error"]["per_step"])
        assert record["parallel"]["ranks"] == len(one["ranks"])
        assert record["parallel"]["density_by_rank"] == one["ranks"][0]["record"]["parallel"]["density_by_rank"]
    densities = one["ranks"][0]["record"]["parallel"]["density_by_rank"]
    assert len(densities) == len(one["ranks"])
    if expected["calls"]["sparse"]:
        assert 1 - sum(densities) / len(densities) == pytest.approx(expected["sparsity"]["sparse_calls"], abs=1e-6)
    return expected


def name_of(case):
    return "-".join(str(value) for value in case.values())


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_that_make_a_branch_each_draw_what_one_device_draws(layout, case, pool):
    check(found(pool, "wan", layout, CASES, case), exact=layout != "cfg-ring", ring=layout == "cfg-ring")


@pytest.mark.parametrize("case", BATCHED, ids=name_of)
@pytest.mark.parametrize("layout", ("cfg", "cfg-ulysses"))
def test_groups_that_make_half_of_the_batch_each_draw_what_one_device_draws(layout, case, pool):
    one = found(pool, "ltx", layout, BATCHED, case)
    check(one, exact=False)
    outputs = STEPS * 4 * 9 * 16 * 4 * 4  # of half a batch, in bytes
    for each in one["ranks"]:
        assert each["record"]["parallel"]["exchanged_bytes"] > outputs


REUSED = [(family, "cfg", case) for family in ("wan", "ltx") for case in CACHED] + [("wan", "cfg-ulysses", CACHED[1])]


@pytest.mark.parametrize("family, layout, case", REUSED, ids=lambda part: part["cache"] if type(part) is dict else part)
def test_the_same_steps_are_reused(family, layout, case, pool):
    cases = CACHED if layout == "cfg" else CACHED[1:2]
    one = found(pool, family, layout, cases, case, steps=8)
    expected = check(one, exact=family == "wan")
    assert expected["calls"]["reused"] > 0
    for each in one["ranks"]:
        for fact in ("computed_steps", "reused_steps", "attention_reused_steps"):
            assert each["record"]["cache"][fact] == expected["cache"][fact]
        for branch, lane in each["record"]["cache"]["branches"].items():
            wanted = expected["cache"]["branches"][branch]
            assert [lane[key] for key in ("computed_steps", "forced")] == [
                wanted[key] for key in ("computed_steps", "forced")
            ]
            pairs = zip(lane["signals"], wanted["signals"], strict=True)
            assert all(one is other is None or one == pytest.approx(other, rel=1e-4) for one, other in pairs)


def shared_scene(degree=1, **how):
    scene = Scene("wan", degree, cfg=2, **({"branches": 2} | how))
    scene.share()
    return scene


def forwards():
    """Forwards that this rank makes of each branch, the plans that branches share, and what is noted."""
    scene, made = shared_scene(), []
    scene.transformer.blocks[0].register_forward_hook(lambda *_: made.append(branch[0]))
    branch, theirs = [None], scene.transformer.cache_context

    def told(name):
        branch[0] = name
        return theirs(name)

    scene.transformer.cache_context = told
    attachment = attach(scene, Config("draft", **HOW))
    scene.draw()
    run, record = attachment.runtime.run, summary.record(attachment.runtime)
    attachment.detach()
    return made, run.plans_shared, record["notes"]


def test_every_rank_makes_its_own_branch_alone_and_both_share_plans(pool):
    for rank, (made, shared, notes) in enumerate(pool.run(forwards)):
        assert made == [BRANCHES[rank % 2]] * STEPS
        assert shared == 2 * (STEPS - 1)
        assert not [note for note in notes if "guidance" in note]


@contextmanager
def nan_in(layer, step, branch, here):
    """The attention of this layer, step and branch gives a NaN, once."""
    true, make, calls, now = home.attend, home.Sparse._call, [], {}

    def attend(*args, **kwargs):
        out, lse = true(*args, **kwargs)
        if here and (now["layer"], now["step"], now["branch"]) == (layer, step, branch) and not calls:
            calls.append(1)
            out = out.clone()
            out[0, 0, 0, 0] = float("nan")
        return out, lse

    def told(self, inputs, info, grid, part):
        now.update(layer=inputs.layer, step=info.step, branch=info.branch)
        return make(self, inputs, info, grid, part)

    home.attend, home.Sparse._call = attend, told
    try:
        yield
    finally:
        home.attend, home.Sparse._call = true, make


def with_nan(degree, layer, branch, options):
    how = {"together": True} if branch == "cond_uncond" else {"branches": 2}
    scene = Scene("ltx" if "together" in how else "wan", degree or 1, cfg=2, **how)
    if degree is not None:
        scene.share()
    rank = dist.get_rank()
    here = degree is None or (rank % (2 * degree) == 0 if "together" in how else rank % degree == degree - 1)
    with nan_in(layer, 2, branch, here):
        attachment = attach(scene, Config("draft", **HOW, **options))
        out = scene.draw()
    record = summary.record(attachment.runtime)
    attachment.detach()
    return out, record, sorted(attachment.runtime.run.dense_from)


@pytest.mark.parametrize("branch", [*BRANCHES, "cond_uncond"])
@pytest.mark.parametrize("degree, layer, options", [(1, 0, {}), (1, 1, {"share_branches": False}), (2, 0, {})])
def test_a_nan_in_one_branch_leaves_both_as_on_one_device(degree, layer, options, branch, pool):
    wanted, expected, places = pool.run(with_nan, None, layer, branch, options)[0]
    assert places == [(2, layer)] and torch.isfinite(wanted).all()
    for out, record, found in pool.run(with_nan, degree, layer, branch, options):
        assert (out - wanted).abs().max() <= (1e-5 if branch == "cond_uncond" else 0) and found == places
        assert [record[fact] for fact in ("calls", "fallbacks")] == [expected[fact] for fact in ("calls", "fallbacks")]
        assert sorted(record["notes"]) == sorted(expected["notes"])


@dataclass(frozen=True)
class Fails(Draft):
    """Raises in the branch and step that are asked for; in a batch of both, in one half."""

    name: ClassVar[str] = "fails"
    reads: ClassVar[tuple[str, ...]] = ("q", "k")
    branch: str = "cond"

    def plan(self, q, k, v, call):
        mine = self.branch in BRANCHES or dist.get_rank() % 2
        if call.branch == self.branch and call.step == 2 and call.layer == 1 and mine:
            raise ArithmeticError("out of luck")
        return super().plan(q, k, v, call)


def failing(degree, branch):
    METHODS["fails"], together = Fails, branch == "cond_uncond"
    name = "ltx" if together else "wan"
    scene = Scene(name, degree, cfg=2, branches=1 if together else 2, together=together)
    scene.share()
    try:
        scene.accelerated(method="fails", options={"branch": branch}, share_branches=False)
        said = None
    except Exception as error:
        said = type(error).__name__, str(error)
    del METHODS["fails"]
    dist.barrier()
    return said, scene.accelerated(method="draft")[0]


@pytest.mark.parametrize("degree, branch", [(1, "cond"), (1, "uncond"), (2, "uncond"), (1, "cond_uncond")])
def test_an_error_in_one_branch_ends_both_and_leaves_their_groups_whole(degree, branch, pool):
    answers = pool.run(failing, degree, branch)
    for rank, ((kind, text), out) in enumerate(answers):
        group = rank // degree % 2
        mine = group == 1 if branch == "cond_uncond" else BRANCHES[group] == branch
        assert kind == ("ArithmeticError" if mine else "FailedElsewhere") and "out of luck" in text
        assert torch.equal(out, answers[0][1]) and torch.isfinite(out).all()


def by_hand(how):
    """What a loop of its own draws and notes, on one device and shared."""
    answers = []
    for scene in (Scene("wan", branches=2), shared_scene()):
        attachment = attach(scene, Config("draft", **HOW))
        with torch.set_grad_enabled(how == "gradients"):
            latents, made = loop(scene, how)
        answers.append((latents, summary.record(attachment.runtime)["notes"], made))
        attachment.detach()
    return answers


def loop(scene, how):
    given, made = scene.arguments(), []
    latents = given.pop("hidden_states")

    def call(branch, latents, t):
        text = given["encoder_hidden_states"] * {"cond": 1.0, "uncond": 0.5, "perturbed": 0.25}[branch]
        asked = given | {"hidden_states": latents, "encoder_hidden_states": text, "timestep": t.expand(scene.batch)}
        with scene.transformer.cache_context(branch):
            return scene.transformer(**asked, return_dict=False)[0]

    for step, t in enumerate(scene.scheduler.timesteps):
        cond = call("cond", latents, t)
        made.append(type(cond).__name__)
        if how == "early":
            cond = cond.float() * 2 - cond
        if how == "part":
            cond = cond[:, :, : latents.shape[2]].chunk(1)[0]
        other = cond if how == "interval" and step == 1 else call("uncond", latents, t)
        if how == "three":
            other = other + 0.1 * (cond - call("perturbed", latents, t))
        latents = latents - 0.3 * (other + 1.5 * (cond - other)).detach()
    return latents, made


@pytest.mark.parametrize(
    "how, note",
    [
        ("interval", "guidance had one branch in 1 of 3 steps: one group of ranks waited for the other"),
        (
            "early",
            "guidance branches were made in turn, not at once: the pipeline reads one before it asks for the next",
        ),
        ("part", None),
        ("three", None),
        ("gradients", None),
    ],
)
def test_whatever_a_pipeline_makes_of_branches_is_right_and_what_is_slow_is_noted(how, note, pool):
    for rank, ((wanted, _, _), (out, notes, made)) in enumerate(pool.run(by_hand, how)):
        assert torch.equal(out, wanted) and type(out) is torch.Tensor
        own = [one for one in notes if "guidance" in one]
        assert own == ([note] if note else [])
        # The form of an output is known from the second step on.
        assert made == (["Tensor"] * 3 if rank % 2 == 0 or how == "gradients" else ["Tensor", "Awaited", "Awaited"])


def either_order(first):
    scene = Scene("wan", cfg=2, branches=2)
    if first == "share":
        scene.share()
    attachment = attach(scene, Config("draft", **HOW))
    if first == "accelerate":
        scene.share()
    out, record = scene.draw(), summary.record(attachment.runtime)
    attachment.detach()
    plain = Scene("wan", branches=2)
    return out, record["parallel"]["ranks"], torch.equal(scene.draw(), plain.draw())


def test_the_order_of_both_calls_does_not_matter_and_restore_gives_back_what_was(pool):
    for one, other in zip(*(pool.run(either_order, first) for first in ("share", "accelerate")), strict=True):
        assert torch.equal(one[0], other[0]) and one[1:] == other[1:] == (2, True)


def refused():
    """What is said of settings that guidance cannot be shared with."""
    said = []
    odd = Scene("ltx", cfg=2, branches=1)  # without a second branch in its batch
    odd.share()
    for scene, settings in (
        (odd, {"method": "draft"}),
        (shared_scene(), {"method": "draft", "cache": "first_block", "cache_options": {"reuse": "stack"}}),
        (shared_scene(), {"method": "draft", "max_error": 0.1}),
    ):
        try:
            scene.accelerated(**settings)
        except Exception as error:
            said.append(str(error))
    try:
        dittools.share_guidance(Scene("wan"))
    except BadInput as error:
        said.append(str(error))
    return said


def test_what_cannot_be_shared_is_said(pool):
    for alone, stack, bound, four in pool.run(refused):
        assert "max_error is for one device" in bound
        assert "this call has 1 samples, so draw with guidance, or without cfg" in alone
        assert "use reuse=output" in stack
        assert "guidance has two branches, and 4 ranks are to share them: give a mesh" in four


def test_without_a_process_group_it_is_said():
    with pytest.raises(BadInput, match="init_process_group in every process first"):
        dittools.share_guidance(None)


def talked():
    """A message there and back."""
    pair = mesh(1, 1, 2)["cfg"].get_group()
    rank = dist.get_rank(pair)
    ranks = dist.get_process_group_ranks(pair)
    channel = Channel(
        [dist.new_group(ranks, use_local_synchronization=True) for _ in range(2)], rank, torch.device("cpu")
    )
    keep = torch.rand(1, 2, 5, 11) < 0.5
    odd = torch.arange(24.0).view(2, 3, 4).transpose(0, 2)
    said = {"mask": BlockMask(keep, Partition(40, 8), Partition(88, 8)), "odd": [odd, odd], "none": torch.empty(0, 3)}
    said |= {"half": torch.ones(3, dtype=torch.bfloat16), "number": torch.tensor(3)}
    size = channel.send("first", said) + channel.send("second", rank)
    (kind, heard), second = channel.receive(), channel.receive()
    channel.arrived()
    same = torch.equal(heard["odd"][0], odd) and heard["odd"][0] is heard["odd"][1] and heard["none"].shape == (0, 3)
    same &= heard["mask"].keep.shape == keep.shape and heard["half"].dtype == torch.bfloat16 and heard["number"] == 3
    return size, kind, second, same


def test_a_message_is_what_was_said(pool):
    for rank, (size, kind, second, same) in enumerate(pool.run(talked)):
        assert kind == "first" and second == ("second", 1 - rank % 2) and same and 96 < size < 4000


class Soon(Elsewhere):
    """A forward that is made as soon as it is waited for."""

    def __init__(self, buffer):
        self.done, self._buffer, self.reads = False, buffer, 0

    def wait(self, read=True):
        self.reads += 1
        self._buffer.fill_(7.0)
        self.done = True


@pytest.mark.parametrize(
    "ask, reads",
    [
        (lambda x: x.shape, 0),
        (lambda x: (x.dtype, x.device, x.ndim, x.size(1), len(x), x.stride()), 0),
        (lambda x: x[:, 1:].chunk(2)[0].view(-1), 0),
        (lambda x: x.reshape(2, 2, 4).transpose(0, 1), 0),
        (lambda x: x[torch.tensor([1])], 1),
        (lambda x: x.transpose(0, 1).reshape(-1), 1),
        (lambda x: x.to(torch.float64), 1),
        (lambda x: torch.cat([x, x]), 1),
        (lambda x: x.sum().item(), 1),
        (lambda x: torch.ones(2, 8).add_(x), 1),
        (lambda x: x.numpy(), 1),
        (repr, 1),
    ],
)
def test_what_is_awaited_is_read_when_its_numbers_are(ask, reads):
    buffer = torch.zeros(2, 8)
    soon = Soon(buffer)
    made = awaited(buffer, soon)
    found = ask(made)
    assert soon.reads == reads and isinstance(made, torch.Tensor)
    if isinstance(found, torch.Tensor):
        assert type(found) is (torch.Tensor if reads else Awaited)
        rest = found + 0
        assert type(rest) is torch.Tensor and rest.min() >= 7 and soon.reads == 1
