"""What the ranks of a forward tell each other at its end: what broke, and what each of them kept.

One small all-reduce says whether the forward stands, and one gather makes the counts of every rank those of all heads;
the second does not wait for the device.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from dittools.budget_check import BudgetCheck
from dittools.counts import add_costs
from dittools.deal import deal
from dittools.ranks import FailedElsewhere, Ranks
from dittools.run import Run


def agreed_layers(ranks: Ranks, bad: torch.Tensor, error: Exception | None) -> list[int]:
    """The layers whose result is not finite on any rank. Waits for the device, once where nothing broke.

    Args:
        bad: flags of this rank, int32 ``[layers]``.
        error: that this rank held back so that the others came to the end of the forward.

    Raises:
        Exception: on all ranks where one held an error back: that one, and `FailedElsewhere` on the others.
    """
    failed, *flags = ranks.agree_max(torch.cat((bad.new_full((1,), error is not None), bad)))
    if failed:
        text = ranks.agree_text(None if error is None else f"rank {ranks.rank}: {error}")
        raise error or FailedElsewhere(text)
    return [layer for layer, flag in enumerate(flags) if flag]


def share_counts(run: Run, calls: int, facts: int, share: float, copies: int = 1) -> None:
    """Turn what a forward counted of this rank's heads into what it counted of all.

    Args:
        calls, facts: how many the run had before the forward.
        share: of the heads of a layer that this rank has.
        copies: ranks that have the same heads, and counted the same plans for other queries.
    """
    sparse = [at for at in range(calls, len(run.calls)) if run.calls[at].density is not None]
    checks = [cache[BudgetCheck] for cache in run.caches.values() if BudgetCheck in cache]
    costs, run.head_costs = run.head_costs, []
    means = [run.calls[at].density for at in sparse]
    means += [piece.kept for at in sparse for piece in run.calls[at].parts]
    means += [kept for check in checks for kept in check.shares()]
    sums = [value.sum() for _, named in run.facts[facts:] for value in named.values()]
    told = [at for at in sparse if run.calls[at].error is not None]
    sums += [number for at in told for number in run.calls[at].error.unbind()]
    if not means and not sums:
        return
    device = run.ranks.device
    padded = [pad(cost, (0, max(map(len, heads.by_rank)) - len(cost))) for _, heads, cost in costs]
    own = [run.calls[at].density if run.calls[at].own is None else run.calls[at].own for at in sparse]
    given = [share / copies, *means, *sums, *padded, *own]
    given = [torch.as_tensor(x, dtype=torch.float32).to(device).flatten() for x in given]
    found = torch.stack(run.ranks.gather(torch.cat(given)))  # [ranks, numbers]
    shares = found[:, :1]
    kept = torch.cat((shares, found[:, found.shape[1] - len(sparse) :]), 1)
    run.kept_by_rank.append(([run.calls[at].pairs for at in sparse], kept))
    count = sum(x.numel() for x in given[1 : len(means) + 1])
    parts = iter((shares * found[:, 1 : count + 1]).sum(0).split([x.numel() for x in given[1 : len(means) + 1]]))
    for at in sparse:
        run.calls[at] = run.calls[at]._replace(density=next(parts)[0])
    for at in sparse:
        kept = tuple(piece._replace(kept=next(parts).view(piece.kept.shape)) for piece in run.calls[at].parts)
        run.calls[at] = run.calls[at]._replace(parts=kept)
    for check in checks:
        kept = [next(parts)[0] for _ in check.shares()]
        if run.shared is not None and run.shared.halves:
            check.correct(kept)
        else:
            run.notes.update(dict.fromkeys(check.settle(kept)))
    behind = found[:, count + 1 + len(sums) :]
    for layer, heads, _ in costs:
        most = max(map(len, heads.by_rank))
        cost, behind = heads.joined(behind[: len(heads.by_rank), :most]), behind[:, most:]
        add_costs(run, {layer: cost})
    run.copies = copies
    totals = iter((found[:, count + 1 : count + 1 + len(sums)].sum(0) / copies).unbind())
    run.facts[facts:] = [(layer, {name: next(totals) for name in named}) for layer, named in run.facts[facts:]]
    for at in told:
        run.calls[at] = run.calls[at]._replace(error=torch.stack([next(totals) for _ in run.calls[at].error]))


def deal_heads(run: Run) -> None:
    """Deal heads to ranks for the step that begins, by what they cost in the one before: the same on all ranks.

    Heads of which something is kept from step to step stay where that is. Waits for the device, which has had these
    numbers since the last forward.
    """
    layers, costs = [layer for layer in run.costs if not run.carries(layer)], run.costs
    run.costs = {}
    if not layers:
        return
    for layer, found in zip(layers, torch.stack([costs[layer] for layer in layers]).tolist(), strict=True):
        run.deals[layer] = deal(found, run.ranks.size // run.copies).heads


def density_by_rank(run: Run) -> list[float | None]:
    """Share of its pairs of sparse calls that each rank computed; None where it had none. Waits for the device.

    Where groups of ranks share guidance branches, the ranks of all of them, group by group.
    """
    mine = _densities(run.kept_by_rank, run.ranks.size)
    if run.shared is None:
        return mine
    others = _densities(run.kept_elsewhere, run.ranks.size)
    return mine + others if run.shared.pair.rank == 0 else others + mine


def _densities(kept: list[tuple[list[float], torch.Tensor]], ranks: int) -> list[float | None]:
    computed, whole = [0.0] * ranks, [0.0] * ranks
    for pairs, found in kept:
        for rank, (share, *shares) in enumerate(found.tolist()):
            computed[rank] += sum(share * n * each for n, each in zip(pairs, shares, strict=True))
            whole[rank] += share * sum(pairs)
    return [None if not all_ else part / all_ for part, all_ in zip(computed, whole, strict=True)]
