"""Memory for batches that is used again once nobody holds the batch any more.

The first touch of fresh memory is slow: the system clears each page then. A batch that is kept
keeps its memory; nothing is ever written over that can still be seen.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KEPT_BUFFERS = 4
"""As many as a training has at once: one that is filled, two read ahead, one computed on."""
_ALIGNMENT_BYTES = 64
"""A cache line, and what libraries want that take an array as it is instead of copying it."""


@dataclass(frozen=True, slots=True)
class _Buffer:
    """Memory with the address of its first aligned byte, and how many there are from there."""

    memory: NDArray[np.uint8]
    address: int
    num_bytes: int


class BatchBuffers:
    """Arrays whose memory comes back when they, and all views of them, are gone. Any threads."""

    def __init__(self) -> None:
        self._free: deque[_Buffer] = deque(maxlen=_KEPT_BUFFERS)
        self._capacity = 0

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array of whatever numbers; the caller's own for as long as anybody refers to it."""
        num_bytes = math.prod(shape) * dtype.itemsize
        loan = _Loan(self._take(num_bytes), self._free, shape, dtype.str)
        return np.asarray(loan)

    def _take(self, num_bytes: int) -> _Buffer:
        while True:
            try:
                buffer = self._free.pop()
            except IndexError:
                break
            if buffer.num_bytes >= num_bytes:
                return buffer
        # As large as any before: pages that are not touched cost nothing.
        self._capacity = max(self._capacity, num_bytes)
        memory = np.empty(self._capacity + _ALIGNMENT_BYTES, np.uint8)
        address = memory.ctypes.data
        address += -address % _ALIGNMENT_BYTES
        return _Buffer(memory, address, self._capacity)


class _Loan:
    """What an array of `BatchBuffers` and its views refer to; gives the buffer back at its end.

    An array's own end tells nothing: NumPy lets a view refer to the last owner of the memory,
    not to the array that it was taken from. So this is that owner.
    """

    __slots__ = ("__array_interface__", "_buffer", "_free")

    def __init__(
        self, buffer: _Buffer, free: deque[_Buffer], shape: tuple[int, ...], typestr: str
    ) -> None:
        self._buffer = buffer
        self._free = free
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": typestr,
            "data": (buffer.address, False),
        }

    def __del__(self) -> None:
        self._free.append(self._buffer)
