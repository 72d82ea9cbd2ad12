"""`accelerate(pipe)`: the public way in, and the handle it gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dittools import summary
from dittools.config import Config
from dittools.options import options_of
from dittools.runtime import Runtime

if TYPE_CHECKING:
    from dittools.plans.export import Exported


class Attached(Protocol):
    """A pipeline led to a runtime; a context manager at whose end what it replaced comes back."""

    runtime: Runtime
    replaced: bool

    def detach(self) -> None: ...

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: object) -> None: ...


# How a pipeline is entered is not this package's business: `dittools/__init__.py` puts the way here.
Attach = Callable[[Any, Config], Attached]
_attach: Attach | None = None


def use_attach(attach: Attach) -> None:
    """Set how `accelerate` enters a pipeline."""
    global _attach
    _attach = attach


def accelerate(
    pipe: Any,
    method: str = "auto",
    sparsity: float = 0.8,
    dense_steps: float | int = 0.2,
    *,
    cache: str = "none",
    correction: str = "auto",
    config: Config | Mapping[str, Any] | None = None,
    **settings: Any,
) -> Acceleration:
    """Make a diffusers pipeline attend sparsely, and reuse steps where little changes.

    Only the self-attention modules of its transformer change; `Acceleration.restore` undoes it exactly. A
    second call on the same pipeline replaces the first, whose summary then says so; one that fails changes nothing.
    At the end of a ``with`` block what was on the pipeline before comes back. Arguments that are not listed here are
    settings of `dittools.Config`, which says what each means.

    Args:
        pipe: a diffusers pipeline of a known family, before or after offloading, LoRA and compilation.
        config: all settings at once, in place of the others; a mapping as `Config.from_dict` reads it will do.
        settings: every other setting of `dittools.Config`, for example ``dense_layers=2``; what is none of them is an
            option of the method, for example ``probe_rows=64``.

    Raises:
        ValueError: one line, when a setting is wrong or the pipeline is of no known family.
        TypeError: when ``config`` is neither a config nor a mapping.
    """
    known = {name: settings.pop(name) for name in options_of(Config) if name in settings}
    known |= {name: known[name] or {} for name in ("options", "cache_options", "correction_options") if name in known}
    known |= {"method": method, "sparsity": sparsity, "dense_steps": dense_steps, "cache": cache}
    if settings:
        known["options"] = {**known.get("options", {}), **settings}
    given = Config(**known, correction=correction)
    if config is not None:
        both = [f.name for f in dataclasses.fields(Config) if getattr(given, f.name) != getattr(Config(), f.name)]
        if both:
            raise ValueError(f"give either a config or single settings, got a config and {', '.join(both)}")
        given = _config(config)
    assert _attach is not None, "dittools/__init__.py gives the way into a pipeline"
    return Acceleration(_attach(pipe, given))


def _config(given: Any) -> Config:
    if isinstance(given, Config):
        return given
    if isinstance(given, Mapping):
        return Config.from_dict(given)
    raise TypeError(
        f"config must be a dittools.Config, or a mapping of its settings such as {{'method': 'svg'}}, "
        f"got {type(given).__name__}"
    )


class Acceleration:
    """The handle on an accelerated pipeline; as a context manager it restores the pipeline at the end.

    Blocks may be nested: at the end of one, the acceleration that was on the pipeline before it is back.

    Attributes:
        config: the settings.
        runtime: what decides the calls; ``runtime.listeners`` hears of finished steps.
    """

    def __init__(self, attached: Attached):
        self.runtime = attached.runtime
        self._attached = attached

    @property
    def config(self) -> Config:
        return self.runtime.config

    def record(self) -> dict[str, Any]:
        """The latest run in plain values; see `dittools.summary.record`."""
        return summary.record(self.runtime)

    def by_step_and_layer(self) -> list[list[float | None]]:
        """Skipped share of the latest run, a list of layers for each step."""
        return summary.by_step_and_layer(self.runtime)

    def keep_plans(self) -> None:
        """Keep what runs to come decide, for `export`: each new plan then waits for the device and goes to the CPU."""
        self.runtime.keep_plans()

    def export(self, path: str | Path) -> Exported:
        """Write what the latest run decided: masks in bits, orders, and the steps that a cache computed.

        ``accelerate(pipe, plans=path)`` goes by it, here or elsewhere, and decides nothing: with the same prompt, seed
        and kind of device it draws the same to the bit.

        Args:
            path: a .json file; tables go into a .safetensors file of the same name beside it.

        Raises:
            ValueError: one line, when the path is none, `keep_plans` was not called before the run, or the run is none
                that a file can hold.
            OSError: when a file cannot be written.
        """
        from dittools.plans.export import export

        if Path(path).suffix != ".json":
            raise ValueError(f"plans are a .json file, with their tables beside it, got {str(path)!r}")
        return export(self.runtime, Path(path))

    def summary(self) -> str:
        """The latest run as text: sparsity by step and layer, calls, fallbacks and why, seconds."""
        return summary.summary(self.runtime, replaced=self._attached.replaced)

    def restore(self) -> None:
        """Give the pipeline back as it was, without any acceleration but one whose ``with`` block is still open.

        Again, or after a later `accelerate` took over: does nothing.
        """
        self._attached.detach()

    def __enter__(self) -> Acceleration:
        self._attached.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._attached.__exit__(*error)
