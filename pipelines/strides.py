"""What the configs of a pipeline folder say of latents and tokens: nothing is loaded, and no class is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dittools.pipelines.components import config_of

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Told:
    """What configs say; None where they do not, and the record's value counts."""

    time: int | None = None
    side: int | None = None
    patch: tuple[int, int, int] | None = None
    positions: int | None = None


def _whole(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _wan(vae: Config, transformer: Config) -> Told:
    patch = transformer.get("patch_size")
    sound = isinstance(patch, list) and len(patch) == 3 and all(map(_whole, patch))
    return Told(
        _whole(vae.get("scale_factor_temporal")),
        _whole(vae.get("scale_factor_spatial")),
        tuple(patch) if sound else None,
        _whole(transformer.get("rope_max_seq_len")),
    )


def _cogvideox(vae: Config, transformer: Config) -> Told:
    side = _whole(transformer.get("patch_size"))
    deep = _whole(transformer.get("patch_size_t")) or 1
    return Told(
        _whole(vae.get("temporal_compression_ratio")), _halvings(vae), None if side is None else (deep, side, side)
    )


def _ltx(vae: Config, transformer: Config) -> Told:
    side, deep = _whole(transformer.get("patch_size")), _whole(transformer.get("patch_size_t"))
    time, space = (_whole(vae.get(f"{axis}_compression_ratio")) for axis in ("temporal", "spatial"))
    scaling = vae.get("spatio_temporal_scaling")
    if isinstance(scaling, list):
        halvings = 2 ** sum(map(bool, scaling))
        time = time or halvings * (_whole(vae.get("patch_size_t")) or 1)
        space = space or halvings * (_whole(vae.get("patch_size")) or 1)
    return Told(time, space, None if side is None or deep is None else (deep, side, side))


def _flux(vae: Config, transformer: Config) -> Told:
    return Told(side=_halvings(vae))


def _halvings(vae: Config) -> int | None:
    """Pixels along a side of a latent, of a VAE that halves them after each block but the last."""
    blocks = vae.get("block_out_channels")
    return 2 ** (len(blocks) - 1) if isinstance(blocks, list) and blocks else None


_READERS: dict[str, Callable[[Config, Config], Told]] = {
    "wan": _wan,
    "cogvideox": _cogvideox,
    "ltx": _ltx,
    "flux": _flux,
}


READ = frozenset(_READERS)
"""Families whose folders say the sizes they draw."""


def told(family: str, folder: Path | None) -> Told:
    """What the configs of a folder say, for a family that has a reader."""
    if folder is None or family not in _READERS:
        return Told()
    return _READERS[family](config_of(folder / "vae"), config_of(folder / "transformer"))
