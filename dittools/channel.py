"""Messages between two processes: anything that can be pickled, its tensors apart and as they are.

Each direction has a process group of its own, so that what one sends never waits for what it has yet to hear.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from dittools.kernels.masks.block_mask import BlockMask
from dittools.kernels.masks.cluster_mask import ClusterMask, ClusterPartition
from dittools.selection.packed import pack_bits, unpack_bits

_ALIGNED = 16  # bytes


class _Tensor(NamedTuple):
    """What is said of a tensor in a message. ``bits``: whether its truth values are sent as bits."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    host: bool
    bits: bool
    bytes: int


class Channel:
    """Messages to and from one other process. What is sent is on its way at once, and read in the order it was sent.

    Args:
        groups: process groups of both, for what the first of them sends and for what the second one does.
        rank: which of both this process is, 0 or 1.
        device: where tensors are found, and those that were on a device come to.
    """

    def __init__(self, groups: Sequence[Any], rank: int, device: torch.device):
        self.device = device
        self._out, self._back = groups[rank], groups[1 - rank]
        self._peer = torch.distributed.get_process_group_ranks(self._out)[1 - rank]
        self._going: list[tuple[Any, torch.Tensor]] = []

    def send(self, kind: str, what: Any) -> int:
        """Send something under a name; the bytes that go. Does not wait for the other."""
        tensors: list[torch.Tensor] = []
        raw, blob = _written((kind, what), tensors), _joined(tensors, self.device)
        text = torch.frombuffer(bytearray(raw), dtype=torch.uint8).to(self.device)
        head = torch.tensor([text.numel(), blob.numel()], dtype=torch.int64, device=self.device)
        for part in (head, text, *([blob] if blob.numel() else [])):
            self._going.append((torch.distributed.isend(part, self._peer, group=self._out), part))
        return 16 + text.numel() + blob.numel()

    def receive(self) -> tuple[str, Any]:
        """The next message: its name, and what it says. Waits for it."""
        length, size = self._got(2, torch.int64).tolist()
        text = self._got(length, torch.uint8)
        blob = self._got(size, torch.uint8) if size else text[:0]
        return _Reader(io.BytesIO(bytes(text.cpu().numpy())), blob).load()

    def arrived(self) -> None:
        """The other has got all that was sent: let go of it."""
        for work, _ in self._going:
            work.wait()
        self._going.clear()

    def _got(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        found = torch.empty(count, dtype=dtype, device=self.device)
        torch.distributed.recv(found, self._peer, group=self._back)
        return found


class _Writer(pickle.Pickler):
    """Leaves tensors out, each once, and of masks what is made of them."""

    def __init__(self, file: Any, tensors: list[torch.Tensor]):
        super().__init__(file)
        self._tensors = tensors
        self._known: dict[int, tuple[int, _Tensor]] = {}

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, torch.Tensor):
            return None
        if id(obj) not in self._known:
            bits = obj.dtype == torch.bool and obj.ndim > 0
            sent = (pack_bits(obj) if bits else obj.detach()).contiguous()
            about = _Tensor(tuple(obj.shape), obj.dtype, obj.device.type == "cpu", bits, sent.nbytes)
            self._known[id(obj)] = len(self._tensors), about
            self._tensors.append(sent)
        return self._known[id(obj)]

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (BlockMask, ClusterMask)):
            return type(obj), (obj.keep, obj.query, obj.key)
        if isinstance(obj, ClusterPartition):
            return ClusterPartition, (obj.length, obj.run_sizes)
        return NotImplemented


class _Reader(pickle.Unpickler):
    def __init__(self, file: Any, blob: torch.Tensor):
        super().__init__(file)
        self._blob, self._at = blob, 0
        self._found: dict[int, torch.Tensor] = {}

    def persistent_load(self, pid: tuple[int, _Tensor]) -> torch.Tensor:
        number, about = pid
        if number not in self._found:
            # A copy: what is kept of a message must not keep the whole of it.
            own = self._blob[self._at : self._at + about.bytes].clone()
            self._at += -(-about.bytes // _ALIGNED) * _ALIGNED
            if about.bits:
                width = about.shape[-1]
                found = unpack_bits(own.view(*about.shape[:-1], -(-width // 8)), width)
            else:
                found = own.view(about.dtype).view(about.shape)
            self._found[number] = found.cpu() if about.host else found
        return self._found[number]


def _written(what: Any, tensors: list[torch.Tensor]) -> bytes:
    file = io.BytesIO()
    _Writer(file, tensors).dump(what)
    return file.getvalue()


def _joined(tensors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The bytes of tensors one after the other, each from a place that suits its numbers."""
    parts = []
    for x in tensors:
        raw = x.to(device).reshape(-1).view(torch.uint8)
        parts.append(torch.nn.functional.pad(raw, (0, -raw.numel() % _ALIGNED)))
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8, device=device)
