"""Help, version and the listing verbs."""

import subprocess
import sys
import time

import pytest

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


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_verbs_are_listed(cli, arguments):
    result = cli(*arguments)
    assert result.code == 0 and result.err == ""
    for verb in ("generate", "report", "calibrate", "inspect", "compare", "env", "models", "methods", "Examples"):
        assert verb in result.out


@pytest.mark.parametrize("verb", ["generate", "report", "calibrate", "inspect", "compare", "env", "models", "methods"])
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


def test_models_lists_families_and_the_embedded_one(cli, embedded_model):
    facts = cli("models", "--json").json
    wan = facts["families"][0]
    assert (wan["name"], wan["repo"]) == ("wan", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    assert facts["embedded"]["available"] is True
    text = cli("models").out
    assert wan["repo"] in text and "--weights embedded" in text


def test_methods_lists_each_with_its_options(cli):
    methods = {entry["name"]: entry for entry in cli("methods", "--json").json["methods"]}
    assert {"auto", "dense", "svg"} <= set(methods)
    assert "probe_rows" in methods["svg"]["options"]
    assert all(entry["description"] for entry in methods.values())
    assert "probe_rows" in cli("methods").out
