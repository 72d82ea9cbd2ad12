"""A kernel that has not proved itself on a type of card is not chosen there."""

import functools
import json
from pathlib import Path

import pytest
import torch
from cases import inputs, random_mask, random_order

from dittools.kernels import (
    block_sparse_attention,
    capability,
    checked,
    choice,
    first_use,
    implementations,
    measure_block_mass,
    measure_lse,
)
from dittools.kernels.clusters import dispatch as clusters
from dittools.kernels.masks.block_mask import Partition
from dittools.kernels.masks.cluster_mask import ClusterMask, ClusterPartition

ENTRY = {
    "implementation": "hopper",
    "capability": "9.0",
    "triton": "3.6",
    "speedup_over_triton": {"raster": 1.4, "ordered": 0.9},
}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """An empty table of its own, on a machine with Triton 3.6."""
    monkeypatch.setattr(checked, "TABLE", tmp_path / "checked.json")
    monkeypatch.setattr(checked, "triton_version", lambda: "3.6.0")
    monkeypatch.setenv(first_use.SWITCH, "0")
    return tmp_path / "checked.json"


@pytest.fixture
def on_hopper(monkeypatch):
    """CPU tensors that say they are on a Hopper card; every kernel can run there."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    for name in capability.REASONS:
        monkeypatch.setitem(capability.REASONS, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Hopper of a test")
    monkeypatch.setattr(torch.Tensor, "device", torch.device("cuda"))


def entry(**changes):
    return {**ENTRY, "source": checked.fingerprint("hopper"), **changes}


def test_without_an_entry_the_reason_says_what_to_run(table):
    assert checked.why_unchecked("hopper", "9.0") == (
        "not yet checked on this card type (9.0): run dittools bench kernel --check"
    )


def test_an_entry_counts_for_its_card_type_triton_and_source(table, monkeypatch):
    checked.enter(entry())
    assert checked.why_unchecked("hopper", "9.0") is None
    assert "card type (9.1)" in checked.why_unchecked("hopper", "9.1")
    monkeypatch.setattr(checked, "triton_version", lambda: "3.7.1")
    assert "not yet checked with Triton 3.7" in checked.why_unchecked("hopper", "9.0")
    monkeypatch.setattr(checked, "triton_version", lambda: "3.6.0")
    checked.enter(entry(source="of another day"))
    assert "changed since it was checked" in checked.why_unchecked("hopper", "9.0")


def test_a_slower_kernel_is_not_taken(table):
    checked.enter(entry())
    assert checked.why_unchecked("hopper", "9.0", ordered=False) is None
    assert "0.90x with an order" in checked.why_unchecked("hopper", "9.0", ordered=True)


def test_a_new_entry_replaces_the_old_one_of_the_same_kernel_and_card(table):
    checked.enter(entry(source="old"))
    checked.enter(entry(capability="9.1"))
    checked.enter(entry())
    found = json.loads(table.read_text())["entries"]
    assert [(e["capability"], e["source"]) for e in found] == [
        ("9.1", entry()["source"]),
        ("9.0", entry()["source"]),
    ]


def test_hopper_is_chosen_once_it_is_checked_and_then_only_where_it_pays(table, on_hopper):
    q, k, v = inputs(1, 300, 1, 64)
    mask = random_mask(300, 128, 64)
    order = random_order(1, 1, 300)
    assert choice.choose(q, k, v, mask) == "triton"
    assert choice.choose(q, k, v, mask, implementation="hopper") == "hopper"
    assert "not yet checked" in dict(implementations("cuda", torch.bfloat16, 128))["hopper"]
    checked.enter(entry())
    assert dict(implementations("cuda", torch.bfloat16, 128))["hopper"] is None
    assert choice.choose(q, k, v, mask) == "hopper"
    assert choice.choose(q, k, v, mask, order=order) == "triton"


def test_tiles_of_64_rows_are_chosen_by_an_entry_of_their_own(table, on_hopper):
    q, k, v = inputs(1, 300, 1, 64)
    wide, narrow, order = random_mask(300, 128, 64), random_mask(300, 64, 64), random_order(1, 1, 300)
    checked.enter(entry())
    assert (choice.choose(q, k, v, wide), choice.choose(q, k, v, narrow)) == ("hopper", "triton")
    assert choice.choose(q, k, v, narrow, implementation="hopper") == "hopper"
    own = {"implementation": "hopper-64", "source": checked.fingerprint("hopper-64")}
    checked.enter(entry(**own, speedup_over_triton={"raster": 0.9, "ordered": 1.1}))
    assert (choice.choose(q, k, v, wide), choice.choose(q, k, v, narrow)) == ("hopper", "triton")
    assert choice.choose(q, k, v, wide, order=order) == "triton"
    assert choice.choose(q, k, v, narrow, order=order) == "hopper"


def test_the_kernel_for_clusters_is_chosen_by_an_entry_of_its_own(table, on_hopper):
    q, k, v = inputs(1, 300, 1, 64)
    sizes = ClusterPartition(300, torch.tensor([[[100, 200]]], dtype=torch.int32))
    mask, blocks, order = (
        ClusterMask(torch.ones(1, 1, 2, 2) > 0, sizes, sizes),
        random_mask(300, 128, 64),
        random_order(1, 1, 300),
    )
    checked.enter(entry())
    assert choice.choose(q, k, v, mask) == "triton"
    assert choice.choose(q, k, v, mask, implementation="hopper") == "hopper"
    of_clusters = {"implementation": "hopper-clusters", "source": checked.fingerprint("hopper-clusters")}
    checked.enter(entry(**of_clusters, speedup_over_triton={"raster": 0.9, "ordered": 1.4}))
    assert choice.choose(q, k, v, mask) == "triton"
    assert choice.choose(q, k, v, mask, order=order) == "hopper"
    assert choice.choose(q, k, v, blocks) == "hopper"
    assert choice.choose(q, k, v, blocks, order=order) == "triton"
    with pytest.raises(ValueError, match="'hopper' cannot run this call: it has no backward"):
        choice.choose(q.requires_grad_(), k, v, mask, implementation="hopper")


def test_the_kernel_for_mass_is_chosen_by_an_entry_of_its_own_and_then_only_where_it_pays(
    table, on_hopper, monkeypatch
):
    monkeypatch.setattr(choice, "why_not_hopper_mass", lambda q, *blocks: None)
    monkeypatch.setattr(choice, "why_not_triton_at_all", lambda *_: None)
    q, k, _ = inputs(1, 300, 1, 64, torch.bfloat16)
    blocks = Partition(300, 128), Partition(300, 64)
    ask = functools.partial(choice.choose_mass, q, k, *blocks)
    checked.enter(entry())
    assert "not yet checked" in checked.why_unchecked("hopper-mass", "9.0", call="one pass")
    assert (ask(), ask(known=True)) == ("triton", "triton") and ask(implementation="hopper") == "hopper"
    own = {"implementation": "hopper-mass", "source": checked.fingerprint("hopper-mass")}
    checked.enter(entry(**own, speedup_over_triton={"two passes": 1.5, "one pass": 0.9}))
    assert (ask(), ask(known=True)) == ("hopper", "triton")
    assert ask(implementation="portable") == "portable"
    reason = checked.why_unchecked("hopper-mass", "9.0", call="one pass")
    assert reason == "slower than triton on this card type (9.0): 0.90x with the LSE known"
    assert checked.why_unchecked("hopper-mass", "9.0") is None
    with pytest.raises(ValueError, match="'hopper' cannot run this call: it has no backward"):
        choice.choose_mass(q.requires_grad_(), k, *blocks, implementation="hopper")


def test_where_the_kernel_for_mass_cannot_run_the_reason_is_said(monkeypatch):
    q, k, _ = inputs(1, 300, 1, 64, torch.bfloat16)
    for call in (
        lambda: measure_lse(q, k, implementation="hopper"),
        lambda: measure_block_mass(q, k, *[Partition(300, 64)] * 2, implementation="hopper"),
    ):
        with pytest.raises(ValueError, match="'hopper' cannot run this call: needs a CUDA device, got cpu"):
            call()
    monkeypatch.setattr(capability, "why_not_hopper", lambda *_: None)
    assert capability.why_not_hopper_mass(q, 128, 64) is None
    assert capability.why_not_hopper_mass(q, 32, 64) == "needs blocks of 64 or 128, got 32 and 64"


@pytest.mark.parametrize("kernel", checked.SOURCES)
def test_every_file_of_a_kernel_counts(kernel, monkeypatch, tmp_path):
    home = Path(checked.__file__).parent
    for name in checked.SOURCES[kernel]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((home / name).read_bytes())
    monkeypatch.setattr(checked, "__file__", str(tmp_path / "checked.py"))
    checked.fingerprint.cache_clear()
    found = [checked.fingerprint(kernel)]
    for name in checked.SOURCES[kernel]:
        with (tmp_path / name).open("a") as file:
            file.write("\n")
        checked.fingerprint.cache_clear()
        found.append(checked.fingerprint(kernel))
    checked.fingerprint.cache_clear()
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("orders", ["none", "one", "two"])
def test_a_call_hands_tensors_mask_and_orders_to_the_kernel_for_clusters(monkeypatch, on_hopper, table, orders):
    q, k, v = inputs(1, 300, 2, 64)
    sizes = ClusterPartition(300, torch.tensor([[[100, 200]]], dtype=torch.int32))
    mask = ClusterMask(torch.ones(1, 1, 2, 2) > 0, sizes, sizes)
    order = None if orders == "none" else random_order(1, 2, 300)
    key_order = random_order(1, 2, 300, seed=1) if orders == "two" else None
    seen = []

    def attend(*tensors, **call):
        seen.append((tensors, call))
        return q, q[..., 0]

    monkeypatch.setattr(clusters, "hopper_cluster_attention", attend)
    call = {"order": order, "key_order": key_order, "scale": 0.5, "implementation": "hopper"}
    assert block_sparse_attention(q, k, v, mask, **call) is q
    ((tensors, call),) = seen
    assert all(x is y for x, y in zip(tensors, (q, k, v, mask), strict=True))
    assert call["order"] is order and call["key_order"] is (order if key_order is None else key_order)
    assert call["scale"] == 0.5


def test_plain_pytorch_on_a_gpu_is_warned_about_with_the_reason(table, on_hopper):
    q, k, v = inputs(1, 130, 1, 64)
    q.requires_grad_()
    with pytest.warns(UserWarning, match="because triton cannot: it has no backward: call it under torch.no_grad"):
        assert choice.choose(q, k, v, random_mask(130, 64, 64)) == "portable"
    with pytest.raises(ValueError, match="'hopper' cannot run this call: it has no backward"):
        choice.choose(q, k, v, random_mask(130, 64, 64), implementation="hopper")


SHIPPED = [(kernel, triton) for triton in ("3.6.0", "3.7.1", "3.9.0") for kernel in checked.SOURCES]


@pytest.mark.parametrize(("kernel", "triton"), SHIPPED)
def test_what_ships_is_proved_as_it_is_with_every_triton_that_it_names(monkeypatch, kernel, triton):
    monkeypatch.setattr(checked, "triton_version", lambda: triton)
    entry = checked.find(kernel, "9.0")
    assert entry["cases"] >= 28 and checked.why_unchecked(kernel, "9.0") is None
    assert entry["versions"]["triton"] == triton
