"""Gluon kernels compiled ahead of time for sm_90a, no card needed: their resources and machine code.

A test file that is run as a script calls `compile_all`, which prints a JSON line for each build; its fixture gets them
from `compiled_builds`, in a process of its own, because Triton is told there that a Hopper card is the active device.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

SHARED_MEMORY = 232448  # what one program may use on compute capability 9.0, in bytes
# Of a multiprocessor: bytes that its programs share, of which each has so many reserved; 32-bit registers.
ALL_SHARED_MEMORY, RESERVED, REGISTER_FILE = 228 << 10, 1 << 10, 65536


def machine_code(kernel):
    """Resources and SASS of a compiled kernel."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    cubin = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])

    def dump(what):
        return subprocess.run([tools / "cuobjdump", what, cubin], capture_output=True, text=True, check=True).stdout

    resources = re.findall(r"(REG|STACK|LOCAL):(\d+)", dump("--dump-resource-usage"))
    return {
        "warps": kernel.metadata.num_warps,
        "shared": kernel.metadata.shared,
        "resources": {name: int(value) for name, value in resources},
        "sass": re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", dump("-sass"), re.MULTILINE),
    }


def register_limits(build):
    """The registers a thread that warps ask for at run time."""
    return {int(x, 16) for line in build["sass"] for x in re.findall(r"USETMAXREG.* (0x\w+)", line)}


def compile_all(builds, build):
    """Print what ``build(*what)`` gives for each of ``builds``, name: what."""
    import triton
    from triton.backends.compiler import GPUTarget

    class Card:
        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

    triton.runtime.driver.set_active(Card())
    for name, what in builds.items():
        print(json.dumps({"name": name, **build(*what)}), flush=True)


def compiled_builds(file, cache):
    """What running a test file as a script printed, by name. ``cache``: a folder for Triton."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache), "TRITON_INTERPRET": "0"}
    environment["TRITON_DUMP_PTXAS_LOG"] = "1"
    done = subprocess.run(
        [sys.executable, file], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # ptxas says so when it cannot leave wgmmas in flight.
    assert "wgmma" not in done.stderr and "erializ" not in done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {build["name"]: build for build in found}


def kept_in_memory(build):
    """Loads and stores of what the registers did not hold, above what the assembler of this Triton may leave there.

    From Triton 3.9 on (ptxas 13.1) a few numbers that seldom change wait in memory, where older ones keep them.
    """
    from dittools.kernels.checked import triton_minor

    old = tuple(int(x) for x in triton_minor().split(".")) < (3, 9)
    return max(
        0, len(instructions(build, "LDL") + instructions(build, "STL")) - (0 if old else len(build["sass"]) // 100)
    )


def instructions(build, name):
    return [i for i, line in enumerate(build["sass"]) if re.match(rf"(@!?U?P\d+ )?{name}\b", line)]
