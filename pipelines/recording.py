"""Shows every transformer call of a pipeline that runs densely: step, branch, latents and output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from dittools.caches.state import Model
from dittools.config import Config
from dittools.pipelines.attach import attach, facts
from dittools.pipelines.call_interceptor import CallInterceptor
from dittools.pipelines.families import family_of, transformers_of
from dittools.pipelines.step_reuse import taken_apart, together

See = Callable[[int, str, int, torch.Tensor, torch.Tensor], None]


@contextmanager
def recording(pipe: Any, see: See) -> Iterator[Model]:
    """While this context lasts, ``see(part, branch, step, latents, output)`` is told of every computed call.

    Gives what is known of the model. The pipeline draws what it always draws.
    """
    family = family_of(pipe)
    models = transformers_of(pipe, family)
    with ExitStack() as undo:
        runtime = undo.enter_context(attach(pipe, Config(method="dense"))).runtime
        for part, (_, model) in enumerate(models):
            around = CallInterceptor(model, partial(_tell, runtime, part, family.latents, see))
            around.ensure()
            undo.callback(around.remove)
        yield facts(pipe, family, models)


def _tell(runtime: Any, part: int, name: str, see: See, inner: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    output = inner(*args, **kwargs)
    given = kwargs[name] if name in kwargs else args[0]
    latents = together(given) if isinstance(given, (list, tuple)) else [given]
    first = taken_apart(output, latents)[0][0]
    see(part, runtime.latest.branch, runtime.latest.step, latents[0].detach(), first.detach())
    return output
