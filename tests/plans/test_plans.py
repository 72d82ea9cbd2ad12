"""Plans of a run, exported and loaded: the same to the bit, for other prompts too, and wrong files refused by name."""

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

import dittools.sparse as home
from dittools import caches, methods
from dittools.caches.base import OutputCache
from dittools.config import Config
from dittools.dense_rows import DenseRows
from dittools.files import sha256
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.kernels.masks.cluster_mask import ClusterMask, ClusterPartition
from dittools.methods import METHODS, Plan, StayDense
from dittools.plans import form, manifest
from dittools.plans.checks import problem
from dittools.plans.export import CannotExport, export
from dittools.plans.loaded import LoadedPlans
from dittools.plans.record import PlanRecord
from dittools.plans.rows import Rows
from dittools.ranks import Heads, Ranks
from dittools.tokens import Part, TokenGrid
from tests.plans.drive import GRID, MODEL, STEPS, Drawer, exported

PLAIN = [name for name, cls in METHODS.items() if name not in ("dense", "trained") and cls.profile_use != "needed"]
GRIDS = {
    "video": GRID,
    "ragged": TokenGrid(5, 7, 11),
    "text last": TokenGrid(5, 8, 10, 21, "last"),
    "text first": TokenGrid(5, 8, 10, 21, "first"),
    "parts": TokenGrid(3, 8, 10, 37, "last", (Part.of("reference", 1, 9, 11),)),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "plans.json"


def asked(monkeypatch):
    """Fails the test where a method is asked."""

    def plan(self, *args):
        raise AssertionError(f"{self.name} was asked")

    for cls in METHODS.values():
        monkeypatch.setattr(cls, "plan", plan)


@pytest.mark.parametrize("name", PLAIN)
def test_a_loaded_run_draws_the_same_to_the_bit_and_asks_no_method(name, path, monkeypatch):
    out, written, one = exported(path, method=name)
    assert written.calls == 2 * 3 * (STEPS - 1) and one.runtime.run.skipped(one.runtime.run.calls) > 0.3
    asked(monkeypatch)
    again = Drawer(plans=str(path))
    assert torch.equal(again.draw(), out)
    assert not again.runtime.run.fallbacks
    ours, theirs = (run.densities(run.calls) for run in (one.runtime.run, again.runtime.run))
    assert ours == theirs
    other = again.draw(prompt=3)
    assert not torch.equal(other, out) and again.runtime.run.densities(again.runtime.run.calls) == theirs


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", ["svg", "svg2", "draft", "todo"])
def test_any_grid_comes_back_as_it_was(name, grid, path):
    out, _, _ = exported(path, GRIDS[grid], method=name)
    assert torch.equal(Drawer(plans=str(path)).draw(grid=GRIDS[grid]), out)


SETTINGS = [
    {"refresh": 3},
    {"share_branches": False},
    {"correction": "centroids"},
    {"correction": "rettention", "correction_options": {"every": 2}, "refresh": 2},
    {"dense_layers": 1, "dense_last_steps": 2},
    {"cache": "easycache:threshold=5", "correction": "centroids"},
    {"cache": "easycache:threshold=5:reuse=delta", "refresh": 2},
    {"cache": "taylorseer:interval=2:taylor_order=1:warmup_steps=1"},
    {"cache": "sea:threshold=5"},
    {"cache": "pab:high=2000:interval=2"},
    {"cache": "fastercache:high=2000:branch_high=2000:branch_interval=2"},
    {"method": "dense", "cache": "easycache:threshold=5"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_corrections_schedules_and_caches_come_back_as_they_were(settings, path):
    out, _, one = exported(path, **{"method": "draft"} | settings)
    again = Drawer(plans=str(path))
    assert torch.equal(again.draw(), out)
    run, before = again.runtime.run, one.runtime.run
    if before.reuse is not None:
        assert any(e.reused for e in before.reuse.log) or before.reuse.attention_reused
        assert [(e.step, e.branch, e.reused) for e in run.reuse.log] == [
            (e.step, e.branch, e.reused) for e in before.reuse.log
        ]
        assert run.reuse.attention_reused == before.reuse.attention_reused
    assert again.runtime.config == Config(plans=str(path))
    assert [c.density is None for c in run.calls] == [c.density is None for c in before.calls]
    draft = Drawer(method="draft")
    draft.draw()
    assert not torch.equal(draft.draw(), out), "these settings change nothing, so the test proves nothing"


def test_a_cache_decides_nothing_in_a_loaded_run(path, monkeypatch):
    _, _, one = exported(path, method="dense", cache="easycache:threshold=5")

    def signal(*args):
        raise AssertionError("the cache was asked")

    monkeypatch.setattr(caches.CACHES["easycache"], "signal", signal)
    again = Drawer(plans=str(path))
    again.draw(prompt=5)
    steps = [[e.step for e in run.reuse.log if e.reused] for run in (one.runtime.run, again.runtime.run)]
    assert steps[0] == steps[1] != []
    assert not path.with_suffix(".safetensors").exists(), "there is no plan, so there are no tables"


def test_a_plan_that_many_calls_share_is_kept_once_and_a_head_with_an_equal_mask_too(path):
    _, static, _ = exported(path, method="clear")
    said = json.loads(path.read_text())
    assert static.plans == len(said["plans"]) == 1 and static.calls == 30
    assert all(use["steps"] == [[1, 5, 0, True]] for use in said["uses"] if use["branch"] == "cond")
    assert said["tables"]["keep.7x7"]["shape"] == [1, 7, 1]
    _, each, _ = exported(path, method="svg", refresh=2)
    tables = load_file(path.with_suffix(".safetensors"))
    assert each.plans > 1 and len(tables["keep.7x7"]) <= 2 and len(tables["order.400"]) == 2
    assert sum(each.table_bytes.values()) == sum(x.nbytes for x in tables.values())
    assert each.files[path] == path.stat().st_size
    fresh = [steps for use in json.loads(path.read_text())["uses"] for steps in use["steps"]]
    assert {False, True} == {group[3] for group in fresh}


def test_a_call_that_stayed_dense_stays_dense_and_one_that_was_run_again_is_not(path, monkeypatch):
    calls, real = [], METHODS["draft"].plan

    def plan(self, q, k, v, call):
        return StayDense("too hard") if call.layer == 1 and call.step == 2 else real(self, q, k, v, call)

    monkeypatch.setattr(METHODS["draft"], "plan", plan)
    attend = home.attend

    def broken(*args, **how):
        out, lse = attend(*args, **how)
        calls.append(1)
        return (out.index_fill(1, torch.tensor([3]), torch.nan) if len(calls) == 9 else out), lse

    monkeypatch.setattr(home, "attend", broken)
    out, _, one = exported(path, method="draft")
    assert len(one.runtime.run.dense_from) == 1
    monkeypatch.setattr(home, "attend", attend)
    again = Drawer(plans=str(path))
    assert torch.equal(again.draw(), out)
    assert again.runtime.run.fallbacks == {"too hard": 2, "non-finite result in the exported run": 1}


@pytest.mark.parametrize("correction", ["none", "sampled"])
def test_a_bound_on_errors_holds_for_other_prompts_too(correction, path):
    out, _, one = exported(path, method="svg", max_error=0.3, correction=correction)
    assert any("max_error" in reason for reason in one.runtime.run.fallbacks)
    alike = "sampled: all heads alike, as a plan that goes to a file tells of none"
    assert (alike in one.runtime.run.notes) == (correction == "sampled")
    again = Drawer(plans=str(path))
    assert torch.equal(again.draw(), out) and again.runtime.run.fallbacks == one.runtime.run.fallbacks
    again.draw(prompt=3)
    assert any("max_error" in reason for reason in again.runtime.run.fallbacks)
    loose = Drawer(plans=str(path))
    loose.runtime.listeners.append(lambda *told: setattr(loose.runtime.run, "bound", None))  # as if no row were above
    assert loose.draw(prompt=3).isfinite().all()


def test_text_behind_the_picture_may_be_of_another_length(path):
    exported(path, GRIDS["text last"], method="draft")
    for text in (5, 21, 90):
        grid = replace(GRID, text=text, text_position="last")
        again = Drawer(plans=str(path))
        plans = []
        again.runtime.plan_watchers.append(lambda event, plan, plans=plans: plans.append(plan))
        assert again.draw(grid=grid).isfinite().all()
        keep = plans[0].mask.keep
        assert keep[..., 400 // 64 :, :].all() and keep[..., 400 // 64 :].all() and not keep.all()
        assert plans[0].order is None or torch.equal(
            plans[0].order.sort(-1).values.flatten(0, 1), torch.arange(400 + text).int().expand(1, -1)
        )
    exported(path, GRIDS["text last"], method="svg2")
    with pytest.raises(ValueError, match="plans text by the token, so give a prompt as long"):
        Drawer(plans=str(path)).draw(grid=grid)
    exported(path, GRIDS["text first"], method="draft")
    with pytest.raises(ValueError, match=r"21 text in front, and this call has .* 90 text in front: give a prompt as"):
        Drawer(plans=str(path)).draw(grid=replace(GRID, text=90, text_position="first"))


def test_what_does_not_fit_is_refused_and_both_sides_are_named(path):
    exported(path, method="draft")
    plans = str(path)
    again = Drawer(plans=plans)
    with pytest.raises(ValueError, match=r"for 6 steps, and this run has 7: use 6, or export"):
        again.draw(steps=7)
    with pytest.raises(ValueError, match=r"for 5 x 8 x 10 tokens, and this run has 4 x 10 x 10: use the same size"):
        again.draw(grid=TokenGrid(4, 10, 10))
    with pytest.raises(ValueError, match=r"are for cond, uncond, and this run has a call of branch other: use the gui"):
        again.draw(branches=("other",))
    for change in ({"layers": 4}, {"heads": 3}, {"fingerprint": "f" * 16}, {"transformer": "Other"}):
        with pytest.raises(ValueError, match=r"are of Tiny 0123456789abcdef \(3 layers, 2 heads\), and this is"):
            Drawer(replace(MODEL, **change), plans=plans)
    exported(path, draw={"batch": 2}, method="draft")
    with pytest.raises(ValueError, match="are for 2 samples of 2 heads in a call, and this one has 3 of 2"):
        Drawer(plans=plans).draw(batch=3)


@pytest.mark.parametrize(
    ("name", "value", "decided"),
    [
        ("block_size", 128, "64"),
        ("sparsity", 0.7, "0.6"),
        ("method", "svg", "'draft'"),
        ("refresh", 2, "1"),
        ("cache", "sea", "'none'"),
        ("profile", "p.json", "None"),
    ],
)
def test_a_setting_that_the_plans_leave_no_room_for_is_refused(name, value, decided, path):
    exported(path, method="draft")
    with pytest.raises(ValueError, match=f"{name} .* was asked for, and plans .* were decided with {decided}"):
        Config(plans=str(path), **{name: value})
    config = Config(plans=str(path), strict=True, sparsity=0.6, method="draft")
    assert config.strict and config.dense_steps == 1
    assert Config.from_json(config.to_json()) == config and replace(config, strict=False) == Config(plans=str(path))


def damaged(path, change):
    """Change the JSON, and keep the digest of the tables right."""
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))


def retabled(path, name, row):
    beside = path.with_suffix(".safetensors")
    tables = load_file(beside)
    tables[name][0] = row
    save_file(tables, beside)
    damaged(path, lambda said: said.update(tables_sha256=sha256(beside)))


DAMAGE = {
    "no plans": (lambda said: said.update(kind="attention"), "is no file of plans"),
    "another version": (
        lambda said: said.update(dittools_plans=2),
        "have version 2, and this dittools reads version 1",
    ),
    "a key is missing": (lambda said: said.pop("uses"), "are damaged \\(uses is missing\\)"),
    "a plan that is not there": (lambda said: said["uses"][0]["steps"][0].__setitem__(2, 99), "and plan 99"),
    "a step that is not there": (lambda said: said["uses"][0]["steps"][0].__setitem__(1, 77), "names steps 1 to 77"),
    "a row that is not there": (lambda said: said["plans"][0]["keep"].update(lanes=[[77]]), "there is no row 77"),
    "blocks of another length": (lambda said: said["plans"][0].update(query=[399, 64]), "where the sequence has 400"),
    "a table of another shape": (
        lambda said: said["tables"]["order.400"].update(shape=[1, 4]),
        "do not belong together",
    ),
    "a method of nobody": (lambda said: said["config"].update(method="nobody"), "unknown method 'nobody'"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_refused_before_anything_runs(kind, path):
    change, why = DAMAGE[kind]
    exported(path, method="svg")
    damaged(path, change)
    with pytest.raises(ValueError, match=why) as error:
        Drawer(plans=str(path))
    assert "\n" not in str(error.value)


def test_tables_are_not_trusted(path):
    exported(path, method="svg")
    beside = path.with_suffix(".safetensors")
    whole = beside.read_bytes()
    retabled(path, "order.400", torch.full((400,), 7, dtype=torch.int32))
    with pytest.raises(ValueError, match="an order is no permutation of 400 tokens"):
        Drawer(plans=str(path))
    exported(path, method="svg2")
    retabled(path, "labels.uint8.400", torch.full((400,), 200, dtype=torch.uint8))
    with pytest.raises(ValueError, match="labels of 400 tokens in"):
        Drawer(plans=str(path))
    beside.write_bytes(whole)
    with pytest.raises(ValueError, match="do not belong together"):
        Drawer(plans=str(path))
    beside.unlink()
    with pytest.raises(ValueError, match=r"need plans.safetensors beside them"):
        Drawer(plans=str(path))
    path.write_text("[1]")
    with pytest.raises(ValueError, match="is no file of plans"):
        Drawer(plans=str(path))
    with pytest.raises(ValueError, match=r"cannot be read .*: give the JSON file that dittools export wrote"):
        Config(plans=str(path.with_name("none.json")))
    with pytest.raises(ValueError, match="is a folder: give the JSON file"):
        Config(plans=str(path.parent))


@dataclass(frozen=True)
class Own(OutputCache):
    """Carries steps over in a way of its own."""

    name: ClassVar[str] = "own"
    summary: ClassVar[str] = "for this test"

    def mask(self, run):
        return [must or step % 2 == 0 for step, must in enumerate(run.forced)]

    def predict(self, state, latents, call):
        return [2 * x for x in super().predict(state, latents, call)]


def test_what_no_file_can_hold_is_not_exported_and_the_reason_is_given(path, monkeypatch):
    with pytest.raises(CannotExport, match="there was no run"):
        export(Drawer(method="draft").runtime, path)
    one = Drawer(method="draft")
    one.draw()
    with pytest.raises(CannotExport, match=r"call keep_plans\(\) before drawing"):
        export(one.runtime, path)
    with pytest.raises(CannotExport, match="the run decided nothing: every step is dense: dense_steps 1 takes all 6"):
        exported(path, method="draft", dense_steps=1.0)
    with pytest.raises(CannotExport, match="the model is not known"):
        exported(path, model=None, method="draft")
    monkeypatch.setitem(caches.CACHES, "own", Own)
    with pytest.raises(CannotExport, match="cache own carries steps over in a way of its own"):
        exported(path, method="draft", cache="own")
    assert list(path.parent.iterdir()) == []


def test_a_run_that_ranks_shared_is_not_exported_and_plans_are_cut_for_ranks(path):
    exported(path, method="draft", share_branches=False)
    whole = Drawer(plans=str(path))
    seen = []
    whole.runtime.result_watchers.append(lambda call, taken, plan, out, sample: seen.append((call, taken, plan)))
    whole.draw()
    call, (q, _, _), plan = next(one for one in seen if one[0].layer == 2 and one[0].step == 3)
    ranks = Ranks()
    ranks.size, ranks.rank = 2, 1
    shared = replace(call, heads=Heads(ranks, ((1,), (0,))))
    mine, _ = LoadedPlans(path, MODEL).plan(q[:, :, :1], shared, (1, 0))
    assert torch.equal(mine.mask.keep, plan.mask.keep[:, :1]) and mine.mask.keep.shape[1] == 1
    record = PlanRecord()
    record.note(shared, (1, 0), plan)
    assert "several GPUs shared the run" in record.why_not


def test_an_order_that_is_no_sort_of_labels_is_kept_as_it_is():
    sizes = torch.tensor([[[3, 0, 5], [4, 4, 0]]], dtype=torch.int32)
    order = torch.stack([torch.randperm(8, generator=torch.Generator().manual_seed(i)) for i in range(2)])[None].int()
    keep = torch.rand(1, 2, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.4
    parts = ClusterPartition(8, sizes)
    rows = Rows()
    entry = form.encode(Plan(order, ClusterMask(keep, parts, parts)), rows)
    named = {}
    for table, row in form.used_rows(entry):
        named.setdefault(table, []).append(row)
    tables, numbers = rows.only(named)
    again = form.decode(form.renumbered(entry, numbers), tables, torch.device("cpu"))
    assert "sizes.3" in tables and torch.equal(again.order, order) and torch.equal(again.key_order, order)
    assert torch.equal(again.mask.keep, keep) and torch.equal(again.mask.query.run_sizes, sizes)
    assert problem(entry | {"grid": 0}, 8, tables) is None
    tables["sizes.3"][0, 0] += 1
    assert "do not add up" in problem(entry | {"grid": 0}, 8, tables)


def test_the_manifest_names_what_it_belongs_to(path):
    exported(path, method="svg:probe_rows=20", cache="easycache:threshold=5")
    found = manifest.read(path)
    assert found.model == MODEL and found.grids == (GRID,) and found.steps == STEPS
    assert found.method == {"name": "svg", "options": {"probe_rows": 20}}
    assert found.config["block_size"] == 64 and found.config["plans"] is None
    assert {use["branch"] for use in found.uses} == {"cond", "uncond"} == set(found.branches)
    drawn = {one["branch"]: one["steps"] for one in found.cache["calls"]}
    assert set(drawn["cond"]) == {"C", "r"} and len(drawn["cond"]) == STEPS
    assert manifest.read(path) is found, "a file that has not changed is read once"
    assert methods.create(*found.method.values()).probe_rows == 20


def test_queries_beside_a_mask_and_heads_of_a_rank_come_back():
    partition = Partition(100, 64)
    keep = torch.tensor([[True, False], [False, True]]).expand(1, 3, 2, 2)
    beside = DenseRows(torch.tensor([7, 9]), torch.tensor([0, 2]), 100, 64)
    rows = Rows()
    entry = form.encode(Plan(None, BlockMask(keep, partition, partition), rows=beside), rows)
    named = {}
    for table, row in form.used_rows(entry):
        named.setdefault(table, []).append(row)
    tables, _ = rows.only(named)
    assert problem(entry | {"grid": 0}, 100, tables) is None
    assert "rows beside a mask" in problem(entry | {"grid": 0, "rows": entry["rows"] | {"length": 99}}, 100, tables)
    whole = form.decode(entry, tables, torch.device("cpu")).rows
    assert torch.equal(whole.queries, beside.queries) and torch.equal(whole.heads, beside.heads)
    ranks = Ranks()
    ranks.size, ranks.rank = 2, 0
    mine = form.decode(entry, tables, torch.device("cpu"), Heads(ranks, ((1, 2), (0,))))
    assert mine.rows.heads.tolist() == [1] and mine.mask.keep.shape == (1, 2, 2, 2)


def test_blocks_are_the_exported_runs_whatever_the_device_would_take(path):
    out, _, _ = exported(path, method="draft", block_size=128)
    assert manifest.read(path).config["block_size"] == 128 == Config(plans=str(path)).block_size
    assert torch.equal(Drawer(plans=str(path)).draw(), out)
