"""Do the parts of a pipeline folder belong together? What it lists, what its configs say, what its weights hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dittools.pipelines.errors import BadInput

if TYPE_CHECKING:
    import torch

INDEX = "model_index.json"
_LIBRARIES = ("diffusers", "transformers")
_CONFIGS = ("config.json", "scheduler_config.json")

# Pairs of numbers that are one: (component, key of its config). A pair of which one is not told is not compared.
_TEXT = ("text_encoder", "d_model")
_AGREE = {
    "WanPipeline": (
        (("transformer", "text_dim"), _TEXT),
        (("transformer_2", "text_dim"), _TEXT),
        (("transformer", "out_channels"), ("vae", "z_dim")),
        (("transformer_2", "out_channels"), ("vae", "z_dim")),
    ),
    "CogVideoXPipeline": (
        (("transformer", "text_embed_dim"), _TEXT),
        (("transformer", "in_channels"), ("vae", "latent_channels")),
    ),
    "LTXPipeline": (
        (("transformer", "caption_channels"), _TEXT),
        (("transformer", "in_channels"), ("vae", "latent_channels")),
    ),
    "FluxPipeline": ((("transformer", "joint_attention_dim"), ("text_encoder_2", "d_model")),),
}


def listed(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Component -> (library, class name) of a model_index.json."""
    return {
        name: (str(value[0]), str(value[1]))
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[1] is not None
    }


def check_listed(folder: Path, index: dict[str, Any]) -> None:
    """Check what needs no class to be imported. Raises BadInput naming the component.

    Only classes of diffusers and transformers are loaded: code that comes with a folder is never run.
    """
    for name, (library, kind) in listed(index).items():
        if library not in _LIBRARIES and not _is_pipeline_module(library):
            raise BadInput(
                f"{folder / INDEX} takes {name} from {_short(library)}, and only what is in diffusers and transformers "
                "is loaded, never code of others: use a folder made of these"
            )
        if not kind.isidentifier():
            raise BadInput(f"{folder / INDEX} names no class for {name}: get the file again")
    for (a, key), (b, other) in _AGREE.get(str(index.get("_class_name")), ()):
        mine, theirs = config_of(folder / a).get(key), config_of(folder / b).get(other)
        if None not in (mine, theirs) and mine != theirs:
            raise BadInput(
                f"{folder / a} and {folder / b} do not belong together ({key} is {_short(mine)}, {other} "
                f"{_short(theirs)}): get the folder again"
            )


def _is_pipeline_module(library: str) -> bool:
    """Whether it is a part of diffusers' own pipelines, as safety checkers are."""
    spec = find_spec("diffusers") if library.isidentifier() else None
    return spec is not None and (Path(spec.origin).parent / "pipelines" / library).is_dir()


def config_of(component: Path) -> dict[str, Any]:
    """A component's config as its file has it; empty where there is none that can be read."""
    for name in _CONFIGS:
        try:
            found = json.loads((component / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def check_classes(folder: Path, index: dict[str, Any]) -> dict[str, type]:
    """The class of every component. Raises BadInput where there is none, or its config is of another one."""
    found = {}
    for name, (library, asked) in listed(index).items():
        kind = _class(library, asked)
        if kind is None:
            raise BadInput(f"{folder / INDEX} names {_short(asked)} for {name}, which {library} has not: {_REMEDY}")
        said = config_of(folder / name).get("_class_name", asked)
        if library == "diffusers" and said != asked and not _exchangeable(kind, said):
            unknown = "" if _class(library, said) else ", which diffusers has not"
            raise BadInput(
                f"{folder / name}: its config is of a {_short(said)}{unknown}, and {INDEX} names {asked}: {_REMEDY}"
            )
        found[name] = kind
    return found


_REMEDY = "get the folder again, or a newer diffusers if the model is newer"


def _class(library: str, name: Any) -> type | None:
    import diffusers
    import transformers

    where = {"diffusers": diffusers, "transformers": transformers}.get(library)
    try:
        found = getattr(where or getattr(diffusers.pipelines, library), name)
    except (AttributeError, ImportError, RuntimeError, TypeError):
        return None
    return found if isinstance(found, type) else None


def _exchangeable(kind: type, said: Any) -> bool:
    """Whether diffusers itself takes a config of the class `said` for this one: schedulers of a kind, old names."""
    return said in [*getattr(kind, "_compatibles", ())] or said == "Transformer2DModel"


def load_models(
    folder: Path,
    kinds: dict[str, type],
    dtypes: Callable[[str], torch.dtype],
    note: Callable[[str], None],
    more: Callable[[str], dict[str, Any]] = lambda name: {},
) -> dict[str, Any]:
    """The models among the components, each with exactly the weights that its config makes room for.

    Args:
        kinds: class of each component.
        dtypes: gives that of a component.
        note: told of weights that a text encoder does not use.
        more: gives what a component's ``from_pretrained`` takes beside.

    Raises:
        BadInput: where weights are missing, or a part of diffusers does not use all of them.
    """
    import diffusers
    import transformers

    found = {}
    for name, kind in kinds.items():
        theirs = issubclass(kind, transformers.PreTrainedModel)
        if not theirs and not issubclass(kind, diffusers.ModelMixin):
            continue
        dtype = {"dtype" if theirs else "torch_dtype": dtypes(name), **more(name)}
        found[name], info = kind.from_pretrained(
            folder / name, use_safetensors=True, local_files_only=True, output_loading_info=True, **dtype
        )
        missing, unused = (sorted(info.get(key) or ()) for key in ("missing_keys", "unexpected_keys"))
        if missing:
            raise BadInput(
                f"{folder / name}: its config makes a model of which the weights lack {_some(missing)}: {_UNLIKE}"
            )
        if unused and theirs:
            note(f"{folder / name}: {_some(unused)} of its weights are not used")
        elif unused:
            raise BadInput(f"{folder / name}: its config has no place for the weights {_some(unused)}: {_UNLIKE}")
    return found


_UNLIKE = "config and weights are of two models, get the folder again"


def _some(names: list[str]) -> str:
    return _short(names[0], 80) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _short(value: Any, most: int = 60) -> str:
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
