"""q, k and v with known structure, and what a plan makes of them."""

import torch

from dittools.kernels import gather_tokens, measure_block_mass
from dittools.kernels.masks.block_mask import Partition
from dittools.methods import AttentionCall
from dittools.scoped_cache import ScopedCache
from dittools.tokens import TokenGrid

GRIDS = {
    "video": TokenGrid(6, 12, 15),
    "ragged": TokenGrid(7, 9, 17),
    "text first": TokenGrid(6, 12, 14, text=19, text_position="first"),
    "text last": TokenGrid(5, 13, 16, text=19, text_position="last"),
    "image": TokenGrid(1, 32, 33),
}
BLOCK = 16
DIM = 16


def scene(grid: TokenGrid, batches: int = 1, seed: int = 0):
    """q, k, v ``[batches, S, 4, DIM]``: heads that look near in time and space, at the same place in all frames, at
    the own frame, and at what has the same content, in patches of the picture."""
    made = torch.Generator().manual_seed(seed)
    at = grid.positions() / torch.tensor(grid.shape)
    patches = (grid.positions() // torch.tensor([99, 4, 4])).double() @ torch.tensor([0.0, 100.0, 1.0]).double()
    content = torch.randn(4, DIM, generator=made)[patches.unique(return_inverse=True)[1] * 7 % 4]
    q = torch.randn(batches, grid.tokens, 4, DIM, generator=made) * 0.3
    k = torch.randn(batches, grid.tokens, 4, DIM, generator=made) * 0.3
    v = torch.randn(batches, grid.tokens, 4, DIM, generator=made)
    for head, weights in enumerate(([6.0, 10.0, 10.0], [0.2, 7.0, 7.0], [14.0, 0.2, 0.2])):
        for b in range(batches):
            # Random Fourier features: products fall with weighted distance.
            angles = at @ (torch.randn(3, DIM // 2, generator=made) * torch.tensor(weights)[:, None] * (1 + 0.2 * b))
            features = torch.cat((angles.cos(), angles.sin()), -1) * 3
            q[b, grid.video_slice, head] += features
            k[b, grid.video_slice, head] += features
    q[:, grid.video_slice, 3] += content * 2
    k[:, grid.video_slice, 3] += content * 2
    return q, k, v


def call(grid, sparsity=0.8, *, layer=1, step=5, steps=10, seed=0, block=BLOCK, run_cache=None, state=None):
    made = torch.Generator().manual_seed(seed)
    carried = {
        "run_cache": ScopedCache() if run_cache is None else run_cache,
        "branch_state": {} if state is None else state,
    }
    return AttentionCall(layer, 4, "cond", step, steps, grid, sparsity, DIM**-0.5, made, block, **carried)


def dense(q, k, v):
    swapped = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*swapped, scale=DIM**-0.5).transpose(1, 2)


def kept_mass(plan, q, k):
    """Share of the softmax mass that a plan keeps: ``[B, H]``."""
    if plan.order is not None:
        q, k = gather_tokens([q, k], plan.order)
    mass = measure_block_mass(q, k, plan.mask.query, plan.mask.key, scale=DIM**-0.5)
    return (mass * plan.mask.keep).sum((-1, -2)) / q.shape[1]


def shares(plan, grid, rows="picture", columns=None):
    """Share kept of the pairs of two kinds of parts, counted from orders and masks alone: ``[B, H]``."""
    kinds = {}
    for part, at in grid.placed:
        kinds.setdefault(part.kind, torch.zeros(grid.tokens)).index_fill_(0, torch.arange(at.start, at.stop), 1.0)
    keys = plan.order if plan.key_order is None else plan.key_order
    query = _held(kinds[rows], plan.order, plan.mask.query)
    key = _held(kinds[columns or rows], keys, plan.mask.key)
    pairs = kinds[rows].sum().double() * kinds[columns or rows].sum()
    return (query[..., None, :] @ plan.mask.keep.double() @ key[..., None])[..., 0, 0] / pairs


def _held(of_token, order, partition):
    """How many tokens of a kind each block holds: ``[B or 1, H or 1, M]``."""
    of_position = of_token[None, None] if order is None else of_token[order.long()]
    if isinstance(partition, Partition):
        block = torch.arange(partition.length).expand(of_position.shape) // partition.size
    else:
        block = partition.labels().expand(of_position.shape)
    return torch.zeros(*of_position.shape[:2], partition.count).scatter_add_(-1, block, of_position).double()


def kept_tokens(plan, batch, head):
    """Which pairs run, in token coordinates: bool ``[S, S]``."""
    rows = plan.mask.to_tokens(batch, head, range(plan.mask.query.length))
    if plan.order is None:
        return rows
    position = plan.order[0, 0].argsort()
    return rows[position][:, position]
