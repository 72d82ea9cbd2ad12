"""What caches look at inside a model, against what the model itself computes."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from dittools.pipelines import signals
from dittools.pipelines.families import find_family
from tests.families_tiny import TINY, transformer
from tests.pipelines.test_families import grid_of


def test_cogvideox_time_embedding_is_the_models_own():
    from diffusers import CogVideoXTransformer3DModel

    torch.manual_seed(0)
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=1, time_embed_dim=8, text_embed_dim=16, in_channels=4,
        out_channels=4, sample_width=4, sample_height=4, sample_frames=5,
    )  # fmt: skip
    seen = []
    model.time_embedding.register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        for t in (900, 500, 100):
            model(torch.randn(1, 2, 4, 4, 4), torch.randn(1, 226, 16), torch.tensor([t]))
    moved = [float((b - a).abs().mean() / a.abs().mean()) for a, b in itertools.pairwise(seen)]
    found = signals.time_changes(model, "embedding", [900.0, 500.0, 100.0])
    assert found == pytest.approx([0.0, *moved], rel=1e-4)


def test_an_unknown_model_or_no_schedule_has_no_time_signal():
    assert signals.time_changes(torch.nn.Linear(2, 2), "embedding", [1.0, 2.0]) is None


def test_cogvideox_1_5_image_to_video_adds_what_its_pipeline_says_of_the_offset():
    from diffusers import CogVideoXTransformer3DModel

    torch.manual_seed(0)
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=1, time_embed_dim=8, ofs_embed_dim=8, in_channels=8,
        out_channels=4, text_embed_dim=16, sample_width=4, sample_height=4, sample_frames=9, patch_size_t=2,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip
    seen, rope = [], (torch.ones(4, 16), torch.zeros(4, 16))
    block = model.transformer_blocks[0]
    block.register_forward_pre_hook(lambda m, a, k: seen.append(k["temb"]), with_kwargs=True)
    with torch.no_grad():
        for t in (900, 500, 100):
            model(torch.randn(1, 2, 8, 4, 4), torch.randn(1, 226, 16), torch.tensor([t]), ofs=torch.tensor([2.0]),
                  image_rotary_emb=rope)  # fmt: skip
    moved = [float((b - a).abs().mean() / a.abs().mean()) for a, b in itertools.pairwise(seen)]
    assert signals.time_changes(model, "embedding", [900.0, 500.0, 100.0]) == pytest.approx([0.0, *moved], rel=1e-4)


@pytest.mark.parametrize("family", ["flux", "hunyuan-video", "ltx", "mochi", "cosmos"])
def test_the_modulated_input_of_the_first_block_is_what_its_attention_is_given(family):
    model = transformer(family, find_family(family).transformer)
    if family == "cosmos":  # published, positions that are learnt are not in the signal
        model.learnable_pos_embed.register_forward_hook(lambda m, a, out: torch.zeros_like(out))
    block = model.transformer_blocks[0]
    attention = block.attn if hasattr(block, "attn") else block.attn1
    read, given = [], []
    hear = lambda m, a, k: read.append(signals.modulated_input(m, a, k))  # noqa: E731
    block.register_forward_pre_hook(hear, with_kwargs=True)
    keep = lambda m, a, k: given.append(k["hidden_states"] if "hidden_states" in k else a[0])  # noqa: E731
    attention.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        model(**TINY[family].arguments(grid_of(family), 2))
    assert signals.knows_input(block) and read[0].shape == given[0].shape
    torch.testing.assert_close(read[0], given[0])


def test_of_other_blocks_no_modulated_input_is_known():
    assert not signals.knows_input(torch.nn.Identity())
    assert signals.modulated_input(torch.nn.Identity(), (torch.zeros(1),), {}) is None


@pytest.mark.parametrize("share, step", [(0.8, 3), (0.05, 10), (None, None)])
def test_the_second_expert_takes_over_below_the_pipelines_boundary(share, step):
    scheduler = SimpleNamespace(config=SimpleNamespace(num_train_timesteps=1000))
    pipe = SimpleNamespace(config=SimpleNamespace(boundary_ratio=share), scheduler=scheduler)
    timesteps = [1000.0, 900.0, 800.0, *range(700, 0, -100)]
    assert signals.takes_over(pipe, timesteps) == step
    assert signals.takes_over(pipe, ()) is None and signals.takes_over(object(), timesteps) is None


@pytest.mark.parametrize(
    "name, options, flow",
    [
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, True),
        ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}, True),
        ("EulerDiscreteScheduler", {}, False),
        ("DDIMScheduler", {}, False),
    ],
)
def test_the_share_of_noise_falls_from_nearly_all_to_little(name, options, flow):
    import diffusers

    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(8)
    found = [signals.noise_share(scheduler, step, 8) for step in range(8)]
    assert found == sorted(found, reverse=True) and found[0] > 0.9 and 0 < found[-1] < 0.5
    if flow:
        assert found == pytest.approx(scheduler.sigmas[:8].tolist())
    late = [signals.noise_share(scheduler, step, 5) for step in range(5)]  # image to image runs the last steps
    assert late == found[3:]


def test_a_scheduler_that_tells_nothing_gives_nothing():
    assert signals.noise_share(object(), 0, 4) is None
