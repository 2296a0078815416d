"""The writing half of a shard: features in memory → the bytes of an HDF5 file.

``docs/shard-format.md`` is the specification; `embedcache.store.shards.shard` reads it.

There is no image of the file in memory. HDF5 is asked for the few kilobytes of its own
metadata, with datasets of the right shapes whose bytes nobody looks at; then each dataset is
written to the place that HDF5 gave it, a piece at a time: taken into key order, checksummed
and handed to the system while it is in the processor's cache.

HDF5's own metadata is of the 1.8 kind, whose superblock and object headers carry
checksums, and strings have fixed lengths. Without these, a dozen single flipped bits of a
12 KiB shard crashed the interpreter (HDF5 1.14.6), all in the heap of variable-length
strings.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from embedcache.keys import Keys
from embedcache.store.shards.blocks import require_zstd
from embedcache.store.shards.format import (
    ALIGNMENT_BYTES,
    BLOCK_BYTES,
    DTYPES_OF_VERSION_1,
    FLAG_WINDOWED,
    FORMAT_NAME,
    SMALL_DATASETS,
    ZSTD_FILTER,
    attributes_checksum,
    content_digest,
)
from embedcache.store.shards.structure import chunk_shape
from embedcache.view import FeatureView

COMPRESSIONS = ("none", "zstd")
_ZSTD_LEVEL = 3
"""Zstandard's own default."""
_CHECKSUMS = "checksums"
_UNSEEN_BYTES = 1 << 20
"""HDF5 hands a contiguous dataset of this size or more to the file as it is, in one call; smaller
ones go through its buffers."""

WriteAt = Callable[[int, memoryview], None]
"""Takes an offset in the file and the bytes that belong there."""


class Rows(Protocol):
    """A dataset that is to be written, which need not be in memory as a whole."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of an entry, little-endian."""
        ...

    def pieces(self) -> Iterator[NDArray[Any]]:
        """All rows in order, some at a time; each piece is good until the next is asked for."""
        ...


@dataclass(frozen=True, slots=True)
class WholeRows:
    """`Rows` that are in memory."""

    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of an entry."""
        return self.array.dtype

    def pieces(self) -> Iterator[NDArray[Any]]:
        """The array."""
        yield self.array


@dataclass(frozen=True, slots=True)
class ShardContent:
    """The features of a shard before they are written.

    Attributes:
        view: What they were made with.
        keys: Shape (n, 16), strictly ascending.
        row_splits: Shape (n + 1,), int64.
        flags: Shape (n,), uint8, of the bits `FLAG_TRUNCATED` and `FLAG_WINDOWED`.
        rows: Either ``{"values": (T, dim)}`` of the view's storage dtype, or ``{"codes":
            (T,) uint32, "dictionary": (V, dim)}``, where row t is ``dictionary[codes[t]]``;
            and for int8 ``"scales"``, (T,) or (V,) float32.
        extras: What is known of the tokens besides; each may be there or not:
            ``"token_ids"`` (T,) uint32, the vocabulary id of each; ``"spans"`` (T, 2)
            uint32, the range of UTF-8 bytes [start, end) that each stands for in its text.
        compression: ``"none"``, or ``"zstd"``: smaller, and slower to read.
    """

    view: FeatureView
    keys: Keys
    row_splits: NDArray[np.int64]
    flags: NDArray[np.uint8]
    rows: Mapping[str, Rows | NDArray[Any]]
    extras: Mapping[str, Rows | NDArray[Any]] = field(default_factory=dict)
    compression: str = "none"

    @property
    def version(self) -> int:
        """The least version of the format that can say what is in it."""
        if self.compression != "none" or self.view.dtype not in DTYPES_OF_VERSION_1:
            return 3
        is_windowed = bool(np.any(self.flags & FLAG_WINDOWED))
        return 2 if self.extras or is_windowed else 1

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of the file."""
        return {
            "block_bytes": BLOCK_BYTES,
            "dim": self.view.dim,
            "encoding": "dense" if "values" in self.rows else "dictionary",
            "fingerprint": self.view.fingerprint,
            "format": FORMAT_NAME,
            "num_texts": len(self.keys),
            "num_tokens": int(self.row_splits[-1]),
            "version": self.version,
            "view": self.view.to_json(),
        }

    def write(self, write_at: WriteAt) -> str:
        """Write the file.

        Args:
            write_at: Is called with every byte of it, in no order; some places twice, of
                which the last one counts.

        Returns:
            The shard's name: the digest of its content.

        Raises:
            StoreError: if it is to be compressed and `hdf5plugin` is not installed.
        """
        datasets = {name: _as_rows(rows) for name, rows in self._datasets().items()}
        if self.compression == "none":
            checksums = _write_plain(datasets, self.attributes, write_at)
        else:
            checksums = _write_compressed(datasets, self.attributes, write_at)
        return content_digest(checksums)

    def _datasets(self) -> dict[str, Rows | NDArray[Any]]:
        return {
            "flags": self.flags,
            "keys": self.keys,
            "row_splits": self.row_splits.astype("<i8", copy=False),
            **self.rows,
            **self.extras,
        }

    def image(self) -> bytes:
        """The bytes of the file, in memory."""
        image = bytearray()

        def write_at(offset: int, buffer: memoryview) -> None:
            end = offset + len(buffer)
            image.extend(bytes(max(0, end - len(image))))
            image[offset:end] = buffer

        self.write(write_at)
        return bytes(image)


def _as_rows(rows: Rows | NDArray[Any]) -> Rows:
    return WholeRows(rows) if isinstance(rows, np.ndarray) else rows


def _write_plain(
    datasets: Mapping[str, Rows], attributes: Mapping[str, Any], write_at: WriteAt
) -> NDArray[np.uint64]:
    """Every dataset contiguous; returns the checksums."""
    num_checksums = 1 + sum(-(-_num_bytes(rows) // BLOCK_BYTES) for rows in datasets.values())
    checksums = np.zeros(num_checksums, "<u8")
    metadata, offsets = _lay_out({**datasets, _CHECKSUMS: WholeRows(checksums)}, attributes)
    for offset, written in metadata:
        write_at(offset, memoryview(written))
    found = [attributes_checksum(attributes)]
    for name in sorted(offsets.keys() & datasets.keys()):
        hasher, offset = _BlockHasher(), offsets[name]
        for piece in datasets[name].pieces():
            buffer = _bytes_of(piece)
            hasher.update(buffer)
            write_at(offset, buffer)
            offset += len(buffer)
        found += hasher.finish()
    checksums[:] = found
    write_at(offsets[_CHECKSUMS], _bytes_of(checksums))
    return checksums


def _lay_out(
    datasets: Mapping[str, Rows], attributes: Mapping[str, Any]
) -> tuple[list[tuple[int, bytes]], dict[str, int]]:
    """HDF5's own bytes with their offsets, and the offset of each dataset that has bytes."""
    recorder = _Recorder()
    offsets: dict[str, int] = {}
    with _create(recorder, attributes, libver=h5py.h5f.LIBVER_V18) as file:
        for name in sorted(datasets):
            rows = datasets[name]
            # Not a page of a large one is touched: it is there for its shape.
            is_unseen = _num_bytes(rows) >= _UNSEEN_BYTES
            array = (np.empty if is_unseen else np.zeros)(rows.shape, rows.dtype)
            dataset = file.create_dataset(name, data=array)
            if array.nbytes:
                offsets[name] = int(dataset.id.get_offset())
    return recorder.written, offsets


def _write_compressed(
    datasets: Mapping[str, Rows], attributes: Mapping[str, Any], write_at: WriteAt
) -> NDArray[np.uint64]:
    """Every large dataset in chunks, packed by HDF5's filter; the file lies in memory."""
    require_zstd("a compressed shard")
    image = io.BytesIO()
    found = [attributes_checksum(attributes)]
    # Chunks are found through a list: that of 1.8 has no checksum, the one of 1.10 has.
    with _create(image, attributes, libver=h5py.h5f.LIBVER_V110) as file:
        for name in sorted(datasets):
            rows, hasher = datasets[name], _BlockHasher()
            target = _create_compressed(file, name, rows)
            start = 0
            for piece in rows.pieces():
                hasher.update(_bytes_of(piece))
                target[start : start + len(piece)] = piece
                start += len(piece)
            found += hasher.finish()
        checksums = np.array(found, "<u8")
        file.create_dataset(_CHECKSUMS, data=checksums)
    write_at(0, image.getbuffer())
    return checksums


def _create_compressed(file: h5py.File, name: str, rows: Rows) -> h5py.Dataset:
    if name in SMALL_DATASETS or _num_bytes(rows) == 0:
        return file.create_dataset(name, rows.shape, rows.dtype)
    chunk = chunk_shape(rows.shape, rows.dtype)
    # HDF5 keeps chunks that are not full in its cache, as pieces need not end with a chunk.
    return file.create_dataset(
        name,
        rows.shape,
        rows.dtype,
        chunks=chunk,
        compression=ZSTD_FILTER,
        compression_opts=(_ZSTD_LEVEL,),
        rdcc_nbytes=2 * BLOCK_BYTES,
    )


@contextmanager
def _create(
    target: io.RawIOBase | io.BytesIO, attributes: Mapping[str, Any], *, libver: int
) -> Iterator[h5py.File]:
    """An HDF5 file that is written to a file object; the same content gives the same bytes.

    Not through the "core" driver: from ``libver="v108"`` on, that one's ``get_file_image``
    clears the superblock's flags without renewing its checksum, and the file does not open.
    The low-level calls are for the root group's times, which h5py's `File` cannot switch off.
    """
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_alignment(ALIGNMENT_BYTES, ALIGNMENT_BYTES)
    access.set_libver_bounds(libver, libver)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, target)
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    # All attributes in the root's header: nine are one too many for HDF5's default.
    creation.set_attr_phase_change(len(attributes) + 1, 0)
    with h5py.File(h5py.h5f.create(b"image", h5py.h5f.ACC_TRUNC, creation, access)) as file:
        yield file
        for name in sorted(attributes):
            value = attributes[name]
            file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value


class _Recorder(io.RawIOBase):
    """A file that keeps what is written to it in small pieces, and forgets large ones.

    Attributes:
        written: Offset and bytes of each piece, in the order written.
    """

    def __init__(self) -> None:
        self.written: list[tuple[int, bytes]] = []
        self._position = 0
        self._size = 0

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self._size = self._position if size is None else size
        return self._size

    def write(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if len(view) < _UNSEEN_BYTES:
            self.written.append((self._position, bytes(view)))
        self._position += len(view)
        self._size = max(self._size, self._position)
        return len(view)

    def readinto(self, buffer: Any) -> int:
        """HDF5 may read back what it wrote."""
        view = memoryview(buffer).cast("B")
        start, stop = self._position, self._position + len(view)
        view[:] = bytes(len(view))
        for offset, piece in self.written:
            low, high = max(start, offset), min(stop, offset + len(piece))
            if low < high:
                view[low - start : high - start] = piece[low - offset : high - offset]
        self._position = stop
        return len(view)


class _BlockHasher:
    """xxh3 of every `BLOCK_BYTES` of what it is given, piece by piece."""

    def __init__(self) -> None:
        self._digests: list[int] = []
        self._state = xxhash.xxh3_64()
        self._filled = 0

    def update(self, buffer: memoryview) -> None:
        while len(buffer):
            part = buffer[: BLOCK_BYTES - self._filled]
            self._state.update(part)
            self._filled += len(part)
            buffer = buffer[len(part) :]
            if self._filled == BLOCK_BYTES:
                self._close()

    def finish(self) -> list[int]:
        """The checksum of each block; none if there were no bytes."""
        if self._filled:
            self._close()
        return self._digests

    def _close(self) -> None:
        self._digests.append(self._state.intdigest())
        self._state = xxhash.xxh3_64()
        self._filled = 0


def _num_bytes(rows: Rows) -> int:
    return int(np.prod(rows.shape, dtype=np.int64)) * rows.dtype.itemsize


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
