"""What flags say of several GPUs: how they share a video, whether they are there, and starting a process for each."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dittools.cli.member import Member
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import find_family
from dittools.pipelines.parallel import setup
from dittools.pipelines.parallel.plans import needs_ours
from dittools.pipelines.parallel.setup import Spec
from dittools.pipelines.weights import EMBEDDED

if TYPE_CHECKING:
    from dittools.cli.generation import Chosen
    from dittools.cli.request import Request
    from dittools.config import Config

MOST_ON_A_CPU = 64
"""Processes: more of them only take each other's time."""


def spec_of(flags: Any, member: Member | None, general: bool = False) -> Spec | None:
    """How the ranks of this command share its video, by its flags alone; None for one process.

    Args:
        member: this process, where others were started beside it.
        general: whether a whole call of a pipeline of any class draws it.

    Raises:
        BadInput: for flags that do not go together, or with the model.
    """
    if flags.gpus is not None and flags.gpus < 1:
        raise BadInput(f"--gpus must be at least 1, got {flags.gpus}")
    if member is not None and not member.launched and flags.gpus not in (None, member.place.size):
        raise BadInput(
            f"--gpus {flags.gpus} starts the ranks itself, and {member.place.size} were started here already: "
            "leave it out, or leave torchrun out"
        )
    world = member.place.size if member is not None else flags.gpus or 1
    if world == 1 and flags.parallel is None:
        return None
    spec = setup.parse(flags.parallel, world, _heads(flags, general))
    if spec.ranks == 1:
        return None
    setup.check_guidance(spec, flags.guidance)
    if ":" in flags.device:
        raise BadInput(f"--device {flags.device} names one GPU, and there are {world} ranks: use --device cuda")
    return spec


def check_config(config: Config) -> None:
    """Refuse settings that several ranks cannot share. Raises BadInput."""
    if config.max_error is not None:
        raise BadInput(
            f"max_error {config.max_error:g} is held on one device, and several ranks share this video: leave out "
            "--max-error, or --gpus and --parallel"
        )


def _heads(flags: Any, general: bool) -> int | None:
    from dittools.cli.flag_checks import weights_folder

    whole = general and flags.weights != EMBEDDED
    folder = Path(flags.weights).expanduser() if whole else weights_folder(flags)
    return setup.heads_of(find_family(flags.model), folder)


def on_device(flags: Any, member: Member) -> Any:
    """The flags of one rank: with the GPU that is its own."""
    from dittools.pipelines import loading

    if loading.pick_device(flags.device).type == "cpu":
        return flags
    return dataclasses.replace(flags, device=f"cuda:{member.place.local}")


def check_family(spec: Spec, request: Request) -> None:
    """Refuse ranks for a model that cannot be split, before any is started. Raises BadInput."""
    setup.check_diffusers(spec, request.family)
    if request.weights is not None:
        setup.check_folder(spec, request.family, request.weights.folder)


def launch(request: Request, spec: Spec, command: Sequence[str]) -> int:
    """Start the ranks of a checked request on this machine, and wait for them; their exit code.

    Args:
        command: the command line, with the command's own name first.

    Raises:
        BadInput: where this machine has not so many GPUs, or torch cannot start them.
    """
    cpu = check_gpus(request.flags.device, spec.ranks)
    if not _can_launch():
        raise BadInput(f"--gpus {spec.ranks} needs torch.distributed, which this PyTorch is built without")
    from dittools.cli.launch import launch

    return launch(command[1:], spec.ranks, cpu)


def check_gpus(asked: str, ranks: int, alike: bool = False) -> bool:
    """Whether so many processes run on the CPU.

    Args:
        asked: the device.
        alike: whether all GPUs have to be of one kind, as for times that are compared.

    Raises:
        BadInput: where there are not so many GPUs.
    """
    import torch

    from dittools.pipelines import loading

    if loading.pick_device(asked).type == "cpu":
        if asked != "cpu":
            raise BadInput(f"--gpus {ranks} asked, and no GPU answers here: with --device cpu, all share the CPU")
        if ranks > MOST_ON_A_CPU:
            raise BadInput(f"--gpus {ranks} on a CPU: at most {MOST_ON_A_CPU} processes make sense there")
        return True
    there = torch.cuda.device_count()
    if ranks > there:
        raise BadInput(f"--gpus {ranks} asked, and this machine has {there}: use at most --gpus {there}")
    kinds = {torch.cuda.get_device_name(number) for number in range(ranks)} if alike else {""}
    if len(kinds) > 1:
        raise BadInput(f"--gpus {ranks}: times are compared, and GPUs here differ ({', '.join(sorted(kinds))})")
    return False


def _can_launch() -> bool:
    import torch.distributed as dist

    return dist.is_available()


class Together:
    """This rank of a run: what it does with the others, and what only the first one does.

    Args:
        spec: how the ranks share the video.
        member: this process.
        request: checked, with the device of this rank.

    Raises:
        BadInput: where diffusers cannot split the model, or torch has no way between these devices.
    """

    def __init__(self, spec: Spec, member: Member, request: Request):
        from dittools.pipelines import loading

        member.watch()
        setup.check_diffusers(spec, request.family)
        self.spec, self._member, self._family = spec, member, request.family
        self._world = setup.start(spec, loading.pick_device(request.flags.device))
        self._uneven, self._verbose = False, request.flags.verbose

    @property
    def leads(self) -> bool:
        """Whether this rank decodes, measures, writes and speaks."""
        return self._world.leads

    def check(self, chosen: Chosen) -> None:
        """Refuse a picture that cannot be split so, before the weights are loaded. Raises BadInput."""
        from dittools.cli.request import grid_of

        setup.check_folder(self.spec, self._family, chosen.folder)
        shot = chosen.scene.shot
        setup.check_guidance(self.spec, shot.guidance)
        if chosen.scene.task is not None:  # whose pictures may bring tokens of their own, and the call decides sizes
            self._uneven = self.spec.ulysses == 1 or self.spec.ring == 1
            return
        grid = grid_of(self._family, chosen.folder, shot.frames, shot.height, shot.width)
        heads = setup.heads_of(self._family, chosen.folder)
        gloo = self._world.device.type == "cpu"
        self._uneven = setup.uneven(self.spec, heads, grid.tokens - grid.text, grid.text, gloo)

    def enable(self, pipe: Any) -> None:
        """Split the tokens of a pipeline's transformers over the ranks."""
        from dittools.pipelines.families import transformers_of

        if not self._verbose:  # diffusers uses a name of torch's that is to go
            warnings.filterwarnings("ignore", message=".*all_gather_tensor.*", category=FutureWarning)
        self._world.enable([model for _, model in transformers_of(pipe, self._family)], self._uneven)

    def meet(self) -> None:
        """Wait for all, so that nobody's clock counts what another one did alone."""
        self._world.meet()

    def dense(self, pipe: Any) -> AbstractContextManager:
        """The pipeline as it runs densely in the block.

        As diffusers runs it; but its ring wants a log-sum-exp, which PyTorch's own attention does not give, and under
        some plans of ours it is wrong: there it is as `dittools.accelerate` does it, a ring gathers all keys. That
        shares guidance too, which diffusers does not.
        """
        if self.spec.ring == 1 and self.spec.cfg == 1 and not needs_ours(self._family.transformer):
            return nullcontext()
        import dittools

        return dittools.accelerate(pipe, method="dense")

    def gathered(self, record: dict[str, Any]) -> dict[str, Any]:
        """One record of what all ranks did, the same on each, from each one's `Acceleration.record()`."""
        return gathered(self._world.share(record), self.spec)

    def part(self) -> None:
        """The end of what the ranks do together: the first one goes on alone."""
        self._world.close()
        self._member.leave()


def gathered(records: Sequence[dict[str, Any]], spec: Spec) -> dict[str, Any]:
    """One record from those of all ranks, which count all heads already: what each of them alone knows is added.

    ``exchanged_bytes`` are what all of them sent, ``exchange_seconds`` those of the slowest.
    """
    first = records[0]
    own = [record.get("parallel") or {} for record in records]
    return {
        **first,
        "fallbacks": _most(records),
        "kernel_reasons": {name: why for record in reversed(records) for name, why in record["kernel_reasons"].items()},
        "notes": _notes(records),
        "parallel": {
            **spec.facts(),
            "exchanged_bytes": sum(each.get("exchanged_bytes") or 0 for each in own),
            "exchange_seconds": max(each.get("exchange_seconds") or 0.0 for each in own),
            "density_by_rank": own[0].get("density_by_rank", [None] * len(records)),
        },
    }


def _notes(records: Sequence[dict[str, Any]]) -> list[str]:
    """Those of all ranks once, and those of some with their numbers."""
    found: dict[str, list[int]] = {}
    for rank, record in enumerate(records):
        for note in dict.fromkeys(record["notes"]):
            found.setdefault(note, []).append(rank)
    return [note if len(on) == len(records) else f"{_named(on)}: {note}" for note, on in found.items()]


def _named(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _most(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fallbacks of all ranks, each with the most calls that it had on one of them."""
    found: dict[str, int] = {}
    for record in records:
        for entry in record["fallbacks"]:
            found[entry["reason"]] = max(found.get(entry["reason"], 0), entry["count"])
    return [{"reason": reason, "count": count} for reason, count in sorted(found.items(), key=lambda one: -one[1])]
