"""Plans of a file at work in another run: they answer where a method would decide."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dittools.attention_profile import Model
from dittools.files import sha256
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.methods.base import KEPT_BYTES, AttentionCall, Plan, StayDense
from dittools.plans import form
from dittools.plans.checks import problem
from dittools.plans.manifest import AGAIN, Manifest, read
from dittools.ranks import Heads
from dittools.selection.profiled import with_other_text

if TYPE_CHECKING:
    from dittools.clock import StepInfo
    from dittools.tokens import TokenGrid

DTYPES = {name: getattr(torch, name) for name in ("uint8", "int16", "int32", "int64", "float32")}


class LoadedPlans:
    """The plans of a file, its tables read and checked.

    Args:
        path: of the JSON.
        model: what the plans have to fit; None where nobody knows.

    Raises:
        ValueError: one line, when the files cannot be read, do not belong together, or are of another model.
    """

    def __init__(self, path: str | Path, model: Model | None = None):
        self.manifest = read(path)
        if model is not None and (why := self.manifest.misfit_of_model(model)):
            raise ValueError(f"{why}: {AGAIN}")
        self._tables = _read_tables(self.manifest)
        self._places = {
            (use["layer"], use["branch"], use["call"], use["piece"]): use["steps"] for use in self.manifest.uses
        }
        self._dense = {tuple(place) for place in self.manifest.dense}
        self._made: OrderedDict[tuple, tuple[Plan, int]] = OrderedDict()  # with its bytes; the latest last
        self._bytes = 0

    def check(self, grid: TokenGrid | None, step: StepInfo) -> None:
        """Raises ValueError where a run is of another size or number of steps than the exported one."""
        why = None if grid is None else self.manifest.misfit_of_picture(grid)
        if why is None and not step.counted:
            why = self.manifest.misfit_of_steps(step.steps)
        if why:
            raise ValueError(why)

    def plan(self, q: torch.Tensor, call: AttentionCall, part: tuple[int, int]) -> tuple[Plan, bool] | StayDense:
        """What the exported run took for this call, and whether it was fresh; or that it stayed dense there.

        Args:
            q: ``[B, S, H, D]``. part: which call of its layer, and which piece of it.

        Raises:
            ValueError: one line, when the exported run had no such call, or one of another size.
        """
        found, fresh = self._found(call, part)
        if isinstance(found, str):
            return StayDense(found)
        place = found, call.grid, q.device, call.heads.mine
        if place in self._made:
            self._made.move_to_end(place)
        else:
            plan = self._plan(found, call.grid, q.device, call.heads)
            size = _bytes(plan)
            self._made[place], self._bytes = (plan, size), self._bytes + size
            while self._bytes > KEPT_BYTES and len(self._made) > 1:
                self._bytes -= self._made.popitem(last=False)[1][1]
        plan = self._made[place][0]
        samples, heads = plan.mask.keep.shape[:2]
        if samples not in (1, len(q)) or heads not in (1, q.shape[2]):
            raise ValueError(
                f"{self.manifest.name} are for {samples} samples of {heads} heads in a call, and this one has "
                f"{len(q)} of {q.shape[2]}: {AGAIN}"
            )
        return plan, fresh

    def _found(self, call: AttentionCall, part: tuple[int, int]) -> tuple[int | str, bool]:
        """Number of the plan, or why the call stayed dense; and whether it was fresh."""
        for first, last, plan, fresh in self._places.get((call.layer, call.branch, *part), ()):
            if first <= call.step <= last:
                return plan, fresh
        if (call.step, call.layer) in self._dense:
            return "non-finite result in the exported run", False
        branches = self.manifest.branches
        if call.branch not in branches:
            raise ValueError(
                f"{self.manifest.name} are for {', '.join(branches) or 'no branch'}, and this run has a call of branch "
                f"{call.branch}: use the guidance of the exported run, or {AGAIN}"
            )
        raise ValueError(
            f"{self.manifest.name} have none for layer {call.layer} in step {call.step} of branch {call.branch} "
            f"(call {part[0]}, piece {part[1]}): the exported run had no sparse call there; {AGAIN}"
        )

    def _plan(self, number: int, grid: TokenGrid, device: torch.device, heads: Heads) -> Plan:
        entry = self.manifest.plans[number]
        if why := self.manifest.misfit_of_call(entry["grid"], grid):
            raise ValueError(why)
        plan = form.decode(entry, self._tables, device, heads)
        known = self.manifest.grids[entry["grid"]]
        if known == grid:
            return plan
        if not isinstance(plan.mask, BlockMask) or plan.keys is not None or plan.rows is not None:
            raise ValueError(
                f"{self.manifest.name} are for {known.text} tokens of text, and this call has {grid.text}: method "
                f"{self.manifest.method['name']} plans text by the token, so give a prompt as long, or {AGAIN}"
            )
        return _with_text(plan, known, grid)


def _with_text(plan: Plan, known: TokenGrid, grid: TokenGrid) -> Plan:
    """A plan for another number of text tokens behind everything else."""
    partition = Partition(grid.tokens, plan.mask.query.size)
    keep = with_other_text(plan.mask.keep, grid, partition)
    order = plan.order
    if order is not None:
        rest = torch.arange(known.tokens - known.text, grid.tokens, dtype=order.dtype, device=order.device)
        own = order[..., : known.tokens - known.text]
        order = torch.cat((own, rest.expand(*own.shape[:-1], -1)), dim=-1)
    return Plan(order, BlockMask(keep, partition, partition), notes=plan.notes)


def _bytes(plan: Plan) -> int:
    """Bytes of a plan, with the lists that kernels make of its mask."""
    orders = [x for x in (plan.order, plan.key_order) if x is not None]
    return 5 * plan.mask.keep.numel() + sum(x.nbytes for x in orders)


def _read_tables(manifest: Manifest) -> dict[str, torch.Tensor]:
    """The tables, checked: a number from a file may lead a kernel anywhere."""
    if not manifest.tables:
        return {}
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    beside = manifest.tables_path
    try:
        same = manifest.tables_sha256 == sha256(beside)
        tables = load_file(str(beside)) if same else {}
    except FileNotFoundError:
        raise ValueError(f"{manifest.name} need {beside.name} beside them: keep the two files together") from None
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{manifest.name}: {beside.name} cannot be read ({error}): {AGAIN}") from None
    listed = {name: (tuple(about["shape"]), DTYPES.get(about["dtype"])) for name, about in manifest.tables.items()}
    if {name: (tuple(x.shape), x.dtype) for name, x in tables.items()} != listed:
        raise ValueError(
            f"{manifest.name} and {beside.name} do not belong together, as one of the two is of another run: keep "
            f"files of one run together, or {AGAIN}"
        )
    for entry in manifest.plans:
        if why := problem(entry, manifest.grids[entry["grid"]].tokens, tables):
            raise ValueError(f"{manifest.name} are damaged ({why}): {AGAIN}")
    return tables
