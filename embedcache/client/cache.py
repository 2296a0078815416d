"""FeatureCache: matrices that a service has sent, kept in memory up to so many bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence

ENTRY_BYTES = 200
"""What an entry costs beside its matrix: two objects of bytes and a place in the dictionary."""


class FeatureCache:
    """Matrices by name, as their bytes; the least recently used ones go first. Any threads.

    Args:
        max_bytes: Of all entries; 0: nothing is kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._matrices: OrderedDict[bytes, bytes] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._matrices)

    @property
    def num_bytes(self) -> int:
        """Of the entries that are kept."""
        return self._num_bytes

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._matrices.clear()
            self._num_bytes = 0

    def find(self, names: Sequence[bytes]) -> list[bytes | None]:
        """The matrix of each name, None where there is none; they count as used now."""
        matrices = self._matrices
        with self._lock:
            found = [matrices.get(name) for name in names]
            for name, matrix in zip(names, found, strict=True):
                if matrix is not None:
                    matrices.move_to_end(name)
            return found

    def __contains__(self, name: bytes) -> bool:
        """Whether there is one; it does not count as used."""
        return name in self._matrices

    def keep(self, matrices: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep matrices by name."""
        with self._lock:
            for name, matrix in matrices:
                if name in self._matrices:
                    continue
                self._matrices[name] = matrix
                self._num_bytes += len(matrix) + ENTRY_BYTES
            while self._num_bytes > self.max_bytes:
                _, dropped = self._matrices.popitem(last=False)
                self._num_bytes -= len(dropped) + ENTRY_BYTES
