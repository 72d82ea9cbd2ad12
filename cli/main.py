"""The `dittools` command from its first instant on: whatever ends it is one line at most, and an exit code.

Nothing is imported before interrupts and kills are caught: the verbs take tenths of a second, PyTorch seconds.
"""

from __future__ import annotations

import os
import sys

from dittools.cli import INTERRUPTED, SAID


def main(argv=None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: arguments without the command's own name; None: those of this process, which ends with the command.

    Returns:
        0 done, 1 the run failed, 2 bad input, 130 interrupted, 143 told to end.
    """
    given = sys.argv[1:] if argv is None else [*argv]
    stopped: list[int] | None = None
    try:
        from dittools.cli.signals import caught

        with caught(for_good=argv is None) as stopped:
            from dittools.cli.streams import heard

            with heard():
                member = None
                try:
                    from dittools.cli.member import join

                    member = join(given)  # None where this process is alone, as nearly always
                    from dittools.cli.app import run

                    return run(given)
                except BaseException as error:
                    if member is None:
                        return _ended(error, given, stopped)
                    from dittools.cli.errors import explain

                    code = member.ended(error, given, stopped, explain)
                    return code if argv is not None else _at_once(code)
    except KeyboardInterrupt:  # before signals are caught, or once more while the first one is answered
        if stopped is None and sys.stderr is not None:
            print(SAID[INTERRUPTED], file=sys.stderr)
        return INTERRUPTED
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1


def _ended(error: BaseException, given: list[str], stopped: list[int]) -> int:
    """Say what ended the command, and give its exit code.

    Args:
        stopped: exit codes of the signals that came: a library may have made another error of what they raise.
    """
    code = stopped[0] if stopped else INTERRUPTED if isinstance(error, KeyboardInterrupt) else None
    if code in SAID:
        print(SAID[code], file=sys.stderr)
        return code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if not isinstance(error, Exception):
        raise error
    from dittools.cli.errors import told

    return told(error, given)


def _at_once(code: int) -> int:
    """End this process, in which libraries may still wait for ranks that are gone."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
