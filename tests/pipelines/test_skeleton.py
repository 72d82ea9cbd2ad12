"""How large a model is, from its configs: as the model itself says."""

import pytest

from dittools.config import Config
from dittools.pipelines.attach import attach
from dittools.pipelines.families import find_family
from dittools.pipelines.skeleton import identity_of
from tests.pipelines.test_families import ABLE, Holder
from tests.tiny import tiny_transformer


def layers_and_heads(folder, family):
    found = identity_of(folder, family)
    return found and (found.layers, found.heads)


@pytest.mark.parametrize("name", ABLE)
def test_layers_and_heads_are_those_of_the_model(name, tmp_path):
    holder = Holder(name)
    holder.transformer.save_config(tmp_path / "transformer")
    with attach(holder, Config(method="dense")) as attachment:
        identity = attachment.runtime.identity
    assert layers_and_heads(tmp_path, find_family(name)) == (identity.layers, identity.heads)


def test_layers_of_both_experts_count(tmp_path):
    for component, layers in (("transformer", 3), ("transformer_2", 2)):
        tiny_transformer(layers=layers).save_config(tmp_path / component)
    assert layers_and_heads(tmp_path, find_family("wan")) == (5, 2)


@pytest.mark.parametrize(
    "config", ["{", '{"_class_name": "Nothing"}', '{"_class_name": "WanTransformer3DModel", "patch_size": 3}']
)
def test_configs_that_make_no_model_are_left_to_loading(config, tmp_path):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(config)
    assert layers_and_heads(tmp_path, find_family("wan")) is None
