"""Memory for batches that is used again once nobody holds the batch any more.

The first touch of fresh memory is slow: the system clears each page then. A batch that is kept
keeps its memory; nothing is ever written over that can still be seen.
"""

from __future__ import annotations

import ctypes
import math
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KEPT_BUFFERS = 4
"""As many as a training has at once: one that is filled, two read ahead, one computed on."""
_ALIGNMENT_BYTES = 64
"""A cache line, and what libraries want that take an array as it is instead of copying it."""


class BatchBuffers:
    """Arrays whose memory comes back when they, and all views of them, are gone. Any threads."""

    def __init__(self) -> None:
        self._free: deque[Any] = deque(maxlen=_KEPT_BUFFERS)
        self._capacity = 0

    def reserve(self, num_bytes: int) -> None:
        """Make the next memory large enough for batches of so many bytes."""
        # Pages that are not touched cost nothing.
        self._capacity = max(self._capacity, num_bytes)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array of whatever numbers; the caller's own for as long as anybody refers to it."""
        memory = self._take(math.prod(shape) * dtype.itemsize)
        loan = _Loan(shape, dtype, memory)
        loan.memory, loan.free = memory, self._free
        return loan.view(np.ndarray)

    def _take(self, num_bytes: int) -> Any:
        """Aligned memory of so many bytes or more, as an array of ctypes."""
        while True:
            try:
                memory = self._free.pop()
            except IndexError:
                break
            if len(memory) >= num_bytes:
                return memory
        self.reserve(num_bytes)
        block: Any = np.empty(self._capacity + _ALIGNMENT_BYTES, np.uint8)
        first = -block.ctypes.data % _ALIGNMENT_BYTES
        # Were it an array of NumPy's, a loan's views would refer to it, and not to the loan.
        return (ctypes.c_char * self._capacity).from_buffer(block, first)


class _Loan(np.ndarray[Any, np.dtype[Any]]):
    """What an array of `BatchBuffers` and its views refer to; gives the memory back at its end.

    An array's own end tells nothing: NumPy lets a view refer to the last owner of the memory,
    not to the array that it was taken from. It looks no further than to an array of another
    class, though, and so this is one.
    """

    __slots__ = ("free", "memory")

    memory: Any
    free: deque[Any]

    def __del__(self) -> None:
        # Of an array that NumPy has made of this one nothing is lent.
        free: deque[Any] | None = getattr(self, "free", None)
        if free is not None:
            free.append(self.memory)
