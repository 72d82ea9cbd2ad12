"""The run phase of a report: draw what is not there yet, one case after the other, and keep each at once."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from dittools import files
from dittools.cli import generation
from dittools.cli import record as records
from dittools.cli.output import Output, one_line
from dittools.cli.progress import Progress
from dittools.cli.report.baselines import Baselines
from dittools.cli.report.profiles import check_files, check_model
from dittools.cli.request import Request, Scene
from dittools.cli.stages import Stages
from dittools.config import Config
from dittools.pipelines import dense_kernels, saving
from dittools.pipelines.errors import BadInput, DiskFull, RunFailed
from dittools.pipelines.families import transformers_of
from dittools.report import schedule
from dittools.report.folder import FAILURES, FRAMES, RECORD, VIDEO, Folder
from dittools.report.frames import lacking
from dittools.report.plan import Case, Plan
from dittools.report.schedule import Unit
from dittools.tokens import TokenGrid

Write = Callable[[generation.Opened], None]


class Failures:
    """What did not work, kept in the folder as it happens; an entry goes when its work succeeds later."""

    def __init__(self, folder: Folder):
        self._folder = folder
        self.entries = folder.failures()

    def begin(self) -> None:
        """Write the file, were it empty. The manifest comes first: without one a folder is not known as a report."""
        if not (self._folder.path / FAILURES).exists():
            self._keep()

    def add(self, phase: str, case_id: str, repeat: int, error: str, **facts: Any) -> None:
        self._without(phase, case_id, repeat)
        self.entries.append({"phase": phase, "case": case_id, "repeat": repeat, **facts, "error": one_line(error)})
        self._keep()

    def clear(self, phase: str, case_id: str, repeat: int = 0) -> None:
        if self._without(phase, case_id, repeat):
            self._keep()

    def _without(self, phase: str, case_id: str, repeat: int) -> bool:
        rest = [e for e in self.entries if (e["phase"], e["case"], e["repeat"]) != (phase, case_id, repeat)]
        found, self.entries = len(rest) < len(self.entries), rest
        return found

    def _keep(self) -> None:
        with saving.told(self._folder.path / FAILURES):
            self._folder.write_failures(self.entries)


class Drawer:
    """Draws the cases of a plan into a folder.

    Args:
        chosen: what the request came to. command: as it was typed.
        prompts: numbers of the prompts to draw; None draws all.
    """

    def __init__(
        self,
        request: Request,
        chosen: Any,
        plan: Plan,
        folder: Folder,
        command: list[str],
        output: Output,
        prompts: Collection[int] | None = None,
    ):
        self.request, self.chosen, self.plan, self.folder = request, chosen, plan, folder
        self.command, self.output, self.prompts = command, output, prompts
        self.failures = Failures(folder)
        self.baselines = Baselines(plan, folder)
        self._warm: set[str] = set()
        self._told_no_ffmpeg = False

    def run(self, begin: Write) -> None:
        """Draw everything that is not finished; `begin` is told once the model is loaded, before the first case.

        Raises DiskFull, and RunFailed when the model cannot be loaded.
        """
        left = list({u.case.setting.key: u.case.setting for u in self._units() if not self._done(u)}.values())
        if self.folder.manifest() is not None and self.baselines.known() and not left:
            return
        check_files(left, self.plan.steps)
        with Progress(self.output, terse=True) as progress:
            stages = Stages(progress)
            self.output.line(f"loading {self.chosen.weights.name} ...")
            self.opened = generation.open_model(self.request, stages, self.output, self.chosen)
            self.load_seconds, self.progress = stages.seconds["load"], progress
            block_size = 128 if self.opened.device.type == "cuda" else 64
            check_model(left, self.opened.pipe, self._grid(), self.plan.steps, block_size)
            begin(self.opened)
            self.failures.begin()
            tokens = self._grid().tokens
            self.baselines.choose_kernels(self._kernels(tokens), tokens, self._model().config.num_attention_heads)
            total = schedule.count(self.plan, self.baselines.decided(), self.prompts)
            estimate = schedule.Estimate(total)
            for number, unit in enumerate(self._units(), 1):
                total = max(total, number)
                never = unit.repeat and not self.folder.done(unit.case.id)  # it failed: there is nothing to time again
                if never or self._done(unit):
                    estimate.done(unit, None)
                    continue
                self._one(unit, f"[{number}/{total}]", estimate)

    def _units(self) -> Any:
        return schedule.units(self.plan, self.baselines.decided, self.prompts)

    def _done(self, unit: Unit) -> bool:
        """Whether a unit is drawn, and its frames are there as long as something is to be measured with them."""
        if not self.folder.done(unit.case.id, unit.repeat):
            return False
        return unit.repeat > 0 or not lacking(self.folder, self.plan, self.baselines.decided(), unit.case)

    def _one(self, unit: Unit, place: str, estimate: schedule.Estimate) -> None:
        """One unit: drawn, kept and told; a failure is kept too."""
        case, begun = unit.case, time.perf_counter()
        what = f"{place} {case.setting.name}; prompt {case.prompt + 1}, seed {case.seed}"
        if not unit.repeat and self.folder.case(case.id).is_dir():
            missing = "its frames" if self.folder.done(case.id) else RECORD
            self.output.note(f"{self.folder.case(case.id)} is not whole ({missing} not there): made again")
        left = estimate.seconds()
        self.progress.title = f"{place} {case.setting.name}" + (f", {schedule.spoken(left)} left: " if left else ": ")
        try:
            denoise = self._draw(unit)
        except DiskFull:
            raise
        except (BadInput, RunFailed) as error:
            estimate.done(unit, None)
            where = {"setting": case.setting.name, "prompt": case.prompt + 1, "seed": case.seed}
            self.failures.add("run", case.id, unit.repeat, str(error), **where)
            self.output.line(f"{what}: failed: {one_line(str(error))}")
            _free(self.opened.device)
            return
        self.failures.clear("run", case.id, unit.repeat)
        estimate.done(unit, time.perf_counter() - begun)
        left = estimate.seconds()
        later = f"; about {schedule.spoken(left)} of generating left" if estimate.left else ""
        again = f", time {unit.repeat + 1}" if unit.repeat else ""
        self.output.line(f"{what}{again}: denoised in {denoise:.1f} s{later}")

    def _draw(self, unit: Unit) -> float:
        """Draw and keep a unit; its denoise seconds."""
        setting, stages = unit.case.setting, Stages(self.progress)
        scene = self._scene(unit.case)
        stages.cuda, stages.size = self.opened.device.type == "cuda", generation.size_of(scene)
        config = Config.from_dict(setting.config) if setting.config is not None else None
        embeds = generation.encode(self.opened, scene, stages)
        kernel = setting.kernel or self.baselines.decided().dense_kernel
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
        shot = dataclasses.replace(self.opened.scene.shot, seed=case.seed, steps=case.setting.steps)
        return dataclasses.replace(self.opened.scene, prompt=self.plan.prompts[case.prompt], shot=shot)

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
                device=self.opened.device,
                model=self.request.family.name,
                weights=self.opened.weights.name,
                scene=scene,
                config=config or Config(method="dense"),
                run=generation.run_facts(self.request, self.opened, scene),
                seconds=seconds,
                acceleration=facts,
                quality=None,
                output=Path("cases") / case.id / frames_file,
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

    def _kernels(self, tokens: int) -> list[str]:
        """Dense kernels, fastest first: measured on a GPU, PyTorch's own choice on a CPU."""
        device, dtype, model = self.opened.device, self.opened.dtype, self._model().config
        found = dense_kernels.names(device, dtype, model.attention_head_dim)
        if self.baselines.known() or device.type == "cpu" or len(found) < 2:
            return found
        shape = (1, model.num_attention_heads, tokens, model.attention_head_dim)
        return dense_kernels.fastest_first(found, shape, device, dtype)

    def _model(self) -> Any:
        return transformers_of(self.opened.pipe, self.request.family)[0][1]

    def _grid(self) -> TokenGrid:
        """The token grid of every case, without text that shares its sequence."""
        import torch

        plan, vae = self.plan, self.opened.pipe.vae.config
        stride, side = vae.scale_factor_temporal, vae.scale_factor_spatial
        shape = (1, 0, (plan.frames - 1) // stride + 1, plan.height // side, plan.width // side)
        family, latents = self.request.family, torch.empty(shape, device="meta")
        return family.token_grid(family.layout(self._model().config, {family.latents: latents}.get), lambda name: None)

    def _dense_facts(self, steps: int) -> dict[str, Any]:
        """What an acceleration would have told of a run that had none."""
        grid = self._grid()
        return {
            "grid": {name: getattr(grid, name) for name in ("frames", "height", "width", "text", "tokens")},
            "step_seconds": [],
            "sparsity": {
                **{"asked": None, "sparse_calls": None, "overall": 0.0, "per_step": [], "per_layer": []},
                **{"by_parts": {}, "pairs_by_parts": {}},
            },
            "calls": {"dense": None, "sparse": 0, "reused": 0},
            "kernels": {},
            "kernel_reasons": {},
            "cache": {"name": "none", "computed_steps": list(range(steps)), "reused_steps": []},
            "fallbacks": [],
            "method": "dense",
            "method_options": {},
            "correction": "none",
            "heads": [],
            "notes": [],
        }


def _fingerprint(latents: Any) -> str:
    """The same for the same bits."""
    return hashlib.sha256(latents.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def _free(device: Any) -> None:
    """After a failure that may have been memory."""
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
