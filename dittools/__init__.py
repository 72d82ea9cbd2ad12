"""Runs diffusion transformers fast: sparse attention and step reuse on diffusers pipelines, without training.

This file joins the parts. It imports neither diffusers nor Triton: they load when a pipeline is accelerated.
"""

from dittools.accelerate import Acceleration, accelerate, use_attach
from dittools.config import Config

__all__ = ["Acceleration", "Config", "__version__", "accelerate"]
__version__ = "0.1.0"


def _attach(pipe, config):
    from dittools.pipelines.attach import attach

    return attach(pipe, config)


use_attach(_attach)
