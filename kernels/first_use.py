"""A kernel proves itself at its first use: on a card, a Triton and a source of which no table says anything.

A short proof (`dittools.kernels.proof.short`) runs once in a child process, so that a kernel that hangs or crashes
costs nothing but seconds. What came of it is kept in the user's table (`checked`), right or not, and other processes
wait for it in place of proving the same. DITTOOLS_PROVE=0 turns this off; then, and where nothing can be proved, the
slower kernel runs, and the reason says so.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dittools.kernels import checked
from dittools.kernels.supervise import Job, supervise

SWITCH = "DITTOOLS_PROVE"
OFF = ("0", "false", "no", "off")
SECONDS = 90.0  # a proof that takes longer is stopped; 12 to 24 were measured on an H200 with Triton 3.6
PATIENCE = 45.0  # of silence: a kernel that hangs, or one that takes so long to compile
# What the device ran into says nothing of the kernel: another program may hold its memory, or the card to itself.
# Nor does what the machine lacks for compiling (a compiler, Python's headers, room on a disk), or who killed a process.
NOT_THE_KERNEL = (
    "out of memory", "OutOfMemory", "busy", "unavailable", "not permitted", "compiler", "CalledProcessError",
    "FileNotFoundError", "No space left", "Permission denied", "Read-only file system", "ModuleNotFoundError",
    "code -9", "code -15",
)  # fmt: skip
# What is said of a child that never came to the kernel, which would be named first.
NOT_YET = ("the process ended", "hung:")


def why_unproven(
    implementation: str,
    device: torch.device,
    ordered: bool | None = None,
    *,
    call: str | None = None,
    prove: bool = True,
) -> str | None:
    """None when a kernel proved itself on this card, now if it has to, and is no slower; else the reason.

    Args:
        implementation: a key of `checked.SOURCES`.
        device: a CUDA device.
        ordered, call: the kind of call, see `checked.why_unchecked`.
        prove: whether it may prove itself now; the reason otherwise says that it will.
    """
    capability, card = card_of(device)
    entry = checked.find(implementation, capability, card)
    if entry is not None:
        return _heard(implementation, checked.why_not_by(entry, ordered, call=call))
    unknown = checked.why_unchecked(implementation, capability, card=card)
    if os.environ.get(SWITCH, "").lower() in OFF:
        off = f"{SWITCH}={os.environ[SWITCH]}"
        return _heard(implementation, f"{unknown}, or leave out {off}, which keeps it from proving itself")
    if not sys.executable:
        return _heard(implementation, f"{unknown}; this Python cannot start another, in which it would prove itself")
    if not prove:
        return f"{unknown.partition(': run ')[0]}: it will prove itself at its first use"
    if torch.compiler.is_compiling() or (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()):
        return _heard(implementation, f"{unknown}; nothing proves itself while a graph is captured")
    found = _prove_once(implementation, capability, card, device)
    return _heard(implementation, checked.why_not_by(found, ordered, call=call))


def _heard(implementation: str, reason: str | None) -> str | None:
    if reason is not None and not reason.startswith(checked.SLOWER):
        PASSED_OVER[implementation] = reason
    return reason


def card_of(device: torch.device) -> tuple[str, str]:
    """Compute capability, as "9.0", and name of a CUDA device."""
    return ".".join(map(str, torch.cuda.get_device_capability(device))), torch.cuda.get_device_name(device)


def _prove_once(implementation: str, capability: str, card: str, device: torch.device) -> dict[str, Any]:
    """The entry of a kernel, made now unless another process makes it in the meantime."""
    key = implementation, card, checked.fingerprint(implementation), checked.triton_version()
    if key in _OF_THIS_PROCESS:
        return _OF_THIS_PROCESS[key]
    folder = checked.cache_folder()
    # The other process ends at the latest when its proof is stopped.
    with _alone(folder, implementation, SECONDS + 30) as kept:
        found = checked.find(implementation, capability, card)
        if found is not None:
            return found
        facts = {
            "implementation": implementation, "source": key[2], "triton": key[3], "capability": capability,
            "device": card,
        }  # fmt: skip
        result, sure = _prove(implementation, device)
        found = {**facts, **result}
        if sure and kept is None:
            try:
                with _alone(folder, "table", 5):  # which the proofs of all kernels share
                    checked.enter(found, checked.user_table())
                return found
            except OSError as error:
                kept = error
    if kept is not None:
        where = f"in {folder}" if folder else "without a home folder"
        _say(f"what came of it cannot be kept {where} ({kept}): name a folder in {checked.FOLDER}")
    _OF_THIS_PROCESS[key] = found
    return found


SPENT: dict[str, float] = {}  # seconds that this process had kernels prove themselves for
# Kernels that a call could not have since this was last emptied, and why: for those who call none themselves.
PASSED_OVER: dict[str, str] = {}
# What could not be kept, by kernel, card, source and Triton: at least this process asks once.
_OF_THIS_PROCESS: dict[tuple[str, ...], dict[str, Any]] = {}


@contextlib.contextmanager
def _alone(folder: Path | None, what: str, seconds: float) -> Iterator[OSError | None]:
    """Alone among the processes of this user, as far as ``seconds`` of waiting allow; gives why nothing can be kept in
    the folder.
    """
    if folder is None:
        yield OSError("no such folder")
        return
    from filelock import FileLock, Timeout

    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(folder / f"{what}.lock").acquire(timeout=seconds))
        except (NotImplementedError, Timeout):
            pass  # a disk that knows no locks, or one that nobody lets go of: what is found can be kept all the same
        except OSError as error:
            yield error
            return
        yield None


def _prove(implementation: str, device: torch.device) -> tuple[dict[str, Any], bool]:
    """Result of the child, "speedup_over_triton" or "failed"; and whether it is one that another try would give too."""
    index = device.index if device.index is not None else torch.cuda.current_device()
    _say(f"{implementation} proves itself on this card with Triton {checked.triton_version()}, once ...")
    begun, said = time.monotonic(), []
    job: Job = {"kernel": implementation, "device": f"cuda:{index}"}
    left = supervise(
        child(), [job], lambda job, result: said.append(result), patience=PATIENCE, deadline=begun + SECONDS,
        most_hangs=1,
    )  # fmt: skip
    seconds = round(time.monotonic() - begun, 1)
    result = said[0] if said else {"error": _why_left(left)}
    if "error" not in result:
        gains = ", ".join(f"{gain:.2f}x {checked.SAID[kind]}" for kind, gain in result["speedup_over_triton"].items())
        SPENT[implementation] = seconds
        _say(f"{implementation} is right in {result['cases']} cases, against triton {gains}: {seconds:.0f} s")
        return {**result, "seconds": seconds}, True
    why = result["error"]
    SPENT[implementation] = seconds
    _say(f"{implementation} did not prove itself, the slower kernel runs: {why} ({seconds:.0f} s)")
    sure = not why.startswith(NOT_YET) and not any(word in why for word in NOT_THE_KERNEL)
    return {"failed": why, "seconds": seconds}, sure


def _why_left(left: list[Job]) -> str:
    """Why a job came to no result."""
    blamed = left[0].get("without", {}) if left else {}
    return next((f"{what}: {why}" for what, why in blamed.items()), f"it did not end within {SECONDS:g} s")


def child() -> list[str]:
    """Starts the process that proves, with the modules that this one has."""
    begin = f"import sys; sys.path[:] = {sys.path!r}; from dittools.kernels.proof.short import main; main()"
    return [sys.executable, "-c", begin]


def _say(text: str) -> None:
    print(f"dittools: {text}", file=sys.stderr, flush=True)
