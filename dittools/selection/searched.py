"""Choices that a profile's search left to the budget: windows of tiles by head, reference frames by layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from dittools.attention_profile import Profile
from dittools.kernels.masks.block_mask import BlockMask
from dittools.selection.geometric import TOLERANCE
from dittools.selection.modes import choose_modes
from dittools.selection.tilings import Axes, Tiling

if TYPE_CHECKING:
    from dittools.methods.base import AttentionCall


class WindowSearch:
    """What the search of Sliding Tile Attention in a profile says of one grid and block size.

    It holds nothing of the profile, in whose cache it is, and no masks: those go into the scopes of the call.

    Args:
        call: brings profile, grid and block size.
        window, tile: what the method was asked for; "auto" where the profile decides.

    Attributes:
        tiling: the grid in tiles of the search.
        windows: those it tried, in tiles.
        groups: of each step, whose windows it shares.

    Raises:
        ValueError: when the method was asked for something else than the profile has, or its section is damaged.
    """

    def __init__(self, call: AttentionCall, window: Axes | str, tile: Axes | str):
        measured, self.windows, self.groups = searched_windows(call.profile)
        if window != "auto":
            raise ValueError(
                f"sta was asked for the window {list(window)} and given {call.profile.name}, which decides it: "
                "use one of the two"
            )
        if tile not in ("auto", measured):
            raise ValueError(
                f"sta was asked for tiles of {list(tile)}, and {call.profile.name} has windows of tiles of "
                f"{list(measured)}: leave tile at auto"
            )
        self.tiling = Tiling(call.grid, measured, call.block_size)

    @cached_property
    def shares(self) -> list[float]:
        """What each of ``windows`` keeps of the picture's pairs."""
        return self.tiling.shares(self.windows)

    def of_heads(self, call: AttentionCall) -> list[tuple[Axes, float | None]]:
        """For each head of a layer its window, and the share it is moved to where that is not the window's own."""
        found = tile_windows(call.profile, call.layer, call.step, call.density, self.shares)
        known = dict(zip(self.windows, self.shares, strict=True))
        return list(zip(found, to_budget([known[w] for w in found], call.density), strict=True))

    def masks(
        self, windows: Sequence[tuple[Axes, float | None]], call: AttentionCall, device: torch.device
    ) -> list[BlockMask]:
        """The mask of each head, ``[1, 1, M, M]`` on the device; those of equal windows are one."""
        return [self._mask(window, share, call, device) for window, share in windows]

    def _mask(self, window: Axes, share: float | None, call: AttentionCall, device: torch.device) -> BlockMask:
        key = "sta", self.tiling.tile, window, share
        made = call.profile_cache.get_or_make(key, lambda: self._make(window, share, call))
        return call.run_cache.get_or_make((*key, device), lambda: made.to(device))

    def _make(self, window: Axes, share: float | None, call: AttentionCall) -> BlockMask:
        if share is None:
            return self.tiling.window(window).mask
        # Large, and of use while masks of this window are made for the layers of one run.
        key = "sta", self.tiling.tile, window
        return self.tiling.near(call.run_cache.get_or_make(key, lambda: self.tiling.around(window)), share).mask


def stack_heads(masks: Sequence[BlockMask]) -> BlockMask:
    """One mask ``[1, H, M, M]`` from that of each head, ``[1, 1, M, M]``; one alone serves all heads as it is."""
    one = masks[0]
    if all(mask is one for mask in masks):
        return one
    lists = (torch.cat(part, 1) for part in zip(*(mask.kv_blocks() for mask in masks), strict=True))  # [1, H, ...]
    density = torch.cat([mask.density() for mask in masks], 1)
    return BlockMask.from_kv_blocks(*lists, one.query, one.key, density)


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
