"""Which blocks of a shard have been compared with their checksums: each once, when touched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from embedcache.errors import CorruptShardError
from embedcache.store.shards.blocks import row_bytes_of
from embedcache.store.shards.damage import corrupt_message
from embedcache.store.shards.structure import DatasetPlace


class BlockChecks:
    """The checksums of a shard's datasets. Any threads: at worst a block is compared twice.

    Args:
        path: The shard's file, for messages.
        places: Its datasets, without ``checksums``.
        checksums: What that dataset holds: the attributes' first, then every block's.
        block_bytes: What one checksum covers.

    Raises:
        CorruptShardError: if there are not as many checksums as blocks.
    """

    def __init__(
        self,
        path: Path,
        places: Mapping[str, DatasetPlace],
        checksums: NDArray[np.uint64],
        *,
        block_bytes: int,
    ) -> None:
        self._path = path
        self._places = dict(places)
        self._checksums = checksums
        self._block_bytes = block_bytes
        self._first: dict[str, int] = {}
        number = 1
        for name in sorted(places):
            self._first[name] = number
            number += self.num_blocks(name)
        if number != len(checksums):
            raise self._corrupt(f"{len(checksums)} checksums for {number} blocks")
        self._is_checked = np.zeros(number, np.bool_)
        self._done = {name for name in places if self.num_blocks(name) == 0}

    def num_blocks(self, name: str) -> int:
        """How many blocks a dataset has; an empty one none."""
        return -(-self._places[name].num_bytes // self._block_bytes)

    def unchecked(self, name: str) -> list[int]:
        """The blocks of a dataset that are still to be compared."""
        if name in self._done:
            return []
        checked = self._is_checked[self._first[name] :][: self.num_blocks(name)]
        return np.flatnonzero(~checked).tolist()

    def unchecked_of(
        self, name: str, starts: NDArray[Any], lengths: NDArray[Any] | int
    ) -> list[int]:
        """Those among them that hold bytes of some rows.

        Args:
            name: The dataset.
            starts: The first row of each of n ranges, (n,).
            lengths: Rows of each, (n,), or of all alike; a range may be empty.
        """
        if name in self._done or len(starts) == 0:
            return []
        num_blocks = self.num_blocks(name)
        row_bytes = row_bytes_of(self._places[name])
        # In Python's width: a code is of 32 bits, and a product of bytes may not be.
        first_byte = np.asarray(starts, np.int64) * row_bytes
        last_byte = first_byte + (np.asarray(lengths, np.int64) * row_bytes - 1)
        is_any = last_byte >= first_byte
        first = first_byte[is_any] // self._block_bytes
        last = last_byte[is_any] // self._block_bytes
        begun = np.bincount(first, minlength=num_blocks + 1)
        ended = np.bincount(last + 1, minlength=num_blocks + 1)
        touched = np.cumsum(begun[: num_blocks + 1] - ended[: num_blocks + 1])[:num_blocks] > 0
        checked = self._is_checked[self._first[name] :][:num_blocks]
        return np.flatnonzero(touched & ~checked).tolist()

    def check(self, name: str, block: int, raw: NDArray[np.uint8]) -> None:
        """Compare the bytes of a block, and look whether its numbers are legal.

        Raises:
            CorruptShardError: if they are not what was written.
        """
        number = self._first[name] + block
        if xxhash.xxh3_64_intdigest(raw.data) != int(self._checksums[number]):
            raise self._corrupt(f"block {block} of {name!r} is not what was written")
        self._check_numbers(name, raw)
        self._is_checked[number] = True
        if not self.unchecked(name):
            self._done.add(name)

    def _check_numbers(self, name: str, raw: NDArray[np.uint8]) -> None:
        if name == "codes" and int(raw.view("<u4").max()) >= self._places["dictionary"].shape[0]:
            raise self._corrupt("a code points past the dictionary")
        if name == "scales":
            scales = raw.view("<f4")
            if not np.all((scales >= 0) & (scales < np.inf)):
                raise self._corrupt("a scale is negative or no finite number")
        if name == "spans":
            spans = raw.view("<u4").reshape(-1, 2)
            if np.any(spans[:, 1] < spans[:, 0]):
                raise self._corrupt("a span ends before it starts")

    def _corrupt(self, reason: str) -> CorruptShardError:
        return CorruptShardError(corrupt_message(self._path, reason))
