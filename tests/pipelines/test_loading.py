"""Which weights are chosen, what of the network that takes, and that loading in stages changes nothing."""

import json
import shutil
import socket
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dittools.pipelines import embedded, loading, saving, stages, weights
from dittools.pipelines.errors import BadInput, RunFailed
from dittools.pipelines.folder import check_folder
from tests.tiny import tiny_pipeline

REPO = "someone/Tiny-Wan-Diffusers"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline") / "tiny"
    tiny_pipeline().save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test here may reach the network."""

    def blocked(*arguments, **keywords):
        raise ConnectionError("blocked")

    monkeypatch.setattr(socket.socket, "connect", blocked)
    monkeypatch.setattr(socket, "getaddrinfo", blocked)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def snapshot(cache, folder):
    """The repo in the hub cache, whole."""
    home = cache / f"models--{REPO.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    return shutil.copytree(folder, home / "snapshots" / ("0" * 40))


@pytest.fixture
def tiny_embedded(folder, monkeypatch):
    monkeypatch.setattr(embedded, "weights_path", lambda: folder, raising=False)


@pytest.fixture
def hub(monkeypatch):
    """A hub that answers; set its `files` (name -> bytes) or its `error`."""
    fake = SimpleNamespace(files={}, error=None, asked=[])

    def model_info(self, repo, files_metadata, timeout):
        fake.asked.append(repo)
        if fake.error:
            raise fake.error
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in fake.files.items()]
        return SimpleNamespace(siblings=siblings)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    return fake


def test_a_whole_snapshot_in_the_cache_is_used_without_asking_the_hub(snapshot, hub):
    assert weights.choose("auto", REPO, cuda=True).folder == snapshot
    assert weights.choose(REPO, "other/repo", cuda=False).name == REPO
    assert hub.asked == []


@pytest.mark.parametrize("damage", ["cut", "gone", "index", "component"])
def test_an_unfinished_snapshot_does_not_count(snapshot, damage):
    file = snapshot / "transformer" / "diffusion_pytorch_model.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "gone":
        file.unlink()
    elif damage == "index":
        (snapshot / "model_index.json").unlink()
    else:
        shutil.rmtree(snapshot / "text_encoder")
    assert weights.cached(REPO) is None


def test_a_snapshot_of_another_pipeline_is_an_error_not_a_download(snapshot):
    with pytest.raises(BadInput, match="WanPipeline, where one of these is needed: FluxPipeline"):
        weights.cached(REPO, ["FluxPipeline"])


def test_every_listed_shard_must_be_there(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "sharded") / "transformer"
    name = "diffusion_pytorch_model"
    index = {"weight_map": {"a": f"{name}.safetensors", "b": f"{name}-00002-of-00002.safetensors"}}
    (broken / f"{name}.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"00002-of-00002.safetensors is missing"):
        check_folder(broken.parent)


def test_auto_downloads_nothing_without_cuda(cache, hub, tiny_embedded):
    notes = []
    assert weights.choose("auto", REPO, cuda=False, note=notes.append).embedded
    assert hub.asked == []
    assert REPO in notes[0] and "no CUDA GPU" in notes[0] and "embedded" in notes[0]


def test_auto_with_cuda_plans_a_download_of_what_the_pipeline_needs(cache, hub):
    hub.files = {
        "model_index.json": 10,
        "README.md": 5,
        "transformer/config.json": 20,
        "transformer/diffusion_pytorch_model.safetensors": 3_000,
        "transformer/diffusion_pytorch_model.fp16.safetensors": 1_500,
        "text_encoder/pytorch_model.bin": 9_000,
        "tokenizer/spiece.model": 70,
        "assets/demo.mp4": 7,
        "original/deep/er.safetensors": 8,
    }
    plan = weights.choose("auto", REPO, cuda=True)
    assert plan.folder is None and plan.size == 3_100
    assert set(plan.files) == {
        "model_index.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "tokenizer/spiece.model",
    }


def test_a_download_is_announced_with_its_size_and_checked(cache, folder, monkeypatch):
    seen, notes = {}, []

    def download(repo, allow_patterns):
        seen.update(repo=repo, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    plan = weights.Weights(REPO, None, ("model_index.json",), 2_600_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**12))
    assert weights.fetch(plan, note=notes.append) == folder
    assert seen == {"repo": REPO, "patterns": ["model_index.json"]}
    assert "2.6 GB" in notes[0] and str(cache) in notes[0]


def test_a_download_that_does_not_fit_the_disk_is_not_started(cache, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**9))
    with pytest.raises(RunFailed, match=r"needs 2.6 GB .* has 1.0 GB free"):
        weights.fetch(weights.Weights(REPO, None, ("model_index.json",), 2_600_000_000))


def test_a_hub_that_does_not_answer_means_embedded_for_auto_and_an_error_when_named(cache, hub, tiny_embedded):
    hub.error = TimeoutError("4 s")
    notes = []
    assert weights.choose("auto", REPO, cuda=True, note=notes.append).embedded
    assert "could not be asked" in notes[0]
    with pytest.raises(RunFailed, match="could not be asked"):
        weights.choose(REPO, "other/repo", cuda=True)


def test_offline_mode_is_honoured(cache, monkeypatch, tiny_embedded):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert weights.choose("auto", REPO, cuda=True).embedded
    with pytest.raises(RunFailed, match="could not be asked"):
        weights.choose(REPO, REPO, cuda=True)


def test_a_repo_that_is_no_pipeline_is_bad_input(cache, hub):
    hub.files = {"config.json": 1, "model.safetensors": 5}
    with pytest.raises(BadInput, match="ending in -Diffusers"):
        weights.choose(REPO, REPO, cuda=True)


@pytest.mark.parametrize(
    ("asked", "is_folder"),
    [
        ("owner/name", False),
        ("./owner/name", True),
        ("/abs", True),
        ("a/b/c", True),
        ("name", True),
        ("~/x", True),
    ],
)
def test_a_folder_and_a_repo_are_told_apart(asked, is_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert weights.looks_like_folder(asked) is is_folder
    if asked == "owner/name":
        (tmp_path / "owner" / "name").mkdir(parents=True)
        assert weights.looks_like_folder(asked)


def test_dtypes_by_device(monkeypatch):
    assert loading.pick_dtype("auto", CPU) is torch.float32
    assert loading.pick_dtype("bf16", CPU) is loading.pick_dtype("bfloat16", CPU) is torch.bfloat16
    for capability, dtype in (((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device, found=capability: found)
        assert loading.pick_dtype("auto", torch.device("cuda")) is dtype


def test_the_vae_stays_in_fp32(folder):
    pipe = loading.load(folder, device=CPU, dtype=torch.bfloat16)
    assert pipe.transformer.dtype is pipe.text_encoder.dtype is torch.bfloat16
    assert pipe.vae.dtype is torch.float32


def test_offload_without_cuda_is_bad_input(folder):
    with pytest.raises(BadInput, match="--offload group"):
        loading.load(folder, device=CPU, dtype=torch.float32, offload="group")


@pytest.mark.parametrize("guidance", [4.0, 1.0])
@pytest.mark.parametrize("frames", [1, 9])
def test_the_three_stages_give_exactly_the_pipelines_frames(folder, guidance, frames):
    pipe = loading.load(folder, device=CPU, dtype=torch.float32)
    shot = stages.Shot(frames=frames, height=48, width=64, steps=3, guidance=guidance, seed=5)
    steps = []
    embeds = stages.encode(pipe, "a red circle", "grey", guidance, 16)
    latents = stages.denoise(pipe, embeds, shot, lambda *step: steps.append(step))
    staged = stages.decode(pipe, latents, shot)
    whole = pipe(
        "a red circle",
        "grey",
        num_frames=frames,
        height=48,
        width=64,
        num_inference_steps=3,
        guidance_scale=guidance,
        generator=torch.Generator("cpu").manual_seed(5),
        max_sequence_length=16,
        output_type="np",
    ).frames[0]
    assert staged.dtype == np.float32 and np.array_equal(staged, whole)
    levels = stages.decode(pipe, latents, shot, levels=True)
    assert levels.dtype == np.uint8 and np.array_equal(levels, saving.to_uint8(whole))
    with pytest.raises(FloatingPointError):
        stages.decode(pipe, latents * float("nan"), shot, levels=True)
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_prompt_tokens_are_counted_before_any_is_cut(folder):
    pipe = loading.load(folder, device=CPU, dtype=torch.float32)
    assert stages.prompt_tokens(pipe, "a red " * 600) == 1201
    assert stages.longest_text(pipe) == 512


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory of names"), False),
    ],
)
def test_out_of_memory_is_recognised(error, is_memory):
    assert loading.out_of_memory(error) is is_memory
