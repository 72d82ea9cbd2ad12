"""What a piece of code does to its tensors: whether it would wait for a device, and how much it holds at a time."""

import weakref
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators whose result has a size or a value that the host must learn from the device.
WAITING = (
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "equal",
    "nonzero",
    "nonzero_numpy",
    "masked_select",
    "unique",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "repeat_interleave",
    "bincount",
)


class NoSync(TorchDispatchMode):
    """Raises at any operator that makes the host wait for a device, whatever device the tensors are on."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        assert name not in WAITING or "output_size" in kwargs, f"aten::{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            booleans = [i for i in args[1] if i is not None and i.dtype == torch.bool]
            assert not booleans, f"aten::{name} by a boolean mask waits for the device"
        return func(*args, **kwargs)


class Memory(TorchDispatchMode):
    """Counts the bytes of the tensors made inside and not freed yet: `peak`, and `largest` of one tensor."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.largest = 0, 0, 0
        self._uses = Counter()
        self._made = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if not isinstance(x, torch.Tensor):
                continue
            storage = x.untyped_storage()
            place, size = storage._cdata, storage.nbytes()
            if place not in self._made:
                if place in given:
                    continue  # a view of something that was there before
                self._made.add(place)
                self.live += size
                self.peak, self.largest = max(self.peak, self.live), max(self.largest, size)
            self._uses[place] += 1
            weakref.finalize(x, self._free, place, size)
        return out

    def _free(self, place, size):
        self._uses[place] -= 1
        if not self._uses[place]:
            self._made.discard(place)
            self.live -= size
