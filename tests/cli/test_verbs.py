"""Help, version and the listing verbs."""

import subprocess
import sys
import time

import pytest

from dittools.cli.app import app

VERBS = [command.name for command in app.registered_commands]
RUN = "import sys; from dittools.cli.main import main; sys.exit(main())"


def test_help_answers_fast_and_shows_examples():
    seconds = []
    while not seconds or (seconds[-1] >= 3 and len(seconds) < 3):  # a busy machine gets another try
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", RUN, "generate", "--help"], capture_output=True, text=True)
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 3
    assert done.returncode == 0
    assert "Examples:\n" in done.stdout and "dittools generate --model wan --sparsity 0.8" in done.stdout


def test_a_wrong_flag_is_answered_without_importing_the_heavy_libraries():
    script = (
        "import sys; from dittools.cli.main import main; code = main(['generate', '--output', 'x.mp5']);"
        "print([m for m in ('diffusers', 'transformers', 'triton') if m in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "[]\n"


def test_what_a_method_cannot_do_is_answered_before_pytorch_is_loaded():
    script = (
        "import sys; from dittools.cli.main import main;"
        "code = main(['generate', '--weights', 'embedded', '--method', 'svg', '--frames', '1']);"
        "print(type(sys.modules['torch']).__name__); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "_Late\n", done.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_verbs_are_listed(cli, arguments):
    result = cli(*arguments)
    assert result.code == 0 and result.err == ""
    for verb in (*VERBS, "bench", "Examples"):
        assert verb in result.out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_runnable_examples(cli, verb):
    assert f"Examples:\n    dittools {verb}" in cli(verb, "--help").out


def test_version(cli):
    import dittools

    assert cli("--version").out.strip() == dittools.__version__


def test_env_tells_kernels_and_why_not_the_others(cli):
    facts = cli("env", "--json").json
    assert set(facts["versions"]) == {"python", "torch", "triton", "diffusers", "transformers"}
    cpu = next(device for device in facts["devices"] if device["type"] == "cpu")
    assert cpu["sparse_kernel"] == "portable" and cpu["dense_kernel"]
    assert all(kernel["can_run"] or kernel["why_not"] for kernel in cpu["kernels"])
    text = cli("env").out
    assert "portable: can run (chosen)" in text and "hub cache: " in text and "ffmpeg: " in text


def test_models_shows_what_one_family_draws_by_default_and_where_that_is_from(cli):
    facts = cli("models", "vace", "--json").json
    assert facts["name"] == "wan-vace" and facts["presets"][0]["pipeline"] == "WanVACEPipeline"
    text = cli("models", "wan").out
    for said in (
        "WanImageToVideoPipeline",
        "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
        "negative prompt of",
        "diffusers 0",
    ):
        assert said in text
    assert cli("models", "wann").code == 2


def test_models_lists_families_and_the_embedded_one(cli, embedded_model):
    facts = cli("models", "--json").json
    wan = facts["families"][0]
    assert (wan["name"], wan["repo"]) == ("wan", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    assert facts["embedded"]["available"] is True
    text = cli("models").out
    assert wan["repo"] in text and "--weights embedded" in text


def test_methods_lists_each_with_its_options(cli):
    listed = cli("methods", "--json").json
    methods, corrections = ({e["name"]: e for e in listed[kind]} for kind in ("methods", "corrections"))
    assert {"auto", "dense", "svg"} <= set(methods) and {"none", "centroids", "rettention"} <= set(corrections)
    assert "probe_rows" in methods["svg"]["options"] and "every" in corrections["rettention"]["options"]
    assert all(entry["description"] for entry in (methods | corrections).values())
    text = cli("methods").out
    assert "probe_rows" in text and "CORRECTION" in text and "rettention" in text


def test_one_method_is_shown_with_its_options(cli):
    (entry,) = cli("methods", "gna", "--json").json["methods"]
    assert entry["name"] == "gna" and {"window", "stride", "dilation", "tile"} <= set(entry["options"])
    text = cli("methods", "GNA").out
    assert entry["description"] in text and "window" in text and "svg" not in text


def test_a_window_is_simulated_on_a_grid(cli):
    asked = ("methods", "gna", "--grid", "21x45x80", "--window", "21x24x40", "--stride", "2x8x8")
    facts = cli(*asked, "--json").json["simulation"]
    assert facts["tile"] == [2, 8, 8] and facts["tiles"] == 660 and facts["visited_worst"] == 220
    text = " ".join(cli(*asked).out.split())  # the table fits 80 columns, with more lines where it has to
    assert "26.67%" in text and "3.75x" in text and "11.7% padding" in text
    image = cli("methods", "gna", "--grid", "64x64", "--window", "24x24", "--json").json["simulation"]
    assert image["grid"] == [1, 64, 64] and image["window"] == [1, 24, 24]


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["gan"], "did you mean gna"),
        (["svg", "--grid", "2x8x8", "--window", "3"], "--grid simulates windows of gna, got svg"),
        (["--grid", "2x8x8", "--window", "3"], "got no method"),
        (["gna", "--grid", "2x8x8"], "add --window"),
        (["gna", "--window", "3"], "add --grid"),
        (["gna", "--block", "64"], "add --grid"),
        (["gna", "--grid", "2x-8x8", "--window", "3"], "--grid must be FxHxW"),
        (["gna", "--grid", "2x8x8", "--window", "0"], "--window must be FxHxW"),
        (["gna", "--grid", "9x9x9", "--window", "2", "--stride", "3"], "must not be larger than window"),
        (["gna", "--grid", "9999x9999x9999", "--window", "2"], "too large to simulate"),
        (["gna", "--grid", "9x9x9", "--window", "2", "--block", "0"], "--block must be at least 1"),
    ],
)
def test_what_cannot_be_simulated_is_said_in_one_line(cli, arguments, says):
    result = cli("methods", *arguments)
    assert result.code == 2 and result.out == "" and says in result.err and result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "verb"),
    [
        (["generate", "--sparsity"], "generate"),
        (["bench", "kernel", "--output"], "bench kernel"),
        (["bench", "modle"], "bench"),
        (["report", "--seeds"], "report"),
        (["plan", "--hieght", "3"], "plan"),
        (["inspect", "--strict=1"], "inspect"),
        (["calibrate", "--cache=1"], "calibrate"),
        (["--nope"], ""),
    ],
    ids=" ".join,
)
def test_a_wrong_flag_names_the_help_of_its_verb(cli, arguments, verb):
    result = cli(*arguments)
    assert result.code == 2 and result.err.count("\n") == 1
    assert f"`{' '.join(['dittools', *verb.split()])} --help`" in result.err
