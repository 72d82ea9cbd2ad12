"""The page of `dittools demo`, built with gradio around a `Studio`."""

from __future__ import annotations

import socket
import threading
from typing import Any

import gradio as gr

from dittools.cli.demo_studio import QUALITIES, Asked, Studio, method_names, told
from dittools.cli.output import Output
from dittools.pipelines.errors import BadInput

BY_SLIDER = "by quality"
TOGETHER = """() => setTimeout(() => document.querySelectorAll("video").forEach(one => {
  one.currentTime = 0; one.play();
}), 700)"""
STYLE = """
.gradio-container { max-width: 72rem !important; margin: 0 auto !important; }
.dt-head h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
.dt-head p { margin: 0; opacity: .8; }
.dt-slider input[type="number"], .dt-slider .reset-button, .dt-slider .min_value, .dt-slider .max_value,
.dt-slider .tab-like-container { display: none !important; }
.dt-group > div { background: var(--block-background-fill); }
.dt-under { padding: .1rem 12px .7rem; }
.dt-names { display: grid; grid-template-columns: 1fr 1fr 1.4fr 1fr 1fr; font-size: .85rem; }
.dt-names span { text-align: center; }
.dt-names span:first-child { text-align: left; } .dt-names span:last-child { text-align: right; }
.dt-names .dt-on { font-weight: 700; color: var(--color-accent, #1763b6); }
.dt-says { margin: .35rem 0 0; font-size: .9rem; opacity: .85; }
.dt-error { border-left: 3px solid #b3263a; padding: .4rem .7rem; margin: 0; overflow-wrap: anywhere; }
.dt-result { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: flex-start; }
.dt-result dl { flex: 1 1 18rem; min-width: 0; margin: 0; }
.dt-result dl div { display: grid; grid-template-columns: 8.5rem minmax(0, 1fr); gap: .5rem; padding: .3rem 0;
  border-bottom: 1px solid var(--border-color-primary, #d9dce0); }
.dt-result dt { opacity: .75; } .dt-result dd { margin: 0; overflow-wrap: anywhere; }
.dt-command { font-size: .85rem; margin: .8rem 0 0; opacity: .85; }
.dt-command code { font-size: .8rem; } .dt-command span:not(:last-child) { white-space: nowrap; }
.dt-command span { overflow-wrap: anywhere; }
.dt-map { margin: 0; flex: 0 1 18rem; min-width: 0; }
.dt-map figcaption { font-weight: 600; margin-bottom: .35rem; }
.dt-map svg { width: 100%; max-width: 16rem; height: auto; display: block; }
.dt-map .cell { fill: var(--color-accent, #1763b6); } .dt-map .none { fill: none; stroke: #9aa3ad; }
.dt-map p { font-size: .82rem; opacity: .75; margin: .35rem 0 0; }
.dt-notes { font-size: .85rem; opacity: .8; padding-left: 1.1rem; margin: .8rem 0 0; list-style: disc; }
footer { display: none !important; }
@media (max-width: 40rem) {
  .dt-result dl div { grid-template-columns: minmax(0, 1fr); gap: 0; }
}
"""


def slider_text(place: int) -> str:
    """The names below the slider, the chosen one marked, and what it means."""
    names = "".join(
        f'<span class="dt-on">{one.name}</span>' if number == place else f"<span>{one.name}</span>"
        for number, one in enumerate(QUALITIES)
    )
    says = QUALITIES[place].says
    return f'<div class="dt-under"><div class="dt-names">{names}</div><p class="dt-says">{says}</p></div>'


def answer(studio: Studio, given: dict[str, Any], tell: Any) -> tuple[Any, Any, str, str]:
    """What the page shows after "Draw": both videos, the facts, and the line of an error."""
    method = None if given["method"] == BY_SLIDER else given["method"]
    whole = {name: int(given[name] or 0) for name in ("quality", "seed", "steps")}
    try:
        drawn = studio.draw(Asked(given["prompt"] or "", **whole, method=method, sparsity=given["sparsity"]), tell)
    except Exception as error:  # whatever it is, a page has one line for it
        return gr.skip(), gr.skip(), gr.skip(), f'<p class="dt-error">{told(error)}</p>'
    return str(drawn.dense), str(drawn.fast), drawn.html, ""


def page(studio: Studio) -> gr.Blocks:
    """The page."""
    shot, place = studio.opened.scene.shot, 2
    with gr.Blocks(title="dittools demo", analytics_enabled=False) as blocks:
        gr.HTML(
            '<div class="dt-head"><h1>dittools demo</h1><p>The same prompt and noise, drawn with all of its attention '
            f"and with little of it: {studio.size}, {studio.opened.weights.name} weights.</p></div>"
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                prompt = gr.Textbox(studio.opened.scene.prompt, label="Prompt", lines=3, max_lines=6)
                with gr.Group(elem_classes="dt-group"):
                    slider = gr.Slider(0, len(QUALITIES) - 1, place, step=1, label="Quality", elem_classes="dt-slider")
                    names = gr.HTML(slider_text(place), padding=False)
                with gr.Accordion("Settings of your own", open=False):
                    method = gr.Dropdown(
                        [BY_SLIDER, *method_names()], value=BY_SLIDER, label="Method", info="Takes the slider's place"
                    )
                    sparsity = gr.Slider(0, 0.95, 0.8, step=0.05, label="Sparsity, with a method")
                    steps = gr.Slider(2, max(50, shot.steps), shot.steps, step=1, label="Steps")
                    seed = gr.Number(shot.seed, precision=0, minimum=0, label="Seed")
                button = gr.Button("Draw", variant="primary")
                error = gr.HTML()
            with gr.Column(scale=2, min_width=300):
                with gr.Row():
                    dense, fast = (_shown(studio.image, label) for label in ("Dense", "Fast"))
                facts = gr.HTML()
        slider.change(lambda at: slider_text(int(at)), slider, names, show_progress="hidden")
        inputs = {"prompt": prompt, "quality": slider, "method": method, "sparsity": sparsity}
        inputs |= {"steps": steps, "seed": seed}

        def draw(*values: Any, progress: gr.Progress = gr.Progress()) -> tuple[Any, Any, str, str]:  # noqa: B008
            given = dict(zip(inputs, values, strict=True))
            return answer(studio, given, lambda share, text: progress(share, desc=text))

        for begins in (button.click, prompt.submit):
            begins(
                draw,
                list(inputs.values()),
                [dense, fast, facts, error],
                concurrency_limit=1,
                concurrency_id="draw",
                show_progress_on=[dense, fast],
            ).then(None, js=TOGETHER)
    return blocks


def _shown(image: bool, label: str) -> Any:
    if image:
        return gr.Image(label=label, interactive=False, min_width=150)
    return gr.Video(label=label, autoplay=True, loop=True, interactive=False, min_width=150)


def serve(studio: Studio, port: int | None, share: bool, output: Output) -> None:
    """Show the page until the process is ended. Raises BadInput where the port is taken."""
    if port is not None:
        check_free(port)
    blocks = page(studio)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # the reader's own
    theme = gr.themes.Default(primary_hue="blue", **fonts)
    _, local, public = blocks.launch(
        server_port=port, share=share, quiet=True, prevent_thread_lock=True, theme=theme, css=STYLE, show_error=True,
        footer_links=[],
    )  # fmt: skip
    try:
        output.data({"url": local, "public_url": public}, lambda: "\n".join(filter(None, (local, public))))
        output.line("the page is open; Ctrl-C ends it")
        threading.Event().wait()
    finally:
        blocks.close(verbose=False)


def check_free(port: int) -> None:
    """Raises BadInput where another program has the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise BadInput(f"--port {port} cannot be used ({error.strerror}): give another, or leave it out") from None
