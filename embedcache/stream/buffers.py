"""Memory for batches that is used again once nobody holds the batch any more.

The first touch of fresh memory is slow: the system clears each page then. A batch that is kept
keeps its memory; nothing is ever written over that can still be seen.
"""

from __future__ import annotations

import math
import mmap
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KEPT_BUFFERS = 4
"""As many as a training has at once: one that is filled, two read ahead, one computed on."""
_HUGE_BYTES = 1 << 22
"""From here on the system is asked for large pages, as NumPy asks for its own arrays."""


class BatchBuffers:
    """Arrays whose memory comes back when they, and all views of them, are gone. Any threads."""

    def __init__(self) -> None:
        self._free: deque[mmap.mmap] = deque(maxlen=_KEPT_BUFFERS)
        self._capacity = mmap.PAGESIZE

    def reserve(self, num_bytes: int) -> None:
        """Make the next memory large enough for batches of so many bytes."""
        # Pages that are not touched cost nothing.
        self._capacity = max(self._capacity, num_bytes)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array of whatever numbers; the caller's own for as long as anybody refers to it.

        It begins a page: libraries take such an array as it is instead of copying it.
        """
        memory = self._take(math.prod(shape) * dtype.itemsize)
        loan = _Loan(shape, dtype, memory)
        loan.memory, loan.free = memory, self._free
        return loan.view(np.ndarray)

    def _take(self, num_bytes: int) -> mmap.mmap:
        while True:
            try:
                memory = self._free.pop()
            except IndexError:
                break
            if len(memory) >= num_bytes:
                return memory
        self.reserve(num_bytes)
        memory = mmap.mmap(-1, self._capacity, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if self._capacity >= _HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        return memory


class _Loan(np.ndarray[Any, np.dtype[Any]]):
    """What an array of `BatchBuffers` and its views refer to; gives the memory back at its end.

    An array's own end tells nothing: NumPy lets a view refer to the last owner of the memory,
    not to the array that it was taken from. It looks no further than to an array of another
    class, though, and so this is one.
    """

    __slots__ = ("free", "memory")

    memory: mmap.mmap
    free: deque[mmap.mmap]

    def __del__(self) -> None:
        # Of an array that NumPy has made of this one nothing is lent.
        free: deque[mmap.mmap] | None = getattr(self, "free", None)
        if free is not None:
            free.append(self.memory)
