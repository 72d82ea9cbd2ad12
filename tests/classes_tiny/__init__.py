"""A tiny random pipeline of every class that diffusers has around the transformers of nine families.

`listed` finds the classes by asking diffusers; `ROWS` says how each is built and called. What they do with dittools on
is tested in tests/pipelines/test_classes.py and told in docs/pipelines.md.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable

from tests.classes_tiny import cogvideox, flux, hunyuan_video, ltx, ltx2, qwen_image, sd3, wan
from tests.classes_tiny.common import Row

FAMILIES = ("wan", "ltx", "ltx-2", "hunyuan-video", "cogvideox", "flux", "sd3", "qwen-image", "skyreels-v2")
MODULES = (wan, ltx, ltx2, hunyuan_video, cogvideox, flux, sd3, qwen_image)
ROWS: dict[str, Callable[[], Row]] = {name: make for module in MODULES for name, make in module.ROWS.items()}


@functools.cache
def listed() -> dict[str, str]:
    """Pipeline classes of diffusers whose constructor names the transformer of one of these families, and which."""
    import diffusers

    from dittools.pipelines.families import find_family

    transformers = {find_family(name).transformer: name for name in FAMILIES}
    found = {}
    for name in sorted(dir(diffusers)):
        kind = getattr(diffusers, name) if name.endswith("Pipeline") else None
        if not (inspect.isclass(kind) and issubclass(kind, diffusers.DiffusionPipeline)):
            continue
        types = " ".join(str(p.annotation) for p in inspect.signature(kind.__init__).parameters.values())
        of = [family for transformer, family in transformers.items() if re.search(rf"\b{transformer}\b", types)]
        if of:
            found[name] = of[0]
    return found


def class_of(row: str) -> str:
    """The class that a row is of: its first word; what follows says how it is called."""
    return re.match(r"\w+", row)[0]
