"""Runs the Hopper kernel's own source on the CPU, to check its logic and its synchronisation.

Every function of the kernel's module is run as plain Python with ``gl``, ``mbarrier`` and the rest replaced
by the models below. Partitions of a warp-specialised kernel, and programs, are threads of which one runs at a time;
whom to run next is drawn at random at each synchronisation, so that many interleavings are seen. What the hardware
may do late, this does late, and complains where that shows:

- a TMA copy lands at a random moment; until then its destination holds NaN;
- a wgmma reads its operands when it is waited for, and must find what was there when it was issued;
- a TMA store reads shared memory as late as its wait, and must find the same too;
- an mbarrier counts arrivals and bytes by phase, as the PTX manual says; too many of either are an error;
- when nobody can run, that is a deadlock, and says who waits for what.

Not modelled: layouts (but for the columns of 64 in which 128-byte swizzled tiles lie), proxies and fences, registers.
"""

import random
import threading
import types
from types import SimpleNamespace

import torch


class Scheduler:
    """Runs threads one at a time, switching at random."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.turn = threading.Condition()
        self.current, self.ready, self.threads = None, {}, []
        self.copies, self.error = [], None

    def run(self, works):
        for i, work in enumerate(works):
            self.ready[i] = lambda: True
            self.threads.append(threading.Thread(target=self._thread, args=(i, work), daemon=True))
        for thread in self.threads:
            thread.start()
        with self.turn:
            self._next()
        for thread in self.threads:
            thread.join(60)
        if self.error is not None:
            raise self.error

    def _thread(self, me, work):
        try:
            self._await(me)
            work()
        except BaseException as error:
            self.error = self.error or error
        with self.turn:
            del self.ready[me]
            self._next()

    def _await(self, me):
        with self.turn:
            self.turn.wait_for(lambda: self.current == me or self.error is not None)
        if self.error is not None:
            raise SystemExit

    def _next(self):
        while self.error is None and self.ready:
            if self.copies and self.random.random() < 0.3:
                self.copies.pop(self.random.randrange(len(self.copies)))()
            able = [i for i, ready in self.ready.items() if ready()]
            if able:
                self.current = self.random.choice(able)
                break
            if not self.copies:
                self.error = RuntimeError(f"deadlock: {[ready.__doc__ for ready in self.ready.values()]}")
                break
            self.copies.pop(self.random.randrange(len(self.copies)))()
        self.turn.notify_all()

    def switch(self, ready=lambda: True):
        """Let others run, until ``ready``."""
        me = self.current
        with self.turn:
            self.ready[me] = ready
            self._next()
        self._await(me)


class Barrier:
    def __init__(self):
        self.count = None

    def init(self, count):
        self.count, self.arrivals, self.bytes, self.phase = count, count, 0, 0

    def arrive(self, count, expected=0):
        assert self.arrivals >= count, "more arrivals at an mbarrier than it counts"
        self.arrivals -= count
        self.bytes += expected
        self._turn_over()

    def land(self, size):
        self.bytes -= size
        self._turn_over()

    def _turn_over(self):
        if self.arrivals == 0 and self.bytes == 0:
            self.phase += 1
            self.arrivals = self.count


class Shared:
    """A tile ``[rows, columns]`` (kept as columns of 64) or a row of shared memory."""

    def __init__(self, data, transposed=False):
        self.data, self.transposed, self.dtype = data, transposed, data.dtype

    def read(self):
        if self.data.ndim == 1:
            return self.data.clone()
        tile = self.data.transpose(0, 1).reshape(self.data.shape[1], -1)  # [columns / 64, rows, 64] -> [rows, columns]
        return tile.T if self.transposed else tile

    def write(self, value):
        if self.data.ndim == 1:
            self.data.copy_(value)
        else:
            self.data.copy_(value.reshape(self.data.shape[1], -1, 64).transpose(0, 1))

    def permute(self, dims):
        assert tuple(dims) == (1, 0)
        return Shared(self.data, not self.transposed)

    def load(self, layout):
        return self.read()

    def store(self, value):
        assert value.dtype == self.dtype or not self.dtype.is_floating_point
        self.write(value)


class Ring:
    """Shared memory ``[count, rows, columns]``, or ``count`` barriers."""

    def __init__(self, dtype, shape, layout, data=None):
        self.dtype, self.shape = dtype, shape
        if layout == "barrier":
            self.items = [Barrier() for _ in range(shape[0])]
            return
        count, rows, columns = shape
        size = count * rows * columns
        self.flat = torch.full((size,), torch.nan, dtype=dtype) if data is None else data
        assert len(self.flat) == size
        self.items = [Shared(x) for x in self.flat.view(count, columns // 64, rows, 64)]

    def index(self, i):
        assert 0 <= int(i) < len(self.items)
        return self.items[int(i)]


class Pointer:
    """The memory of a tensor from its first element on, whatever its strides."""

    def __init__(self, data, offset=0):
        self.data, self.offset = data, offset

    @classmethod
    def to(cls, x):
        room = x.untyped_storage().nbytes() // x.element_size() - x.storage_offset()
        return cls(x.as_strided((room,), (1,)))

    def __add__(self, offset):
        return Pointer(self.data, self.offset + offset)

    def places(self, mask):
        places, mask = torch.broadcast_tensors(torch.as_tensor(self.offset), torch.as_tensor(mask))
        assert ((places >= 0) & (places < self.data.numel()))[mask].all(), "a pointer left its tensor"
        return places, mask


class Accumulator:
    """The result of an asynchronous wgmma; `wait` turns it into a tensor."""

    def __init__(self, a, b, acc, use_acc):
        self.value, self.a, self.b, self.acc, self.use_acc = None, a, b, acc, use_acc
        self.before = [x.read() if isinstance(x, Shared) else x for x in (a, b)]

    def retire(self):
        now = [x.read() if isinstance(x, Shared) else x for x in (self.a, self.b)]
        for before, after in zip(self.before, now, strict=True):
            assert not before.isnan().any(), "a wgmma was issued on a tile that had not landed"
            assert torch.equal(before, after), "an operand changed while a wgmma was reading it"
        acc = self.acc.value if isinstance(self.acc, Accumulator) else self.acc
        self.value = now[0].float() @ now[1].float() + (acc if self.use_acc else 0)


def emulate(kernel, grid, arguments, options, seed=0):
    """Run a Gluon kernel: ``grid`` programs over CPU tensors (pointers) and host tensor descriptors."""
    scheduler = Scheduler(seed)
    local = threading.local()

    def scalar(x):
        return torch.as_tensor(x)

    def load(p, mask=True, other=0):
        places, mask = p.places(mask)
        found = p.data[torch.where(mask, places, 0).long()]
        return torch.where(mask, found, torch.as_tensor(other, dtype=found.dtype))

    def store(p, value, mask=True):
        places, mask = p.places(mask)
        p.data[places[mask].long()] = value.expand(places.shape)[mask]

    def atomic_add(p, value):
        scheduler.switch()
        old = p.data[0].clone()
        p.data[0] += value
        return old

    def box(desc, coord):
        """The part of a box inside the tensor: a view of the tensor, and the box's rows and columns it covers."""
        whole = desc.base.as_strided(desc.shape, desc.strides, desc.base.storage_offset())
        b, h, row, column = (int(x) for x in coord)
        rows, columns = desc.block_shape[2:]
        return whole[b, h, row : row + rows, column : column + columns], rows, columns

    def load_box(desc, coord, barrier, result):
        part, rows, columns = box(desc, coord)
        result.write(torch.full((rows, columns), torch.nan, dtype=part.dtype))

        def land():
            tile = torch.zeros(rows, columns, dtype=part.dtype)
            tile[: part.shape[0], : part.shape[1]] = part
            result.write(tile)
            barrier.land(rows * columns * part.element_size())

        scheduler.copies.append(land)
        scheduler.switch()

    def store_box(desc, coord, source):
        before = source.read()
        part, _, _ = box(desc, coord)

        def leave():
            assert torch.equal(before, source.read()), "shared memory changed before a TMA store had read it"
            part.copy_(before[: part.shape[0], : part.shape[1]])

        local.stores.append(leave)
        scheduler.switch()

    def store_wait(pending):
        while len(local.stores) > pending:
            local.stores.pop(0)()

    def wait(barrier, phase):
        def ready():
            return barrier.phase % 2 != int(phase)

        assert barrier.count is not None
        ready.__doc__ = f"{threading.current_thread().name} for phase {int(phase)} of {vars(barrier)}"
        scheduler.switch(ready)

    def arrive(barrier, count=1):
        barrier.arrive(count)
        scheduler.switch()

    def warpgroup_mma(a, b, acc, *, use_acc=True, is_async=False):
        assert is_async
        local.products.append(Accumulator(a, b, acc, use_acc))
        scheduler.switch()
        return local.products[-1]

    def warpgroup_mma_wait(outstanding, deps):
        scheduler.switch()
        while len(local.products) > outstanding:
            local.products.pop(0).retire()
        found = [x.value if isinstance(x, Accumulator) else x for x in deps]
        assert all(x is not None for x in found), "a result was used before its wgmma was waited for"
        return found[0] if len(found) == 1 else tuple(found)

    def allocate(dtype, shape, layout):
        if len(shape) == 1:
            return Shared(torch.full(shape, -(1 << 30), dtype=dtype))
        return Ring(dtype, shape, layout)

    def where(condition, a, b):
        return torch.where(*(torch.as_tensor(x) for x in (condition, a, b)))

    def convert_layout(x, layout, assert_trivial=False):
        return x

    def same(asm, constraints, args, dtype, is_pure, pack):
        assert not asm and len(args) == 1, "only assembly that does nothing is modelled"
        return args[0]

    def warp_specialize(partitions, worker_warps, worker_registers):
        local.partitions = partitions

    def stub(*args, **kwargs):
        return None

    gl = SimpleNamespace(
        program_id=lambda axis: scalar(local.program),
        num_programs=lambda axis: scalar(grid),
        load=load,
        store=store,
        atomic_add=atomic_add,
        where=where,
        maximum=lambda a, b: torch.maximum(scalar(a), scalar(b)),
        minimum=lambda a, b: torch.minimum(scalar(a), scalar(b)),
        max=lambda x, axis: x.amax(axis),
        sum=lambda x, axis: x.sum(axis, dtype=x.dtype),
        exp2=torch.exp2,
        log2=torch.log2,
        zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
        arange=lambda start, end, layout: torch.arange(start, end, dtype=torch.int32),
        convert_layout=convert_layout,
        split=lambda x: x.unbind(-1),
        cast=lambda x, dtype, bitcast: x.view(dtype),
        inline_asm_elementwise=same,
        to_tensor=scalar,
        static_range=range,
        allocate_shared_memory=allocate,
        warp_specialize=warp_specialize,
        NVMMADistributedLayout=stub,
        NVMMASharedLayout=stub,
        SwizzledSharedLayout=stub,
        BlockedLayout=stub,
        SliceLayout=stub,
        DotOperandLayout=stub,
        **{name: getattr(torch, name) for name in ("int32", "int64", "float32", "float16", "bfloat16")},
    )
    models = {
        "gl": gl,
        "mbarrier": SimpleNamespace(
            MBarrierLayout=lambda: "barrier",
            init=lambda barrier, count: barrier.init(count),
            expect=lambda barrier, size: barrier.arrive(1, size),
            arrive=arrive,
            wait=wait,
        ),
        "async_load": load_box,
        "async_store": store_box,
        "store_wait": store_wait,
        "reinterpret": lambda ring, dtype, shape, layout: Ring(dtype, shape, layout, ring.flat),
        "warpgroup_mma": warpgroup_mma,
        "warpgroup_mma_wait": warpgroup_mma_wait,
        "fence_async_shared": stub,
    }
    scope = {}
    for name, value in kernel.fn.__globals__.items():
        if hasattr(value, "fn"):
            value = types.FunctionType(value.fn.__code__, scope, name, value.fn.__defaults__)
        elif type(value).__name__ == "constexpr":
            value = value.value
        scope[name] = value
    scope.update(models)

    def model(x):
        if isinstance(x, torch.Tensor):
            return Pointer.to(x)
        if hasattr(x, "block_shape"):
            return SimpleNamespace(**vars(x), dtype=x.base.dtype)
        return scalar(x) if isinstance(x, int | float) else x

    works = []
    constants = {name: value for name, value in options.items() if name.isupper()}

    def work(program, function, args):
        local.program, local.products, local.stores = program, [], []
        function(*args)
        assert not local.products and not local.stores, "the partition left something unfinished"

    for program in range(grid):
        local.program = program
        scope[kernel.fn.__name__](*(model(x) for x in arguments), **constants)
        works += [
            lambda program=program, function=function, args=args: work(program, function, args)
            for function, args in local.partitions
        ]
    scheduler.run(works)
