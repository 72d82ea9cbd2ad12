"""What a report decides while it runs, once, and keeps: its dense kernels and the equal-time baseline."""

from __future__ import annotations

from dittools.pipelines import saving
from dittools.provenance import memory_bytes
from dittools.report.folder import Folder
from dittools.report.plan import SWEEP, Decided, Plan, case_of, equal_time_steps, settings
from dittools.report.results import decided

_MATH_BYTES = 8
"""The math kernel holds about two fp32 matrices of tokens x tokens for every head."""


class Baselines:
    """The decisions of one folder's report."""

    def __init__(self, plan: Plan, folder: Folder):
        self._plan, self._folder = plan, folder
        self._decided = decided(folder)

    def known(self) -> bool:
        """Whether the kernels are decided."""
        return bool(self._decided.dense_kernel)

    def decided(self) -> Decided:
        """What is decided by now: the equal-time steps as soon as one prompt and seed was drawn in all settings."""
        if self._decided.fewer_steps is None:
            steps = self._plan.fewer_steps or self._equal_time()
            if steps is not None and self.known():
                self._keep(self._decided._replace(fewer_steps=steps))
        return self._decided

    def choose_kernels(self, found: list[str], tokens: int = 0, heads: int = 1) -> None:
        """The fastest kernel is dense, the next one the noise floor. `found`: fastest first."""
        if self.known():
            return
        other, notes = (found[1] if len(found) > 1 else None), []
        if other is not None and self._plan.compile:
            other = None
            notes.append("the noise floor was not drawn: a compiled model keeps the kernel it was compiled with")
        elif other is None:
            notes.append("the noise floor was not drawn: there is no second dense kernel here")
        elif other == "math" and _MATH_BYTES * heads * tokens**2 > memory_bytes() / 2:
            other = None
            notes.append(
                f"the noise floor was not drawn: the math kernel would need too much memory at {tokens} tokens"
            )
        if not self._plan.timed:
            notes.append("times were left out (--untimed): the device did other work as well")
            if self._plan.fewer_steps is None:
                notes.append(
                    "the equal-time baseline was not drawn: without times only --fewer-steps can say its steps"
                )
        fewest = self._plan.fewest_steps
        if self._plan.steps <= fewest and fewest > 1:
            notes.append(f"the equal-time baseline was not drawn: at this --strength a run has at least {fewest} steps")
        elif self._plan.steps < 2:
            notes.append("the equal-time baseline was not drawn: a run of one step cannot be shorter")
        self._keep(Decided(found[0], other, None, tuple(notes)))

    def _equal_time(self) -> int | None:
        """Steps for the time of the fastest setting, from the first prompt and seed that is drawn in all of them."""
        plan = self._plan
        if not plan.timed:
            return None
        known = [setting for setting in settings(plan, Decided("")) if setting.kind == SWEEP]
        dense = settings(plan, Decided(""))[0]
        failed = {entry["case"] for entry in self._folder.failures()}
        for prompt in range(len(plan.prompts)):
            for seed in plan.seeds:
                base = self._seconds(case_of(plan, dense, prompt, seed).id)
                ids = [case_of(plan, setting, prompt, seed).id for setting in known]
                times = {case_id: seconds for case_id in ids if (seconds := self._seconds(case_id)) is not None}
                if base is not None and times and times.keys() | failed >= set(ids):
                    return equal_time_steps(plan.steps, base, min(times.values()), plan.fewest_steps)
        return None

    def _seconds(self, case_id: str) -> float | None:
        record = self._folder.record(case_id)
        return record["seconds"]["denoise"] if record else None

    def _keep(self, found: Decided) -> None:
        with saving.told(self._folder.path / "baselines.json"):
            self._folder.write_baselines(found._asdict())
        self._decided = found
