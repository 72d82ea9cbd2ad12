"""What flags say of several GPUs: how they share a video, whether they are there, and starting a process for each."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dittools.cli.member import Member
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import find_family
from dittools.pipelines.parallel import setup
from dittools.pipelines.parallel.setup import Spec

if TYPE_CHECKING:
    from dittools.cli.generation import Chosen
    from dittools.cli.request import Request

MOST_ON_A_CPU = 64
"""Ranks: more of them only take each other's time."""


def spec_of(flags: Any, member: Member | None) -> Spec | None:
    """How the ranks of this command share its video, by its flags alone; None for one process.

    Args:
        member: this process, where others were started beside it.

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
    spec = setup.parse(flags.parallel, world, _heads(flags))
    if spec.ranks == 1:
        return None
    if ":" in flags.device:
        raise BadInput(f"--device {flags.device} names one GPU, and there are {world} ranks: use --device cuda")
    return spec


def _heads(flags: Any) -> int | None:
    from dittools.cli.flag_checks import weights_folder

    return setup.heads_of(find_family(flags.model), weights_folder(flags))


def on_device(flags: Any, member: Member) -> Any:
    """The flags of one rank: with the GPU that is its own."""
    from dittools.pipelines import loading

    if loading.pick_device(flags.device).type == "cpu":
        return flags
    return dataclasses.replace(flags, device=f"cuda:{member.place.local}")


def launch(request: Request, spec: Spec, command: Sequence[str]) -> int:
    """Start the ranks of a checked request on this machine, and wait for them; their exit code.

    Args:
        command: the command line, with the command's own name first.

    Raises:
        BadInput: where this machine has not so many GPUs, or torch cannot start them.
    """
    cpu = _check_gpus(request.flags.device, spec.ranks)
    if not _can_launch():
        raise BadInput(f"--gpus {spec.ranks} needs torch.distributed, which this PyTorch is built without")
    from dittools.cli.launch import launch

    return launch(command[1:], spec.ranks, cpu)


def _check_gpus(asked: str, ranks: int) -> bool:
    """Whether the ranks run on the CPU. Raises BadInput where there are not so many GPUs."""
    import torch

    from dittools.pipelines import loading

    if loading.pick_device(asked).type == "cpu":
        if asked != "cpu":
            raise BadInput(f"--gpus {ranks} asked, and no GPU answers here: with --device cpu, ranks share the CPU")
        if ranks > MOST_ON_A_CPU:
            raise BadInput(f"--gpus {ranks} on a CPU: at most {MOST_ON_A_CPU} ranks make sense there")
        return True
    there = torch.cuda.device_count()
    if ranks > there:
        raise BadInput(f"--gpus {ranks} asked, and this machine has {there}: use at most --gpus {there}")
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

        setup.check_diffusers(spec, request.family)
        self.spec, self._member, self._family = spec, member, request.family
        self._world = setup.start(spec, loading.pick_device(request.flags.device))
        self._uneven, self._verbose = False, request.flags.verbose
        member.watch()

    @property
    def leads(self) -> bool:
        """Whether this rank decodes, measures, writes and speaks."""
        return self._world.leads

    def check(self, chosen: Chosen) -> None:
        """Refuse a picture that cannot be split so, before the weights are loaded. Raises BadInput."""
        from dittools.cli import fits

        shot = chosen.scene.shot
        grid = fits.grid_of(self._family, chosen.folder, shot.frames, shot.height, shot.width)
        heads = setup.heads_of(self._family, chosen.folder)
        self._uneven = setup.uneven(self.spec, heads, grid.tokens - grid.text, grid.text)

    def enable(self, pipe: Any) -> None:
        """Split the tokens of a pipeline's transformers over the ranks."""
        from dittools.pipelines.families import transformers_of

        if not self._verbose:  # diffusers uses a name of torch's that is to go
            warnings.filterwarnings("ignore", message=".*all_gather_tensor.*", category=FutureWarning)
        self._world.enable([model for _, model in transformers_of(pipe, self._family)], self._uneven)

    def gathered(self, record: dict[str, Any]) -> dict[str, Any]:
        """One record of what all ranks did, the same on each, from each one's `Acceleration.record()`."""
        return gathered(self._world.share(record), self.spec)

    def part(self) -> None:
        """The end of what the ranks do together: the first one goes on alone."""
        self._world.close()
        self._member.leave()


def gathered(records: Sequence[dict[str, Any]], spec: Spec) -> dict[str, Any]:
    """One record from those of all ranks, each of which has its own heads or its own part of the queries.

    Shares are means, counts of heads are sums, and calls are those of one rank: every one has each call's own part.
    """
    first = records[0]
    own = [record.get("parallel") or {} for record in records]
    skipped = [record["sparsity"]["sparse_calls"] for record in records]
    notes = {note: [rank for rank, record in enumerate(records) if note in record["notes"]] for note in _notes(records)}
    return {
        **first,
        "sparsity": _mean([record["sparsity"] for record in records]),
        "fallbacks": _most(records),
        "kernel_reasons": {name: why for record in reversed(records) for name, why in record["kernel_reasons"].items()},
        "heads": [_sum(counts) for counts in zip(*(record["heads"] for record in records), strict=True)],
        "notes": [note if len(on) == len(records) else f"{_named(on)}: {note}" for note, on in notes.items()],
        "parallel": {
            **spec.facts(),
            "exchanged_bytes": _total([each.get("exchanged_bytes") for each in own]),
            "exchange_seconds": _total([each.get("exchange_seconds") for each in own], most=True),
            "density_by_rank": [None if share is None else round(1 - share, 6) for share in skipped],
        },
    }


def _notes(records: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(note for record in records for note in record["notes"]))


def _named(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _mean(values: Sequence[Any]) -> Any:
    """The mean of numbers, inside of lists and mappings too; what is no number is taken from the first."""
    first = values[0]
    if isinstance(first, dict):
        return {key: _mean([value[key] for value in values if key in value]) for key in first}
    if isinstance(first, list) and all(isinstance(value, list) and len(value) == len(first) for value in values):
        return [_mean(each) for each in zip(*values, strict=True)]
    known = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if not known:
        return first
    return first if all(value == known[0] for value in known) else sum(known) / len(known)


def _most(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fallbacks of all ranks, each with the most calls that it had on one of them."""
    found: dict[str, int] = {}
    for record in records:
        for entry in record["fallbacks"]:
            found[entry["reason"]] = max(found.get(entry["reason"], 0), entry["count"])
    return [{"reason": reason, "count": count} for reason, count in sorted(found.items(), key=lambda one: -one[1])]


def _sum(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            found[name] = found.get(name, 0) + count
    return found


def _total(values: Sequence[float | None], most: bool = False) -> float | None:
    known = [value for value in values if value is not None]
    return None if not known else max(known) if most else sum(known)
