"""The writing half of a shard: features in memory → the bytes of an HDF5 file.

``docs/shard-format.md`` is the specification; `embedcache.store.shard` reads it.

HDF5's own metadata is of the 1.8 kind, whose superblock and object headers carry
checksums, and strings have fixed lengths. Without these, a dozen single flipped bits of a
12 KiB shard crashed the interpreter (HDF5 1.14.6), all in the heap of variable-length
strings.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from embedcache.keys import Keys
from embedcache.store.format import (
    ALIGNMENT_BYTES,
    BLOCK_BYTES,
    FLAG_WINDOWED,
    FORMAT_NAME,
    Arrays,
    attributes_checksum,
)
from embedcache.view import FeatureView


@dataclass(frozen=True, slots=True)
class ShardContent:
    """The features of a shard before they are written.

    Attributes:
        view: What they were made with.
        keys: Shape (n, 16), strictly ascending.
        row_splits: Shape (n + 1,), int64.
        flags: Shape (n,), uint8, of the bits `FLAG_TRUNCATED` and `FLAG_WINDOWED`.
        rows: Either ``{"values": (T, dim)}`` of the view's dtype, or ``{"codes": (T,)
            uint32, "dictionary": (V, dim)}``, where row t is ``dictionary[codes[t]]``.
        extras: What is known of the tokens besides; each may be there or not:
            ``"token_ids"`` (T,) uint32, the vocabulary id of each; ``"spans"`` (T, 2)
            uint32, the range of UTF-8 bytes [start, end) that each stands for in its text.
    """

    view: FeatureView
    keys: Keys
    row_splits: NDArray[np.int64]
    flags: NDArray[np.uint8]
    rows: Arrays
    extras: Arrays = field(default_factory=dict)

    @property
    def version(self) -> int:
        """The least version of the format that can say what is in it."""
        is_windowed = bool(np.any(self.flags & FLAG_WINDOWED))
        return 2 if self.extras or is_windowed else 1

    def image(self) -> memoryview:
        """The bytes of the HDF5 file."""
        arrays = {
            "flags": self.flags,
            "keys": self.keys,
            "row_splits": self.row_splits.astype("<i8", copy=False),
            **self.rows,
            **self.extras,
        }
        attributes: dict[str, Any] = {
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
