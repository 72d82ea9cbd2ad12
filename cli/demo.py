"""`dittools demo`: a page in the browser, where a prompt is drawn dense and fast side by side."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated

import typer

from dittools.cli import _flags as f
from dittools.cli._command import takes
from dittools.cli.output import Output
from dittools.pipelines.errors import BadInput

NAME = "demo"
SHORT = "A page in the browser to try it."
HELP = """Open a page in the browser: a prompt and a slider from draft to same, the dense and the fast video side by
side, speed and PSNR between them, and what was skipped as a heat map.

Nothing leaves this machine unless --share asks for it. The embedded model draws on a CPU in about half a minute, at
17 x 192 x 192 and 8 steps where no flags say otherwise. The page needs gradio: pip install 'dittools[demo]'.

The page's address goes to stdout. Ctrl-C ends it."""
EXAMPLES = """\b
Examples:
  dittools demo --weights embedded
  dittools demo --weights ./my-wan --steps 30 --port 8000
  dittools demo --share"""
PAGE = "Page"


@dataclass(frozen=True, kw_only=True)
class Flags(f.Run):
    port: Annotated[
        int | None, f.flag("--port", "Of this machine.  [default: the first free one from 7860]", PAGE, "N")
    ] = None
    share: Annotated[
        bool, f.flag("--share", "Also a public address, by gradio's servers, for whoever has the link.", PAGE)
    ] = False


@takes(Flags)
def command(ctx: typer.Context, flags: Flags) -> None:
    from dittools.cli.flag_checks import check_run

    check_run(flags)
    if flags.port is not None and not 1 <= flags.port <= 65535:
        raise BadInput(f"--port must be from 1 to 65535, got {flags.port}")
    if find_spec("gradio") is None:
        raise BadInput("dittools demo needs gradio, which is not installed: pip install 'dittools[demo]'")

    from dittools.cli.demo_page import serve
    from dittools.cli.demo_studio import open_studio

    output = Output.of(flags)
    with open_studio(flags, output) as studio:
        serve(studio, flags.port, flags.share, output)
