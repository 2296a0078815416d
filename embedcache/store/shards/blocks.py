"""Datasets of a shard that cannot be mapped: read a block at a time, the last few kept.

A compressed dataset goes through HDF5's filter, chunk by chunk; a plain one, where the file
system cannot map the file, is read with ``pread``.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from embedcache.errors import StoreError
from embedcache.store.shards.format import ZSTD_FILTER
from embedcache.store.shards.structure import DatasetPlace

KEPT_BLOCKS = 16
"""Blocks that a shard keeps, decoded: 128 MiB."""

_FRAME_MAGIC = b"\x28\xb5\x2f\xfd"
_FRAME_HEADER_BYTES = 18


class ShardBytes:
    """Ranges of bytes of a shard's datasets, as they are when they are not compressed.

    The file stays open: it may be unlinked while it is read. For one thread at a time.

    Args:
        path: The shard's file.
        places: The datasets, whose structure has been checked.
        block_bytes: How many bytes are read at once at most.

    Raises:
        OSError: if the file cannot be opened.
    """

    def __init__(self, path: Path, places: Mapping[str, DatasetPlace], *, block_bytes: int) -> None:
        self._path = path
        self._places = dict(places)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        self._chunked: dict[str, h5py.Dataset] = {}
        self._checked: set[tuple[str, int]] = set()
        packed = [name for name, place in places.items() if place.offset is None]
        if packed:
            # Room for the chunks that a block may lie in, so that none is unpacked twice.
            file = h5py.File(path, "r", locking=False, rdcc_nbytes=3 * block_bytes)
            self._chunked = {name: file[name] for name in packed}

    def read(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """The bytes [start, stop) of a dataset.

        Raises:
            OSError, ValueError: if they cannot be read, or claim to become too many.
            StoreError: if they are compressed and `hdf5plugin` is not installed.
        """
        place = self._places[name]
        if place.offset is not None:
            return self._read_plain(place.offset + start, stop - start)
        return self._read_packed(name, start, stop)

    def _read_plain(self, offset: int, num_bytes: int) -> NDArray[np.uint8]:
        parts: list[bytes] = []
        while num_bytes > 0:
            part = os.pread(self._descriptor, num_bytes, offset)
            if not part:
                raise ValueError("it has been cut short")
            parts.append(part)
            offset, num_bytes = offset + len(part), num_bytes - len(part)
        return np.frombuffer(b"".join(parts), np.uint8)

    def _read_packed(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        place, dataset = self._places[name], self._chunked[name]
        require_zstd(self._path)
        row_bytes = row_bytes_of(place)
        first, last = start // row_bytes, -(-stop // row_bytes)
        chunk_rows = dataset.chunks[0]
        for chunk in range(first // chunk_rows, -(-last // chunk_rows)):
            self._check_chunk(name, chunk)
        rows = np.empty((last - first, *place.shape[1:]), place.dtype)
        dataset.read_direct(rows, np.s_[first:last])
        skipped = start - first * row_bytes
        return rows.reshape(-1).view(np.uint8)[skipped : skipped + stop - start]

    def _check_chunk(self, name: str, chunk: int) -> None:
        """Refuse a chunk that claims to become larger than a chunk is, before it is unpacked.

        The filter makes room for whatever the frame claims, and unpacks no more than that.
        """
        if (name, chunk) in self._checked:
            return
        place, dataset = self._places[name], self._chunked[name]
        corner = (chunk * dataset.chunks[0], *(0 for _ in dataset.chunks[1:]))
        found = dataset.id.get_chunk_info_by_coord(corner)
        header = os.pread(self._descriptor, _FRAME_HEADER_BYTES, found.byte_offset)
        expected = dataset.chunks[0] * row_bytes_of(place)
        if unpacked_bytes(header[: found.size]) != expected:
            raise ValueError(f"chunk {chunk} of {name!r} does not become {expected} bytes")
        self._checked.add((name, chunk))


class BlockRows:
    """Rows of datasets that are read in blocks. Any threads.

    Args:
        places: The datasets.
        block_bytes: Bytes of a block; the last of a dataset may have fewer.
        load: Gives the bytes of a block, checked, by the dataset's name and the block's number.
    """

    def __init__(
        self,
        places: Mapping[str, DatasetPlace],
        load: Callable[[str, int], NDArray[np.uint8]],
        *,
        block_bytes: int,
    ) -> None:
        self._places = dict(places)
        self._load = load
        self._block_bytes = block_bytes
        self._kept: OrderedDict[tuple[str, int], NDArray[np.uint8]] = OrderedDict()
        # One lock: h5py has one for all files anyway.
        self._lock = threading.Lock()

    def take(self, name: str, positions: NDArray[Any]) -> NDArray[Any]:
        """Rows of a dataset by their position, (len(positions), …); the caller's own.

        Raises:
            IndexError: if there is no such row.
        """
        place = self._places[name]
        row_bytes = row_bytes_of(place)
        distinct, which = np.unique(positions.astype(np.int64, copy=False), return_inverse=True)
        if len(distinct) and not 0 <= distinct[0] <= distinct[-1] < place.shape[0]:
            raise IndexError(f"{name!r} has {place.shape[0]} rows")
        rows = np.empty((len(distinct), row_bytes), np.uint8)
        done = 0
        while done < len(distinct):
            position = int(distinct[done])
            block = position * row_bytes // self._block_bytes
            # The rows that lie in this block as a whole.
            first = -(-block * self._block_bytes // row_bytes)
            last = (block + 1) * self._block_bytes // row_bytes
            end = int(np.searchsorted(distinct, last))
            if end > done:
                lead = first * row_bytes - block * self._block_bytes
                held = self._block(name, block)[lead:]
                whole = held[: len(held) // row_bytes * row_bytes].reshape(-1, row_bytes)
                rows[done:end] = whole[distinct[done:end] - first]
                done = end
            else:
                rows[done] = self._bytes(name, position * row_bytes, (position + 1) * row_bytes)
                done += 1
        taken = rows[which.reshape(-1)].reshape(-1).view(place.dtype)
        return taken.reshape(len(positions), *place.shape[1:])

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """The rows [start, stop) of a dataset, cut as slices are; the caller's own."""
        place = self._places[name]
        start, stop, _ = slice(start, stop).indices(place.shape[0])
        row_bytes = row_bytes_of(place)
        found = self._bytes(name, start * row_bytes, max(start, stop) * row_bytes)
        return found.view(place.dtype).reshape(-1, *place.shape[1:])

    def load_all(self, name: str) -> None:
        """Read every block of a dataset once, to have it checked; none of them is kept."""
        for block in range(-(-self._places[name].num_bytes // self._block_bytes)):
            with self._lock:
                self._load(name, block)

    def _bytes(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        found = np.empty(stop - start, np.uint8)
        at = start
        while at < stop:
            block, offset = divmod(at, self._block_bytes)
            part = self._block(name, block)[offset : offset + stop - at]
            found[at - start : at - start + len(part)] = part
            at += len(part)
        return found

    def _block(self, name: str, block: int) -> NDArray[np.uint8]:
        with self._lock:
            held = self._kept.get((name, block))
            if held is None:
                held = self._kept[name, block] = self._load(name, block)
                if len(self._kept) > KEPT_BLOCKS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end((name, block))
            return held


def require_zstd(what: str | Path) -> None:
    """Make HDF5 know Zstandard.

    Args:
        what: What is to be read or written, for the message.

    Raises:
        StoreError: if the package that brings it is not installed.
    """
    if h5py.h5z.filter_avail(ZSTD_FILTER):
        return
    try:
        import_module("hdf5plugin")
    except ImportError:
        raise StoreError(
            f"{what}: needs the package hdf5plugin, which is not installed; run"
            " `pip install 'embedcache[zstd]'` and the same command again"
        ) from None


def unpacked_bytes(header: bytes) -> int | None:
    """What a Zstandard frame says that it becomes; None if it does not say, or is none.

    The header of a frame is in section 3.1.1.1 of RFC 8878.

    Args:
        header: The frame's first 18 bytes, or all if it has fewer.
    """
    if len(header) < 5 or header[:4] != _FRAME_MAGIC:
        return None
    descriptor = header[4]
    is_single_segment = descriptor >> 5 & 1
    num_bytes = (is_single_segment, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - is_single_segment) + (0, 1, 2, 4)[descriptor & 3]
    if num_bytes == 0 or len(header) < start + num_bytes:
        return None
    content = int.from_bytes(header[start : start + num_bytes], "little")
    return content + 256 if num_bytes == 2 else content


def row_bytes_of(place: DatasetPlace) -> int:
    """Bytes of a row of a dataset, or of an entry if it has one axis."""
    return math.prod(place.shape[1:]) * place.dtype.itemsize
