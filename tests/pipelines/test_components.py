"""Parts of a pipeline folder that do not belong together are named in one line; weights are what their config says."""

import json
import shutil

import pytest
import torch

from dittools.pipelines import loading
from dittools.pipelines.errors import BadInput
from dittools.pipelines.folder import check_folder
from tests.tiny import tiny_pipeline

INDEX, TRANSFORMER, SCHEDULER = "model_index.json", "transformer/config.json", "scheduler/scheduler_config.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sound folder of a pipeline with two experts."""
    folder = tmp_path_factory.mktemp("pipeline") / "tiny"
    tiny_pipeline(layers=2, experts=2).save_pretrained(folder)
    return folder


@pytest.fixture
def changed(whole, tmp_path):
    """Change values of a JSON file in a copy of the folder, which is given."""
    folder = shutil.copytree(whole, tmp_path / "weights")

    def change(name, **values):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
        return folder

    return change


def refused(folder):
    """What is said of a folder that is not loaded."""
    with pytest.raises(BadInput) as error:
        check_folder(folder, ("WanPipeline",))
        loading.load(folder, device=torch.device("cpu"), dtype=torch.float32)
    said = str(error.value)
    assert len(said.replace(str(folder), "")) <= 300 and "\n" not in said
    assert not any(word in said for word in ("trust_remote_code", "low_cpu_mem_usage", "to_empty", "http"))
    return said


@pytest.mark.parametrize("part", ["transformer", "transformer_2"])
@pytest.mark.parametrize(("layers", "told"), [(1, "has no place for the weights blocks.1."), (3, "lack blocks.2.")])
def test_a_config_with_other_layers_than_the_weights_is_named(changed, part, layers, told):
    folder = changed(f"{part}/config.json", num_layers=layers)
    said = refused(folder)
    assert (
        said.startswith(f"{folder / part}: ") and told in said and " more: config and weights are of two models" in said
    )


@pytest.mark.parametrize(("part", "changes"), [("text_encoder", {"num_layers": 2}), ("vae", {"num_res_blocks": 0})])
def test_missing_weights_of_other_parts_are_named(changed, part, changes):
    folder = changed(f"{part}/config.json", **changes)
    said = refused(folder)
    assert said.startswith(f"{folder / part}: ") and "the weights lack encoder." in said


def test_unused_weights_of_a_text_encoder_are_a_note(changed):
    notes = []
    folder = changed("text_encoder/config.json", num_layers=0)
    loading.load(folder, device=torch.device("cpu"), dtype=torch.float32, note=notes.append)
    assert len(notes) == 1 and "encoder.block.0." in notes[0] and "are not used" in notes[0]


def test_weights_of_other_shapes_are_told_without_advice_to_programmers(changed):
    said = refused(changed(TRANSFORMER, ffn_dim=64))
    assert "expected shape" in said and "blocks.0.ffn" in said


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        (SCHEDULER, {"_class_name": "NoSuchScheduler"}, "of a NoSuchScheduler, which diffusers has not"),
        (SCHEDULER, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "names UniPCMultistepScheduler"),
        (SCHEDULER, {"_class_name": ["a", "b"]}, "['a', 'b']"),
        (
            INDEX,
            {"scheduler": ["diffusers", "NoSuchScheduler"]},
            "NoSuchScheduler for scheduler, which diffusers has not",
        ),
        (INDEX, {"text_encoder": ["transformers", "NoSuchModel"]}, "which transformers has not"),
        (INDEX, {"transformer": ["diffusers", "LTXVideoTransformer3DModel"]}, "config is of a WanTransformer3DModel"),
        (INDEX, {"transformer": ["no_such_library", "Model"]}, "takes transformer from no_such_library"),
        (INDEX, {"transformer": ["os", "system"]}, "takes transformer from os"),
        (INDEX, {"vae": ["diffusers.models", "AutoencoderKLWan"]}, "takes vae from diffusers.models"),
        (INDEX, {"vae": ["../vae", "x" * 5000]}, "takes vae from ../vae"),
        (INDEX, {"vae": ["diffusers", "Auto encoder"]}, "names no class for vae"),
        (TRANSFORMER, {"text_dim": 48}, "do not belong together (text_dim is 48, d_model 32)"),
        ("transformer_2/config.json", {"out_channels": 48}, "(out_channels is 48, z_dim 16)"),
        ("vae/config.json", {"z_dim": 48}, "do not belong together"),
    ],
)
def test_what_does_not_belong_together_is_named(changed, name, values, told):
    assert told in refused(changed(name, **values))


def test_a_scheduler_that_diffusers_takes_for_another_may_have_its_config(changed):
    folder = changed(SCHEDULER, _class_name="DPMSolverMultistepScheduler")
    assert type(loading.load(folder, device=torch.device("cpu"), dtype=torch.float32).scheduler).__name__.startswith(
        "UniPC"
    )
