"""Compiles the Triton kernels that a call launches for a card this machine does not have, and runs none of them."""

import contextlib
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel
from triton.runtime import jit


@contextlib.contextmanager
def compiling(capability=90):
    """Inside, launches compile their kernel for the capability and do nothing else; yields what they compiled."""
    compiled, run = [], jit.JITFunction.run

    def compile_only(kernel, *args, grid, warmup, **kwargs):
        given = dict(zip(kernel.arg_names, args, strict=False))
        given |= {name: kwargs.pop(name) for name in kernel.arg_names if name in kwargs}
        constants = {p.name: given[p.name] for p in kernel.params if p.is_constexpr}
        # As a launch does: the integer 1 is a constant, and what 16 divides says so.
        constants |= {name: 1 for name, value in given.items() if type(value) is int and value == 1}
        signature = {n: "constexpr" if n in constants else jit.mangle_type(given[n]) for n in kernel.arg_names}
        sixteenths = {
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(kernel.arg_names)
            if name not in constants and (hasattr(given[name], "data_ptr") or _by_sixteen(given[name]))
        }
        source = ASTSource(kernel, signature, constants, sixteenths)
        compiled.append(compile_kernel(source, target=GPUTarget("cuda", capability, 32), options=kwargs))

    jit.JITFunction.run = compile_only
    try:
        yield compiled
    finally:
        jit.JITFunction.run = run


def _by_sixteen(value):
    return type(value) is int and value % 16 == 0


def stack_bytes(kernel):
    """Bytes of local memory that a thread of the kernel takes: what its registers do not hold."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        Path(cubin.name).write_bytes(kernel.asm["cubin"])
        said = subprocess.run([tool, "-res-usage", cubin.name], capture_output=True, text=True, check=True).stdout
    return sum(int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", said))
