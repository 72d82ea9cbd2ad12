"""The embedded model: what ships, and that its training path runs."""

import json

import pytest
import torch

from dittools.pipelines import embedded
from dittools.pipelines.embedded import vocabulary as voc
from dittools.training import architecture, train
from dittools.training.optim import orthogonalise


def files():
    return [path for path in embedded.weights_path().rglob("*") if path.is_file()]


def test_it_ships_safetensors_and_json_only_within_its_limits():
    assert {path.suffix for path in files()} == {".safetensors", ".json"}
    assert sum(path.stat().st_size for path in files()) <= 40e6
    assert max(path.stat().st_size for path in files()) <= 16 * 2**20


def test_its_files_name_no_place_of_the_machine_that_made_them():
    for path in files():
        if path.suffix == ".json":
            assert "/tmp" not in path.read_text() and "_name_or_path" not in path.read_text()


def test_it_loads_as_a_wan_pipeline_of_the_stated_size():
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(embedded.weights_path(), local_files_only=True)
    names = [type(part).__name__ for part in (pipe, pipe.transformer, pipe.vae, pipe.text_encoder, pipe.scheduler)]
    assert names == [
        "WanPipeline",
        "WanTransformer3DModel",
        "AutoencoderKLWan",
        "UMT5EncoderModel",
        "UniPCMultistepScheduler",
    ]
    assert 6e6 <= sum(p.numel() for p in pipe.transformer.parameters()) <= 16e6
    assert pipe.tokenizer(embedded.DEFAULTS["prompt"]).input_ids.count(pipe.tokenizer.unk_token_id) == 0


def test_the_default_prompt_is_one_it_knows():
    assert embedded.unknown_words(embedded.DEFAULTS["prompt"]) == []
    assert not embedded.too_long(embedded.DEFAULTS["prompt"])


def test_the_tokenizer_and_the_list_of_known_words_agree():
    tokenizer = architecture.build_tokenizer()
    text = "A zebra, and a RED circle!"
    ids = tokenizer(text).input_ids
    assert ids[-1] == tokenizer.eos_token_id
    known = [word not in voc.unknown_words(text) for word in voc.split_words(text)]
    assert [i != tokenizer.unk_token_id for i in ids[:-1]] == known


def test_training_runs_resumes_exports_and_goes_on_from_what_it_exported(tmp_path):
    def run(*minutes):
        train.main([
            "--tiny", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--minutes", *minutes,
        ])  # fmt: skip
        lines = (tmp_path / "work" / "log.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    first = run("0.02", "0.05")
    last = [line["step"] for line in first if line.get("done")][-1]
    assert last > 0
    again = run("0.02", "0.1")
    assert [line["step"] for line in again if line.get("done")][-1] > last
    more = ["--start-from", str(tmp_path / "out"), "--stages", "denoiser", "--minutes", "0", "0.03"]
    train.main(["--tiny", "--work", str(tmp_path / "more"), "--out", str(tmp_path / "better"), *more])
    from diffusers import DiffusionPipeline

    first, better = (DiffusionPipeline.from_pretrained(tmp_path / name) for name in ("out", "better"))
    assert first.vae.config.latents_std == better.vae.config.latents_std
    moved = (better.transformer.proj_out.weight - first.transformer.proj_out.weight).float().abs().max()
    assert 0 < moved < 0.2
    frames = better(
        "a red circle", height=32, width=48, num_frames=5, num_inference_steps=1, max_sequence_length=16
    ).frames
    assert frames.shape == (1, 5, 32, 48, 3)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 6, 12), (2, 12, 6)])
def test_orthogonalised_updates_have_singular_values_near_one(shape):
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)).float())
    assert values.min() > 0.3 and values.max() < 1.4
