"""Whatever is asked wrongly: one line with what was asked, what was found and what to do; exit code 2."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest

from dittools.attention_profile import Made, Profile
from dittools.cli.generate import Flags
from dittools.cli.request import check
from dittools.pipelines import skeleton
from dittools.pipelines.families import find_family
from dittools.tokens import TokenGrid


def one_error(result, code=2):
    """The text of the one error line."""
    assert result.code == code, result.err
    assert result.out == ""
    lines = [line for line in result.err.splitlines() if not line.endswith("...")]
    assert len(lines) == 1 and lines[0].startswith("error: "), result.err
    assert "Traceback" not in result.err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "wann"], ["'wann'", "did you mean wan", "`dittools models` lists all"]),
        (["--method", "svgg"], ["'svgg'", "did you mean svg", "`dittools methods` lists all"]),
        (["--cache", "teacach"], ["'teacach'", "teacache"]),
        (["--correction", "centroid"], ["'centroid'", "did you mean centroids", "none, rettention"]),
        (["--sparsty", "0.8"], ["no such option --sparsty", "did you mean --sparsity", "generate --help"]),
        (["--sparsity", "1"], ["--sparsity must be", "below 1", "got 1"]),
        (["--sparsity", "-0.1"], ["at least 0", "-0.1"]),
        (["--sparsity", "80"], ["got 80", "did you mean 0.8"]),
        (["--cache", "sea:power=1:power=2"], ["option power is given twice"]),
        (["--sparsity", "nan"], ["nan"]),
        (["--sparsity", "most"], ["--sparsity must be a number, got 'most'"]),
        (["--steps", "2.5"], ["--steps must be a whole number, got '2.5'"]),
        (["--steps", "0"], ["--steps must be at least 1, got 0"]),
        (["--frames", "16"], ["--frames 16", "4n + 1", "use 13 or 17"]),
        (["--frames", "0"], ["--frames must be at least 1"]),
        (["--height", "100"], ["--height 100", "multiple of 16", "use 96 or 112"]),
        (["--width", "7"], ["--width 7", "use 16"]),
        (["--frames", "2", "--height", "50", "--width", "50"], ["use 1 or 5", "--height 50", "--width 50"]),
        (["--guidance", "-1"], ["--guidance", "-1"]),
        (["--guidance", "inf"], ["--guidance", "inf"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--dense-steps", "some"], ["0.2", "5", "'some'"]),
        (["--dense-steps", "1.5"], ["1.5"]),
        (["--dense-layers", "-1"], ["--dense-layers must be", "-1"]),
        (["--refresh", "0"], ["--refresh must be", "at least 1"]),
        (["--device", "tpu"], ["'tpu'", "auto, cpu, cuda"]),
        (["--dtype", "bf32"], ["'bf32'", "bf16"]),
        (["--offload", "disk"], ["'disk'", "group, model, none"]),
        (["--offload", "model", "--device", "cpu"], ["--offload model", "cpu"]),
        (["--profile", "p.json", "--method", "paro"], ["no profile at p.json", "dittools calibrate"]),
        (["--profile", "p.json", "--method", "dense"], ["method dense takes no profile", "svg, sta, attention_tile"]),
        (["--config", "gone.json"], ["--config gone.json", "No such file"]),
        (["--output", "out.mp5"], [".mp5", "did you mean out.mp4", ".gif, .webp, .npy, .png", "folder"]),
        (["--output", "out.exe"], [".exe", ".mp4, .gif"]),
        (["--output", "gone/out.mp4"], ["no folder gone", "make it first"]),
        (["--output", "out.png"], ["--frames is 5", "--frames 1"]),
        (["--weights", "./gone"], ["no weights folder at gone"]),
        (["--weights", "a/b/c"], ["no weights folder at a/b/c"]),
        (["--weights", ""], ["--weights is empty"]),
        (["stray"], ["stray"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("-") else "",
)
def test_a_wrong_flag_is_one_line_with_the_way_out(generate, tmp_path, arguments, said):
    line = one_error(generate(*arguments))
    for part in said:
        assert part in line
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def unloaded(monkeypatch):
    """No model may be loaded."""
    monkeypatch.setattr("dittools.pipelines.loading.load", lambda *_, **__: pytest.fail("a model was loaded"))


CACHE_PROFILE = {"schema": 1, "kind": "cache", "model": "m", "match": {}, "steps": 6, "masks": {"6": {"mask": "1" * 6}}}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--cache", "teacache:profile=nope.json"], ["nope.json cannot be read", "give a JSON file"]),
        (["--cache", "magcache:profile=nope.json"], ["nope.json cannot be read"]),
        (["--cache", "magcache:profile=whole.json"], ["whole.json holds nothing for magcache", "calibrate --cache"]),
        (["--cache", "teacache:profile=part.json"], ["part.json is no profile of one model"]),
        (["--cache", "taylorseer:schedule=nope.json"], ["nope.json cannot be read"]),
        (["--cache", "taylorseer:schedule=fastt"], ["unknown mask 'fastt'", "slow, medium, fast"]),
        (["--cache", "taylorseer:schedule=whole.json"], ["no mask for 2 steps (it has 6)", "--steps 2"]),
        (["--method", "paro", "--profile", "nope.json"], ["no profile at nope.json"]),
        (["--method", "paro", "--profile", "whole.json"], ["whole.json is no profile of attention"]),
    ],
    ids=lambda value: value[-1] if value[0].startswith("-") else "",
)
def test_a_bad_profile_is_known_before_the_model_is_loaded(generate, unloaded, tmp_path, flags, said):
    (tmp_path / "whole.json").write_text(json.dumps(CACHE_PROFILE))
    (tmp_path / "part.json").write_text(json.dumps({"schema": 1, "kind": "cache", "teacache": {}}))
    line = one_error(generate(*flags))
    for part in said:
        assert part in line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("inspect --at 5", "--at 5: there are 2 steps, 0 to 1"),
        ("inspect --layers 0,99", "--layers 99: there are 3 layers, 0 to 2"),
        ("inspect --heads 2", "--heads 2: there are 2 heads, 0 to 1"),
        ("inspect --offload model", "--offload model moves weights off a CUDA GPU, and this run is on cpu: drop it"),
        ("calibrate --cache", "--steps 2 are too few to fit anything: use at least 4"),
        ("calibrate --cache --device cuda", "--device cuda asked"),
        ("calibrate --cache --offload model", "--offload model moves weights off a CUDA GPU"),
        ("calibrate --offload group", "--offload group moves weights off a CUDA GPU"),
    ],
)
def test_what_flags_and_configs_rule_out_is_known_before_the_model_is_loaded(
    cli, unloaded, tiny_weights, monkeypatch, flags, said
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    line = one_error(cli(*flags.split(), "--steps", 2, "--weights", tiny_weights))
    assert said in line


@pytest.mark.parametrize(
    "flags", ["inspect --at 5", "calibrate --cache", "calibrate --cache --device cuda", "generate --offload model"]
)
def test_what_flags_rule_out_is_known_before_weights_are_looked_for(cli, monkeypatch, flags):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("dittools.pipelines.weights.choose", lambda *_, **__: pytest.fail("weights were looked for"))
    one_error(cli(*flags.split(), "--steps", 2))


FEW = "--frames 5 --height 48 --width 64 --steps 2"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("generate --method svg", "svg needs at least 4 blocks"),
        ("generate --method svg --compare-dense", "svg needs at least 4 blocks"),
        ("generate --method radial --height 512 --width 512 --frames 1", "radial needs a video"),
        ("inspect --method draft", "draft needs at least 4 blocks"),
        ("report --sweep sparsity=0.5 --method svg", "svg needs at least 4 blocks"),
        ("report --sweep method=dense,sparge", "sparge, sparsity 0.8: sparge needs at least 4 blocks"),
        ("calibrate --method svg", "svg needs at least 4 blocks"),
    ],
)
def test_a_method_that_the_grid_is_too_small_for_is_known_before_anything_is_loaded(
    cli, unloaded, tiny_weights, tmp_path, flags, said
):
    verb, *flags = flags.split()
    small = FEW.split() if "--frames" not in flags else ["--steps", "2"]
    result = cli(verb, *small, *flags, "--weights", tiny_weights)
    line = one_error(result)
    assert said in line and result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"--frames": 1025}, "up to 1021: use 1021"),
        ({"--height": 4112}, "up to 4096: use 4096"),
        ({"--frames": 10**18 + 1, "--width": 10**1000}, "a number of more than 24 digits"),
        ({"--frames": 1021, "--height": 4096, "--width": 4096}, "as decoded frames alone, and this machine has"),
        ({"--steps": 10**20}, "--steps must be at most 1000, the noise levels of this model"),
    ],
)
@pytest.mark.parametrize("verb", ["generate", "report", "inspect", "calibrate"])
def test_a_size_that_no_machine_or_model_can_draw_is_known_before_anything_is_loaded(
    cli, unloaded, tiny_weights, monkeypatch, verb, flags, said
):
    monkeypatch.setattr("dittools.pipelines.limits.memory_bytes", lambda: 24 * 10**9)
    result = cli(verb, *(part for pair in flags.items() for part in pair), "--weights", tiny_weights)
    assert said in one_error(result) and len(result.err) < 400 and result.err.count("\n") == 1


def test_a_profile_of_another_model_or_grid_is_known_before_anything_is_loaded(cli, tiny_weights, unloaded, tmp_path):
    identity = skeleton.identity_of(tiny_weights, find_family("wan"))
    other = dataclasses.replace(identity, layers=9)
    grids = {"right": TokenGrid(5, 8, 8), "larger": TokenGrid(6, 8, 8)}
    for model, grid, said in ((other, "right", "9 layers"), (identity, "larger", "is for 6 x 8 x 8 tokens")):
        Profile(model, grids[grid], Made("x", 2), {"svg": {"by_step": False}}).save(tmp_path / "p.json")
        for verb in ("generate", "inspect"):
            flags = [
                "--frames",
                "17",
                "--height",
                "128",
                "--width",
                "128",
                "--steps",
                "2",
                "--method",
                "svg",
                "--profile",
                "p.json",
            ]
            line = one_error(cli(verb, *flags, "--profile", "p.json", "--weights", tiny_weights))
            assert "p.json" in line and said in line


def test_what_a_profile_has_to_fit_is_known_from_the_folder_alone(tiny_weights):
    import torch

    import dittools
    from dittools.pipelines import loading

    pipe = loading.load(tiny_weights, device=torch.device("cpu"), dtype=torch.float32)
    with dittools.accelerate(pipe, method="dense") as fast:
        assert skeleton.identity_of(tiny_weights, find_family("wan")) == fast.runtime.identity


def test_what_flags_rule_out_is_told_without_pytorch(tmp_path):
    few = "--weights embedded --frames 5 --height 64 --width 64 --steps 1"
    asked = [
        "generate --sparsity 2", "generate --method svgg", "generate --cache sea:powr=1", "generate --frames 4",
        f"generate {few} --method svg", f"inspect {few} --refresh 0", f"report {few} --sweep method=svg --output r",
        "report --sweep sparsity=0.5,2", "calibrate --steps 0", "plan --sparsity 2", "plan --height 16400",
        "bench model --method svgg", "bench model --frames 10", "methods svgg", "caches",
    ]  # fmt: skip
    script = f"""
import sys
from dittools.cli.main import main
for asked in {asked}:
    main(asked.split())
    if "torch._C" in sys.modules:
        sys.exit(f"PyTorch was loaded for {{asked}}")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count("error: ") == len(asked) - 1, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["genrate", "modles"])
def test_a_misspelt_verb_is_named_with_the_nearest(cli, verb):
    line = one_error(cli(verb))
    assert verb in line and ("generate" if verb == "genrate" else "models") in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "object"),
        ('{"dittools": "0.1.0", "model": "wan", "config": {"sparsty": 0.5}}', "did you mean sparsity"),
        ('{"sparsty": 0.5}', "did you mean sparsity"),
        ('{"sparsity": 2}', "sparsity"),
        ('{"method": "svg", "options": {"probes": 3}}', "probe_rows"),
    ],
)
def test_a_config_file_is_judged_by_its_keys_and_values(generate, tmp_path, text, said):
    (tmp_path / "c.json").write_text(text)
    line = one_error(generate("--config", "c.json"))
    assert "--config c.json" in line and said in line


def test_flags_win_over_the_config_file(generate, tmp_path):
    settings = {"sparsity": 0.5, "dense_layers": 2, "refresh": 3}
    (tmp_path / "c.json").write_text(json.dumps(settings))
    record = generate("--config", "c.json", "--sparsity", 0.7, "--refresh", 2, "-o", "a.npy", "--json").json
    assert {key: record["config"][key] for key in settings} == {
        "sparsity": 0.7,
        "dense_layers": 2,
        "refresh": 2,
    }


@pytest.mark.parametrize(
    ("settings", "flags", "left", "said"),
    [
        (
            {"method": "svg2", "options": {"top_p": 0.9}},
            {"method": "sparge"},
            {"method": "sparge", "options": {}},
            "method sparge takes the place of svg2 (top_p=0.9) in --config c.json: its options are left out",
        ),
        (
            {"method": "sta", "profile": "gone.json"},
            {"method": "draft"},
            {"method": "draft", "profile": None},
            "method draft takes the place of sta (profile=gone.json) in --config c.json",
        ),
        (
            {"cache": "easycache", "cache_options": {"threshold": 0.2}},
            {"cache": "taylorseer:interval=2"},
            {"cache": "taylorseer", "cache_options": {"interval": 2}},
            "cache taylorseer takes the place of easycache (threshold=0.2) in --config c.json",
        ),
        (
            {"correction": "rettention", "correction_options": {"every": 4}},
            {"correction": "centroids"},
            {"correction": "centroids", "correction_options": {}},
            "correction centroids takes the place of rettention (every=4) in --config c.json",
        ),
        (
            {"method": "svg2", "options": {"top_p": 0.9}, "cache": "easycache:max_consecutive_skips=2:threshold=0.2"},
            {"method": "svg2", "cache": "easycache:threshold=0.3"},
            {"options": {"top_p": 0.9}, "cache_options": {"max_consecutive_skips": 2, "threshold": 0.3}},
            None,
        ),
    ],
    ids=["method", "profile", "cache", "correction", "same"],
)
def test_a_flag_that_names_another_part_than_the_file_leaves_its_options_out_and_says_so(
    tmp_path, monkeypatch, settings, flags, left, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.json").write_text(json.dumps(settings))
    made = check(Flags(model="wan", weights="embedded", config="c.json", **flags), None)
    assert {key: getattr(made.config, key) for key in left} == left
    assert [note.startswith(said) for note in made.notes] == ([] if said is None else [True])


def test_what_a_flag_leaves_out_of_the_file_is_a_note_of_the_run(generate, tmp_path):
    (tmp_path / "c.json").write_text('{"method": "svg2", "options": {"top_p": 0.9}}')
    drawn = generate("--config", "c.json", "--method", "dense", "-o", "a.npy")
    assert drawn.code == 0 and "note: method dense takes the place of svg2 (top_p=0.9)" in drawn.err


@pytest.fixture
def broken(tiny_weights, tmp_path):
    """A copy of the weights to break."""
    return shutil.copytree(tiny_weights, tmp_path / "broken")


def test_a_truncated_safetensors_file_is_named(generate, broken):
    file = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    line = one_error(generate("--weights", broken))
    assert str(file) in line and "cut short" in line and "get the file again" in line


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x10\0\0\0\0\0\0\0{not json at all", b"\x02\0\0\0\0\0\0\0[]"])
def test_a_file_that_is_no_safetensors_is_named(generate, broken, content):
    file = broken / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(content)
    line = one_error(generate("--weights", broken))
    assert str(file) in line and "corrupt" in line


def test_a_folder_that_is_no_pipeline_is_named(generate, broken):
    (broken / "model_index.json").unlink()
    assert "has no model_index.json" in one_error(generate("--weights", broken))


def test_a_missing_component_is_named(generate, broken):
    shutil.rmtree(broken / "vae")
    line = one_error(generate("--weights", broken))
    assert "lists vae" in line and "missing" in line


def test_pickled_weights_are_never_read(generate, broken):
    file = broken / "text_encoder" / "model.safetensors"
    file.rename(file.with_name("pytorch_model.bin"))
    line = one_error(generate("--weights", broken))
    assert "text_encoder" in line and ".safetensors" in line


def test_another_kind_of_pipeline_is_refused_by_name(generate, broken):
    index = json.loads((broken / "model_index.json").read_text())
    (broken / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))
    line = one_error(generate("--weights", broken))
    assert "FluxPipeline" in line and "WanPipeline" in line


def test_weights_that_do_not_fit_their_config_are_one_line(generate, broken):
    path = broken / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_attention_heads": 3}))
    line = one_error(generate("--weights", broken))
    assert "broken" in line and "could not be loaded" in line


def test_an_embedded_model_that_is_not_installed_is_one_line(generate, monkeypatch):
    from dittools.pipelines import embedded

    def absent():
        raise FileNotFoundError("the embedded model is not installed: reinstall dittools")

    monkeypatch.setattr(embedded, "weights_path", absent, raising=False)
    assert "reinstall dittools" in one_error(generate("--weights", "embedded"))


def test_cuda_is_refused_where_there_is_none(generate, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "--device cuda" in one_error(generate("--device", "cuda"))


def test_debug_adds_the_traceback(generate):
    result = generate("--steps", 0, "--debug")
    assert result.code == 2
    assert "Traceback" in result.err and result.err.splitlines()[-1].startswith("error: --steps")
