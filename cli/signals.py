"""Ctrl+C and a polite kill (SIGTERM), both of which unwind, so that unfinished files are removed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def caught(for_good: bool) -> Iterator[list[int]]:
    """Gives a list that gets the exit code of every signal that comes, 130 or 143, before it is raised.

    A signal that this process was started to ignore (``nohup``) stays ignored.

    Args:
        for_good: the process ends with the block: a signal that comes later ends it at once and without a word.
    """
    stopped: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def interrupt(number: int, frame: object) -> None:
        stopped.append(128 + number)
        raise KeyboardInterrupt

    def end(number: int, frame: object) -> None:
        stopped.append(128 + number)
        raise SystemExit(128 + number)

    before = {}
    for number, handler in ((signal.SIGINT, interrupt), (signal.SIGTERM, end)):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, handler)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if for_good or handler is None else handler)
