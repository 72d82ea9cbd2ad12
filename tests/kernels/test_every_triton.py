"""The kernels compile with every Triton from 3.6 to the newest, not only with the one that is installed.

Of each other version some builds of every Gluon kernel, those that run by default, and two of Triton's language. Run as
a script it compiles them: see `machine_code`.
"""

import importlib.metadata
import tempfile
import warnings

import pytest
from machine_code import SHARED_MEMORY, compile_all, compiled_builds, instructions, kept_in_memory, register_limits
from tritons import VERSIONS, Unfetched, fetched

# file of tests: some of its builds
PICKED = {
    "test_hopper_compiles": ("hd128-default", "rows64-ordered"),
    "test_hopper_clusters_compiles": ("hd128-ordered",),
    "test_hopper_mass_compiles": ("mass-hd128",),
}


def installed():
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


@pytest.mark.parametrize("version", [v for v in VERSIONS if v != installed()])
def test_the_gluon_kernels_compile_and_run_on_tensor_cores_and_tma(version, tmp_path, monkeypatch):
    with tempfile.TemporaryDirectory() as folder:  # not one that pytest keeps: it is large
        try:
            fetched(version, folder)
        except Unfetched as error:
            # In the summary, which tells of warnings and not of what was skipped.
            told = f"nothing was compiled with Triton {version}, which could not be loaded: {error}"
            warnings.warn(told, stacklevel=1)
            pytest.skip(told)
        monkeypatch.setenv("PYTHONPATH", folder)
        builds = compiled_builds(__file__, tmp_path)
    monkeypatch.setattr("dittools.kernels.checked.triton_minor", lambda: version.rpartition(".")[0])
    assert len(builds) == sum(map(len, PICKED.values()))
    for name, build in builds.items():
        assert build["triton"] == version, name
        narrow = "rows64" in name
        assert (build["warps"], build["resources"]["REG"]) == ((8, 128) if narrow else (12, 168)), name
        assert build["shared"] <= SHARED_MEMORY and kept_in_memory(build) <= 24, name
        assert any(limit >= 232 for limit in register_limits(build)), name
        assert instructions(build, "HGMMA") and instructions(build, "UTMALDG"), name
        assert not instructions(build, "HMMA"), name


def test_the_installed_triton_is_one_of_those():
    have = installed()
    if have is None:
        pytest.skip("Triton is not installed")
    minors = [version.rpartition(".")[0] for version in VERSIONS]
    assert have.rpartition(".")[0] in minors or tuple(map(int, have.split(".")[:2])) < (3, 6), (
        f"Triton {have} is newer than all that tests compile with: put it into tritons.VERSIONS"
    )


def build(module, name):
    """A build of another file of tests, and the Triton that made it."""
    import triton

    chosen = importlib.import_module(module)
    return {**chosen.build(*chosen.BUILDS[name]), "triton": triton.__version__}


if __name__ == "__main__":
    compile_all({f"{m}/{n}": (m, n) for m, names in PICKED.items() for n in names}, build)
