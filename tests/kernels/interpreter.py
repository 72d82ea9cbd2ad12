"""Repairs of Triton's interpreter, which the CPU tests of the kernels need. Set TRITON_INTERPRET=1 before.

NumPy 2.4 no longer turns one-element arrays into scalars (triton-lang/triton#9171, fixed after 3.6). For
bf16, `dot` takes the operands for the integers they are stored as, and casts truncate where a GPU rounds to
nearest even.
"""

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as interpreter

_patch_tensor = interpreter._patch_lang_tensor
_create_dot = interpreter.InterpreterBuilder.create_dot
_convert_float = interpreter._convert_float


def _patch_tensor_and_index(tensor, *scope):
    _patch_tensor(tensor, *scope)
    tensor.__index__ = lambda self: int(self.handle.data.item())


def _dot_with_bf16(self, a, b, *rest):
    return _create_dot(self, _widen(a), _widen(b), *rest)


def _widen(x):
    if x.dtype.scalar != tl.bfloat16:
        return x
    bits = x.data.astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), tl.float32)


def _convert_and_round(data, source, target, rounding_mode):
    if source.scalar != tl.float32 or target.scalar != tl.bfloat16:
        return _convert_float(data, source, target, rounding_mode)
    bits = np.ascontiguousarray(data).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(data), 0x7FC0, rounded).astype(np.uint16)


interpreter._patch_lang_tensor = _patch_tensor_and_index
interpreter.InterpreterBuilder.create_dot = _dot_with_bf16
interpreter._convert_float = _convert_and_round
