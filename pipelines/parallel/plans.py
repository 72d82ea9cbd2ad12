"""How the tokens of a transformer are split among ranks, where diffusers has no plan, or one that does not do.

A plan is what diffusers' `enable_parallelism(cp_plan=...)` takes: which arguments and outputs of which modules are
split, and where the parts are gathered. A record says too what is beside it: attention that sees whole text on every
rank, and whether diffusers' own attention is right under the plan or only that of dittools, which knows the place of
every token and has the mask of all tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dittools.pipelines.errors import BadInput

if TYPE_CHECKING:
    from dittools.pipelines.family import Family


@dataclass(frozen=True)
class Split:
    """The plan for one transformer class.

    Args:
        plan: makes diffusers' plan for a transformer.
        whole: paths of attention modules whose queries or keys no rank has to ask others for; ``*`` is one part.
        ours: whether only dittools' attention is right under the plan.
        uneven: whether ranks may have more or fewer tokens whatever the sizes are.
        why_not: gives the reason for which a transformer of this config cannot be split so, or None.
    """

    plan: Callable[[Any], dict[str, Any]]
    whole: tuple[str, ...] = ()
    ours: bool = True
    uneven: bool = False
    why_not: Callable[[Mapping[str, Any]], str | None] = lambda config: None


def _given(dim: int, dims: int) -> Any:
    """An argument with so many axes, split along one of them."""
    from diffusers.models._modeling_parallel import ContextParallelInput

    return ContextParallelInput(split_dim=dim, expected_dims=dims)


def _made(dim: int, dims: int) -> Any:
    """An output with so many axes, split along one of them."""
    from diffusers.models._modeling_parallel import ContextParallelInput

    return ContextParallelInput(split_dim=dim, expected_dims=dims, split_output=True)


def _gathered(outputs: int = 1) -> Any:
    """Outputs ``[B, S of this rank, C]``, of which every rank gets all tokens."""
    from diffusers.models._modeling_parallel import ContextParallelOutput

    return [ContextParallelOutput(gather_dim=1, expected_dims=3)] * outputs


def _text_beside_picture() -> dict[str, Any]:
    return {"hidden_states": _given(1, 3), "encoder_hidden_states": _given(1, 3)}


def _hunyuan_video(model: Any) -> dict[str, Any]:
    return {
        "rope": {0: _made(0, 2), 1: _made(0, 2)},
        "transformer_blocks.0": _text_beside_picture(),
        "proj_out": _gathered(),
    }


def _token_replace(config: Mapping[str, Any]) -> str | None:
    if config.get("image_condition_type") != "token_replace":
        return None
    return "its blocks (token_replace) count the tokens of the first frame from the start of what they are given"


def _cogvideox(model: Any) -> dict[str, Any]:
    return {
        "transformer_blocks.0": _text_beside_picture(),
        "transformer_blocks.*": {"image_rotary_emb": [_given(0, 2), _given(0, 2)]},
        "proj_out": _gathered(),
    }


def _ltx(model: Any) -> dict[str, Any]:
    return {
        "": {"hidden_states": _given(1, 3), "timestep": _given(1, 2)},
        "rope": {0: _made(1, 3), 1: _made(1, 3)},
        "proj_out": _gathered(),
    }


def _skyreels(model: Any) -> dict[str, Any]:
    return {
        "rope": {0: _made(1, 4), 1: _made(1, 4)},
        "blocks.0": {"hidden_states": _given(1, 3)},
        "blocks.*": {"temb": _given(2, 4)},  # that of each token, where frames have timesteps of their own
        _last("blocks", model): _gathered(),  # before what is made of those outside of the blocks
    }


def _hunyuan_video_15(model: Any) -> dict[str, Any]:
    return _hunyuan_video(model) | {"transformer_blocks.*": {"attention_mask": _given(1, 2)}}


def _framepack(model: Any) -> dict[str, Any]:
    rope = [_given(0, 2), _given(0, 2)]  # history and picture in one
    return {
        "transformer_blocks.0": _text_beside_picture(),
        "transformer_blocks.*": {"freqs_cis": rope},
        "single_transformer_blocks.*": {"image_rotary_emb": rope},
        _last("single_transformer_blocks", model): _gathered(2),  # before history is cut off
    }


def _mochi(model: Any) -> dict[str, Any]:
    return {
        "rope": {0: _made(0, 3), 1: _made(0, 3)},
        "transformer_blocks.0": _text_beside_picture(),
        "transformer_blocks.*": {"encoder_attention_mask": _given(1, 2)},
        "proj_out": _gathered(),
    }


def _sd3(model: Any) -> dict[str, Any]:
    # Behind what comes before the blocks: some guidance leaves out blocks, also the first one.
    return {"pos_embed": {0: _made(1, 3)}, "context_embedder": {0: _made(1, 3)}, "proj_out": _gathered()}


def _z_image(model: Any) -> dict[str, Any]:
    return {
        "layers.0": {"x": _given(1, 3)},
        "layers.*": {"attn_mask": _given(1, 2), "freqs_cis": _given(1, 3), "noise_mask": _given(1, 2)},
        _last("layers", model): _gathered(),
    }


def _last(blocks: str, model: Any) -> str:
    """The path of the last of these blocks."""
    return f"{blocks}.{len(getattr(model, blocks)) - 1}"


PLANS: dict[str, Split] = {
    "HunyuanVideoTransformer3DModel": Split(_hunyuan_video, why_not=_token_replace),
    "CogVideoXTransformer3DModel": Split(_cogvideox),
    "HunyuanVideo15Transformer3DModel": Split(_hunyuan_video_15),
    # Its text ends with its last word, wherever that is.
    "HunyuanVideoFramepackTransformer3DModel": Split(_framepack, uneven=True),
    # Each sample attends without its padding.
    "MochiTransformer3DModel": Split(_mochi, uneven=True),
    "SD3Transformer2DModel": Split(_sd3),
    "SkyReelsV2Transformer3DModel": Split(_skyreels, whole=("blocks.*.attn2",), ours=False),
    "ZImageTransformer2DModel": Split(
        _z_image, whole=tuple(f"{kind}_refiner.*.attention" for kind in ("noise", "context", "siglip"))
    ),
    # diffusers' plan splits the text too: a ring over it wants a log-sum-exp, and its mask is for all heads.
    "LTXVideoTransformer3DModel": Split(_ltx, whole=("transformer_blocks.*.attn2",), ours=False),
    # diffusers' plan does, but for the text's own attention, which comes before anything is split.
    "MiniMaxH3Transformer3DModel": Split(
        lambda model: dict(model._cp_plan), whole=("token_refiner.refiner_blocks.*.attn",), ours=False
    ),
}
"""By transformer class."""

WHOLE = "_dittools_whole"
"""An attribute of attention modules that see all they need on every rank."""

REASONS: dict[str, str] = {
    "wan-animate": "its face blocks cut what they are given into frames, which a rank's share of the tokens is not",
}
"""Why a model of a family cannot be split, by the family's name."""


def why_whole(family: Family) -> str:
    """The reason for which the transformer of a family, for which nobody has a plan, is not split."""
    if family.why_not is not None:
        return f"sparse attention cannot run in {family.name} ({family.why_not}), and nothing else of it is split"
    nobody = f"neither diffusers nor dittools has a plan of how to split {family.transformer} among GPUs"
    return REASONS.get(family.name, nobody)


def check_variant(transformer: str, config: Mapping[str, Any]) -> None:
    """Raises BadInput where the plan of a transformer class is for other configs than this one."""
    why = PLANS[transformer].why_not(config) if transformer in PLANS else None
    if why is not None:
        raise BadInput(f"{transformer} cannot be split among GPUs: {why}")


def check_degrees(transformer: str, ulysses: int, ring: int) -> None:
    """Raises BadInput where diffusers cannot share a transformer of this class by so many ranks of both kinds."""
    if transformer in PLANS and PLANS[transformer].uneven and ulysses > 1 and ring > 1:
        raise BadInput(
            f"{transformer} attends without the padding of its text, so ranks have more or fewer tokens, which "
            "diffusers does not do with Ulysses and a ring together: use one of them"
        )


def needs_ours(transformer: str) -> bool:
    """Whether only dittools' attention is right in a transformer of this class that is split among ranks."""
    return transformer in PLANS and PLANS[transformer].ours
