"""A process that is one of several which draw one video: the first one speaks, and what ends one ends all.

Every one runs the same command. What ends one is put where all can read it, as its *word*: the first one says it in
one line, whoever's it is. A thread looks for such a word, since a rank that waits for another inside of NCCL or gloo
sees nothing of it, and ends what does not end by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from dittools.cli import INTERRUPTED, SAID

if TYPE_CHECKING:
    from dittools.pipelines.parallel.setup import Place

Explain = Callable[[BaseException, Sequence[str]], tuple[str, int]]

VERBS = ("generate",)
"""Verbs whose processes belong together; the others run by themselves, wherever they are started."""
WORDS, LAUNCHER = "DITTOOLS_WORDS", "DITTOOLS_LAUNCHER"
"""Set by our own launcher: the file that words are in, and its process number."""
GRACE = 5.0
"""Seconds that a rank has to end by itself once another one has."""
PATIENCE = 3.0
"""Seconds that a rank which lost another waits to hear why."""
GONE = "another rank ended without a word, as a killed one does: nothing was written"
_TURN = 1.0
_FAILED = 1
_FIRST, _TOLD = "dittools/first", "dittools/told"
_LOST = (
    *("connection closed", "connection reset", "connection refused", "broken pipe", "timed out", "timeout", "nccl"),
    *("socket", "remote process exited", "gloo"),
)


class Word(NamedTuple):
    """What ended a rank: the line to say, and the exit code of all."""

    rank: int
    code: int
    text: str

    @property
    def names_a_cause(self) -> bool:
        """Whether it tells why all ended, rather than only that something else did it."""
        return self.code not in SAID and self.text != GONE

    def line(self) -> str:
        if self.code in SAID:
            return self.text
        return f"error: {self.text}" if self.rank == 0 else f"error: rank {self.rank}: {self.text}"


_current: Member | None = None


def current() -> Member | None:
    """This process as one of several; None where it is alone."""
    return _current


def join(given: Sequence[str]) -> Member | None:
    """Find out whether this process is one of several, which are silent but for the first; None where it is alone.

    Args:
        given: the command's arguments.
    """
    global _current
    _current = None
    if os.environ.get("WORLD_SIZE", "1") in ("", "0", "1") or not {*given[:1]} & {*VERBS}:
        return None
    from dittools.pipelines.parallel.setup import place

    member = Member(place())
    if member.place.rank:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
        if not {"--debug", "--verbose", "-v"} & {*given}:
            sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    _current = member
    return member


class Member:
    """This process among its like.

    Args:
        place: which one it is.
    """

    def __init__(self, place: Place):
        self.place = place
        self.launched = WORDS in os.environ
        self._launcher = int(os.environ.get(LAUNCHER, "0") or 0)
        self._over = threading.Event()
        self._watcher: threading.Thread | None = None

    def watch(self) -> None:
        """From now on, end with any other."""
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="ranks")
        self._watcher.start()

    def leave(self) -> None:
        """From now on nobody waits for this one, nor it for others."""
        self._over.set()
        if self._watcher is not None:
            self._watcher.join(GRACE)  # a thread inside of a store would break the end of the process

    def ended(self, error: BaseException, given: Sequence[str], stopped: list[int], explain: Explain) -> int:
        """Say what ended this rank, or another before it, where that is for this one to say; the exit code.

        Args:
            given: the command's arguments.
            stopped: exit codes of the signals that came.
            explain: the line for an error, and the exit code that goes with it.
        """
        _deaf()
        if isinstance(error, SystemExit) and not stopped:
            return error.code if isinstance(error.code, int) else 1
        if "--debug" in given:
            traceback.print_exception(error)
        words = _words()
        signalled = stopped[0] if stopped else INTERRUPTED if isinstance(error, KeyboardInterrupt) else None
        first = None if self._over.is_set() else _read(words)
        if first is None and signalled is None and (gone(error) or elsewhere(error)):
            first = self._heard(words)
        if first is None and signalled in SAID:
            first = _put(words, Word(self.place.rank, signalled, SAID[signalled]))
        if first is None:
            text, code = (GONE, _FAILED) if gone(error) else explain(error, given)
            first = _put(words, Word(self.place.rank, code, text))
        self._say(words, first)
        return first.code

    def _heard(self, words: Any) -> Word | None:
        """The word of another rank, which may still be on its way."""
        end = time.monotonic() + PATIENCE
        while (first := _read(words)) is None and time.monotonic() < end:
            time.sleep(_TURN / 10)
        return first

    def _say(self, words: Any, first: Word) -> None:
        """Only the first rank speaks, and none of what a launcher of ours knows better: signals, and who was killed."""
        if self.place.rank == 0 and (first.names_a_cause or not self.launched):
            print(first.line(), file=sys.stderr, flush=True)
            with contextlib.suppress(Exception):
                words.set(_TOLD, str(first.code))

    def _watch(self) -> None:
        words = None
        while not self._over.wait(_TURN):
            words = words or _words()
            if self._launcher and os.getppid() != self._launcher:
                os.kill(os.getpid(), signal.SIGTERM)
                self._end(128 + signal.SIGTERM)
            first = _read(words)
            if first is not None and first.rank != self.place.rank:
                self._end(first.code, words, first)

    def _end(self, code: int, words: Any = None, first: Word | None = None) -> None:
        """End the process, which has not done so by itself; return where it has gone on alone."""
        if self._over.wait(GRACE):
            return
        if first is not None:
            self._say(words, first)
        os._exit(code)


def gone(error: BaseException) -> bool:
    """Whether an error, or one that it came from, is a library's word that another rank is gone."""
    for one in _chain(error):
        kind, text = type(one), str(one).lower()
        if kind.__name__.startswith("Dist") and kind.__module__.startswith("torch"):
            return True
        if kind is RuntimeError and any(part in text for part in _LOST):
            return True
    return False


def elsewhere(error: BaseException) -> bool:
    """Whether an error, or one that it came from, only tells of another rank's."""
    return any(type(one).__name__ == "FailedElsewhere" for one in _chain(error))


def _chain(error: BaseException) -> list[BaseException]:
    """An error and those that it came from."""
    found: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in found:
        found.append(at)
        at = at.__cause__ or at.__context__
    return found


def told(path: str) -> tuple[int | None, Word | None]:
    """For a launcher, once all have ended: the exit code that the first rank has told of, and the first word."""
    words = _words(path)
    code = None
    with contextlib.suppress(Exception):
        code = int(words.get(_TOLD)) if words.check([_TOLD]) else None
    return code, _read(words)


def _words(path: str | None = None) -> Any:
    """Where words are put: the launcher's file, else the store of the rendezvous; None where it cannot be reached."""
    import torch.distributed as dist

    path = path or os.environ.get(WORDS)
    try:
        if path:
            store = dist.FileStore(path)
            store.set_timeout(timedelta(seconds=5))
            return store
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
        return dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    except Exception:
        return None


def _read(words: Any) -> Word | None:
    """The first word, or None where there is none or nobody can tell."""
    try:
        return Word(*json.loads(words.get(_FIRST))) if words is not None and words.check([_FIRST]) else None
    except Exception:
        return None


def _put(words: Any, word: Word) -> Word:
    """Put a word where there is none yet; the one that is there then."""
    try:
        return Word(*json.loads(words.compare_set(_FIRST, "", json.dumps(word))))
    except Exception:
        return word


def _deaf() -> None:
    """Nothing interrupts what is said at the end."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
