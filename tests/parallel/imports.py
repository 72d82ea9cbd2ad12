"""What every rank needs, imported before there are several of them."""

from diffusers import (  # noqa: F401
    CogVideoXTransformer3DModel,
    ContextParallelConfig,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    MochiTransformer3DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    SkyReelsV2Transformer3DModel,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)

import tests.parallel.scenes  # noqa: F401
