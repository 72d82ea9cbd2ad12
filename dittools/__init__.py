"""Runs diffusion transformers fast: sparse attention and step reuse on diffusers pipelines, without training.

This file joins the parts, and loads them when they are first asked for: importing dittools costs nothing.
"""

from __future__ import annotations

import os
import sys

from dittools.version import __version__

TYPE_CHECKING = False  # `typing` takes its time, in which an interrupt would be answered by a traceback
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Acceleration", "Config", "__version__", "accelerate", "enable_parallelism", "register", "share_guidance"]
_ROOMS = ("kernels", "pipelines", "profiles", "cli")
_OUT_OF_THE_WHEEL = ("benchmarks", "training", "tools")  # a checkout has them beside, a wheel has not got them


class _RoomsBeside:
    """Finds the rooms of a checkout, which lie beside this folder; an installed package has them inside it.

    Python that is started in a checkout takes this folder for the package, whatever is installed.
    """

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        package, _, room = name.rpartition(".")
        if package != __name__ or room not in _ROOMS + _OUT_OF_THE_WHEEL:
            return None
        folder = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), room)
        file = os.path.join(folder, "__init__.py")
        if not os.path.isfile(file):
            return None
        from importlib.util import spec_from_file_location

        return spec_from_file_location(name, file, submodule_search_locations=[folder])


if not any(os.path.isdir(os.path.join(place, room)) for place in __path__ for room in _ROOMS):
    sys.meta_path.insert(0, _RoomsBeside)  # before an editable install, which may be of another checkout


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
    elif name == "enable_parallelism":
        from dittools.pipelines.parallel.enabling import enable_parallelism

        globals()["enable_parallelism"] = enable_parallelism
    elif name == "register":
        from dittools.plugins import register

        globals()["register"] = register
    elif name == "share_guidance":
        from dittools.pipelines.parallel.share import share_guidance

        globals()["share_guidance"] = share_guidance
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
