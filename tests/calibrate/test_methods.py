"""Calibrators of methods: their tables are those of masks over tokens, and a call costs few launches and no wait."""

import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dittools.calibrate import CALIBRATORS, Size, block_statistics, key_groups, mass_sums
from dittools.calibrate import paro as paro_calibration
from dittools.clock import StepInfo
from dittools.observer import AttentionEvent
from dittools.orders.axes import AXES, axis_order
from dittools.selection.profiled import decode_mass
from dittools.tokens import TokenGrid
from tests.calibrate.by_token import ORACLES
from tests.methods.watch import Memory, NoSync

GRIDS = {
    "ragged": TokenGrid(5, 7, 9),
    "text last": TokenGrid(5, 6, 10, text=37, text_position="last"),
    "text first": TokenGrid(9, 5, 6, text=5, text_position="first"),
    "one frame": TokenGrid(1, 13, 11),
    "whole tiles": TokenGrid(4, 8, 8),
}
SIZE = Size(layers=2, heads=3, steps=4, block_size=16)
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


def calls_of(grid, size=SIZE, batches=2, dim=16, device="cpu"):
    """Every call of a run with two branches; what heads look at differs and is uneven."""
    calls = []
    for step in range(size.steps):
        for branch in ("cond", "uncond"):
            for layer in range(size.layers):
                generator = torch.Generator().manual_seed(len(calls))
                q, k, v = torch.randn(3, batches, grid.tokens, size.heads, dim, generator=generator).unbind(0)
                near = torch.randn(batches, grid.tokens, size.heads, dim, generator=generator).cumsum(1) / 6
                for head in range(size.heads):  # neighbours along other axes are alike in each
                    near[:, axis_order(grid, AXES[-head % 6]).long(), head] = near[:, :, head].clone()
                q, k, v = (x.to(device) for x in (q + near, k + near, v))
                calls.append(AttentionEvent(layer, q, k, v, 0.4, StepInfo(False, step, size.steps, branch, True), grid))
    return calls


def calibrated(name, calls, size=SIZE):
    calibrator = CALIBRATORS[name](size)
    for round in range(calibrator.rounds):
        for event in calls:
            calibrator.observe(event, round)
    return calibrator


@pytest.fixture(autouse=True)
def no_timing(monkeypatch):
    monkeypatch.setattr("dittools.calibrate.sparse_vdit.kernel_cost", lambda *_: {})


@functools.cache
def wanted(name, grid):
    calls = calls_of(grid)
    return ORACLES[name](calls, CALIBRATORS[name](SIZE), SIZE)


def same(found, want, **tolerance):
    (section, arrays), (want_section, want_arrays) = found, want
    assert arrays.keys() == want_arrays.keys()
    for name, value in want_section.items():
        assert section[name] == (pytest.approx(value, abs=6e-5) if name == "density" else value)
    for name, table in arrays.items():
        if name == "mass":  # a byte is a step of 6 %
            assert (table.int() - want_arrays[name].int()).abs().max() <= 1
            assert (table != want_arrays[name]).float().mean() < 0.01
        else:
            torch.testing.assert_close(table, want_arrays[name].to(table.dtype), **tolerance)
        assert table.device.type == "cpu"


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("name", CALIBRATORS)
def test_tables_are_those_of_masks_over_tokens(name, grid):
    if name in ("svg", "sparse_vdit") and grid.frames == 1:
        pytest.skip("for videos")
    same(calibrated(name, calls_of(grid)).tables(), wanted(name, grid), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_chunks_of_heads_and_blocks_change_nothing(name, monkeypatch):
    for home in (key_groups, block_statistics, paro_calibration):
        monkeypatch.setattr(home, "CHUNK_BYTES", 1)
    monkeypatch.setattr(block_statistics, "CPU_CHUNK_BYTES", 1)
    grid = GRIDS["text last"]
    same(calibrated(name, calls_of(grid)).tables(), wanted(name, grid), rtol=1e-4, atol=1e-7)


class Launches(TorchDispatchMode):
    """Counts operators that a GPU would run: those that are no views."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.count += not function.is_view
        return out


MOST_LAUNCHES = {"paro": 80, "sparse_vdit": 100, "sta": 90, "attention_tile": 60, "svg": 90}


@pytest.mark.parametrize("name", CALIBRATORS)
def test_a_call_takes_few_launches_however_many_heads_and_never_waits(name, monkeypatch):
    # On a card the masses are two launches a chunk; here they walk over heads.
    monkeypatch.setattr(
        paro_calibration,
        "measure_block_mass",
        lambda q, k, query, key, scale, passes: q.new_zeros(q.shape[0], q.shape[2], query.count, key.count),
    )
    monkeypatch.setattr(block_statistics, "CPU_CHUNK_BYTES", block_statistics.CHUNK_BYTES)
    counts = []
    for heads in (2, 12):
        size = Size(1, heads, 1, 16)
        calls = calls_of(GRIDS["text last"], size)
        calibrator = CALIBRATORS[name](size)
        counts.append([])
        for round in range(calibrator.rounds):
            calibrator.observe(calls[0], round)
            with Launches() as launches, NoSync():
                calibrator.observe(calls[1], round)
            counts[-1].append(launches.count)
    assert counts[0] == counts[1] and max(counts[0]) <= MOST_LAUNCHES[name]


@pytest.mark.parametrize("name", CALIBRATORS)
def test_a_call_holds_little_beside_its_tensors(name, monkeypatch):
    """Chunks bound what is held: with many heads not more than with few, apart from what is kept of every head."""
    monkeypatch.setattr(key_groups, "CHUNK_BYTES", 4 << 20)
    grid, peaks = TokenGrid(6, 16, 16), []
    for heads in (4, 16):
        size = Size(1, heads, 1, 64)
        calls = calls_of(grid, size, batches=1)
        calibrator = CALIBRATORS[name](size)
        for round in range(calibrator.rounds):
            calibrator.observe(calls[0], round)
        with Memory() as memory:
            calibrator.observe(calls[1], 0)
        peaks.append(memory.peak)
    tensors = 3 * 4 * calls[0].q.numel()
    assert peaks[1] <= peaks[0] + 12 * (2 << 20) and peaks[1] <= tensors + (12 << 20)


class Sizes(TorchDispatchMode):
    """Counts launches on the device and holds that none reads the host's memory."""

    launches = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)}
        if "meta" in devices and not function.is_view:
            self.launches += 1
            assert devices == {"meta"} or function is torch.ops.aten._to_copy.default, function
        return out


@pytest.mark.parametrize("name", CALIBRATORS)
def test_at_32760_tokens_a_call_is_some_hundred_launches_in_some_hundred_megabytes(name, monkeypatch):
    """On a device that computes nothing: sizes alone. A dense call of 6 heads takes 3 ms, a launch 5 us."""

    def masses(q, k, query, key, scale, passes):
        return q.new_empty(q.shape[0], q.shape[2], query.count, key.count, dtype=torch.float32)

    monkeypatch.setattr(paro_calibration, "measure_block_mass", masses)
    monkeypatch.setattr(
        paro_calibration, "gather_tokens", lambda tensors, order: [torch.empty_like(x) for x in tensors]
    )
    grid, size = TokenGrid(21, 30, 52), Size(8, 6, 16, 64)
    calibrator = CALIBRATORS[name](size)
    q = torch.empty(1, grid.tokens, size.heads, 64, device="meta", dtype=torch.bfloat16)
    for round in range(calibrator.rounds):
        event = AttentionEvent(0, q, q, q, 0.125, StepInfo(False, calibrator.steps[0], size.steps, "cond", True), grid)
        calibrator.observe(event, round)
        with Sizes() as sizes, Memory() as memory:
            calibrator.observe(event, round)
        assert 5 < sizes.launches < (1000 if name == "paro" else 120)
        assert memory.peak < (450 << 20 if name == "paro" else 160 << 20)


def test_groups_hold_every_token_once_and_text_apart():
    grid = GRIDS["text first"]
    groups = key_groups.KeyGroups.of_video(grid.positions()[:, 0].contiguous() % 2, grid, "cpu")
    assert groups.sizes.tolist() == [150, 120, 5] and groups.text.tolist() == [False, False, True]
    assert groups.tokens[groups.live].sort().values.tolist() == list(range(grid.tokens))
    for group, (tokens, live) in enumerate(zip(groups.tokens, groups.live, strict=True)):
        assert (groups.of_token[tokens[live]] == group).all()


def test_a_long_text_is_cut_into_groups_no_longer_than_those_of_the_video():
    grid = TokenGrid(2, 2, 3, text=14, text_position="last")
    groups = key_groups.KeyGroups.of_video(grid.positions()[:, 0].contiguous(), grid, "cpu")
    assert groups.sizes.tolist() == [6, 6, 6, 6, 2] and groups.text.tolist() == [False, False, True, True, True]


def test_a_candidate_that_keeps_all_loses_nothing_and_one_that_keeps_nothing_all():
    event, rows = calls_of(GRIDS["ragged"])[0], torch.tensor([0, 5, 200])
    groups = key_groups.KeyGroups.of(torch.arange(event.grid.tokens) // 20, "cpu")
    kept = torch.stack([torch.full((3, len(groups.tokens)), keep) for keep in (True, False)])
    error = key_groups.errors_by_group(event, rows, groups, kept)
    weights = (torch.einsum("bqhd,bkhd->bhqk", event.q[:, rows], event.k) * event.scale).softmax(-1)
    power = torch.einsum("bhqk,bkhd->bhqd", weights, event.v).square().mean((-1, -2))
    assert error[0].abs().max() < 1e-12
    torch.testing.assert_close(error[1], power)
    torch.testing.assert_close(
        key_groups.mass_by_group(event, rows, groups), weights.sum((0, 2)).split(20, -1)[0].new_tensor(
            [[part.sum() for part in head.split(20)] for head in weights.sum((0, 2))]
        )
    )  # fmt: skip


def test_prompts_of_other_lengths_are_measured_by_their_own_grid():
    size = Size(1, 3, 1, 16)
    for name in ("sta", "attention_tile", "svg"):
        calibrator, alone = CALIBRATORS[name](size), []
        for grid in (GRIDS["text last"], TokenGrid(5, 6, 10, text=50, text_position="last")):
            calls = calls_of(grid, size)
            for event in calls:
                calibrator.observe(event, 0)
            alone.append(calibrated(name, calls, size).tables()[1]["error"])
        torch.testing.assert_close(calibrator.tables()[1]["error"], sum(alone) / 2)


def test_profiles_say_which_steps_were_measured():
    size = Size(2, 3, 40, 16)
    found = {name: CALIBRATORS[name](size) for name in CALIBRATORS}
    assert {name: len(calibrator.steps) for name, calibrator in found.items()} == {
        "paro": 3, "sparse_vdit": 6, "sta": 8, "attention_tile": 6, "svg": 6,
    }  # fmt: skip
    calls = calls_of(GRIDS["ragged"])
    for name in CALIBRATORS:
        section, _ = calibrated(name, calls).tables()
        assert section["measured_steps"] == [0, 1, 2, 3]
    assert calibrated("paro", calls).tables()[0]["order_steps"] == [0, 2, 3]


# Masses of large grids


def test_masses_that_fit_keep_their_block_size_and_others_have_that_of_runs_on_cuda():
    size, cuda = Size(8, 6, 16, 64), torch.device("cuda")
    assert paro_calibration.mass_blocks(size, 9 * 32 * 32, cuda) == 64
    assert paro_calibration.mass_blocks(size, 32_760, cuda) == 128
    assert paro_calibration.mass_blocks(size, 32_760, torch.device("cpu")) == 64
    assert paro_calibration.mass_blocks(Size(40, 40, 50, 64), 75_600, cuda) == 128


@pytest.mark.parametrize("on_host", [False, pytest.param(True)])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_masses_add_up_wherever_they_are_kept(device, on_host, monkeypatch):
    if on_host:
        monkeypatch.setattr(mass_sums, "MOST_DEVICE_BYTES", 0)
    kept = mass_sums.MassSums(2, 3, 2, 4, torch.device(device))
    given = torch.randn(2, 3, 5, 2, 4, 4)
    for n in range(5):
        for group in range(2):
            for layer in (0, 2):
                kept.add(group, layer, given[group, layer, n].to(device))
    want = given.sum(2)
    want[:, 1] = 0
    torch.testing.assert_close(kept.sums().cpu(), want)
    assert kept.measured().tolist() == [[True, False, True]] * 2
    assert kept.sums().device.type == ("cpu" if on_host else device)


def test_masks_of_a_large_grid_are_those_of_its_masses(monkeypatch):
    calls = calls_of(GRIDS["text last"])
    monkeypatch.setattr(paro_calibration, "MOST_MASS_BYTES", 0)
    section, arrays = calibrated("paro", calls).tables()
    mass = calibrated("paro", calls).mass.sums()
    assert section["sparsities"] == list(paro_calibration.SPARSITIES)
    partition = paro_calibration.Partition(GRIDS["text last"].tokens, 16)
    sizes, areas = partition.sizes(), paro_calibration.areas_of(GRIDS["text last"], 16)
    force = paro_calibration.always_kept(GRIDS["text last"], partition, 0.3)
    for group, layers in enumerate(mass):
        keep = paro_calibration.select_topk_blocks_by_area(layers, sizes, areas, 0.3, scope="layer", force=force)
        assert torch.equal(arrays["keep.0.7"][group], paro_calibration.pack_bits(keep))


@pytest.mark.parametrize("name", [pytest.param(name, marks=GPU) for name in CALIBRATORS])
def test_on_a_card_the_tables_are_the_same_and_nothing_waits(name):
    grid, size = TokenGrid(5, 18, 20, text=37, text_position="last"), Size(2, 3, 4, 64)
    want = calibrated(name, calls_of(grid, size, dim=64), size).tables()
    calibrator = CALIBRATORS[name](size)
    calls = calls_of(grid, size, dim=64, device="cuda")
    for round in range(calibrator.rounds):
        for number, event in enumerate(calls):
            torch.cuda.set_sync_debug_mode("error" if number > 1 else "default")
            try:
                calibrator.observe(event, round)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    section, arrays = calibrator.tables()
    assert {key: value for key, value in section.items() if key != "classes"}.keys() >= want[0].keys() - {"classes"}
    for key, table in arrays.items():
        if key == "mass":
            again = (decode_mass(x, paro_calibration.Partition(grid.tokens, 64)) for x in (table, want[1][key]))
            torch.testing.assert_close(*again, rtol=0.2, atol=0.05)
        elif table.is_floating_point():
            torch.testing.assert_close(table, want[1][key], rtol=0.01, atol=1e-5)
