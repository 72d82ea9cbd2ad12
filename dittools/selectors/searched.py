"""Choices that a profile's search left to the budget: windows of tiles by head, reference frames by layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dittools.profile import Profile
from dittools.selectors.modes import choose_modes


def tile_windows(profile: Profile, layer: int, step: int, density: float) -> list[tuple[int, int, int]]:
    """The window of each head, in tiles along (frames, rows, columns), for Sliding Tile Attention.

    Together the heads of the layer keep ``density`` of the pairs, at the least error the search found for this part
    of the run. The tile itself is ``profile.methods["sta"]["tile"]``.

    Raises:
        ValueError: when the profile's section is damaged.
    """
    section, model = profile.methods["sta"], profile.model
    windows, groups = section.get("windows"), section.get("groups")
    good = isinstance(windows, list) and isinstance(groups, list) and len(groups) == profile.made.steps
    if not good or not all(type(g) is int and g >= 0 for g in groups) or not all(map(_is_window, windows)):
        raise ValueError(f"{profile.name} is damaged: method sta needs windows and a group for each step")
    lanes = (max(groups) + 1, model.layers, model.heads, len(windows))
    error = profile.array("sta.error", lanes, torch.float32)[groups[step], layer].double()
    chosen = choose_modes(error.numpy(), _densities(profile, "sta", len(windows)).numpy(), density)
    return [tuple(windows[c]) for c in chosen]


def reference_counts(profile: Profile, layers: Sequence[int], density: float) -> list[int]:
    """Reference frames of each of these layers, for Efficient-vDiT's attention tiles.

    Together the layers, which are those that run sparse, keep ``density`` of the frame tiles, at the least error.

    Raises:
        ValueError: when the profile's section is damaged.
    """
    counts = profile.grid.frames + 1
    lanes = (profile.model.layers,)
    error = profile.array("attention_tile.error", (*lanes, counts), torch.float32).double()
    power = profile.array("attention_tile.power", lanes, torch.float32).double()
    loss = (error / power.clamp_min(torch.finfo(torch.float32).tiny)[:, None])[list(layers)]
    return choose_modes(loss.numpy(), _densities(profile, "attention_tile", counts).numpy(), density)


def _densities(profile: Profile, method: str, count: int) -> torch.Tensor:
    found = profile.methods[method].get("density")
    good = isinstance(found, list) and len(found) == count
    if not good or not all(type(share) in (int, float) and 0 < share <= 1 for share in found):
        raise ValueError(f"{profile.name} is damaged: method {method} needs a density for each of {count} candidates")
    return torch.tensor(found, dtype=torch.float64)


def _is_window(found: object) -> bool:
    return isinstance(found, list) and len(found) == 3 and all(type(n) is int and n > 0 for n in found)
