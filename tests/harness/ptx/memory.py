"""The memory that a launch may access, in regions; the bounds of each access are checked."""

import ctypes
from typing import NamedTuple

import numpy as np

from .machine import WORD, PtxError

_POISON = 0xA5


class Access(NamedTuple):
    """The accesses of one instruction to a region."""

    word: np.ndarray  # in units of `size` from the start of the region's data
    size: int
    thread: np.ndarray
    interval: np.ndarray  # barriers that the thread has passed
    writes: bool
    instruction: object

    def places(self):
        """The pairs of bytes, one row per thread."""
        return (self.word[:, None] * self.size + np.arange(0, self.size, 2)) // 2


class Region:
    """Consecutive bytes of the device, and the threads that accessed them."""

    def __init__(self, name, address, size, data, writable, space):
        self.name, self.address, self.end = name, address, address + size
        self.origin = address & -WORD  # of `data`, whose words are those of the device
        self.data, self.writable, self.space = data, writable, space
        self.written = None  # mask of the bytes that hold a value; None: all
        self.accesses = []


def _words(address, size):
    """The address and the number of the bytes of the whole words that hold `size` bytes."""
    start = address & -WORD
    return start, max(WORD, -(-(address + size - start) // WORD) * WORD)


def _once(word, values):
    """Indices of the stores of one instruction, without repetitions of a value at one place."""
    rows = np.column_stack([word.view(np.uint64), values.view(f"u{values.dtype.itemsize}")])
    return np.sort(np.unique(rows, axis=0, return_index=True)[1])


class Memory:
    """Disjoint regions; every other address is out of bounds."""

    def __init__(self):
        self.regions = []
        self.same_warp_reads_before_writes = 0  # allowed only because a warp runs in lockstep
        self._sorted = None

    def over_host(self, name, address, size, writable):
        """Add host memory at its own address."""
        if size == 0:
            return None
        start, length = _words(address, size)  # no word crosses a page
        data = np.frombuffer((ctypes.c_ubyte * length).from_address(start), np.uint8)
        return self._add(Region(name, address, size, data, writable, "global"))

    def allocate(self, name, address, array, writable, space="global"):
        """Add a copy of an array or of bytes, at any address."""
        content = np.frombuffer(bytes(array), np.uint8)
        start, length = _words(address, content.size)
        data = np.full(length, _POISON, np.uint8)
        data[address - start :][: content.size] = content
        return self._add(Region(name, address, content.size, data, writable, space))

    def allocate_shared(self, address, size):
        """Add the shared memory of a block, which must be written before it is read."""
        region = self.allocate("shared memory", address, bytes(size), True, "shared")
        region.written = np.zeros(region.data.size, bool)
        return region

    def remove(self, regions):
        self.regions = [region for region in self.regions if region not in regions]
        self._sorted = None

    @staticmethod
    def read(region, dtype):
        first = region.address - region.origin
        return region.data[first : region.end - region.origin].copy().view(dtype)

    def _add(self, region):
        self.regions.append(region)
        self._sorted = None
        return region

    def _index(self):
        if self._sorted is None:
            self._sorted = sorted(self.regions, key=lambda region: region.address)
            for low, high in zip(self._sorted, self._sorted[1:], strict=False):
                if low.end > high.address:
                    raise PtxError(f"{low.name} and {high.name} overlap")
            self._lows = np.array([region.address for region in self._sorted], np.uint64)
        return self._sorted, self._lows

    def _locate(self, address, size, space):
        """Yield each region with a mask of the addresses in it and their words."""
        regions, lows = self._index()
        misaligned = (address & (size - 1)) != 0
        if misaligned.any():
            raise PtxError(f"misaligned address {int(address[misaligned][0]):#x} of {size} bytes")
        number = np.searchsorted(lows, address, side="right") - 1
        if (number == number[0]).all():
            groups = [(number[0], slice(None))]
        else:
            groups = [(n, np.flatnonzero(number == n)) for n in np.unique(number)]
        for n, which in groups:
            at = address[which]
            last = int(at.max())
            if n < 0:
                raise PtxError(f"out of bounds at {last:#x}, before all memory")
            region = regions[n]
            if last + size > region.end:
                raise PtxError(
                    f"out of bounds at {last:#x}, {last - region.end:+d} from the end of "
                    f"{region.name}"
                )
            if region.space != space and (space or region.space == "shared"):
                raise PtxError(f"{region.name} is not in {space or 'generic'} memory")
            yield region, which, ((at - region.origin) // size).view(np.int64)

    def load(self, address, dtype, lanes, space, who, instruction):
        """Read one row of numbers per thread; `who` are the threads and the intervals."""
        size = lanes * dtype.itemsize
        thread, interval = who
        result = np.empty((address.size, lanes), dtype)
        for region, which, word in self._locate(address, size, space):
            if region.written is not None and not region.written.reshape(-1, size)[word].all():
                raise PtxError(f"reads {region.name} that nothing has written")
            result[which] = region.data.view(dtype).reshape(-1, lanes)[word]
            if region.writable:
                region.accesses.append(
                    Access(word, size, thread[which], interval[which], False, instruction)
                )
        return result

    def store(self, address, values, space, who, instruction):
        lanes, dtype = values.shape[1], values.dtype
        size = lanes * dtype.itemsize
        thread, interval = who
        for region, which, word in self._locate(address, size, space):
            if not region.writable:
                raise PtxError(f"{region.name} is not to be written")
            if region.written is not None:
                region.written.reshape(-1, size)[word] = True
            region.data.view(dtype).reshape(-1, lanes)[word] = values[which]
            writers, intervals = thread[which], interval[which]
            if space == "shared":
                # Triton lets the threads that hold copies of a value store all of them.
                kept = _once(word, values[which])
                word, writers, intervals = word[kept], writers[kept], intervals[kept]
            region.accesses.append(Access(word, size, writers, intervals, True, instruction))
