"""A shard: an immutable HDF5 file of many features of one view.

Written as one image in memory (h5py on a full disk crashes the interpreter at exit, and
a kill in the middle of a plain HDF5 write leaves an unreadable file), read through one
memory map: h5py looks at the metadata only, so its global lock is in nobody's way.
``docs/shard-format.md`` is the specification.

HDF5's own metadata is of the 1.8 kind, whose superblock and object headers carry
checksums, and strings have fixed lengths. Without these, a dozen single flipped bits of a
12 KiB shard crashed the interpreter (HDF5 1.14.6), all in the heap of variable-length
strings.
"""

from __future__ import annotations

import errno
import io
import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from embedcache.errors import CorruptShardError, StoreError, StoreVersionError
from embedcache.keys import KEY_BYTES, Keys, split_keys
from embedcache.ragged import RaggedArray, expand_ranges, splits_of_lengths
from embedcache.store.codec import STORAGE_DTYPES
from embedcache.store.publish import one_line
from embedcache.view import FeatureView

FORMAT_NAME = "embedcache-shard"
FORMAT_VERSION = 1
BLOCK_BYTES = 8 << 20
ALIGNMENT_BYTES = 4096
FLAG_TRUNCATED = 1

_SMALL = ("flags", "keys", "row_splits")
_DENSE = frozenset({*_SMALL, "values", "checksums"})
_DICTIONARY = frozenset({*_SMALL, "codes", "dictionary", "checksums"})
_ATTRIBUTE_TYPES: dict[str, type] = {
    "block_bytes": int,
    "dim": int,
    "encoding": str,
    "fingerprint": str,
    "format": str,
    "num_texts": int,
    "num_tokens": int,
    "version": int,
    "view": str,
}
# What h5py raises on damaged or hostile files, seen by flipping every bit of a shard.
_H5PY_ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError,
                IndexError, OverflowError, MemoryError)  # fmt: skip
# The process's or the machine's trouble, not the file's: a whole shard is not to be blamed.
_NOT_THE_FILE = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM}

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class ShardContent:
    """The features of a shard before they are written.

    Attributes:
        view: What they were made with.
        keys: Shape (n, 16), strictly ascending.
        row_splits: Shape (n + 1,), int64.
        flags: Shape (n,), uint8; bit 0: the text was cut.
        rows: Either ``{"values": (T, dim)}`` of the view's dtype, or ``{"codes": (T,)
            uint32, "dictionary": (V, dim)}``, where row t is ``dictionary[codes[t]]``.
    """

    view: FeatureView
    keys: Keys
    row_splits: NDArray[np.int64]
    flags: NDArray[np.uint8]
    rows: Arrays

    def image(self) -> memoryview:
        """The bytes of the HDF5 file."""
        arrays = {
            "flags": self.flags,
            "keys": self.keys,
            "row_splits": self.row_splits.astype("<i8", copy=False),
            **self.rows,
        }
        attributes: dict[str, Any] = {
            "block_bytes": BLOCK_BYTES,
            "dim": self.view.dim,
            "encoding": "dense" if "values" in self.rows else "dictionary",
            "fingerprint": self.view.fingerprint,
            "format": FORMAT_NAME,
            "num_texts": len(self.keys),
            "num_tokens": int(self.row_splits[-1]),
            "version": FORMAT_VERSION,
            "view": self.view.to_json(),
        }
        checksums = np.array(
            [attributes_checksum(attributes)]
            + [value for name in sorted(arrays) for value in block_checksums(arrays[name])],
            dtype="<u8",
        )
        return _write_image({**arrays, "checksums": checksums}, attributes)


def _write_image(arrays: Arrays, attributes: Mapping[str, Any]) -> memoryview:
    """An HDF5 file in memory; the same content gives the same bytes.

    Through a file object, not the "core" driver: from ``libver="v108"`` on, that one's
    ``get_file_image`` clears the superblock's flags without renewing its checksum, and the
    file does not open. The low-level calls are for the root group's times, which h5py's
    `File` cannot switch off.
    """
    image = io.BytesIO()
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_alignment(ALIGNMENT_BYTES, ALIGNMENT_BYTES)
    access.set_libver_bounds(h5py.h5f.LIBVER_V18, h5py.h5f.LIBVER_V18)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, image)
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    # All attributes in the root's header: nine are one too many for HDF5's default.
    creation.set_attr_phase_change(len(attributes) + 1, 0)
    root = h5py.h5f.create(b"image", h5py.h5f.ACC_TRUNC, creation, access)
    with h5py.File(root) as file:
        for name in sorted(arrays):
            file.create_dataset(name, data=np.ascontiguousarray(arrays[name]))
        for name in sorted(attributes):
            value = attributes[name]
            file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value
    return image.getbuffer()


def attributes_checksum(attributes: Mapping[str, Any]) -> int:
    """xxh3 of the attributes as JSON with sorted keys and no spaces."""
    text = json.dumps(dict(attributes), sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_64_intdigest(text.encode())


def block_checksums(array: NDArray[Any]) -> list[int]:
    """xxh3 of every `BLOCK_BYTES` of an array's bytes; none for an empty one."""
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return [
        xxhash.xxh3_64_intdigest(raw[start : start + BLOCK_BYTES].data)
        for start in range(0, len(raw), BLOCK_BYTES)
    ]


def image_digest(image: memoryview | bytes) -> str:
    """A shard's name: 32 hexadecimal digits, the 16-byte BLAKE2b of its bytes."""
    return blake2b(image, digest_size=16).hexdigest()


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
                attributes = _read_attributes(file.attrs)
                self.view, offsets = _check_structure(file, attributes)
                self._checksums: NDArray[np.uint64] = file["checksums"][()]
            self._arrays = _map_arrays(path, offsets)
        self._first_block, num_blocks = _block_numbers(self._arrays)
        if num_blocks != len(self._checksums):
            raise self._corrupt(f"{len(self._checksums)} checksums for {num_blocks} blocks")
        if attributes_checksum(attributes) != int(self._checksums[0]):
            raise self._corrupt("its attributes are not what was written")
        self._verified = np.zeros(num_blocks, np.bool_)
        for name in _SMALL:
            self._verify_bytes(name, self._arrays[name].nbytes)
        self.keys: Keys = self._arrays["keys"]
        self.row_splits: NDArray[np.int64] = self._arrays["row_splits"]
        self.flags: NDArray[np.uint8] = self._arrays["flags"]
        self._check_order(int(attributes["num_tokens"]))

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


def _read_attributes(attrs: h5py.AttributeManager) -> dict[str, Any]:
    """The attributes; format and version before all others, which a newer format may change."""
    if "format" not in attrs or _read_attribute(attrs, "format") != FORMAT_NAME:
        raise ValueError("it is not a shard")
    version = _read_attribute(attrs, "version")
    if version > FORMAT_VERSION:
        raise StoreVersionError(
            f"shard format {version}, this embedcache reads up to {FORMAT_VERSION};"
            " upgrade embedcache"
        )
    if set(attrs) != set(_ATTRIBUTE_TYPES):
        raise ValueError("its attributes are not those of a shard")
    return {name: _read_attribute(attrs, name) for name in _ATTRIBUTE_TYPES}


def _read_attribute(attrs: h5py.AttributeManager, name: str) -> Any:
    """A scalar of the type that its name asks for, which is looked at before it is read."""
    attribute = attrs.get_id(name)
    wanted = _ATTRIBUTE_TYPES[name]
    fits = attribute.dtype == np.dtype("<i8") if wanted is int else attribute.dtype.kind == "S"
    if attribute.shape != () or not fits:
        raise ValueError(f"attribute {name!r} is {attribute.dtype} {attribute.shape}")
    value = attrs[name]
    return int(value) if wanted is int else bytes(value).decode("ascii")


def _check_structure(
    file: h5py.File, attributes: Mapping[str, Any]
) -> tuple[FeatureView, dict[str, tuple[int, tuple[int, ...], np.dtype[Any]]]]:
    """Check names, layout, shapes and dtypes, reading no data.

    Returns:
        The view; and for each dataset but the checksums its byte offset, shape and dtype.
    """
    if attributes["block_bytes"] != BLOCK_BYTES:
        raise ValueError(f"blocks of {attributes['block_bytes']} bytes; expected {BLOCK_BYTES}")
    if attributes["encoding"] not in ("dense", "dictionary"):
        raise ValueError(f"unknown encoding {attributes['encoding']!r}")
    view = FeatureView.from_json(attributes["view"])
    if view.fingerprint != attributes["fingerprint"] or view.dim != attributes["dim"]:
        raise ValueError("its view and its fingerprint do not belong together")
    names = _DENSE if attributes["encoding"] == "dense" else _DICTIONARY
    if set(file) != names:
        raise ValueError(f"holds {sorted(file)}; expected {sorted(names)}")
    num_file_bytes = os.path.getsize(file.filename)
    offsets = {name: _check_dataset(file, name, num_file_bytes) for name in sorted(names)}
    num_texts, num_tokens = attributes["num_texts"], attributes["num_tokens"]
    rows = STORAGE_DTYPES[view.dtype]
    expected: dict[str, tuple[tuple[int | None, ...], np.dtype[Any]]] = {
        "flags": ((num_texts,), np.dtype("u1")),
        "keys": ((num_texts, KEY_BYTES), np.dtype("u1")),
        "row_splits": ((num_texts + 1,), np.dtype("<i8")),
        "values": ((num_tokens, view.dim), rows),
        "codes": ((num_tokens,), np.dtype("<u4")),
        "dictionary": ((None, view.dim), rows),
        "checksums": ((None,), np.dtype("<u8")),
    }
    for name, (_, shape, dtype) in offsets.items():
        wanted_shape, wanted_dtype = expected[name]
        fits = len(shape) == len(wanted_shape) and all(
            want is None or got == want for got, want in zip(shape, wanted_shape, strict=True)
        )
        if not fits or dtype != wanted_dtype:
            raise ValueError(f"{name!r} is {shape} {dtype}; expected {wanted_shape} {wanted_dtype}")
    del offsets["checksums"]
    return view, offsets


def _check_dataset(
    file: h5py.File, name: str, num_file_bytes: int
) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
    """Byte offset, shape and dtype of a plain contiguous dataset that lies in the file."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name!r} is a link")  # noqa: TRY004 - foreign errors are mapped alike
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{name!r} is not a dataset")  # noqa: TRY004
    plist = dataset.id.get_create_plist()
    plain = plist.get_layout() == h5py.h5d.CONTIGUOUS
    if not plain or plist.get_external_count() or plist.get_nfilters():
        raise ValueError(f"{name!r} is not stored plainly")
    shape, dtype, offset = dataset.shape, dataset.dtype, dataset.id.get_offset()
    if shape is None:
        raise ValueError(f"{name!r} has no shape")
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes == 0:
        return 0, shape, dtype
    if offset is None or offset + num_bytes > num_file_bytes:
        raise ValueError(f"{name!r} claims {num_bytes} bytes that the file does not have")
    return int(offset), shape, dtype


def _map_arrays(
    path: Path, offsets: Mapping[str, tuple[int, tuple[int, ...], np.dtype[Any]]]
) -> Arrays:
    """Arrays over one read-only memory map of the file."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return {
        name: np.ndarray(shape, dtype, buffer=mapped, offset=offset)
        for name, (offset, shape, dtype) in offsets.items()
    }


def _block_numbers(arrays: Arrays) -> tuple[dict[str, int], int]:
    """Each dataset's first place in `checksums`, and the length that makes; 0 is the attributes."""
    first: dict[str, int] = {}
    number = 1
    for name in sorted(arrays):
        first[name] = number
        number += -(-arrays[name].nbytes // BLOCK_BYTES)
    return first, number
