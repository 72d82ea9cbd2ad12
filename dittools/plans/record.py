"""What a run decides, kept while it runs: every plan that a sparse call took, head by head and each once."""

from __future__ import annotations

import json
import weakref
from typing import TYPE_CHECKING, Any

from dittools.plans import form
from dittools.plans.rows import Rows

if TYPE_CHECKING:
    from dittools.methods.base import AttentionCall, Plan, StayDense
    from dittools.tokens import TokenGrid

Place = tuple[int, int, str, int, int]
"""(step, layer, branch, which call of the layer in the forward, which piece of that call)"""


class PlanRecord:
    """The plans of one run, on the CPU; each call of `note` waits for the device.

    Attributes:
        why_not: a reason for which this run cannot be exported, or None.
    """

    def __init__(self):
        self.rows = Rows()
        self.why_not: str | None = None
        self._entries: list[form.Entry] = []
        self._numbers: dict[str, int] = {}
        self._grids: dict[TokenGrid, int] = {}
        self._uses: dict[Place, tuple[int | str, bool]] = {}

    def note(self, call: AttentionCall, part: tuple[int, int], plan: Plan | StayDense, fresh: bool = False) -> None:
        """A sparse call takes this plan, or stays dense for its reason.

        Args:
            part: which call of its layer, and which piece of it.
            fresh: whether its branch has not had the plan before.
        """
        if not call.heads.alone:
            self.why_not = "several GPUs shared the run: export one that a single GPU draws"
        if self.why_not is not None:
            return
        place = (call.step, call.layer, call.branch, *part)
        reason = getattr(plan, "reason", None)
        if reason is not None:
            self._uses[place] = reason, False
            return
        whose, number = plan.made.get("recorded", (None, None))
        if whose is None or whose() is not self:
            number = self._number(call.grid, plan)
            plan.made["recorded"] = weakref.ref(self), number
        self._uses[place] = number, fresh

    def stays(self, step: int, layer: int, branch: str, parts: list[tuple[int, int]], reason: str) -> None:
        """These pieces of a layer's call run dense without being planned, for this reason."""
        self._uses.update({(step, layer, branch, *part): (reason, False) for part in parts})

    def forget(self, step: int, branch: str) -> None:
        """A forward is run again."""
        for place in [place for place in self._uses if (place[0], place[2]) == (step, branch)]:
            del self._uses[place]

    def _number(self, grid: TokenGrid, plan: Plan) -> int:
        entry = {"grid": self._grids.setdefault(grid, len(self._grids)), **form.encode(plan, self.rows)}
        text = json.dumps(entry)
        if text not in self._numbers:
            self._numbers[text] = len(self._entries)
            self._entries.append(entry)
        return self._numbers[text]

    @property
    def grids(self) -> tuple[TokenGrid, ...]:
        """Layouts of the calls that plans were made for."""
        return tuple(self._grids)

    @property
    def calls(self) -> int:
        """Calls that took a plan."""
        return sum(not isinstance(plan, str) for plan, _ in self._uses.values())

    def uses(self) -> tuple[list[dict[str, Any]], list[form.Entry]]:
        """Where plans are used, as `dittools.plans.manifest.SHAPE` says, and those plans that are."""
        used = sorted({plan for plan, _ in self._uses.values() if not isinstance(plan, str)})
        new = {old: number for number, old in enumerate(used)}
        groups: dict[tuple, list[list]] = {}
        for (step, *place), (plan, fresh) in sorted(self._uses.items(), key=lambda item: item[0]):
            plan = plan if isinstance(plan, str) else new[plan]
            steps = groups.setdefault(tuple(place), [])
            if steps and steps[-1][1:] == [step - 1, plan, fresh]:
                steps[-1][1] = step
            else:
                steps.append([step, step, plan, fresh])
        names = ("layer", "branch", "call", "piece")
        found = [{**dict(zip(names, place, strict=True)), "steps": steps} for place, steps in sorted(groups.items())]
        return found, [self._entries[old] for old in used]
