"""Pipelines of other kinds around transformers that run sparse: image to video, video to video, img2img, control,
and modular ones.
"""

import numpy as np
import PIL.Image
import pytest
import torch

import dittools
from tests.pipelines_tiny import pipeline
from tests.tiny import tiny_pipeline, tiny_transformer

STEPS = 2
FRAMES, SIZE = 17, {"height": 128, "width": 144}
IMAGE = {"height": 256, "width": 272}
# What a call of dittools gets: every step and layer sparse.
SPARSE = {"method": "draft", "block_size": 64, "dense_steps": 0, "dense_layers": 0}


def picture(seed: int = 0, size: dict = SIZE):
    levels = np.random.default_rng(seed).integers(0, 255, (size["height"], size["width"], 3), dtype=np.uint8)
    return PIL.Image.fromarray(levels)


def wan_parts() -> dict:
    parts = dict(tiny_pipeline().components)
    parts.pop("transformer_2", None)
    return parts


def video_to_video():
    from diffusers import WanVideoToVideoPipeline

    pipe = WanVideoToVideoPipeline(**wan_parts())
    return pipe, {"video": [picture(i) for i in range(FRAMES)], "strength": 1.0, **SIZE}


def image_to_video():
    from diffusers import WanImageToVideoPipeline

    parts = {**wan_parts(), "transformer": wider(tiny_transformer(), 36)}
    return WanImageToVideoPipeline(**parts), {"image": picture(), "num_frames": FRAMES, **SIZE}


def wider(model, channels: int):
    """The same model, anew, for inputs of more channels."""
    given = {key: value for key, value in model.config.items() if not key.startswith("_")}
    given["out_channels"] = given["out_channels"] or given["in_channels"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return type(model)(**{**given, "in_channels": channels}).eval().requires_grad_(False)


def img2img():
    from diffusers import FluxImg2ImgPipeline

    return FluxImg2ImgPipeline.from_pipe(pipeline("flux")), {"image": picture(0, IMAGE), "strength": 1.0, **IMAGE}


def control():
    from diffusers import FluxControlPipeline

    parts = {name: part for name, part in pipeline("flux").components.items() if name not in DROPPED}
    parts["transformer"] = wider(parts["transformer"], 32)
    return FluxControlPipeline(**parts), {"control_image": picture(0, IMAGE), **IMAGE}


DROPPED = ("image_encoder", "feature_extractor")


def modular():
    from diffusers.modular_pipelines.wan import WanBlocks

    pipe = WanBlocks().init_pipeline()
    pipe.update_components(**{name: part for name, part in wan_parts().items() if name in pipe.component_names})
    return pipe, {"num_frames": FRAMES, "output": "videos", **SIZE}


KINDS = {f.__name__: f for f in (video_to_video, image_to_video, img2img, control, modular)}


def draw(pipe, call):
    generator = torch.Generator("cpu").manual_seed(4)
    steps = {"num_inference_steps": STEPS, "output_type": "np", "generator": generator}
    out = pipe(prompt="a red circle", **steps, **call)
    if isinstance(out, (list, np.ndarray)):
        return np.asarray(out)
    return np.asarray(out.images if hasattr(out, "images") else out.frames)


@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_of_pipeline_runs_sparse_and_is_restored(kind):
    pipe, call = KINDS[kind]()
    if hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(disable=True)
    dense = draw(pipe, call)
    with dittools.accelerate(pipe, sparsity=0.0, **SPARSE):
        np.testing.assert_allclose(draw(pipe, call), dense, atol=2e-3)
    fast = dittools.accelerate(pipe, sparsity=0.6, **SPARSE)
    sparse = draw(pipe, call)
    record = fast.record()
    assert record["calls"]["dense"] == 0 and record["calls"]["sparse"] >= STEPS and record["fallbacks"] == []
    assert np.isfinite(sparse).all() and np.abs(sparse - dense).max() > 1e-3
    fast.restore()
    assert np.array_equal(draw(pipe, call), dense)
