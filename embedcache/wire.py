"""Arrays over the wire: ``.npz`` bytes, as the service sends them and its client reads them.

What `pack_arrays` gives, ``numpy.load`` reads too: a ZIP archive of ``.npy`` files, stored and
not deflated. Each array begins at a multiple of 64 bytes, so that `unpack_arrays` hands out views
of the bytes that were received. Nothing is pickled in either direction.

The messages of the service's own interface, by their arrays:

================  ==============================================================================
features, gather  ``keys`` (n, 16) uint8, ``row_splits`` (n + 1,) int64, ``values`` (T, dim)
                  float16 or float32, ``truncated`` (n,) bool
lookup            ``num_tokens`` (n,) int64, -1 where a key is not stored; ``truncated`` and
                  ``windowed`` (n,) bool
dataset           ``keys`` (n, 16) uint8, ``label_codes`` (m,) int32, ``label_splits`` (n + 1,)
                  int64, ``split_codes`` (n,) uint8, and ``record``: `json_array` of an object
                  with ``name``, ``version``, ``label_names``, ``split_names`` and
                  ``newest_view`` (null if the store knows none)
================  ==============================================================================

The format of a ZIP archive: PKWARE's APPNOTE.TXT, 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT_BYTES = 64
"""Where an array begins in the archive: a multiple of a cache line."""

_KINDS, _MAX_NUMBER_BYTES = "biuf", 8
"""Kinds of dtypes that are sent: truth values, integers and floating-point numbers."""

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_VERSION_NEEDED = 20
_TIME, _DATE = 0, 0x21  # midnight of 1 January 1980: the same arrays give the same bytes
_NAMES_ARE_UTF8 = 1 << 11
_PADDING_FIELD = 0xD935
"""Identifier of the extra field that aligns an entry, as Android's zipalign writes it."""

_MAX_ARCHIVE_BYTES = (1 << 32) - 1  # beyond it an archive would need ZIP64's other headers
_MAX_ARRAYS = 64
_MAX_HEADER_BYTES = 4096

_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_PREFIX_BYTES = len(_NPY_MAGIC) + 2  # with the length of the header, which follows
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<dtype>[|<>](?:b1|[iu][1248]|f[248]))',"
    rb" 'fortran_order': False, 'shape': \((?P<shape>[0-9, ]{0,400})\), \} *\n",
    re.DOTALL,
)
"""What NumPy writes, and nothing else: its own reader hands the header to Python's parser."""


def pack_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays → the bytes of an ``.npz``; each number is copied once.

    Args:
        arrays: Name → array of truth values, integers or floats, of any shape. One that is
            not contiguous is copied once more.

    Raises:
        ValueError: if an array is of another kind, or all together are beyond 4 GiB.
    """
    pieces: list[bytes | memoryview] = []
    directory: list[bytes] = []
    offset = 0
    for name, array in arrays.items():
        header, numbers = _npy_parts(name, array)
        entry = _entry(name, header, numbers, offset)
        pieces += [entry[0], header, numbers]
        directory.append(entry[1])
        offset += len(entry[0]) + len(header) + numbers.nbytes
    central = b"".join(directory)
    if offset + len(central) > _MAX_ARCHIVE_BYTES:
        raise ValueError(f"{offset} bytes are more than one archive holds; send fewer at once")
    count = len(directory)
    end = _END.pack(b"PK\x05\x06", 0, 0, count, count, len(central), offset, 0)
    return b"".join([*pieces, central, end])


def _npy_parts(name: str, array: NDArray[Any]) -> tuple[bytes, memoryview]:
    """An array's ``.npy`` header, and its numbers in row-major order, little-endian."""
    if array.dtype.kind not in _KINDS or array.dtype.itemsize > _MAX_NUMBER_BYTES:
        raise ValueError(f"{name}: an array of {array.dtype} cannot be sent; send numbers")
    # `ascontiguousarray` alone would make a shape of () one of (1,).
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
    text = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {array.shape}, }}"
    # NumPy's own function takes ten times as long.
    padding = -(_NPY_PREFIX_BYTES + len(text) + 1) % ALIGNMENT_BYTES
    header = text.encode() + b" " * padding + b"\n"
    # By way of uint8: `memoryview` cannot cast an array in which a dimension is 0.
    numbers = array.reshape(-1).view(np.uint8).data
    return _NPY_MAGIC + len(header).to_bytes(2, "little") + header, numbers


def _entry(name: str, header: bytes, numbers: memoryview, offset: int) -> tuple[bytes, bytes]:
    """The local header at ``offset`` and the entry of the directory."""
    file_name = f"{name}.npy".encode()
    crc = zlib.crc32(numbers, zlib.crc32(header))
    size = len(header) + numbers.nbytes
    if size + offset > _MAX_ARCHIVE_BYTES:
        raise ValueError(f"{name}: {size} bytes are more than one archive holds; send fewer")
    # The numbers' place: the header of an .npy has a multiple of 64 bytes.
    begin = offset + _LOCAL.size + len(file_name) + 4
    padding = -begin % ALIGNMENT_BYTES
    extra = struct.pack("<HH", _PADDING_FIELD, padding) + bytes(padding)
    common = (_VERSION_NEEDED, _NAMES_ARE_UTF8, 0, _TIME, _DATE, crc, size, size, len(file_name))
    local = _LOCAL.pack(b"PK\x03\x04", *common, len(extra)) + file_name + extra
    central = _CENTRAL.pack(
        b"PK\x01\x02", _VERSION_NEEDED, *common, 0, 0, 0, 0, 0o600 << 16, offset
    )
    return local, central + file_name


def unpack_arrays(packed: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of `pack_arrays`' bytes, or of another ``.npz`` that is stored.

    Args:
        packed: The bytes; the arrays are read-only views of them.

    Raises:
        ValueError: if they are not such an archive, are damaged, or hold other than numbers.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, struct.error) as error:
        raise ValueError(f"the bytes are no .npz archive: {error}") from error
    if len(entries) > _MAX_ARRAYS:
        raise ValueError(f"an .npz of {len(entries)} arrays; at most {_MAX_ARRAYS} are read")
    whole = memoryview(packed)
    arrays: dict[str, NDArray[Any]] = {}
    for entry in entries:
        name = entry.filename.removesuffix(".npy")
        if name in arrays:
            raise ValueError(f"{name}: is in the archive twice")
        arrays[name] = _array_of(name, _content(name, entry, whole))
    return arrays


def _content(name: str, entry: zipfile.ZipInfo, whole: memoryview) -> memoryview:
    """The bytes of one file of the archive, which were compared with their checksum."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise ValueError(f"{name}: is compressed or encrypted; only stored arrays are read")
    local = bytes(whole[entry.header_offset : entry.header_offset + _LOCAL.size])
    if len(local) < _LOCAL.size or not local.startswith(b"PK\x03\x04"):
        raise ValueError(f"{name}: the archive is damaged")
    name_bytes, extra_bytes = struct.unpack_from("<2H", local, 26)
    begin = entry.header_offset + _LOCAL.size + name_bytes + extra_bytes
    content = whole[begin : begin + entry.file_size]
    if len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
        raise ValueError(f"{name}: its bytes are not what was sent")
    return content


def _array_of(name: str, content: memoryview) -> NDArray[Any]:
    header = _NPY_HEADER.match(content[:_MAX_HEADER_BYTES])
    if header is None:
        raise ValueError(
            f"{name}: no .npy of version 1.0 that holds only numbers, in row-major order"
        )
    dtype = np.dtype(header["dtype"].decode())
    shape = tuple(map(int, header["shape"].replace(b",", b" ").split()))
    numbers = content[header.end() :]
    if math.prod(shape) * dtype.itemsize != numbers.nbytes:
        raise ValueError(f"{name}: {numbers.nbytes} bytes are no array {shape} of {dtype}")
    return np.frombuffer(numbers, dtype).reshape(shape)


def json_array(value: Any) -> NDArray[np.uint8]:
    """A JSON value as its UTF-8 bytes: NumPy's own texts drop NUL characters at their end."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return np.frombuffer(text.encode(), np.uint8)


def json_of_array(array: NDArray[np.uint8]) -> Any:
    """The value of `json_array`'s bytes.

    Raises:
        ValueError: if they are not JSON.
    """
    try:
        return json.loads(array.tobytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the bytes are no JSON: {error}") from error
