"""The model of a report, loaded once, and one case after the other drawn with it and kept."""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dittools import files
from dittools.cli import generation
from dittools.cli import record as records
from dittools.cli.output import Output
from dittools.cli.progress import Progress, Stages
from dittools.cli.report.profiles import check_model
from dittools.cli.request import Request, Scene
from dittools.config import Config
from dittools.pipelines import dense_kernels, saving, strides
from dittools.pipelines.errors import BadInput, DiskFull, RunFailed
from dittools.pipelines.families import transformers_of
from dittools.pipelines.sizes import size_rule
from dittools.pipelines.tasks.whole import Drawn
from dittools.report.folder import FRAMES, RECORD, VIDEO, Folder
from dittools.report.plan import Case, Plan, Setting
from dittools.report.schedule import Unit
from dittools.tokens import TokenGrid


class Model(NamedTuple):
    """What a loaded model tells a report.

    Args:
        notes: what of the prompts it will not read.
        kernels: dense kernels of its device, fastest first.
        tokens, heads: of its self-attention.
    """

    notes: list[str]
    kernels: list[str]
    tokens: int
    heads: int


class Cases:
    """Draws cases of a plan into a folder.

    Args:
        chosen: what the request came to. command: as it was typed.
    """

    def __init__(self, request: Request, chosen: Any, plan: Plan, folder: Folder, command: list[str], output: Output):
        self.request, self.chosen, self.plan, self.folder = request, chosen, plan, folder
        self.command, self.output = command, output
        self._warm: set[str] = set()
        self._told_no_ffmpeg = False

    def open(self, progress: Progress, checked: Sequence[Setting]) -> None:
        """Load the model. Raises BadInput where a profile of these settings does not fit it."""
        stages = Stages(progress)
        self.opened = generation.open_model(self.request, stages, self.output, self.chosen)
        self.load_seconds, self.progress = stages.seconds["load"], progress
        block_size = 128 if self.opened.device.type == "cuda" else 64
        grid = self._grid()
        if grid is not None:  # else its cases tell
            check_model(checked, self.opened.pipe, grid, self.plan.steps, block_size)

    def model(self, measured: bool) -> Model:
        """What the model tells.

        Args:
            measured: whether its kernels are timed, for their order to mean something.
        """
        notes = []
        for number, prompt in enumerate(self.plan.prompts, 1):
            said = generation.prompt_notes(self.opened, self.opened.scene.of(prompt))
            notes += [f"prompt {number}: {note}" for note in said]
        grid = self._grid()
        tokens = grid.tokens if grid is not None else 0
        return Model(notes, self._kernels(tokens, measured), tokens, self._heads()[0])

    def draw(self, unit: Unit, kernel: str) -> float:
        """Draw and keep a unit; its denoise seconds.

        Args:
            kernel: of dense calls, where the unit's setting names none.

        Raises:
            BadInput, RunFailed: where it cannot be drawn; what it took of the device's memory is free again.
        """
        try:
            return self._draw(unit, kernel)
        except DiskFull:
            raise
        except (BadInput, RunFailed):
            _free(self.opened.device)
            raise

    def _draw(self, unit: Unit, kernel: str) -> float:
        setting, stages = unit.case.setting, Stages(self.progress)
        scene = self._scene(unit.case)
        stages.cuda, stages.size = self.opened.device.type == "cuda", generation.size_of(scene)
        config = Config.from_dict(setting.config) if setting.config is not None else None
        embeds = generation.encode(self.opened, scene, stages)
        kernel = setting.kernel or kernel
        with dense_kernels.using(kernel):
            self._warm_up(embeds, scene, config, kernel, stages)
            if config is None:
                latents = generation.denoise_dense(self.opened, embeds, scene, stages, "denoise")
                facts, skipped = self._dense_facts(setting.steps), []
            else:
                latents, fast = generation.denoise_sparse(self.opened, embeds, scene, config, stages)
                facts, skipped = fast.record(), fast.by_step_and_layer()
        extra = {"kernel": kernel, "latents": _fingerprint(latents), "skipped": skipped}
        if unit.repeat:
            self._keep_repeat(unit, stages, facts, extra)
        else:
            with stages("decode"):
                pixels = generation.decode(self.opened, latents, scene, levels=True)
            self._keep(unit.case, scene, config, pixels, stages, facts, extra)
        return stages.seconds["denoise"]

    def _warm_up(self, embeds: dict, scene: Scene, config: Config | None, kernel: str, stages: Stages) -> None:
        """An untimed step before a kernel or method is first timed in this process."""
        kind = kernel if config is None else f"{config.method} {config.options} {config.block_size}"
        if kind not in self._warm:
            with stages("warm-up"):
                generation.warm_up(self.opened, embeds, scene, config)
            self._warm.add(kind)

    def _scene(self, case: Case) -> Scene:
        return self.opened.scene.of(self.plan.prompts[case.prompt], seed=case.seed, steps=case.setting.steps)

    def _keep(
        self, case: Case, scene: Scene, config: Config | None, pixels: Any, stages: Stages, facts: dict, extra: dict
    ) -> None:
        """The case's folder appears whole, or not at all."""
        place = self.folder.case(case.id)
        with stages("save"), saving.told(place), self.folder.new_case(case.id) as part:
            begun = time.perf_counter()
            frames_file = self._write(pixels, part, scene.fps)
            seconds = {**stages.seconds, "load": self.load_seconds, "save": time.perf_counter() - begun}
            seconds["total"] = sum(seconds[name] for name in records.SECONDS)
            record = records.Generation(
                command=self.command,
                request=self.request,
                opened=self.opened,
                scene=scene,
                config=config or Config(method="dense"),
                seconds=seconds,
                acceleration=facts,
                quality=None,
                output=Path("cases") / case.id / frames_file,
                drawn=None if scene.task is None else dict(zip(records.SIZES, pixels.shape[:3], strict=True)),
            ).record()
            files.write_json(part / RECORD, {**record, "case": extra})

    def _write(self, pixels: Any, place: Path, fps: float) -> str:
        """Frames and clip into a case's folder; the name of the frames' file."""
        encoded, plain = FRAMES
        if saving.ffmpeg() is None:
            if not self._told_no_ffmpeg:
                self.output.note(
                    "no ffmpeg found: frames are kept as arrays, and the page has no clips; pip install imageio-ffmpeg"
                )
                self._told_no_ffmpeg = True
            saving.write(pixels, place / plain, "npy", fps)
            return plain
        saving.write(pixels, place / encoded, "mkv", fps)
        saving.write(pixels, place / VIDEO, "mp4", fps)
        return encoded

    def _keep_repeat(self, unit: Unit, stages: Stages, facts: dict, extra: dict) -> None:
        first = self.folder.record(unit.case.id)
        same = first is not None and first["case"].get("latents") == extra["latents"]
        seconds = {name: round(stages.seconds[name], 4) for name in ("text", "denoise")}
        with saving.told(self.folder.case(unit.case.id)):
            self.folder.write_repeat(
                unit.case.id,
                unit.repeat,
                {"seconds": seconds, "step_seconds": facts["step_seconds"], "same_latents": same},
            )

    def _kernels(self, tokens: int, measured: bool) -> list[str]:
        """Dense kernels, fastest first: measured on a GPU, PyTorch's own choice on a CPU."""
        device, dtype = self.opened.device, self.opened.dtype
        heads, head_dim = self._heads()
        found = dense_kernels.names(device, dtype, head_dim)
        if not measured or not tokens or device.type == "cpu" or len(found) < 2:
            return found
        shape = (1, heads, tokens, head_dim)
        return dense_kernels.fastest_first(found, shape, device, dtype)

    def _model(self) -> Any:
        return transformers_of(self.opened.pipe, self.request.family)[0][1]

    def _heads(self) -> tuple[int, int]:
        """Heads of the self-attention, and their width."""
        model = self._model().config
        count = next(model[name] for name in ("num_attention_heads", "n_heads", "num_heads") if name in model)
        width = (
            model.get("attention_head_dim")
            or next(model[name] for name in ("dim", "hidden_size", "inner_dim") if name in model) // count
        )
        return count, width

    def _grid(self) -> TokenGrid | None:
        """The token grid of every case, without text that shares its sequence; None where only the pipeline knows."""
        import torch

        if self.request.task is not None:
            return self._grid_of_sizes()
        plan, vae = self.plan, self.opened.pipe.vae.config
        stride, side = vae.scale_factor_temporal, vae.scale_factor_spatial
        shape = (1, 0, (plan.frames - 1) // stride + 1, plan.height // side, plan.width // side)
        family, latents = self.request.family, torch.empty(shape, device="meta")
        return family.token_grid(family.layout(self._model().config, {family.latents: latents}.get), lambda name: None)

    def _grid_of_sizes(self) -> TokenGrid | None:
        plan, family = self.plan, self.request.family
        if family.name not in strides.READ or None in (plan.height, plan.width):
            return None
        return size_rule(family, self.chosen.folder).layout(plan.frames or 1, plan.height, plan.width).grid()

    def _dense_facts(self, steps: int) -> dict[str, Any]:
        """What an acceleration would have told of a run that had none."""
        return records.dense_facts(self._grid(), steps)


def _fingerprint(latents: Any) -> str:
    """The same for the same bits."""
    if isinstance(latents, Drawn):
        return hashlib.sha256(latents.frames.tobytes()).hexdigest()[:16]
    return hashlib.sha256(latents.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def _free(device: Any) -> None:
    """After a failure that may have been memory."""
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
