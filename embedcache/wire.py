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
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

try:
    # Ten times as fast as Python's own, which is the longest part of packing a large array.
    from zlib_ng.zlib_ng import crc32
except ImportError:
    from zlib import crc32

ALIGNMENT_BYTES = 64
"""Where an array begins in the archive: a multiple of a cache line."""

_KINDS, _MAX_NUMBER_BYTES = "biuf", 8
"""Kinds of dtypes that are sent: truth values, integers and floating-point numbers."""

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL_CRC, _CENTRAL_CRC = 14, 16  # where in these the checksum stands, in 4 bytes
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
            not contiguous is copied once more. Put first what has the same shape from one call
            to the next: what stands before it is known then.

    Raises:
        ValueError: if an array is of another kind, or all together are beyond 4 GiB.
    """
    packed = _Packed.of_arrays(arrays)
    return b"".join([*packed.pieces, *packed.listed, packed.end_record()])


def pack_arrays_and_fill(
    arrays: Mapping[str, NDArray[Any]],
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    fill: Callable[[NDArray[Any]], object],
) -> memoryview:
    """`pack_arrays` with one more array, whose numbers are made where they are sent from.

    Args:
        arrays: The others, which stand before it.
        name: The last array's name.
        shape: Its shape.
        dtype: Its dtype, little-endian.
        fill: Writes its numbers into the array that it is called with.

    Raises:
        ValueError: as `pack_arrays` does.
    """
    packed = _Packed.of_arrays(arrays)
    entry = _entry(name, dtype.str, shape, packed.num_bytes)
    listed_bytes = sum(map(len, packed.listed)) + entry.listed_bytes
    start = entry.end - entry.numbers_bytes
    whole = np.empty(entry.end + listed_bytes + _END.size, np.uint8).data
    array: NDArray[Any] = np.ndarray(shape, dtype, whole, start)
    fill(array)
    packed.add(entry, array)
    whole[:start] = b"".join(packed.pieces[:-1])
    whole[entry.end :] = b"".join([*packed.listed, packed.end_record()])
    return whole


class _Packed:
    """The pieces of an archive, in their order.

    Attributes:
        pieces: Of the entries, the numbers among them.
        listed: Of the directory.
        num_bytes: Of all entries.
    """

    def __init__(self) -> None:
        self.pieces: list[bytes | memoryview] = []
        self.listed: list[bytes] = []
        self.num_bytes = 0
        self._count = 0

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> _Packed:
        packed = cls()
        for name, given in arrays.items():
            array = _as_sent(name, given)
            packed.add(_entry(name, array.dtype.str, array.shape, packed.num_bytes), array)
        return packed

    def add(self, entry: _Entry, array: NDArray[Any]) -> None:
        """Add an array, which is as `_as_sent` gives it."""
        crc = crc32(array.data, entry.header_crc).to_bytes(4, "little")
        self.pieces += entry.before_crc, crc, entry.after_crc, array.data
        self.listed += entry.listed_before_crc, crc, entry.listed_after_crc
        self.num_bytes = entry.end
        self._count += 1

    def end_record(self) -> bytes:
        """What stands at the archive's end.

        Raises:
            ValueError: if it is too far for an archive of this kind.
        """
        listed_bytes = sum(map(len, self.listed))
        if self.num_bytes + listed_bytes > _MAX_ARCHIVE_BYTES:
            raise ValueError(
                f"{self.num_bytes} bytes are more than one archive holds; send fewer at once"
            )
        count = self._count
        return _END.pack(b"PK\x05\x06", 0, 0, count, count, listed_bytes, self.num_bytes, 0)


def _as_sent(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """An array of numbers in row-major order, little-endian: itself, if it is one."""
    dtype = array.dtype
    if dtype.kind not in _KINDS or dtype.itemsize > _MAX_NUMBER_BYTES:
        raise ValueError(f"{name}: an array of {dtype} cannot be sent; send numbers")
    if array.flags.c_contiguous and dtype.str[0] != ">":
        return array
    # `ascontiguousarray` alone would make a shape of () one of (1,).
    return np.ascontiguousarray(array, dtype.newbyteorder("<")).reshape(array.shape)


class _Entry(NamedTuple):
    """What an archive has of an array besides its numbers and their checksum.

    Attributes:
        before_crc: The beginning of its local header, at the entry's offset.
        after_crc: The rest of it, and the header of the ``.npy``; the numbers follow.
        listed_before_crc: The beginning of its entry in the directory.
        listed_after_crc: The rest of that.
        header_crc: Of the header of the ``.npy``, with which the checksum begins.
        numbers_bytes: Of the numbers.
        end: Where the next entry begins.
    """

    before_crc: bytes
    after_crc: bytes
    listed_before_crc: bytes
    listed_after_crc: bytes
    header_crc: int
    numbers_bytes: int
    end: int

    @property
    def listed_bytes(self) -> int:
        """Of its entry in the directory."""
        return len(self.listed_before_crc) + 4 + len(self.listed_after_crc)


# Of an answer of one text most of the time went here: the shapes come again and again.
@lru_cache(maxsize=1024)
def _entry(name: str, dtype: str, shape: tuple[int, ...], offset: int) -> _Entry:
    """The entry of an array that begins at ``offset``.

    Raises:
        ValueError: if it ends beyond 4 GiB.
    """
    file_name = f"{name}.npy".encode()
    header = _npy_header(dtype, shape)
    numbers_bytes = math.prod(shape) * int(dtype[2:])
    size = len(header) + numbers_bytes
    # The numbers' place: the header of an .npy has a multiple of 64 bytes.
    begin = offset + _LOCAL.size + len(file_name) + 4
    padding = -begin % ALIGNMENT_BYTES
    end = begin + padding + size
    if end > _MAX_ARCHIVE_BYTES:
        raise ValueError(f"{name}: {size} bytes are more than one archive holds; send fewer")
    extra = struct.pack("<HH", _PADDING_FIELD, padding) + bytes(padding)
    common = (_VERSION_NEEDED, _NAMES_ARE_UTF8, 0, _TIME, _DATE, 0, size, size, len(file_name))
    local = _LOCAL.pack(b"PK\x03\x04", *common, len(extra)) + file_name + extra
    listed = _CENTRAL.pack(b"PK\x01\x02", _VERSION_NEEDED, *common, 0, 0, 0, 0, 0o600 << 16, offset)
    return _Entry(
        local[:_LOCAL_CRC],
        local[_LOCAL_CRC + 4 :] + header,
        listed[:_CENTRAL_CRC],
        listed[_CENTRAL_CRC + 4 :] + file_name,
        crc32(header),
        numbers_bytes,
        end,
    )


def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """An array's ``.npy`` header, version 1.0."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    padding = -(_NPY_PREFIX_BYTES + len(text) + 1) % ALIGNMENT_BYTES
    header = text.encode() + b" " * padding + b"\n"
    return _NPY_MAGIC + len(header).to_bytes(2, "little") + header


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
    if len(content) != entry.file_size or crc32(content) != entry.CRC:
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
