"""What no test leaves behind for those that come after it in the same process, and in which order files are run."""

import sys

import pytest

# Files that take long for few tests: first, so that no process is left alone with them at the end.
LONG = (
    "kernels/test_interpreted.py", "kernels/test_every_triton.py", "kernels/test_hopper_compiles.py",
    "parallel/test_launch.py", "parallel/test_settings.py", "parallel/test_table.py", "kernels/test_triton.py",
    "parallel/test_ulysses.py", "parallel/test_cfg.py", "cli/test_embedded.py", "test_examples.py", "test_site.py",
    "cli/test_report.py", "cli/test_report_inputs.py", "pipelines/test_classes.py", "parallel/test_caches.py",
    "kernels/test_hopper_clusters_compiles.py", "kernels/test_hopper_mass_compiles.py", "pipelines/test_matrix.py",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Several processes take whole files, in order: tests of a file share what they have built."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist, config.option.loadscopereorder = "loadfile", False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.nodeid.split("::")[0].removeprefix("tests/"), len(LONG)))


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
