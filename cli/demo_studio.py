"""What the page of `dittools demo` does: draw a prompt dense and fast, and say how they compare. Needs no gradio."""

from __future__ import annotations

import dataclasses
import shlex
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from dittools import methods
from dittools.cli import generation
from dittools.cli import record as records
from dittools.cli.control import StepTimes, control, shared_steps
from dittools.cli.flag_checks import check_prompt, check_seed
from dittools.cli.output import Output, one_line
from dittools.cli.progress import Stages
from dittools.cli.request import check, check_files
from dittools.config import Config
from dittools.naming import with_options
from dittools.pipelines import saving, weights
from dittools.pipelines.errors import BadInput, RunFailed, first_line
from dittools.pipelines.limits import check_steps
from dittools.report.charts import heat_map

SMALL = {"frames": 17, "height": 192, "width": 192, "steps": 8}
"""What the embedded model draws where flags leave it open: about half a minute on two cores, dense and fast."""
LEGEND = (
    "Steps downwards, layers across. Full colour was computed whole, pale was mostly skipped, and an outline was not "
    "called."
)
KEPT = 4
"""Dense videos that are kept, so that another quality of the same prompt is compared at once."""

Tell = Callable[[float, str], None]
"""Is told what share of a drawing is done, and what is being done."""


@dataclass(frozen=True)
class Quality:
    """A place on the slider.

    Args:
        name, says: for people. settings: of `dittools.Config`.
    """

    name: str
    says: str
    settings: Mapping[str, Any]


QUALITIES = (
    Quality(
        "draft",
        "skips 90 % and reuses steps that hardly change",
        {"method": "draft", "sparsity": 0.9, "dense_steps": 0.1, "cache": "easycache:threshold=0.1"},
    ),
    Quality(
        "fast",
        "skips 90 %, adds what was skipped at the last refresh",
        {"method": "draft", "sparsity": 0.9, "dense_steps": 0.2, "correction": "rettention"},
    ),
    Quality(
        "balanced",
        "skips 80 %, adds what was skipped at the last refresh",
        {"method": "draft", "sparsity": 0.8, "dense_steps": 0.2, "correction": "rettention"},
    ),
    Quality(
        "near",
        "skips 60 %, with more dense steps at the start",
        {"method": "draft", "sparsity": 0.6, "dense_steps": 0.4, "correction": "rettention"},
    ),
    Quality("same", "skips nothing: the dense run once more", {"method": "dense"}),
)


@dataclass(frozen=True)
class Asked:
    """What the page asks for.

    Args:
        prompt: what to show. seed: of the noise. steps: denoising steps.
        quality: place on the slider, 0 to 4.
        method: one by its name, which takes the place of the slider's settings with ``sparsity``; None: the slider's.
    """

    prompt: str
    quality: int = 2
    seed: int = 0
    steps: int | None = None
    method: str | None = None
    sparsity: float = 0.8

    @property
    def settings(self) -> dict[str, Any]:
        """Of `dittools.Config`, where they are no defaults."""
        if self.method is None:
            return dict(QUALITIES[self.quality].settings)
        return {"method": self.method} | ({} if self.method == "dense" else {"sparsity": self.sparsity})


@dataclass(frozen=True)
class Drawn:
    """A drawing and how it compares.

    Args:
        dense, fast: the two videos, or pictures.
        facts: label and text, for people. heat_map: SVG of what was computed by step and layer, "" where nothing
            was sparse. notes: what a user should know. command: the command line that draws the same, flag by flag.
        psnr: in dB; None where the two are identical.
    """

    dense: Path
    fast: Path
    facts: tuple[tuple[str, str], ...]
    heat_map: str
    notes: tuple[str, ...]
    command: tuple[str, ...]
    psnr: float | None

    @property
    def html(self) -> str:
        """Facts, heat map and notes for the page; all text is escaped."""
        rows = Markup("").join(
            Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(label, text) for label, text in self.facts
        )
        drawn = Markup("")
        if self.heat_map:
            drawn = Markup('<figure class="dt-map"><figcaption>What was computed</figcaption>{}<p>{}</p></figure>')
            drawn = drawn.format(Markup(self.heat_map), LEGEND)
        notes = Markup("").join(Markup("<li>{}</li>").format(note) for note in self.notes)
        notes = Markup('<ul class="dt-notes">{}</ul>').format(notes) if self.notes else notes
        words = Markup(" ").join(Markup("<span>{}</span>").format(word) for word in self.command)
        command = Markup('<p class="dt-command">The same from the command line: <code>{}</code></p>').format(words)
        return str(Markup('<div class="dt-result"><dl>{}</dl>{}</div>{}{}').format(rows, drawn, notes, command))


class _Dense:
    """A dense run that is kept: its frames, its file, seconds in all and of each step."""

    def __init__(self, frames: Any, file: Path, seconds: float, step_seconds: list[float]):
        self.frames, self.file, self.seconds, self.step_seconds = frames, file, seconds, step_seconds


class PageProgress:
    """Passes on where a drawing stands, in place of a bar on a terminal.

    Args:
        stages: texts of the stages to come, in their order, with the share of the time each may take.
    """

    def __init__(self, tell: Tell, shares: Mapping[str, float]):
        self._tell, self._shares, self._done, self._name = tell, dict(shares), 0.0, ""

    def stage(self, name: str, steps: int | None = None) -> None:
        self._done += self._shares.pop(self._name, 0.0)
        self._name = name
        self._tell(min(self._done, 1.0), name)

    def step(self, step: int, steps: int) -> None:
        part = self._shares.get(self._name, 0.0) * step / steps
        self._tell(min(self._done + part, 1.0), f"{self._name}, step {step} of {steps}")

    def skipped(self, share: float | None) -> None:
        """What is skipped is shown at the end."""


class Studio:
    """A loaded pipeline that draws what a page asks for, one drawing at a time.

    Args:
        request: of `dittools.cli.request.check`. opened: of `dittools.cli.generation.open_model`.
        folder: where videos go; whoever made it removes it.
    """

    def __init__(self, request: Any, opened: generation.Opened, folder: Path):
        self.request, self.opened, self._folder = request, opened, folder
        self._dense: OrderedDict[tuple, _Dense] = OrderedDict()
        self._turn = threading.Lock()
        self._count = 0

    @property
    def image(self) -> bool:
        """Whether the family draws pictures."""
        return self.request.family.draws == "image"

    @property
    def size(self) -> str:
        """Of what is drawn, for people."""
        shot = self.opened.scene.shot
        size = f"{shot.width} x {shot.height} pixels"
        return size if self.image else f"{shot.frames} frames of {size}"

    def draw(self, asked: Asked, tell: Tell = lambda share, text: None) -> Drawn:
        """Draw dense, where that is not kept, and fast.

        Raises:
            BadInput: one line, for what cannot be drawn.
            RunFailed: one line, for a run that failed.
        """
        config = self._checked(asked)
        with self._turn:
            return self._draw(asked, config, tell)

    def _checked(self, asked: Asked) -> Config:
        if not asked.prompt.strip():
            raise BadInput("the prompt is empty: write what to show")
        check_prompt("the prompt", asked.prompt)
        check_seed("the seed", asked.seed)
        check_steps(asked.steps, None, "the number of steps")
        try:
            config = Config(**asked.settings)
        except ValueError as error:
            raise BadInput(first_line(error)) from None
        check_files(config, asked.steps)
        return config

    def _draw(self, asked: Asked, config: Config, tell: Tell) -> Drawn:
        opened = self.opened
        steps = opened.scene.shot.steps if asked.steps is None else asked.steps
        scene = opened.scene.of(asked.prompt.strip(), seed=asked.seed, steps=steps)
        place = scene.prompt, asked.seed, steps
        known = self._dense.get(place)
        shares = {"encoding the prompt": 0.02, "denoising": 0.4, "decoding frames": 0.08}
        shares |= {"denoising densely, to compare": 0.4, "comparing with dense": 0.08} if known is None else {}
        total = sum(shares.values())
        stages = Stages(PageProgress(tell, {name: share / total for name, share in shares.items()}))
        stages.cuda, stages.size = opened.device.type == "cuda", generation.size_of(scene)
        embeds = generation.encode(opened, scene, stages)
        if known is None:
            known = self._dense[place] = self._drawn_dense(embeds, scene, stages)
            while len(self._dense) > KEPT:
                self._dense.popitem(last=False)[1].file.unlink(missing_ok=True)
        times = StepTimes(opened.device)
        latents, fast = generation.denoise_sparse(opened, embeds, scene, config, stages, times)
        record = fast.record()
        with stages("decode"):
            frames = generation.decode(opened, latents, scene)
        file = self._save(frames, scene)
        with stages("quality"):
            from dittools.quality import psnr, ssim

            where = opened.device if opened.device.type == "cuda" else None
            scores = psnr(frames, known.frames, where), ssim(frames, known.frames, where)
        shared = shared_steps(record, len(known.step_seconds))
        told = control(known.step_seconds, times.seconds(), shared, "shared") if shared else None
        quality = records.quality_facts(*scores, known.seconds, stages.seconds["denoise"], told)
        sparse = record["calls"]["sparse"] > 0
        cells = fast.by_step_and_layer() if sparse else []
        notes = [*generation.prompt_notes(opened, scene), *record["notes"]]
        tell(1.0, "done")
        return Drawn(
            dense=known.file,
            fast=file,
            facts=_facts(record, quality, stages.seconds["denoise"]),
            heat_map=str(heat_map(cells, "Computed share of attention, by step and layer")),
            notes=tuple(notes),
            command=self._command(asked, steps),
            psnr=None if quality["psnr"] == "inf" else quality["psnr"],
        )

    def _drawn_dense(self, embeds: dict, scene: Any, stages: Stages) -> _Dense:
        opened = self.opened
        if opened.device.type == "cuda":  # whose first step is slow
            with stages("warm-up"):
                generation.warm_up(opened, embeds, scene, None)
        times = StepTimes(opened.device)
        latents = generation.denoise_dense(opened, embeds, scene, stages, times=times)
        with stages("quality"):
            frames = generation.decode(opened, latents, scene)
        return _Dense(frames, self._save(frames, scene), stages.seconds["dense"], times.seconds())

    def _save(self, frames: Any, scene: Any) -> Path:
        """The file of a drawing; all but the latest ones are removed."""
        self._count += 1
        kind = "png" if self.image else "mp4"
        path = self._folder / f"drawing{self._count}.{kind}"
        saving.write(saving.to_uint8(frames), path, kind, scene.fps)
        held = {dense.file for dense in self._dense.values()}
        for old in sorted(self._folder.glob("drawing*"), key=lambda one: one.stat().st_mtime)[: -2 * KEPT]:
            if old not in held and old != path:
                old.unlink(missing_ok=True)
        return path

    def _command(self, asked: Asked, steps: int) -> tuple[str, ...]:
        """The command line that draws the same: each flag with its value."""
        shot, flags = self.opened.scene.shot, self.request.flags
        values = {} if flags.model == "wan" else {"model": flags.model}
        values |= {"weights": flags.weights, "frames": shot.frames, "height": shot.height, "width": shot.width}
        values |= {"steps": steps, "guidance": shot.guidance, "seed": asked.seed, **asked.settings}
        parts = [f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in values.items()]
        return "dittools generate", *parts, "--compare-dense", f"--prompt {shlex.quote(asked.prompt.strip())}"


def _facts(record: dict, quality: dict, seconds: float) -> tuple[tuple[str, str], ...]:
    """What the page says of a drawing, from what ran and how it compares."""
    shares, calls, cache = record["sparsity"], record["calls"], record["cache"]
    took = f"denoising {seconds:.1f} s, dense {quality['dense_denoise_seconds']:.1f} s"
    if quality["speedup"]:
        found = [("Speed", f"{quality['speedup']:.2f}x as fast: {took}")]
    else:
        found = [("Speed", f"not given: {took}"), ("Why not given", quality["speedup_withheld"])]
    identical = quality["psnr"] == "inf"
    found += [
        ("Against dense", "identical" if identical else f"PSNR {quality['psnr']:.1f} dB, SSIM {quality['ssim']:.3f}")
    ]
    skipped = f"{shares['sparse_calls']:.0%} in sparse calls, {shares['overall']:.0%} of all" if calls["sparse"] else ""
    found += [("Attention skipped", skipped or "none")]
    if cache["name"] != "none":
        found += [("Steps reused", f"{len(cache['reused_steps'])} of {record['steps']} ({cache['name']})")]
    correction = "" if record["correction"] == "none" else f" with {record['correction']}"
    return (*found, ("Method", with_options(record["method"], record["method_options"]) + correction))


@contextmanager
def open_studio(flags: Any, output: Output) -> Iterator[Studio]:
    """Load what flags name, in place of whose sizes the embedded model takes small ones."""
    if flags.weights == weights.EMBEDDED:
        left = {name: value for name, value in SMALL.items() if getattr(flags, name) is None}
        flags = dataclasses.replace(flags, **left)
    request = check(flags, None)
    from dittools.cli.progress import Progress

    with Progress(output) as progress:
        opened = generation.open_model(request, Stages(progress), output)
    with tempfile.TemporaryDirectory(prefix="dittools-demo-") as folder:
        yield Studio(request, opened, Path(folder))


def method_names() -> list[str]:
    """Methods that a page offers: those that need no profile."""
    return [name for name, cls in methods.METHODS.items() if cls.profile_use != "needed" and name != "trained"]


def told(error: Exception) -> str:
    """The line of the page for an error; escaped."""
    said = str(error) if isinstance(error, BadInput | RunFailed) else f"{type(error).__name__}: {first_line(error)}"
    return str(escape(one_line(said)))
