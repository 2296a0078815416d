"""A shard: an immutable HDF5 file of many features of one view.

Written as one image in memory (h5py on a full disk crashes the interpreter at exit, and
a kill in the middle of a plain HDF5 write leaves an unreadable file), read through one
memory map: h5py looks at the metadata only, so its global lock is in nobody's way.
``docs/shard-format.md`` is the specification, `embedcache.store.image` the writing half.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from embedcache.errors import CorruptShardError, StoreError, StoreVersionError
from embedcache.keys import Keys, split_keys
from embedcache.ragged import RaggedArray, expand_ranges, splits_of_lengths
from embedcache.store.format import (
    BLOCK_BYTES,
    KNOWN_FLAGS,
    SMALL_DATASETS,
    Arrays,
    attributes_checksum,
)
from embedcache.store.publish import one_line
from embedcache.store.structure import DatasetPlace, check_structure, read_attributes

# What h5py raises on damaged or hostile files, seen by flipping every bit of a shard.
_H5PY_ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError,
                IndexError, OverflowError, MemoryError)  # fmt: skip
# The process's or the machine's trouble, not the file's: a whole shard is not to be blamed.
_NOT_THE_FILE = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class Shard:
    """An open shard. Threads may read it at the same time; a fork may not share it.

    The structure is checked from the metadata before any data is read. Each block's
    checksum is checked once, when it is first touched.

    Attributes:
        view: What the features were made with.
        keys: Shape (n, 16), uint8, strictly ascending.
        row_splits: Shape (n + 1,), int64.
        flags: Shape (n,), uint8.
    """

    def __init__(self, path: Path) -> None:
        """Open and check a shard.

        Raises:
            CorruptShardError: if it is missing, cut short, damaged or no shard at all.
            StoreVersionError: if a newer embedcache wrote it.
            StoreError: if this process may not open it, or has too many files open.
        """
        self.path = path
        with self._mapped_errors():
            with h5py.File(path, "r", locking=False) as file:
                attributes = read_attributes(file.attrs)
                self.view, places = check_structure(file, attributes, block_bytes=BLOCK_BYTES)
                self._checksums: NDArray[np.uint64] = file["checksums"][()]
            self._arrays = _map_arrays(path, places)
        self._first_block, num_blocks = _block_numbers(self._arrays)
        if num_blocks != len(self._checksums):
            raise self._corrupt(f"{len(self._checksums)} checksums for {num_blocks} blocks")
        if attributes_checksum(attributes) != int(self._checksums[0]):
            raise self._corrupt("its attributes are not what was written")
        self._verified = np.zeros(num_blocks, np.bool_)
        for name in SMALL_DATASETS:
            self._verify_bytes(name, self._arrays[name].nbytes)
        self.keys: Keys = self._arrays["keys"]
        self.row_splits: NDArray[np.int64] = self._arrays["row_splits"]
        self.flags: NDArray[np.uint8] = self._arrays["flags"]
        self._check_order(int(attributes["num_tokens"]))
        if np.any(self.flags & ~np.uint8(KNOWN_FLAGS[attributes["version"]])):
            raise self._corrupt(f"it has flags that version {attributes['version']} does not know")

    @property
    def num_tokens(self) -> int:
        """The rows of all texts together."""
        return int(self.row_splits[-1])

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        """Rows by token position, shape (len(positions), dim), of the storage dtype.

        Raises:
            CorruptShardError: if the bytes touched are not what was written.
        """
        if "values" in self._arrays:
            self._verify_positions("values", positions)
            return self._arrays["values"].take(positions, axis=0)
        self._verify_positions("codes", positions)
        dictionary = self._arrays["dictionary"]
        self._verify_bytes("dictionary", dictionary.nbytes)
        return dictionary.take(self._arrays["codes"].take(positions), axis=0)

    def read(self, rows: NDArray[np.int64]) -> RaggedArray:
        """The features of some texts, by their row in this shard, in the order given."""
        starts = self.row_splits[rows]
        lengths = self.row_splits[rows + 1] - starts
        return RaggedArray(self.take(expand_ranges(starts, lengths)), splits_of_lengths(lengths))

    def read_spans(self, row: int) -> NDArray[np.uint32] | None:
        """The UTF-8 byte range [start, end) of each token of a text, shape (num_tokens, 2).

        Args:
            row: The text's row in this shard.

        Returns:
            The caller's own array; None if the shard has no spans. A token that stands for
            no bytes of its own, as a special token, has start == end.

        Raises:
            CorruptShardError: if the bytes touched are not what was written.
            IndexError: if there is no such row.
        """
        return self.read_tokens("spans", *self._range(row))

    def read_token_ids(self, row: int) -> NDArray[np.uint32] | None:
        """The vocabulary id of each token of a text, shape (num_tokens,); as `read_spans`."""
        return self.read_tokens("token_ids", *self._range(row))

    def read_tokens(
        self, name: Literal["spans", "token_ids"], start: int, stop: int
    ) -> NDArray[np.uint32] | None:
        """What is known of the tokens at positions [start, stop); None if the shard lacks it.

        Raises:
            CorruptShardError: if the bytes touched are not what was written.
        """
        array = self._arrays.get(name)
        if array is None:
            return None
        if stop > start:
            # The bytes are one range: no need of every position, as for scattered rows.
            token_bytes = array.nbytes // len(array)
            last = (stop * token_bytes - 1) // BLOCK_BYTES
            for block in range(start * token_bytes // BLOCK_BYTES, last + 1):
                self._verify_block(name, block)
        return array[start:stop].copy()

    def _range(self, row: int) -> tuple[int, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return int(self.row_splits[row]), int(self.row_splits[row + 1])

    def verify_all(self) -> None:
        """Check every block.

        Raises:
            CorruptShardError: at the first one that is not what was written.
        """
        for name, array in self._arrays.items():
            self._verify_bytes(name, array.nbytes)

    def _verify_positions(self, name: str, positions: NDArray[np.int64]) -> None:
        array = self._arrays[name]
        first = self._first_block[name]
        last = first + -(-array.nbytes // BLOCK_BYTES)
        if len(positions) == 0 or self._verified[first:last].all():
            return
        row_bytes = array.itemsize * (array.shape[1] if array.ndim == 2 else 1)
        if row_bytes > BLOCK_BYTES:
            self._verify_bytes(name, array.nbytes)
            return
        touched = np.zeros(last - first, np.bool_)
        # A row may straddle two blocks: its first and its last byte tell both.
        touched[positions * row_bytes // BLOCK_BYTES] = True
        touched[((positions + 1) * row_bytes - 1) // BLOCK_BYTES] = True
        for block in np.flatnonzero(touched):
            self._verify_block(name, int(block))

    def _verify_bytes(self, name: str, num_bytes: int) -> None:
        for block in range(-(-num_bytes // BLOCK_BYTES)):
            self._verify_block(name, block)

    def _verify_block(self, name: str, block: int) -> None:
        number = self._first_block[name] + block
        if self._verified[number]:
            return
        array = self._arrays[name]
        raw = array.reshape(-1).view(np.uint8)[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        if xxhash.xxh3_64_intdigest(raw.data) != int(self._checksums[number]):
            raise self._corrupt(f"block {block} of {name!r} is not what was written")
        if name == "codes" and int(raw.view("<u4").max()) >= len(self._arrays["dictionary"]):
            raise self._corrupt("a code points past the dictionary")
        if name == "spans":
            spans = raw.view("<u4").reshape(-1, 2)
            if np.any(spans[:, 1] < spans[:, 0]):
                raise self._corrupt("a span ends before it starts")
        self._verified[number] = True

    def _check_order(self, num_tokens: int) -> None:
        splits = self.row_splits
        # Compared, not subtracted: the difference of two hostile offsets may wrap around.
        if splits[0] != 0 or splits[-1] != num_tokens or np.any(splits[1:] < splits[:-1]):
            raise self._corrupt("its row_splits decrease or overrun")
        high, low = split_keys(self.keys)
        ascending = (high[:-1] < high[1:]) | ((high[:-1] == high[1:]) & (low[:-1] < low[1:]))
        if not ascending.all():
            raise self._corrupt("its keys do not ascend")

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise self._corrupt("is missing") from None
        except StoreVersionError as error:
            raise StoreVersionError(f"{self.path}: {error}") from None
        except _H5PY_ERRORS as error:
            if isinstance(error, OSError) and error.errno in _NOT_THE_FILE:
                raise StoreError(
                    f"{self.path}: cannot be opened ({os.strerror(error.errno)}); change what"
                    " forbids it and run the same command again"
                ) from error
            raise self._corrupt(f"cannot be read ({one_line(error)})") from error

    def _corrupt(self, reason: str) -> CorruptShardError:
        return CorruptShardError(corrupt_message(self.path, reason))


def corrupt_message(path: Path, reason: str) -> str:
    """One line about a damaged file, and what mends it."""
    return (
        f"{path}: {reason}; run `embedcache verify --fix`, then the same `embedcache build` again"
    )


def _map_arrays(path: Path, places: Mapping[str, DatasetPlace]) -> Arrays:
    """Arrays over one read-only memory map of the file."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return {
        name: np.ndarray(shape, dtype, buffer=mapped, offset=offset)
        for name, (offset, shape, dtype) in places.items()
    }


def _block_numbers(arrays: Arrays) -> tuple[dict[str, int], int]:
    """Each dataset's first place in `checksums`, and the length that makes; 0 is the attributes."""
    first: dict[str, int] = {}
    number = 1
    for name in sorted(arrays):
        first[name] = number
        number += -(-arrays[name].nbytes // BLOCK_BYTES)
    return first, number
