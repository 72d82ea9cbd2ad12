"""The verbs put together, and one command run: what ends it is raised."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any

import typer

from dittools.cli import bench, caches, calibrate, compare, demo, env, export, generate, methods, models, plan, report
from dittools.cli import inspect_maps as inspect
from dittools.cli._command import Command
from dittools.cli.late import import_late

_COMPLETE = "_DITTOOLS_COMPLETE"
"""Set by a shell that completes a command line."""

app = typer.Typer(
    name="dittools",
    help="Runs diffusion transformers fast, without training, and measures what it costs in picture quality.",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Examples:
  dittools generate --weights embedded --sparsity 0.8 --output out.mp4
  dittools report --weights embedded --output report
  dittools generate --help
  dittools env""",
)
for verb in (generate, demo, report, calibrate, export, inspect, compare, plan, env, models, methods, caches):
    app.command(verb.NAME, cls=Command, help=verb.HELP, short_help=verb.SHORT, epilog=verb.EXAMPLES)(verb.command)
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


def run(arguments: Sequence[str]) -> int:
    """Run one command and return the exit code of one that ends well; whatever ends it otherwise is raised."""
    import_late("torch")
    if _COMPLETE in os.environ:
        command().main(prog_name="dittools", complete_var=_COMPLETE)  # which a shell asks for, and which ends here
    given = [*arguments] or ["--help"]
    try:
        # not command.main(), which writes to stderr and ends the process by itself
        with command().make_context("dittools", given, obj={"command": ["dittools", *given]}) as context:
            context.command.invoke(context)
    except typer.Exit as ended:
        return ended.exit_code
    return 0


@cache
def command() -> Any:
    """The whole command line as its parser has it."""
    return typer.main.get_command(app)
