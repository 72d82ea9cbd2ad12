import pytest
import torch
from places import GPU, everywhere, no_sync

from dittools.kernels.capability import MAX_ROW_BLOCKS, why_not_triton_topk_mask
from dittools.kernels.topk_mask import dispatch as home
from dittools.kernels.topk_mask.dispatch import topk_mask_per_head, topk_mask_per_row


def case(blocks, lanes=(2, 3), seed=0, kinds=5, device="cpu"):
    """Scores with many ties, sizes that differ by lane, and some forced blocks."""
    made = torch.Generator().manual_seed(seed)
    rows, columns = blocks
    scores = torch.randint(kinds, (*lanes, rows, columns), generator=made).float() / 7 - 0.2
    queries = torch.randint(1, 9, (*lanes, rows), generator=made, dtype=torch.int32)
    keys = torch.randint(1, 40, (1, lanes[1], columns), generator=made)
    keys[..., 1::3] = 0  # empty blocks, that some rows score highest
    force = torch.rand(1, 1, rows, columns, generator=made) < 0.05
    return [x.to(device) for x in (scores, queries, keys, force)]


def oracle(scores, queries, keys, budget, share, must):
    """Block by block, best first; scores ``[rows, columns]``, the budget in the unit of the weights."""
    weight = queries[:, None].double() * keys.double()
    places = [(r, c) for r in range(scores.shape[0]) for c in range(scores.shape[1])]
    places.sort(key=lambda at: (not must[at], -scores[at].item()))
    keep, before = must.clone(), 0.0
    for at in places:
        size = weight[at].item()
        keep[at] |= before + size * share < budget
        before += size
    return keep


def forced_or_best(scores, force, keys):
    must = force.expand(scores.shape).clone()
    for row, kept in zip(scores.tolist(), must, strict=True):
        if not keys[kept].any():
            kept[max((n for n, held in enumerate(keys.tolist()) if held), key=row.__getitem__)] = True
    return must


@everywhere
@pytest.mark.parametrize(
    ("blocks", "density", "forced", "across"),
    [
        ((3, 5), 0.37, True, False),
        ((2, 17), "each", False, False),
        ((3, 5), 0.1, True, True),
        ((2, 7), 0.5, False, True),
        ((1, 1), 1.0, False, False),
    ],
    ids=str,
)
def test_a_lane_keeps_the_best_that_fit_into_its_share(place, blocks, forced, density, across):
    implementation, device = place
    scores, queries, keys, force = case(blocks, device=device)
    force = force if forced else torch.zeros_like(force)
    if density == "each":
        density = 0.5 if across else torch.tensor([[0.1, 0.5, 1.0]], device=device).expand(2, -1)
    found = topk_mask_per_head(
        scores, queries, keys, density, across_heads=across, force=force if forced else None,
        implementation=implementation,
    )  # fmt: skip
    assert found.shape == scores.shape and found.dtype == torch.bool
    scores, queries, keys, force, found = (x.cpu() for x in (scores, queries, keys, force, found))
    for b in range(2):
        for h in range(1 if across else 3):
            heads = range(3) if across else [h]
            share = density[b, h].double().item() if isinstance(density, torch.Tensor) else density
            # A lane of several heads is one long head whose rows have sizes of their own.
            must = torch.cat([forced_or_best(scores[b, i], force[0, 0], keys[0, i]) for i in heads])
            weight = torch.cat([queries[b, i][:, None].double() * keys[0, i].double() for i in heads])
            flat = torch.cat([scores[b, i] for i in heads]).flatten()
            order = sorted(range(len(flat)), key=lambda j: (not must.flatten()[j], -flat[j].item()))
            keep, before = must.flatten().clone(), 0.0
            for j in order:
                size = weight.flatten()[j].item()
                keep[j] |= before + size / 2 < share * weight.sum().item()
                before += size
            assert torch.equal(torch.cat([found[b, i] for i in heads]).flatten(), keep), (b, h)


@everywhere
@pytest.mark.parametrize(
    ("blocks", "density", "forced"),
    [
        ((7, 5), 0.37, True),
        ((5, 33), "each", False),
        ((9, 12), "each", True),
        ((6, 9), 1.0, False),
        ((1, 1), 0.1, False),
    ],
    ids=str,
)
def test_rows_keep_the_best_that_fit_into_what_forced_rows_leave(place, blocks, forced, density):
    implementation, device = place
    scores, queries, keys, force = case(blocks, device=device)
    force[..., 0, :] = forced  # a whole row: the others must pay for it
    force &= forced
    if density == "each":
        density = torch.tensor([[0.1, 0.5, 1.0]], device=device).expand(2, -1)
    found = topk_mask_per_row(
        scores, queries, keys, density, force=force if forced else None, implementation=implementation
    )
    scores, queries, keys, force, found = (x.cpu() for x in (scores, queries, keys, force, found))
    rounding = home.rounding(blocks[0], torch.device("cpu"))
    for b in range(2):
        for h in range(3):
            share = density[b, h].double().item() if isinstance(density, torch.Tensor) else density
            must = forced_or_best(scores[b, h], force[0, 0], keys[0, h])
            size = keys[0, h].double()
            asked = share * queries[b, h].sum().item() * size.sum().item()
            low, high = 0.0, size.sum().item()
            for _ in range(home.HALVINGS):
                level = (low + high) / 2
                taken = sum(
                    q * max((m * size).sum().item(), level) for q, m in zip(queries[b, h].tolist(), must, strict=True)
                )
                low, high = (low, level) if taken > asked else (level, high)
            for r in range(blocks[0]):
                one = torch.ones(1, dtype=torch.int64)
                part = scores[b, h, r : r + 1], one, keys[0, h]
                want = oracle(*part, max(low, 1e-9), rounding[r].item(), must[r : r + 1])
                assert torch.equal(found[b, h, r : r + 1], want), (b, h, r)


@everywhere
@pytest.mark.parametrize("kinds", [2, 100000])
def test_scores_of_every_kind_and_long_rows(place, kinds):
    implementation, device = place
    scores, queries, keys, force = case((4, 150), (1, 2), kinds=kinds, device=device)
    scores[0, 0, :2] = torch.tensor([-torch.inf, 1e-40, 0.0, -0.0, 1e30] * 30, device=device)
    scores[0, 0, 2] = -torch.inf
    found, want = (
        topk_mask_per_head(scores, queries, keys, 0.2, across_heads=True, force=force, implementation=one)
        for one in (implementation, "portable")
    )
    assert torch.equal(found, want)
    found, want = (
        topk_mask_per_row(scores, queries, keys, 0.2, implementation=one) for one in (implementation, "portable")
    )
    assert torch.equal(found, want)


@everywhere
@pytest.mark.parametrize("fill", [topk_mask_per_row, topk_mask_per_head])
def test_no_row_is_left_with_blocks_that_hold_no_keys(place, fill):
    implementation, device = place
    scores = torch.zeros(1, 1, 5, 4, device=device)
    scores[0, 0, 1, 0] = scores[0, 0, 2, 3] = 1  # the best is empty; the best is not
    scores[0, 0, 3] = -torch.inf
    force = torch.zeros(1, 1, 5, 4, dtype=torch.bool, device=device)
    force[..., 4, 2] = True  # all that is forced of this row is empty
    queries, keys = (torch.tensor(x, dtype=torch.int32, device=device)[None, None] for x in ([1] * 5, [0, 3, 0, 3]))
    found = fill(scores, queries, keys, 0.01, force=force, implementation=implementation)[0, 0].cpu()
    held = found.int() @ keys[0, 0].cpu().int()
    assert held.tolist() == [3] * 5 and found[:, [1, 3]].int().tolist() == [[1, 0], [1, 0], [0, 1], [1, 0], [1, 0]]


def test_too_many_blocks_for_the_kernel_are_said():
    scores = torch.zeros(1, 1, 2, MAX_ROW_BLOCKS + 1)
    assert "at most 8192 query and key blocks, got [2, 8193]" in why_not_triton_topk_mask(scores)
    assert why_not_triton_topk_mask(scores[..., 1:]) is None


@pytest.mark.parametrize("blocks", [pytest.param(591, marks=GPU)])
def test_shares_are_filled_on_the_gpu_without_a_host_sync(blocks):
    scores = torch.rand(1, 4, blocks, blocks, device="cuda").pow(9).softmax(-1)
    sizes = torch.full((blocks,), 128, device="cuda")
    sizes[-1:] = 80
    force = torch.eye(blocks, dtype=torch.bool, device="cuda")[None, None]
    topk_mask_per_row(scores, sizes, sizes, 0.2, force=force)
    with no_sync():
        found = [topk_mask_per_row(scores, sizes, sizes, 0.2, force=force)]
        found += [
            topk_mask_per_head(scores, sizes, sizes, 0.2, across_heads=across, force=force) for across in (False, True)
        ]
    call = {"force": force, "implementation": "portable"}
    assert torch.equal(found[0], topk_mask_per_row(scores, sizes, sizes, 0.2, **call))
    for mask, across in zip(found[1:], (False, True), strict=True):
        assert torch.equal(mask, topk_mask_per_head(scores, sizes, sizes, 0.2, across_heads=across, **call))
