"""An array over a mapped file of which each block is compared with its checksum once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from embedcache.errors import DamagedIndexError


class IndexChecks:
    """Which blocks of an array have been compared with their checksums in this process.

    Threads may share it: at worst two of them compare the same block.
    """

    def __init__(
        self, array: NDArray[Any], checksums: NDArray[np.uint64], block_items: int, path: Path
    ) -> None:
        """Nothing is compared yet.

        Args:
            array: Shape (n,), contiguous.
            checksums: xxh3 of each block, (ceil(n / block_items),).
            block_items: Items of a block; the last one may be shorter.
            path: The file, for the message of an error.
        """
        self._array = array
        self._checksums = checksums
        self._block_items = block_items
        self._path = path
        self._is_checked = np.zeros(len(checksums), np.bool_)
        self._is_whole = len(checksums) == 0

    def check(self, positions: NDArray[np.int64]) -> None:
        """Compare the blocks of these items that have not been compared before.

        Raises:
            DamagedIndexError: if one is not what was written.
        """
        if self._is_whole:
            return
        # As unsigned: dividing them takes a third of the time.
        blocks = (positions.view(np.uint64) // np.uint64(self._block_items)).view(np.int64)
        new = blocks.compress(~self._is_checked.take(blocks, mode="clip"))
        if not len(new):
            return
        wanted = np.zeros(len(self._is_checked), np.bool_)
        if int(new.max()) >= len(wanted):
            raise damaged(self._path)
        wanted[new] = True
        # (`np.unique` would do, but the first call imports a lot: 12 ms.)
        self._compare(np.flatnonzero(wanted).tolist())

    def check_range(self, start: int, stop: int) -> None:
        """Compare the blocks of the items [start, stop) that have not been compared before.

        Raises:
            DamagedIndexError: if one is not what was written.
        """
        if self._is_whole or start >= stop:
            return
        first, last = start // self._block_items, (stop - 1) // self._block_items
        self._compare((first + np.flatnonzero(~self._is_checked[first : last + 1])).tolist())

    def _compare(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            start = block * self._block_items
            content = self._array[start : start + self._block_items]
            if checksum(content) != self._checksums[block]:
                raise damaged(self._path)
            self._is_checked[block] = True
        self._is_whole = bool(self._is_checked.all())


def checksum(content: NDArray[Any]) -> int:
    """xxh3 of a contiguous array's bytes."""
    return xxhash.xxh3_64_intdigest(content.data)


def damaged(path: Path) -> DamagedIndexError:
    """The error of an index that is not what was written."""
    return DamagedIndexError(f"{path}: the index is damaged; delete this file, it is remade")
