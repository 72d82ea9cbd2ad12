"""A tensor that another rank makes: here at once, and filled as soon as somebody reads it.

What asks for shapes, or for a part of it, does not read it; a part is awaited as the whole is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from dittools.branches import Elsewhere

# Told of a tensor without its numbers: methods, and properties.
_FACTS = {
    *("size", "dim", "numel", "nelement", "stride", "element_size", "is_contiguous", "is_floating_point", "is_complex"),
    *("ndimension", "get_device", "__len__", "is_inference", "storage_offset"),
}
_PROPERTIES = {
    "shape",
    "dtype",
    "device",
    "ndim",
    "layout",
    "is_cuda",
    "requires_grad",
    "itemsize",
    "nbytes",
    "is_meta",
}
# Give a part of the same memory.
_PARTS = {
    *("__getitem__", "narrow", "select", "chunk", "split", "tensor_split", "unbind", "view", "reshape", "permute"),
    *("transpose", "movedim", "squeeze", "unsqueeze", "flatten", "unflatten", "expand", "detach", "contiguous"),
}


class Awaited(torch.Tensor):
    """See above. Made by `awaited`; once it is read, all that is made of it are plain tensors."""

    _elsewhere: Elsewhere

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "__get__":
            told, part = getattr(func.__self__, "__name__", "") in _PROPERTIES, False
        else:
            told, part = name in _FACTS, name in _PARTS
        waits = {id(x._elsewhere): x._elsewhere for x in tree_leaves((args, kwargs)) if isinstance(x, Awaited)}
        waits = [one for one in waits.values() if not one.done]
        if waits and not (told or (part and len(waits) == 1)):
            for one in waits:
                one.wait()
            waits = []
        args, kwargs = tree_map(_plain, (args, kwargs))
        out = func(*args, **kwargs)
        if not waits or told:
            return out
        whole = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        if all(x.untyped_storage().data_ptr() in whole for x in tree_leaves(out) if isinstance(x, torch.Tensor)):
            return tree_map(lambda x: awaited(x, waits[0]) if isinstance(x, torch.Tensor) else x, out)
        waits[0].wait()  # it was copied
        return func(*args, **kwargs)


def awaited(buffer: torch.Tensor, elsewhere: Elsewhere) -> Awaited:
    """A tensor with the memory of ``buffer``, which is filled before ``elsewhere`` is done."""
    made = buffer.as_subclass(Awaited)
    made._elsewhere = elsewhere
    return made


def _plain(x: Any) -> Any:
    if not isinstance(x, Awaited):
        return x
    with torch._C.DisableTorchFunctionSubclass():
        return x.as_subclass(torch.Tensor)
