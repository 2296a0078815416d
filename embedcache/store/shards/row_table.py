"""Distinct stored rows, for joining the dictionaries of several shards."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.ragged import whole_rows

_FIRST_ROWS = 1024


class RowTable:
    """Stored rows, each once; two are the same if their bytes are.

    Args:
        width: Entries of a row.
        dtype: Of an entry.
    """

    def __init__(self, width: int, dtype: np.dtype[Any]) -> None:
        self._places: dict[bytes, int] = {}
        self._rows: NDArray[Any] = np.empty((_FIRST_ROWS, width), dtype)

    @property
    def rows(self) -> NDArray[Any]:
        """All of them in the order added, (n, width); those that stand stay as they are."""
        return self._rows[: len(self._places)]

    def places_of(self, rows: NDArray[Any]) -> NDArray[np.uint32]:
        """The place of each row, (n,); rows that are not there are added.

        Args:
            rows: Shape (n, width), contiguous.
        """
        known = self._places
        before = len(known)
        found = [known.setdefault(row, len(known)) for row in whole_rows(rows).tolist()]
        places = np.array(found, np.uint32)
        size = len(known)
        if size > len(self._rows):
            grown = np.empty((max(size, 2 * len(self._rows)), rows.shape[1]), rows.dtype)
            grown[:before] = self._rows[:before]
            self._rows = grown
        is_new = places >= before
        self._rows[places[is_new]] = rows[is_new]
        return places
