"""The verbs put together, and one command run: what ends it is raised."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any

import typer

from dittools.cli import bench, caches, calibrate, compare, env, generate, inspect, methods, models, plan, report
from dittools.cli.late import import_late

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


def run(arguments: Sequence[str]) -> int:
    """Run one command and return the exit code of one that ends well; whatever ends it otherwise is raised."""
    import_late("torch")
    given = [*arguments] or ["--help"]
    spread = report.spread(given) if given[0] == report.NAME else given
    try:
        # not command.main(), which writes to stderr and ends the process by itself
        with command().make_context("dittools", spread, obj={"command": ["dittools", *given]}) as context:
            context.command.invoke(context)
    except typer.Exit as ended:
        return ended.exit_code
    return 0


@cache
def command() -> Any:
    """The whole command line as its parser has it."""
    return typer.main.get_command(app)
