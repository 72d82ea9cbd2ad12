"""What caches look at inside a model, against what the model itself computes."""

import itertools

import pytest
import torch

from dittools.pipelines import signals


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


def test_flux_input_of_the_first_block_is_what_its_attention_is_given():
    from diffusers.models.transformers.transformer_flux import FluxTransformerBlock

    torch.manual_seed(0)
    block = FluxTransformerBlock(dim=32, num_attention_heads=2, attention_head_dim=16)
    hidden, text, temb = torch.randn(1, 6, 32), torch.randn(1, 3, 32), torch.randn(1, 32)
    call = {"hidden_states": hidden, "encoder_hidden_states": text, "temb": temb}
    seen = []
    block.attn.register_forward_pre_hook(lambda m, a, k: seen.append(k["hidden_states"]), with_kwargs=True)
    with torch.no_grad():
        block(**call)
    assert torch.equal(signals.modulated_input(block, (), call), seen[0])
    assert torch.equal(signals.modulated_input(block, (hidden, text, temb), {}), seen[0])
    assert signals.modulated_input(torch.nn.Identity(), (), call) is None


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
