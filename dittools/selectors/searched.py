"""Choices that a profile's search left to the budget: windows of tiles by head, reference frames by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dittools.profile import Profile
from dittools.selectors.geometric import TOLERANCE
from dittools.selectors.modes import choose_modes

Axes = tuple[int, int, int]


def searched_windows(profile: Profile) -> tuple[Axes, list[Axes], list[int]]:
    """The tile of Sliding Tile Attention's search, the windows it tried, and the group of each step.

    Raises:
        ValueError: when the profile's section is damaged.
    """
    section = profile.methods["sta"]
    tile, windows, groups = section.get("tile"), section.get("windows"), section.get("groups")
    good = isinstance(windows, list) and isinstance(groups, list) and len(groups) == profile.made.steps
    good = good and bool(windows) and all(type(g) is int and g >= 0 for g in groups)
    if not good or not all(map(_is_window, [tile, *windows])):
        raise ValueError(f"{profile.name} is damaged: method sta needs windows, their tile and a group for each step")
    return tuple(tile), [tuple(window) for window in windows], groups


def tile_windows(
    profile: Profile, layer: int, step: int, density: float, shares: Sequence[float] | None = None
) -> list[Axes]:
    """The window of each head, in tiles along (frames, rows, columns), for Sliding Tile Attention.

    Together the heads of the layer keep ``density`` of the pairs, at the least error the search found for this part
    of the run.

    Args:
        shares: of the pairs, for each window of `searched_windows`; by default the profile's, counted by token.

    Raises:
        ValueError: when the profile's section is damaged.
    """
    model = profile.model
    _, windows, groups = searched_windows(profile)
    lanes = (max(groups) + 1, model.layers, model.heads, len(windows))
    error = profile.array("sta.error", lanes, torch.float32)[groups[step], layer].double()
    cost = _densities(profile, "sta", len(windows)) if shares is None else np.array(shares)
    return [windows[c] for c in choose_modes(error.numpy(), cost, density)]


def reference_counts(
    profile: Profile, layers: Sequence[int], density: float, shares: Sequence[float] | None = None
) -> list[int]:
    """Reference frames of each of these layers, for Efficient-vDiT's attention tiles.

    Together the layers, which are those that run sparse, keep ``density`` of the frame tiles, at the least error.

    Args:
        shares: of the pairs, for 0 to all frames as references; by default the profile's, counted by frame tile.

    Raises:
        ValueError: when the profile's section is damaged.
    """
    counts = profile.grid.frames + 1
    lanes = (profile.model.layers,)
    error = profile.array("attention_tile.error", (*lanes, counts), torch.float32).double()
    power = profile.array("attention_tile.power", lanes, torch.float32).double()
    loss = (error / power.clamp_min(torch.finfo(torch.float32).tiny)[:, None])[list(layers)]
    cost = _densities(profile, "attention_tile", counts) if shares is None else np.array(shares)
    return choose_modes(loss.numpy(), cost, density)


def to_budget(shares: Sequence[float], density: float) -> list[float | None]:
    """What each of several masks has to keep so that their mean is ``density``: None where a mask is right as it is.

    Candidates are few, so that none may be near: then all shares are moved alike, and none beyond 0 and 1.
    """
    found = np.array(shares)
    if abs(found.mean() - density) <= TOLERANCE / 2:
        return [None] * len(found)
    low, high = -1.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(found + middle, 0, 1).mean() < density else (low, middle)
    return np.clip(found + high, 0, 1).round(4).tolist()


def _densities(profile: Profile, method: str, count: int) -> np.ndarray:
    found = profile.methods[method].get("density")
    good = isinstance(found, list) and len(found) == count
    if not good or not all(type(share) in (int, float) and 0 < share <= 1 for share in found):
        raise ValueError(f"{profile.name} is damaged: method {method} needs a density for each of {count} candidates")
    return np.array(found, dtype=np.float64)


def _is_window(found: object) -> bool:
    return isinstance(found, list) and len(found) == 3 and all(type(n) is int and n > 0 for n in found)
