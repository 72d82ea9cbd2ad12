"""What every rank needs, imported before there are several of them."""

from diffusers import (  # noqa: F401
    ContextParallelConfig,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    QwenImageTransformer2DModel,
    WanTransformer3DModel,
)

import tests.parallel.scenes  # noqa: F401
