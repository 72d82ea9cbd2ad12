"""A kernel that nobody has proven on this card, Triton and source proves itself at its first use, once."""

import json
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import filelock
import pytest
import torch
from cases import inputs, random_mask

from dittools.kernels import capability, checked, choice, first_use
from dittools.kernels.block_sparse import dispatch, naive
from dittools.kernels.block_sparse.custom_op import block_sparse_attention_op
from dittools.kernels.proof import cases as proof
from dittools.kernels.proof import short
from dittools.kernels.proof.check import Wrong

CUDA = torch.device("cuda", 0)
GLUON = pytest.mark.skipif(
    find_spec("triton") is None or find_spec("triton.experimental") is None, reason="no Gluon here"
)
PROVED, LATER = "right in 3 cases", "it will prove itself at its first use"


@pytest.fixture
def card(tmp_path, monkeypatch):
    """A Hopper card of a type, and with a Triton, of which no table says anything; how its proofs end is set by
    ``card(how)``, which gives the list of those that began."""
    monkeypatch.setattr(checked, "TABLE", tmp_path / "shipped.json")
    monkeypatch.setattr(checked, "triton_version", lambda: "4.2.1")
    monkeypatch.setattr(first_use, "card_of", lambda device: ("9.0", "Hopper of a test"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(first_use, "_OF_THIS_PROCESS", {})
    monkeypatch.setattr(first_use, "SPENT", {})
    monkeypatch.setattr(first_use, "PATIENCE", 2.0)
    monkeypatch.setenv(checked.FOLDER, str(tmp_path / "cache"))
    monkeypatch.delenv(first_use.SWITCH, raising=False)
    begun = tmp_path / "begun"
    begun.touch()

    def ending(how):
        command = [sys.executable, str(Path(__file__).with_name("proving_child.py")), str(begun), how]
        monkeypatch.setattr(first_use, "child", lambda: command)
        return lambda: begun.read_text().splitlines()

    return ending


def new_process(monkeypatch):
    monkeypatch.setattr(first_use, "_OF_THIS_PROCESS", {})


def test_it_proves_itself_once_and_later_processes_find_that(card, monkeypatch, capfd):
    begun = card("well")
    assert LATER in first_use.why_unproven("hopper", CUDA, prove=False) and begun() == []
    assert first_use.why_unproven("hopper", CUDA, False) is None
    said = capfd.readouterr()
    assert "proves itself on this card with Triton 4.2.1" in said.err and PROVED in said.err and not said.out
    new_process(monkeypatch)
    assert first_use.why_unproven("hopper", CUDA, True) is None
    assert begun() == ["hopper cuda:0"] and not capfd.readouterr().err
    (entry,) = json.loads(checked.user_table().read_text())["entries"]
    assert (entry["device"], entry["triton"], entry["cases"]) == ("Hopper of a test", "4.2.1", 3)
    assert not Path(checked.TABLE).exists()


def test_another_card_triton_source_or_kernel_proves_itself_anew(card, monkeypatch):
    begun = card("well")
    first_use.why_unproven("hopper", CUDA)
    first_use.why_unproven("hopper-clusters", CUDA)
    monkeypatch.setattr(first_use, "card_of", lambda device: ("9.0", "another Hopper"))
    first_use.why_unproven("hopper", torch.device("cuda", 3))
    monkeypatch.setattr(checked, "triton_version", lambda: "4.2.2")
    first_use.why_unproven("hopper", CUDA)
    monkeypatch.setattr(checked, "fingerprint", lambda name: "changed")
    first_use.why_unproven("hopper", CUDA)
    assert begun() == ["hopper cuda:0", "hopper-clusters cuda:0", "hopper cuda:3", "hopper cuda:0", "hopper cuda:0"]
    assert len(checked.entries(checked.user_table())) == 5


@pytest.mark.parametrize(
    ("how", "why"), [("hang", "silent for 2 s"), ("crash", "code -6"), ("wrong", "RMS error")], ids=str
)
def test_one_that_fails_hangs_or_crashes_is_not_taken_and_not_tried_again(card, monkeypatch, how, why):
    begun = card(how)
    reason = first_use.why_unproven("hopper", CUDA, False)
    assert "its proof at first use failed" in reason and why in reason and checked.CHECK in reason
    count = len(begun())
    new_process(monkeypatch)
    assert first_use.why_unproven("hopper", CUDA, True) == reason and len(begun()) == count


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("full", "out of memory"),
        ("no compiler", "find C compiler"),
        ("killed", "code -9"),
        ("no imports", "ended with code 1"),
    ],
    ids=str,
)
def test_what_the_machine_lacks_is_no_fault_of_the_kernel(card, monkeypatch, how, why):
    begun = card(how)
    assert why in first_use.why_unproven("hopper", CUDA)
    count = len(begun())
    assert why in first_use.why_unproven("hopper", CUDA) and len(begun()) == count
    new_process(monkeypatch)
    card("well")
    assert first_use.why_unproven("hopper", CUDA) is None


def test_one_that_is_slower_is_left_out_for_those_calls(card):
    card("slower")
    assert first_use.why_unproven("hopper", CUDA, False) is None
    assert first_use.why_unproven("hopper", CUDA, True).startswith(checked.SLOWER)


def test_it_can_be_turned_off_and_waits_where_a_graph_is_captured(card, monkeypatch):
    begun = card("well")
    monkeypatch.setenv(first_use.SWITCH, "0")
    assert "leave out DITTOOLS_PROVE=0" in first_use.why_unproven("hopper", CUDA)
    monkeypatch.setenv(first_use.SWITCH, "1")
    for where in ((torch.compiler, "is_compiling"), (torch.cuda, "is_current_stream_capturing")):
        with monkeypatch.context() as now:
            now.setattr(torch.cuda, "is_initialized", lambda: True)
            now.setattr(*where, lambda: True)
            assert "while a graph is captured" in first_use.why_unproven("hopper", CUDA)
    assert begun() == []
    assert first_use.why_unproven("hopper", CUDA) is None


@pytest.mark.parametrize("home", ["read-only", "none"])
def test_a_home_that_keeps_nothing_is_said_and_asked_once_a_process(card, monkeypatch, capfd, tmp_path, home):
    begun = card("well")
    if home == "none":
        monkeypatch.setattr(checked, "cache_folder", lambda: None)
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv(checked.FOLDER, str(tmp_path / "file" / "cache"))
    for _ in range(2):
        assert first_use.why_unproven("hopper", CUDA) is None
    assert len(begun()) == 1 and f"name a folder in {checked.FOLDER}" in capfd.readouterr().err


def test_two_kernels_that_prove_themselves_at_a_time_both_enter(card, monkeypatch):
    card("well")
    entries = checked.entries

    def slowly(table):
        found = list(entries(table))
        time.sleep(0.3)
        return found

    monkeypatch.setattr(checked, "entries", slowly)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(first_use.why_unproven, ("hopper", "hopper-clusters"), (CUDA, CUDA))) == [None, None]
    kept = {entry["implementation"] for entry in entries(checked.user_table())}
    assert kept == {"hopper", "hopper-clusters"}


@pytest.mark.parametrize("why", [NotImplementedError("no flock"), filelock.Timeout("hopper.lock")], ids=repr)
def test_a_disk_without_locks_keeps_it_all_the_same(card, monkeypatch, why):
    def acquire(lock, **how):
        raise why

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    begun = card("well")
    for _ in range(2):
        assert first_use.why_unproven("hopper", CUDA) is None
        new_process(monkeypatch)
    assert len(begun()) == 1 and len(checked.entries(checked.user_table())) == 1


def test_a_damaged_table_counts_as_empty(card):
    card("well")
    checked.user_table().parent.mkdir(parents=True)
    checked.user_table().write_text('{"entries": [')
    assert first_use.why_unproven("hopper", CUDA) is None
    assert len(checked.entries(checked.user_table())) == 1


def test_of_several_processes_at_once_one_proves_and_the_others_wait(card):
    begun = card("slowly")
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    several = [context.Process(target=lambda: found.put(first_use.why_unproven("hopper", CUDA))) for _ in range(3)]
    for process in several:
        process.start()
    assert [found.get(timeout=60) for _ in several] == [None] * 3
    for process in several:
        process.join(20)
    assert begun() == ["hopper cuda:0"]


@pytest.mark.parametrize("variable", ["DITTOOLS_CACHE", "XDG_CACHE_HOME", "HOME"])
def test_where_it_is_kept(monkeypatch, tmp_path, variable):
    for name in ("DITTOOLS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    inside = {"DITTOOLS_CACHE": "", "XDG_CACHE_HOME": "dittools", "HOME": ".cache/dittools"}[variable]
    assert checked.cache_folder() == tmp_path / inside


def test_calls_take_the_slower_kernel_with_its_reason_until_then(card, monkeypatch):
    for name in capability.REASONS:
        monkeypatch.setitem(capability.REASONS, name, lambda *_: None)
    monkeypatch.setattr(choice, "is_hopper", lambda device: True)
    monkeypatch.setattr(torch.Tensor, "device", CUDA)
    q, k, v = inputs(1, 300, 1, 64)
    mask = random_mask(300, 128, 64)
    begun = card("wrong")
    assert choice.choose(q, k, v, mask) == "triton" and len(begun()) == 1
    reason = choice.why_slower("triton", q, k, v, mask)
    assert "RMS error" in reason and checked.CHECK in reason
    assert choice.why_slower("hopper", q, k, v, mask) is None
    proofs = dict(choice.hopper_kernels(CUDA, torch.bfloat16, 128))
    assert list(proofs) == list(checked.SOURCES) and "RMS error" in proofs["hopper"] and LATER in proofs["hopper-64"]
    monkeypatch.setattr(choice, "is_hopper", lambda device: False)
    assert choice.why_slower("triton", q, k, v, mask) is None and choice.hopper_kernels(CUDA, q.dtype, 64) == []


def test_a_compiled_model_proves_it_when_it_runs(card, monkeypatch):
    monkeypatch.setitem(capability.REASONS, "hopper", lambda *_: None)
    taken = []

    def attend(q, k, v, mask, *, beside, **call):
        taken.append("hopper")
        assert beside is None
        return naive.naive_block_sparse_attention(q, k, v, mask, **call)

    monkeypatch.setattr(dispatch, "hopper_block_sparse_attention", attend)
    q, k, v = inputs(1, 300, 1, 64)
    lists = random_mask(300, 128, 64).kv_blocks()

    @torch.compile(backend="eager", fullgraph=True)
    def model(q):
        return block_sparse_attention_op(q, k, v, *lists, query_block=128, key_block=64) + 1

    begun = card("well")
    for _ in range(2):
        model(q)
    assert taken == ["hopper"] * 2 and begun() == ["hopper cuda:0"]


@GLUON
@pytest.mark.parametrize("kernel", proof.KERNELS)
def test_the_short_proof_is_part_of_the_whole_and_times_every_kind_of_call(kernel, monkeypatch, tmp_path):
    jobs, whole = short.jobs(kernel), {job["id"]: job for job in proof.jobs(kernel)}
    cases, timed = ([job for job in jobs if ("seconds" in job) == speed] for speed in (False, True))
    ids, calls = {job["id"] for job in cases}, {str(job.get("calls")) for job in cases}
    samples = [job for job in cases if job.get("drawn")]
    assert len({job["id"] for job in samples}) == (kernel in (proof.BLOCKS, proof.NARROW))
    assert len(ids) == len(short.PICKED[kernel]) + bool(samples) and len(cases) == len(ids) * len(calls)
    assert {job["head_dim"] for job in cases} == {64, 128}
    assert {job["dtype"] for job in cases} == {"bfloat16", "float16"}
    assert all(whole[job["id"]].items() <= job.items() and job.keys() - whole[job["id"]] <= {"calls"} for job in cases)
    assert all({**whole[job["id"]], "seconds": 1} == job for job in timed)

    def done(job, at):
        with (tmp_path / "done").open("a") as file:
            what = [job["seconds"], *job.get("kernels", ["both"])] if "seconds" in job else job.get("calls")
            file.write(f"{os.getpid() == parent}: {job['id']} on {job['device']} {what}\n")
        return {"speedup": 1.5}

    parent = os.getpid()
    monkeypatch.setattr(short.proof, "KINDS", dict.fromkeys(short.proof.KINDS, done))
    found = short.handle({"kernel": kernel, "device": "cpu"}, lambda *_: None)
    kinds = {"two passes", "one pass"} if kernel == proof.MASS else {"raster", "ordered"}
    assert found == {"cases": len(ids), "speedup_over_triton": dict.fromkeys(kinds, 1.5)}
    said = (tmp_path / "done").read_text().splitlines()
    others = [f"{job['id']} on cpu {job.get('calls')}" for job in cases]
    others += [f"{job['id']} on cpu {[0, name]}" for job in timed for name in ("hopper", "triton")]
    assert sorted(said[:-2]) == sorted(f"{x == others[0]}: {x}" for x in others)  # this process does one of them
    assert said[-2:] == [f"True: {job['id']} on cpu {[1, 'both']}" for job in timed]  # alone on the card


@pytest.mark.parametrize("kernel", short.CALLS)
def test_kinds_of_calls_that_a_case_makes_are_all_that_it_makes_whole(kernel, monkeypatch):
    job = next(job for job in short.jobs(kernel) if "calls" in job and job["tokens"] <= 4_111)
    job = {**job, "tokens": 150, "device": "cpu", "kernel": "portable", "dtype": "float32"}
    made = []
    attend = proof._attend

    def counted(*args, **kwargs):
        made.append([kwargs.get(key) is not None for key in ("order", "key_order")])
        return attend(*args, **kwargs)

    monkeypatch.setattr(proof, "_attend", counted)
    by_kind = []
    for kind in short.CALLS[kernel]:
        made.clear()
        proof.KINDS[job["kind"]]({**job, "calls": [kind]}, lambda *_: None)
        assert made and all(call == made[0] for call in made)
        by_kind.append(made[0])
    made.clear()
    proof.KINDS[job["kind"]]({name: job[name] for name in job if name != "calls"}, lambda *_: None)
    assert [call for n, call in enumerate(made) if call not in made[:n]] == by_kind


@GLUON
@pytest.mark.parametrize(("how", "why"), [("wrong", "not finite"), ("crash", "ended at once")])
def test_a_short_proof_fails_by_any_of_its_processes(how, why, monkeypatch):
    def done(job, at):
        if job["head_dim"] == 64:
            if how == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            raise Wrong("the output is not finite everywhere")
        return {"speedup": 1.5}

    monkeypatch.setattr(short.proof, "KINDS", dict.fromkeys(short.proof.KINDS, done))
    with pytest.raises(Wrong, match=why):
        short.handle({"kernel": "hopper", "device": "cpu"}, lambda *_: None)
    with pytest.raises(Wrong, match="hopper: silent"):
        short.handle({"kernel": "hopper", "device": "cpu", "without": {"hopper": "silent"}}, lambda *_: None)


def test_the_child_starts_with_the_modules_of_its_parent(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, "/of/this/process"])
    command = first_use.child()
    assert command[0] == sys.executable and "/of/this/process" in command[-1]
    compile(command[-1], "child", "exec")
