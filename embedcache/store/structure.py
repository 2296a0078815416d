"""What the HDF5 file of a shard may look like, checked from its metadata alone.

A file that another program made can claim anything, so nothing here reads a dataset's
numbers. What does not fit is a `ValueError` (or what h5py raises), which
`embedcache.store.shard` turns into an error of the store, naming the file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from embedcache.errors import StoreVersionError
from embedcache.keys import KEY_BYTES
from embedcache.store.codec import STORAGE_DTYPES
from embedcache.store.format import (
    FORMAT_NAME,
    FORMAT_VERSION,
    SMALL_DATASETS,
    TOKEN_DATASETS,
)
from embedcache.view import FeatureView

_ENCODINGS = {
    "dense": {*SMALL_DATASETS, "values", "checksums"},
    "dictionary": {*SMALL_DATASETS, "codes", "dictionary", "checksums"},
}
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

DatasetPlace = tuple[int, tuple[int, ...], np.dtype[Any]]
"""Where a dataset's bytes begin in the file, its shape and its dtype."""


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
    places = {
        name: _check_dataset(file, name, num_file_bytes) for name in _check_names(file, attributes)
    }
    expected = _expected_shapes(attributes, STORAGE_DTYPES[view.dtype])
    for name, (_, shape, dtype) in places.items():
        wanted_shape, wanted_dtype = expected[name]
        fits = len(shape) == len(wanted_shape) and all(
            want is None or got == want for got, want in zip(shape, wanted_shape, strict=True)
        )
        if not fits or dtype != wanted_dtype:
            raise ValueError(f"{name!r} is {shape} {dtype}; expected {wanted_shape} {wanted_dtype}")
    del places["checksums"]
    return view, places


def _check_names(file: h5py.File, attributes: Mapping[str, Any]) -> list[str]:
    """The names of the datasets, ascending; none missing and none too many."""
    names, version, encoding = set(file), attributes["version"], attributes["encoding"]
    if encoding not in _ENCODINGS:
        raise ValueError(f"unknown encoding {encoding!r}")
    required = _ENCODINGS[encoding]
    optional = set(TOKEN_DATASETS) if version >= 2 else set()
    if not required <= names <= required | optional:
        perhaps = f" and perhaps {sorted(optional)}" if optional else f" in version {version}"
        raise ValueError(f"holds {sorted(names)}; expected {sorted(required)}{perhaps}")
    return sorted(names)


def _expected_shapes(
    attributes: Mapping[str, Any], rows: np.dtype[Any]
) -> dict[str, tuple[tuple[int | None, ...], np.dtype[Any]]]:
    """Shape and dtype of every dataset that a shard may hold; None stands for any length."""
    num_texts, num_tokens, dim = (attributes[name] for name in ("num_texts", "num_tokens", "dim"))
    return {
        "flags": ((num_texts,), np.dtype("u1")),
        "keys": ((num_texts, KEY_BYTES), np.dtype("u1")),
        "row_splits": ((num_texts + 1,), np.dtype("<i8")),
        "values": ((num_tokens, dim), rows),
        "codes": ((num_tokens,), np.dtype("<u4")),
        "dictionary": ((None, dim), rows),
        "token_ids": ((num_tokens,), np.dtype("<u4")),
        "spans": ((num_tokens, 2), np.dtype("<u4")),
        "checksums": ((None,), np.dtype("<u8")),
    }


def _check_dataset(file: h5py.File, name: str, num_file_bytes: int) -> DatasetPlace:
    """The place of a plain contiguous dataset that lies in the file."""
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
