"""What the HDF5 file of a shard may look like, checked from its metadata alone.

A file that another program made can claim anything, so nothing here reads a dataset's
numbers. What does not fit is a `ValueError` (or what h5py raises), which
`embedcache.store.shards.shard` turns into an error of the store, naming the file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from embedcache.errors import StoreVersionError
from embedcache.keys import KEY_BYTES
from embedcache.store.shards.codec import SCALE_DTYPE, STORAGE_DTYPES
from embedcache.store.shards.format import (
    BLOCK_BYTES,
    DTYPES_OF_VERSION_1,
    FORMAT_NAME,
    FORMAT_VERSION,
    SMALL_DATASETS,
    TOKEN_DATASETS,
    VERSION_OF_COMPRESSION,
    VERSION_OF_DTYPES,
    VERSION_OF_TOKENS,
    ZSTD_FILTER,
)
from embedcache.view import FeatureView

_ENCODINGS = {
    "dense": {*SMALL_DATASETS, "values", "checksums"},
    "dictionary": {*SMALL_DATASETS, "codes", "dictionary", "checksums"},
}
_NEVER_COMPRESSED = {*SMALL_DATASETS, "checksums"}
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


@dataclass(frozen=True, slots=True)
class DatasetPlace:
    """What a dataset is, and where its bytes lie.

    Attributes:
        offset: Its first byte in the file; None if it is compressed.
        shape: Its shape.
        dtype: The dtype of an entry.
    """

    offset: int | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def num_bytes(self) -> int:
        """Bytes of all entries, as they are when they are not compressed."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_attributes(attrs: h5py.AttributeManager) -> dict[str, Any]:
    """The attributes; format and version before all others, which a newer format may change.

    Raises:
        ValueError: if they are not those of a shard.
        StoreVersionError: if a newer embedcache wrote it.
    """
    if "format" not in attrs or _read_attribute(attrs, "format") != FORMAT_NAME:
        raise ValueError("it is not a shard")
    version = _read_attribute(attrs, "version")
    if version > FORMAT_VERSION:
        raise StoreVersionError(
            f"shard format {version}, this embedcache reads up to {FORMAT_VERSION};"
            " upgrade embedcache"
        )
    if version < 1:
        raise ValueError(f"there is no shard format {version}")
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


def check_structure(
    file: h5py.File, attributes: Mapping[str, Any], *, block_bytes: int
) -> tuple[FeatureView, dict[str, DatasetPlace]]:
    """Check names, layout, shapes and dtypes, reading no data.

    Args:
        file: The open file.
        attributes: Its attributes, as `read_attributes` gives them.
        block_bytes: What one checksum must cover.

    Returns:
        The view; and for each dataset but the checksums where it lies.

    Raises:
        ValueError: if something is not as the format says.
    """
    if attributes["block_bytes"] != block_bytes:
        raise ValueError(f"blocks of {attributes['block_bytes']} bytes; expected {block_bytes}")
    view = FeatureView.from_json(attributes["view"])
    if view.fingerprint != attributes["fingerprint"] or view.dim != attributes["dim"]:
        raise ValueError("its view and its fingerprint do not belong together")
    num_file_bytes = os.path.getsize(file.filename)
    may_compress = attributes["version"] >= VERSION_OF_COMPRESSION
    places = {
        name: _check_dataset(file, name, num_file_bytes, may_compress=may_compress)
        for name in _check_names(file, attributes, view)
    }
    expected = _expected_shapes(attributes, view, num_rows=_num_rows(places))
    for name, place in places.items():
        wanted_shape, wanted_dtype = expected[name]
        fits = len(place.shape) == len(wanted_shape) and all(
            want is None or got == want for got, want in zip(place.shape, wanted_shape, strict=True)
        )
        if not fits or place.dtype != wanted_dtype:
            raise ValueError(
                f"{name!r} is {place.shape} {place.dtype}; expected {wanted_shape} {wanted_dtype}"
            )
    del places["checksums"]
    return view, places


def _check_names(file: h5py.File, attributes: Mapping[str, Any], view: FeatureView) -> list[str]:
    """The names of the datasets, ascending; none missing and none too many."""
    names, version, encoding = set(file), attributes["version"], attributes["encoding"]
    if encoding not in _ENCODINGS:
        raise ValueError(f"unknown encoding {encoding!r}")
    required = set(_ENCODINGS[encoding])
    if view.dtype not in DTYPES_OF_VERSION_1 and version < VERSION_OF_DTYPES:
        raise ValueError(f"there is no {view.dtype} in version {version}")
    if view.dtype == "int8":
        required.add("scales")
    optional = set(TOKEN_DATASETS) if version >= VERSION_OF_TOKENS else set()
    if not required <= names <= required | optional:
        perhaps = f" and perhaps {sorted(optional)}" if optional else f" in version {version}"
        raise ValueError(f"holds {sorted(names)}; expected {sorted(required)}{perhaps}")
    return sorted(names)


def _num_rows(places: Mapping[str, DatasetPlace]) -> int | None:
    """Rows that are kept: of the values, or of the dictionary."""
    rows = places.get("dictionary") or places["values"]
    return rows.shape[0] if rows.shape else None


def _expected_shapes(
    attributes: Mapping[str, Any], view: FeatureView, *, num_rows: int | None
) -> dict[str, tuple[tuple[int | None, ...], np.dtype[Any]]]:
    """Shape and dtype of every dataset that a shard may hold; None stands for any length."""
    num_texts, num_tokens, dim = (attributes[name] for name in ("num_texts", "num_tokens", "dim"))
    rows = STORAGE_DTYPES[view.dtype]
    return {
        "flags": ((num_texts,), np.dtype("u1")),
        "keys": ((num_texts, KEY_BYTES), np.dtype("u1")),
        "row_splits": ((num_texts + 1,), np.dtype("<i8")),
        "values": ((num_tokens, dim), rows),
        "codes": ((num_tokens,), np.dtype("<u4")),
        "dictionary": ((None, dim), rows),
        "scales": ((num_rows,), SCALE_DTYPE),
        "token_ids": ((num_tokens,), np.dtype("<u4")),
        "spans": ((num_tokens, 2), np.dtype("<u4")),
        "checksums": ((None,), np.dtype("<u8")),
    }


def _check_dataset(
    file: h5py.File, name: str, num_file_bytes: int, *, may_compress: bool
) -> DatasetPlace:
    """The place of a dataset whose bytes all lie in the file."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name!r} is a link")  # noqa: TRY004 - foreign errors are mapped alike
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{name!r} is not a dataset")  # noqa: TRY004
    if dataset.shape is None:
        raise ValueError(f"{name!r} has no shape")
    plist = dataset.id.get_create_plist()
    if may_compress and name not in _NEVER_COMPRESSED and plist.get_layout() == h5py.h5d.CHUNKED:
        return _check_compressed(dataset, name, num_file_bytes)
    plain = plist.get_layout() == h5py.h5d.CONTIGUOUS
    if not plain or plist.get_external_count() or plist.get_nfilters():
        raise ValueError(f"{name!r} is not stored plainly")
    offset: int | None = dataset.id.get_offset()
    place = DatasetPlace(offset or 0, dataset.shape, dataset.dtype)
    if place.num_bytes == 0:
        return DatasetPlace(0, place.shape, place.dtype)
    if offset is None or offset + place.num_bytes > num_file_bytes:
        raise ValueError(f"{name!r} claims {place.num_bytes} bytes that the file does not have")
    return place


def _check_compressed(dataset: h5py.Dataset, name: str, num_file_bytes: int) -> DatasetPlace:
    """Chunks of whole rows, Zstandard the only filter, all of them in the file.

    A chunk that is not there would be read as zeros, and one that claims to become larger
    than a Zstandard frame can is told from its size before it is unpacked.
    """
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
    place = DatasetPlace(None, dataset.shape, dataset.dtype)
    chunk = plist.get_chunk()
    expected = chunk_shape(dataset.shape, dataset.dtype)
    if filters != [ZSTD_FILTER] or chunk != expected or dataset.maxshape != dataset.shape:
        raise ValueError(f"{name!r} is compressed with {filters} in chunks of {chunk}")
    num_chunks = -(-dataset.shape[0] // chunk[0])
    if num_chunks > num_file_bytes or dataset.id.get_num_chunks() != num_chunks:
        raise ValueError(f"{name!r} claims {num_chunks} chunks that the file does not have")
    for number in range(num_chunks):
        found = dataset.id.get_chunk_info(number)
        if found.filter_mask or found.byte_offset + found.size > num_file_bytes:
            raise ValueError(f"chunk {number} of {name!r} does not lie in the file")
    return place


def chunk_shape(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, ...]:
    """The chunk of a compressed dataset: as many rows as a block holds, at least one."""
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    return (max(1, min(shape[0], BLOCK_BYTES // max(1, row_bytes))), *shape[1:])
