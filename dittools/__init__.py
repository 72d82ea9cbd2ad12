"""Runs diffusion transformers fast: sparse attention and step reuse on diffusers pipelines, without training.

This file joins the parts, and loads them when they are first asked for: importing dittools costs nothing.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Acceleration", "Config", "__version__", "accelerate"]
__version__ = "0.1.0"


def _attach(pipe: Any, config: Any) -> Any:
    from dittools.pipelines.attach import attach

    return attach(pipe, config)


def __getattr__(name: str) -> Any:
    if name in ("accelerate", "Acceleration"):
        from dittools import acceleration

        acceleration.use_attach(_attach)
        globals().update(accelerate=acceleration.accelerate, Acceleration=acceleration.Acceleration)
    elif name == "Config":
        from dittools.config import Config

        globals()["Config"] = Config
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
