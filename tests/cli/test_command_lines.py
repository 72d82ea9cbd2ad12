"""Whatever is typed: an exit code that says what it was, one line of error, nothing half-written, no file of a user's
changed.

300 command lines are drawn, the same in every run; ``DITTOOLS_COMMAND_LINES=5000`` draws so many others. The line that
fails is in the error as it was given.
"""

import os
import subprocess
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dittools.cli import generation
from dittools.cli.main import main
from dittools.pipelines.errors import RunFailed
from tests.cli.command_lines import contents, lines, make_place

COUNT = int(os.environ.get("DITTOOLS_COMMAND_LINES", "300"))
CHILDREN = 24
DRAWN = settings(
    max_examples=COUNT,
    derandomize="DITTOOLS_COMMAND_LINES" not in os.environ,
    print_blob=True,
    phases=[Phase.generate, Phase.shrink],
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
RUN = "import sys; from dittools.cli.main import main; sys.exit(main())"
MOST_LETTERS = 700


class Fast:
    """In place of an acceleration that ran."""

    def record(self):
        shares = {"asked": 0.8, "sparse_calls": 0.8, "overall": 0.5}
        calls = {"dense": 1, "sparse": 1, "reused": 0}
        cache = {"name": "none", "computed_steps": [], "reused_steps": []}
        known = {"sparsity": shares, "calls": calls, "cache": cache, "method": "svg", "correction": "none"}
        return defaultdict(list, known, method_options={}, attention_error=None)


@pytest.fixture
def nothing_drawn(monkeypatch):
    """Runs go as far as to the model; generate saves a few grey frames, the other verbs fail there.

    Its `ends` is what the drawing ends with, where it is an error.
    """
    ended = SimpleNamespace(ends=None)

    def open_model(request, stages, output, chosen=None, check=lambda chosen: None):
        chosen = chosen or generation.choose(request, output)
        check(chosen)
        if request.output is None:
            raise RunFailed("nothing is drawn here")
        with stages("load"):
            pass
        return generation.Opened(None, chosen.device, "float32", chosen.weights, chosen.scene, 16)

    def decode(opened, latents, scene, levels=False):
        if ended.ends is not None:
            raise ended.ends
        return np.full((min(scene.shot.frames, 3), 16, 16, 3), 0.5, np.float32)

    monkeypatch.setattr(generation, "open_model", open_model)
    monkeypatch.setattr(generation, "decode", decode)
    monkeypatch.setattr(generation, "prompt_notes", lambda *given: [])

    def stage(name, value):
        def stand_in(opened, embeds, scene, config, stages, *more):
            with stages(name):
                return value

        return stand_in

    def fail(*given):
        raise RunFailed("nothing is drawn here")

    monkeypatch.setattr(generation, "encode", lambda opened, scene, stages: stage("text", {})(*[None] * 4, stages))
    monkeypatch.setattr(generation, "denoise_sparse", stage("denoise", (None, Fast())))
    monkeypatch.setattr("dittools.cli.run._dense_run", fail)
    monkeypatch.setattr("dittools.cli.launch.launch", fail)
    monkeypatch.setattr("dittools.benchmarks.kernel.run", lambda jobs, results, told, limit: [])
    monkeypatch.setattr("dittools.benchmarks.model_rows.measure_missing", lambda *given: None)
    return ended


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No line may reach the network, or a model of this machine's cache."""

    def blocked(*arguments, **keywords):
        raise ConnectionError("blocked")

    monkeypatch.setattr("socket.socket.connect", blocked)
    monkeypatch.setattr("socket.getaddrinfo", blocked)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


def said_wrong(code, out, err, before, after):
    """What is wrong about an answer, or None."""
    if code not in (0, 1, 2, 130):
        return f"exit code {code}"
    if "Traceback" in err or "--debug shows where" in err:
        return f"an error that nobody foresaw ({err[-200:]})"
    errors = [line for line in err.splitlines() if not line.startswith("note: ") and not line.endswith(" ...")]
    if code and (len(errors) > 2 or any(len(line) > MOST_LETTERS for line in errors)):
        return f"{len(errors)} lines of error, the longest of {max(map(len, errors))} letters"
    if code == 2 and not (errors and errors[-1].startswith("error: ") and not out):
        return "bad input without a word of error, or with a result"
    if any("\x1b" in line or not line.isprintable() for line in errors):
        return "control characters"
    changed = [name for name in before if after.get(name) != before[name]]
    # a run may fill what it was given: an empty folder, or its own earlier file
    if changed and not (code == 0 and set(changed) <= {"empty"}):
        return f"{changed} changed"
    if any(".part" in name for name in after):
        return f"something half-written: {sorted(after)}"
    if code == 2 and set(after) != set(before):
        return f"bad input, and {sorted(set(after) - set(before))} written"
    return None


def test_every_command_line_is_answered(nothing_drawn, monkeypatch, tmp_path, capsys):
    numbers, codes = iter(range(10**9)), Counter()

    @DRAWN
    @given(lines(), st.sampled_from((KeyboardInterrupt(), None, MemoryError())))
    def check(arguments, ends):
        nothing_drawn.ends = ends
        place = tmp_path / f"place{next(numbers)}"
        make_place(place)
        monkeypatch.chdir(place)
        before = contents(place)
        capsys.readouterr()
        code = main(arguments)
        wrong = said_wrong(code, *capsys.readouterr(), before, contents(place))
        codes[code] += 1
        assert wrong is None, f"{wrong}: dittools {' '.join(arguments)}"

    check()
    assert COUNT < 300 or min(codes[code] for code in (0, 1, 2, 130)) > 0, codes  # lines get as far as each of them


def told(err):
    """Our own lines: libraries say things of their own in the process that imports them first."""
    own = [line for line in err.splitlines() if line.startswith(("error: ", "note: "))]
    assert own and own[-1].startswith("error: "), err
    return own


def test_a_command_line_ends_in_a_process_as_it_does_here(nothing_drawn, monkeypatch, tmp_path, capsys):
    answered = {}
    make_place(tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")

    @settings(DRAWN, max_examples=20 * CHILDREN, phases=[Phase.generate], derandomize=True)
    @given(lines())
    def draw(arguments):
        if len(answered) < CHILDREN and all(part.isprintable() for part in arguments):
            capsys.readouterr()
            code = main(arguments)
            out, err = capsys.readouterr()
            if code == 2:
                answered[tuple(arguments)] = (code, out, told(err))

    draw()
    assert len(answered) == CHILDREN
    before = contents(tmp_path / "place")

    def started(arguments):
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
        done = subprocess.run([sys.executable, "-c", RUN, *arguments], env=env, capture_output=True, text=True)
        return done.returncode, done.stdout, told(done.stderr)

    with ThreadPoolExecutor(2) as pool:
        for arguments, found in zip(answered, pool.map(started, answered), strict=True):
            assert found == answered[arguments], f"dittools {' '.join(arguments)}"
    assert contents(tmp_path / "place") == before
