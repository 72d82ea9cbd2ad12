"""The `dittools` command: puts the verbs together, and turns every error into one line and an exit code."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from dittools.cli import bench, caches, calibrate, compare, env, generate, inspect, methods, models, plan, report
from dittools.cli.errors import INTERRUPTED, explain

app = typer.Typer(
    name="dittools",
    help="Runs diffusion transformers fast, without training, and measures what it costs in picture quality.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Examples:
  dittools generate --model wan --sparsity 0.8 --weights embedded --output out.mp4
  dittools report --weights embedded --out report
  dittools generate --help
  dittools env""",
)
for verb in (generate, report, calibrate, inspect, compare, plan, env, models, methods, caches):
    app.command(verb.NAME, help=verb.HELP, short_help=verb.SHORT, epilog=verb.EXAMPLES)(verb.command)
bench.add_to(app)


def _print_version(asked: bool) -> None:
    if asked:
        from dittools.provenance import dittools_version

        print(dittools_version())
        raise typer.Exit()


@app.callback()
def _global(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Options before the verb."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 the run failed, 2 bad input, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        arguments = ["--help"]
    command = typer.main.get_command(app)
    try:
        with _ended_in_order():
            code = command.main(
                report.spread(arguments) if arguments[0] == report.NAME else arguments,
                prog_name="dittools",
                standalone_mode=False,
                obj={"command": ["dittools", *arguments]},
            )
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        text, code = explain(error)
        print(f"error: {text}", file=sys.stderr)
        return code
    if code == INTERRUPTED:
        print("interrupted: nothing half-written was left behind", file=sys.stderr)
    return code if isinstance(code, int) else 0


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """A polite kill (SIGTERM) unwinds like an interrupt, so that unfinished files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
