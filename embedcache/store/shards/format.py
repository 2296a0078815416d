"""What the writing and the reading half of a shard agree on; see ``docs/shard-format.md``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

FORMAT_NAME = "embedcache-shard"
FORMAT_VERSION = 3
"""The newest version that is read. A shard is written with the least that can say it."""

VERSION_OF_TOKENS = 2
VERSION_OF_DTYPES = 3
VERSION_OF_COMPRESSION = 3
DTYPES_OF_VERSION_1 = ("float16", "float32")

BLOCK_BYTES = 8 << 20
"""What one checksum covers; and the chunk of a compressed dataset."""
ALIGNMENT_BYTES = 4096

FLAG_TRUNCATED = 1
"""The text was longer than the view allows and has been cut."""
FLAG_WINDOWED = 2
"""The text was longer than one window; its rows were stitched from overlapping ones."""
KNOWN_FLAGS = {
    1: FLAG_TRUNCATED,
    2: FLAG_TRUNCATED | FLAG_WINDOWED,
    3: FLAG_TRUNCATED | FLAG_WINDOWED,
}
"""Version of the format → all the bits that a flag may have in it."""

SMALL_DATASETS = ("flags", "keys", "row_splits")
"""Read whole when a shard is opened; never compressed."""
TOKEN_DATASETS = ("spans", "token_ids")
"""What version 2 may hold beside the rows, one entry a token."""

ZSTD_FILTER = 32015
"""Zstandard's number among the registered filters of HDF5."""

Arrays = dict[str, NDArray[Any]]


def attributes_checksum(attributes: Mapping[str, Any]) -> int:
    """xxh3 of the attributes as JSON with sorted keys and no spaces."""
    text = json.dumps(dict(attributes), sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_64_intdigest(text.encode())


def content_digest(checksums: NDArray[np.uint64]) -> str:
    """A shard's name: 32 hexadecimal digits, the 16-byte BLAKE2b of its ``checksums``.

    These cover the attributes and every dataset, so the same content has the same name, and the
    bytes of the file are gone through once, not twice.
    """
    return blake2b(np.ascontiguousarray(checksums, "<u8").data, digest_size=16).hexdigest()
