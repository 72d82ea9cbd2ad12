"""Where the tests of an operation run: plain PyTorch here, Triton on a GPU, or Triton in its interpreter.

A test takes ``place``, an (implementation, device). `test_interpreted.py` runs the same tests in a process with
TRITON_INTERPRET=1, where Triton in the interpreter is the only place.
"""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

if INTERPRETED:
    import interpreter  # noqa: F401 (repairs the interpreter)

    from dittools.kernels.counting_sort import triton as counting_sort_triton

    counting_sort_triton.BLOCK = 32  # sorting in the interpreter is slow
    PLACES = [pytest.param(("triton", "cpu"), id="interpreted")]
else:
    PLACES = [
        pytest.param(("portable", "cpu"), id="portable"),
        pytest.param(("portable", "cuda"), id="portable-cuda", marks=GPU),
        pytest.param(("triton", "cuda"), id="triton-cuda", marks=GPU),
    ]

everywhere = pytest.mark.parametrize("place", PLACES)


class no_sync:
    """Raises when what runs inside waits for the GPU."""

    def __enter__(self):
        torch.use_deterministic_algorithms(False)
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_):
        torch.cuda.set_sync_debug_mode("default")
