"""`--gpus` and torchrun, with gloo: one video, one line of error, nothing half-written, and nobody left behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from dittools.cli import launch, main
from dittools.cli.member import Word, elsewhere, gone
from dittools.cli.ranks import gathered
from dittools.pipelines.errors import RunFailed
from dittools.pipelines.parallel.setup import Spec

TOGETHER = ("--gpus", 2, "--device", "cpu")
SMALL = ("--frames", 9, "--height", 144, "--width", 192, "--steps", 2, "--dense-steps", 0, "--dense-layers", 0)
MOST_SECONDS = 60

STAND_IN = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from dittools.cli import generation, ranks
from dittools.pipelines.errors import BadInput, RunFailed
from dittools.pipelines.parallel import setup

fault, me = os.environ["FAULT"], os.environ["RANK"]
if fault == "unready" and me == "0":  # it still starts, and listens to nothing
    time.sleep(100)

def open_model(request, stages, output, chosen=None, check=None, enable=None):
    chosen = generation.choose(request, output)
    if fault == "input" and me == "1":
        raise BadInput("this rank has no weights")
    return generation.Opened(None, chosen.device, "float32", chosen.weights, chosen.scene, 16)

def denoise(opened, embeds, scene, config, stages, times=None):
    import torch
    import torch.distributed as dist
    with stages("denoise"):
        if fault == "deaf":
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        while True:
            dist.all_reduce(torch.ones(2))
            Path(f"there{me}").touch()
            if me == "1" and fault == "raise":
                raise RuntimeError("it went wrong here")
            if me == fault[-1] and fault.startswith("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            if me == "1" and fault == "stuck":
                raise RuntimeError("it went wrong here")
            if me == "0" and fault == "stuck":  # as in NCCL: it sees nothing of the other
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(100)
            time.sleep(0.01)

generation.open_model, generation.denoise_sparse = open_model, denoise
generation.encode = lambda *given: {}
generation.prompt_notes = lambda *given: []
def check(*given):
    if fault in ("early", "unready") and me == "1":
        raise BadInput("this rank has no plan")
setup.check_diffusers = check
from dittools.cli.main import main
sys.exit(main())
"""


@pytest.fixture
def together(capfd, tmp_path, monkeypatch):
    """Run `dittools generate` in two ranks, in an empty folder, and see that no process of it is left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = {child.pid for child in psutil.Process().children()}

    def run(*arguments, fault=None, weights="embedded"):
        if fault is not None:
            monkeypatch.setattr(launch, "COMMAND", ("-P", "-c", STAND_IN))
            monkeypatch.setenv("FAULT", fault)
        begun = time.monotonic()
        capfd.readouterr()
        code = main.main([str(part) for part in ("generate", "--weights", weights, *SMALL, *TOGETHER, *arguments)])
        if fault is not None:  # what draws to its end takes what this machine takes
            assert time.monotonic() - begun < MOST_SECONDS
        assert {child.pid for child in psutil.Process().children()} <= before
        return code, *capfd.readouterr()

    return run


def errors(err):
    """Lines that are neither progress nor of a library."""
    return [line for line in err.splitlines() if line.startswith(("error:", "interrupted", "told to end"))]


def left(folder):
    """What lies in a folder, but for the marks of the stand-in."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("there"))


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory):
    from tests.tiny import tiny_pipeline

    folder = tmp_path_factory.mktemp("weights") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("split", ("ulysses", "cfg"))
def test_two_ranks_draw_what_one_draws_and_the_first_one_speaks(together, tiny_weights, tmp_path, split):
    asked = ("--method", "svg", "--sparsity", 0.5)
    how = ("--parallel", "cfg:2") if split == "cfg" else ()
    code, out, err = together(*asked, *how, "-o", "two.npy", weights=tiny_weights)
    assert code == 0 and errors(err) == [] and out == "two.npy\n"
    assert err.count("denoising ...") == 1 and left(tmp_path) == ["two.json", "two.npy"]
    record = json.loads(Path("two.json").read_text())
    shared = record["parallel"]
    degrees = {"ulysses": 1, "ring": 1, "cfg": 1} | {split: 2}
    assert {name: shared[name] for name in ("ranks", *degrees)} == {"ranks": 2, **degrees}
    assert len(shared["density_by_rank"]) == 2
    assert record["calls"]["dense"] + record["calls"]["sparse"] == record["calls"]["expected"]
    alone = [str(part) for part in ("generate", "--weights", tiny_weights, *SMALL, *asked, "-o", "one.npy", "-q")]
    assert main.main(alone) == 0
    one, two = np.load("one.npy").astype(int), np.load("two.npy").astype(int)
    if record["calls"]["sparse"]:
        assert abs(one - two).max() <= 1
    assert json.loads(Path("one.json").read_text())["parallel"] is None


def test_two_ranks_draw_on_from_a_picture_as_one_does(together, tmp_path, tmp_path_factory):
    from tests.cli.tasks_tiny import picture, saved

    weights = saved("wan-i2v", tmp_path_factory.mktemp("weights"))
    picture(tmp_path / "a.png")
    asked = ("--prompt", "a red circle", "--image", "a.png", "--method", "gna", "--sparsity", 0.5)
    code, out, err = together(*asked, "-o", "two.npy", weights=weights)
    assert code == 0 and errors(err) == [] and out == "two.npy\n", err
    assert left(tmp_path) == ["a.png", "two.json", "two.npy"]
    record = json.loads(Path("two.json").read_text())
    assert record["parallel"]["ranks"] == 2 and record["task"]["pipeline"] == "WanImageToVideoPipeline"
    assert record["calls"]["dense"] + record["calls"]["sparse"] == record["calls"]["expected"]
    alone = ("generate", "--weights", weights, *SMALL, *asked, "-o", "one.npy", "-q", "--device", "cpu")
    assert main.main([str(part) for part in alone]) == 0
    assert abs(np.load("one.npy").astype(int) - np.load("two.npy").astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("fault", "code", "line"),
    [
        ("raise", 1, "error: rank 1: denoising failed (RuntimeError: it went wrong here)"),
        ("input", 2, "error: rank 1: this rank has no weights"),
        ("early", 2, "error: rank 1: this rank has no plan"),
        ("unready", 2, "error: rank 1: this rank has no plan"),
        ("kill1", 1, "error: rank 1 was killed (SIGKILL, as the system does when memory runs out)"),
        ("kill0", 1, "error: rank 0 was killed (SIGKILL"),
        ("stuck", 1, "error: rank 1: denoising failed (RuntimeError: it went wrong here)"),
    ],
)
def test_what_ends_one_rank_ends_all_with_one_line(together, tmp_path, fault, code, line):
    found, out, err = together("-o", "out.npy", fault=fault)
    assert (found, out, len(errors(err))) == (code, "", 1), err
    assert errors(err)[0].startswith(line) and left(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "fault", "code", "said"),
    [
        ("SIGINT", "none", 130, "interrupted"),
        ("SIGTERM", "none", 143, "told to end"),
        ("SIGINT", "deaf", 130, "interrupted"),  # asked twice
    ],
)
def test_a_signal_ends_all_ranks(together, tmp_path, number, fault, code, said):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # children of a shell may ignore it

    def send():
        while not (tmp_path / "there0").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), getattr(signal, number))
        if fault == "deaf":
            time.sleep(1)
            os.kill(os.getpid(), getattr(signal, number))

    threading.Thread(target=send, daemon=True).start()
    try:
        found, out, err = together("-o", "out.npy", fault=fault)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (found, out, len(errors(err))) == (code, "", 1) and errors(err)[0].startswith(said)
    assert left(tmp_path) == []


def test_ranks_do_not_outlive_their_launcher(tmp_path):
    script = (
        "import sys; from dittools.cli import launch, main; "
        f"launch.COMMAND = ('-P', '-c', {STAND_IN!r}); sys.exit(main.main(sys.argv[1:]))"
    )
    flags = [str(part) for part in ("generate", "--weights", "embedded", *SMALL, *TOGETHER)]
    env = {**os.environ, "FAULT": "none", "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen([sys.executable, "-c", script, *flags], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL)
    while not (tmp_path / "there1").exists():
        assert started.poll() is None
        time.sleep(0.05)
    ranks = psutil.Process(started.pid).children()
    started.kill()
    started.wait()
    assert len(ranks) == 2 and psutil.wait_procs(ranks, timeout=MOST_SECONDS)[1] == []
    assert left(tmp_path) == []


def test_torchrun_starts_ranks_of_which_the_first_one_answers(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    small = ("--weights", "embedded", "--frames", 5, "--height", 32, "--width", 32, "--steps", 1, "--guidance", 1)
    flags = [str(part) for part in ("-m", "dittools", "generate", *small, "--device", "cpu", "--parallel", "ring:2")]
    done = subprocess.run(
        [*command, *flags, "--method", "auto", "-o", "a.npy", "--json"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["parallel"]["ranks"] == 2 and record["parallel"]["ring"] == 2 and record["fallbacks"] == []
    assert left(tmp_path) == ["a.json", "a.npy"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpus", 0], "--gpus must be at least 1, got 0"),
        (["--gpus", 4, "--device", "cpu"], "6 heads cannot be dealt evenly to 4 ranks: use 2 or 3 ranks"),
        (["--gpus", 8, "--parallel", "ulysses:8"], "the model has 6: at most ulysses:6"),
        (["--gpus", 2, "--parallel", "ulysses:3"], "is for 3 ranks, and there are 2"),
        (["--parallel", "ulysses:2"], "this is one process: use --gpus 2"),
        (["--gpus", 2, "--device", "cuda:1"], "--device cuda:1 names one GPU, and there are 2 ranks"),
        (["--gpus", 2, "--device", "cpu", "--max-error", 0.1], "max_error 0.1 is held on one device"),
        (["--gpus", 2], "no GPU answers here: with --device cpu, all share the CPU"),
        (["--gpus", 66, "--device", "cpu", "--parallel", "ring:66"], "at most 64 processes"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_started(monkeypatch, tmp_path, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(launch, "launch", lambda *given: pytest.fail("started"))
    assert main.main(["generate", "--weights", "embedded", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err and list(tmp_path.iterdir()) == []


def test_gpus_that_are_not_there_are_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert main.main(["generate", "--weights", "embedded", "--gpus", "2"]) == 2
    assert "--gpus 2 asked, and this machine has 1: use at most --gpus 1" in capsys.readouterr().err


def test_gpus_beside_torchrun_are_refused(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert main.main(["generate", "--weights", "embedded", "--gpus", "3", "--device", "cpu"]) == 2
    assert "3 starts the ranks itself, and 2 were started here already" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("codes", "rank"),
    [
        ({0: -15, 1: -9}, 1),  # the first one did not listen yet when it was told that the second had ended
        ({0: -15, 1: 2}, None),
        ({0: -15, 1: -15}, 0),
        ({1: -11}, 1),
        ({0: 1, 1: 1}, None),
        ({}, None),
    ],
)
def test_a_rank_that_the_launcher_ended_is_not_the_one_that_failed(codes, rank):
    assert launch._killed(codes) == rank


def test_an_error_that_another_rank_caused_is_known():
    assert gone(RuntimeError("[../gloo/transport/tcp/pair.cc:598] Connection closed by peer [127.0.0.1]:1"))
    wrapped = RunFailed("denoising failed")
    wrapped.__cause__ = RuntimeError("NCCL communicator was aborted")
    assert gone(wrapped) and not gone(ValueError("timeout must be a number")) and not gone(RuntimeError("a shape"))
    assert not elsewhere(wrapped)
    assert Word(2, 1, "it broke").line() == "error: rank 2: it broke" and Word(0, 1, "x").line() == "error: x"


def test_records_of_ranks_become_one():
    def record(notes, sent, seconds, fallbacks=()):
        shared = {"exchanged_bytes": sent, "exchange_seconds": seconds, "density_by_rank": [0.2, 0.3]}
        entries = [{"reason": reason, "count": count} for reason, count in fallbacks]
        return {"notes": notes, "fallbacks": entries, "kernel_reasons": {}, "calls": {"sparse": 4}, "parallel": shared}

    ours = record(["all", "first"], 10, 0.5, [("short", 2)])
    found = gathered([ours, record(["all"], 30, 0.7, [("short", 3), ("mask", 1)])], Spec(ulysses=2))
    assert found["notes"] == ["all", "rank 0: first"] and found["calls"] == {"sparse": 4}
    assert found["fallbacks"] == [{"reason": "short", "count": 3}, {"reason": "mask", "count": 1}]
    assert found["parallel"] == {
        **{"ranks": 2, "ulysses": 2, "ring": 1, "cfg": 1},
        **{"exchanged_bytes": 40, "exchange_seconds": 0.7, "density_by_rank": [0.2, 0.3]},
    }
