"""What no test leaves behind for those that come after it in the same process."""

import sys

import pytest


@pytest.fixture(autouse=True)
def backend_of_diffusers():
    """`set_attention_backend` of one model sets diffusers' own default for all models of the process."""
    module = "diffusers.models.attention_dispatch"
    before = sys.modules.get(module)
    before = None if before is None else before._AttentionBackendRegistry._active_backend
    yield
    if module in sys.modules:
        registry = sys.modules[module]._AttentionBackendRegistry
        registry.set_active_backend(before or sys.modules[module].AttentionBackendName.NATIVE)
