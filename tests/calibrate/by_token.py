"""The oracle of the calibrators: the same statistics by masks over tokens, one candidate, head and block at a time."""

import torch

from dittools.calibrate.base import fill_groups
from dittools.calibrate.block_statistics import order_loss
from dittools.calibrate.paro import ALPHA, EPS, KEPT, SIGMA, groups
from dittools.calibrate.sta import GROUPS, windows
from dittools.calibrate.svg import SPARSITY
from dittools.kernels import gather_tokens
from dittools.kernels.block_mass.naive import naive_block_mass
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.kernels.probe.dispatch import pack_masks, probe_errors
from dittools.methods.base import AttentionCall
from dittools.methods.svg import SVG as Recipe
from dittools.orders.axes import AXES, axis_order
from dittools.selection.geometric import Pattern
from dittools.selection.head_patterns import HEAD_PATTERNS, pattern_mask, pattern_order
from dittools.selection.profiled import encode_mass
from dittools.selection.reference_frames import reference_frames
from dittools.selection.sampled import stratified_rows


def sampled(event, calibrator):
    """The rows of a call, or None in a step that is not looked at."""
    step_info = event.step_info
    if step_info.step not in calibrator.steps:
        return None
    seed = (step_info.step * 10_007 + event.layer) * 101 + sum(step_info.branch.encode()) % 101
    return stratified_rows(event.grid.tokens, calibrator.sampled_rows, torch.Generator().manual_seed(seed))


def looks(calls, calibrator):
    return [(event, rows) for event in calls if (rows := sampled(event, calibrator)) is not None]


def errors(event, rows, masks):
    """Of each mask: fp64 ``[C, H]``, summed over batches."""
    kept = pack_masks(torch.stack(tuple(masks)))
    return probe_errors(event.q[:, rows], event.k, event.v, kept, scale=event.scale).sum(1).double()


def mean(values, calls):
    """Mean over the calls of each layer: ``{layer: [sum, ...]}`` to ``[layers, ...]``."""
    count = [sum(event.q.shape[0] for event, _ in calls if event.layer == layer) for layer in sorted(values)]
    return torch.stack([sum(values[layer]) / n for layer, n in zip(sorted(values), count, strict=True)]).float()


def by_layer(calls, look):
    found = {}
    for event, rows in calls:
        found.setdefault(event.layer, []).append(look(event, rows))
    return found


def window_rows(grid, tile, window, rows):
    """Which tokens these query tokens see: bool ``[n, S]``. At an edge the window is moved inside; text sees all."""
    text = grid.is_text()
    seen = torch.ones(len(rows), grid.tokens, dtype=torch.bool)
    positions = torch.zeros(grid.tokens, 3, dtype=torch.long)
    positions[grid.video_slice] = grid.positions()
    for axis, (length, side, width) in enumerate(zip(grid.shape, tile, window, strict=True)):
        count = -(-length // side)
        if width >= count:
            continue
        at, half = positions[:, axis] // side, width // 2
        centre = at[rows].clamp(half, count - 1 - half)
        seen &= (at - centre[:, None]).abs() <= half
    return seen | text | text[rows][:, None]


def tile_rows(grid, count, rows):
    """Which tokens these query tokens see with ``count`` reference frames: bool ``[n, S]``. Text sees and is seen."""
    frame = torch.full((grid.tokens,), -1)
    frame[grid.video_slice] = grid.positions()[:, 0]
    special = torch.isin(frame, torch.tensor([-1, *reference_frames(grid.frames, count)]))
    return (frame[rows][:, None] == frame) | special[rows][:, None] | special


def sta(calls, calibrator, size):
    grid, tile = calls[0].grid, calibrator.tile
    tried = windows(grid, tile)
    error = torch.zeros(GROUPS, size.layers, size.heads, len(tried), dtype=torch.float64)
    count = torch.zeros(GROUPS, size.layers)
    for event, rows in looks(calls, calibrator):
        lane = event.step_info.step * GROUPS // size.steps, event.layer
        error[lane] += errors(event, rows, [window_rows(grid, tile, window, rows) for window in tried]).T
        count[lane] += event.q.shape[0]
    every = torch.arange(grid.tokens)[:: max(1, grid.tokens // 256)]
    density = [window_rows(grid, tile, window, every).double().mean().item() for window in tried]
    error = fill_groups(error / count.clamp_min(1)[..., None, None], count > 0)
    return {"density": density}, {"error": error.float()}


def attention_tile(calls, calibrator, size):
    grid, looked = calls[0].grid, looks(calls, calibrator)

    def look(event, rows):
        masks = [tile_rows(grid, count, rows) for count in range(grid.frames + 1)]
        return errors(event, rows, [torch.zeros_like(masks[0]), *masks]).mean(1)

    found = mean(by_layer(looked, look), looked)
    return {}, {"power": found[:, 0], "error": found[:, 1:]}


def svg(calls, calibrator, size):
    event, looked = calls[0], looks(calls, calibrator)
    call = AttentionCall(
        0, size.layers, "", 0, size.steps, event.grid, SPARSITY, event.scale, torch.Generator(), size.block_size
    )
    patterns = Recipe().patterns(call, torch.device("cpu"))
    found = by_layer(looked, lambda event, rows: errors(event, rows, [pattern.rows(rows) for pattern in patterns]).T)
    error = mean(found, looked)
    return {}, {"error": error, "temporal": (error[..., 1] < error[..., 0]).to(torch.uint8)}


def sparse_vdit(calls, calibrator, size):
    grid, looked = calls[0].grid, looks(calls, calibrator)
    partition = Partition(grid.tokens, size.block_size)
    block = torch.arange(grid.tokens) // partition.size
    columns = torch.zeros(size.layers, size.heads, partition.count)
    for event, rows in looked:
        weights = (torch.einsum("bqhd,bkhd->bhqk", event.q[:, rows], event.k) * event.scale).softmax(-1).sum((0, 2))
        columns[event.layer].index_add_(1, block, weights)

    def masked(pattern, columns):
        keep = pattern_mask(grid, partition, pattern, columns)[None, None]
        order = pattern_order(grid, pattern)
        blocks = torch.empty(grid.tokens, dtype=torch.long)
        blocks[order.long()] = block
        return Pattern(order, BlockMask(keep, partition, partition), blocks)

    def look(event, rows):
        found = torch.zeros(size.heads, 1 + len(HEAD_PATTERNS), dtype=torch.float64)
        for h in range(size.heads):
            masks = [masked(pattern, columns[event.layer, h]).rows(rows) for pattern in HEAD_PATTERNS]
            masks[1] = masks[1] | grid.stays_dense()[rows][:, None]  # text of a skipped head
            one = event._replace(**{x: getattr(event, x)[:, :, h : h + 1] for x in "qkv"})
            found[h] = errors(one, rows, [torch.zeros_like(masks[0]), *masks])[:, 0]
        return found

    found = mean(by_layer(looked, look), looked)
    columns = columns / columns.sum(-1, keepdim=True)
    return {}, {"power": found[..., 0], "error": found[..., 1:], "columns": columns}


def paro(calls, calibrator, size):
    """With masses in blocks of the calibrator's size, and no bytes for masses too many."""
    grid = calls[0].grid
    partition = Partition(grid.tokens, size.block_size)
    some = [int((n + 0.5) * partition.count / min(partition.count, 12)) for n in range(min(partition.count, 12))]
    scores = torch.zeros(3, len(AXES), size.layers, size.heads)
    heard_of = torch.zeros(size.layers)
    for event in calls:
        if event.step_info.step in calibrator.steps:
            heard_of[event.layer] += 1
            for n, axes in enumerate(AXES):
                scores[:, n, event.layer] += order_scores(event, axis_order(grid, axes), partition, some)
    scores /= heard_of[:, None]
    axes = scores[2].argmax(0)
    group = groups(size.steps, size.layers * size.heads * partition.count**2)
    mass = torch.zeros(max(group) + 1, size.layers, size.heads, partition.count, partition.count)
    for event in calls:
        order = torch.stack([axis_order(grid, AXES[n]) for n in axes[event.layer].tolist()])[None]
        q, k = gather_tokens((event.q, event.k), order)
        lane = group[event.step_info.step], event.layer
        mass[lane] += naive_block_mass(q, k, partition, partition, scale=event.scale).sum(0)

    loss = order_loss(scores[0], scores[1], ALPHA)
    mass = fill_groups(encode_mass(mass), mass.sum((2, 3, 4)) > 0)
    return {"groups": group}, {"axes": axes, "order_kept": scores[2], "order_loss": loss, "mass": mass}


def order_scores(event, order, partition, some):
    """(sparse, quant, kept) of one order: ``[3, H]``."""
    found = torch.zeros(3, event.q.shape[2])
    q, k = (x.index_select(1, order.long()) for x in (event.q, event.k))
    cut = torch.arange(partition.length).split(partition.size)
    for h in range(q.shape[2]):
        weights = (torch.einsum("bqd,bkd->bqk", q[:, :, h], k[:, :, h]) * event.scale).softmax(-1)  # [B, S, S]
        blocks = [[weights[:, cut[m]][:, :, keys] for keys in cut] for m in some]
        mass, peak, small, mean_weight = (
            torch.stack([torch.stack([measure(block).mean() for block in row]) for row in blocks])
            for measure in (
                lambda w: w.sum((1, 2)),
                lambda w: w.amax((1, 2)),
                lambda w: (w < EPS / partition.length).float().mean((1, 2)),
                lambda w: 1 / torch.tensor(float(w[0].numel())),
            )
        )
        found[0, h] = (small >= SIGMA).float().mean()
        found[1, h] = (peak / mass.clamp_min(1e-30) / mean_weight).mean()
        count = max(1, round(KEPT * mass.numel()))
        found[2, h] = mass.flatten().topk(count).values.sum() / mass.sum()
    return found


ORACLES = {"paro": paro, "sparse_vdit": sparse_vdit, "sta": sta, "attention_tile": attention_tile, "svg": svg}
