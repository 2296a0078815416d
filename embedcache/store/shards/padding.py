"""Ragged rows over a memory map → one padded batch, in one pass where that is possible.

Padding is a row of zeros like any other, so that NumPy's ``take`` writes it with the rest. The
zeros lie before the datasets, in the map's own copy of the page that holds HDF5's metadata:
that page is private to this process, nobody reads it through the map, and the file's bytes
stay as they are. Writing the padding in a second pass cost a sixth of the time (SST-2, 128
float16, batches of 64).
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.ragged import whole_rows
from embedcache.store.shards.blocks import row_bytes_of
from embedcache.store.shards.structure import DatasetPlace

_MAX_ZEROED_BYTES = 1 << 16
_WIDE_ROW_BYTES = 4096
"""From here on a text's rows are copied at once, not one by one: 4.1 ms a batch of 64 texts
where ``take`` took 6.2 (rows of 9 KiB); at 1.5 KiB it was 0.27 and 0.25."""
_MAX_TABLE_LENGTH = 128
"""Up to here a table of positions is kept for each length: 0.7 MB for all of them."""
_PADDING = -(1 << 62)
_TOO_MANY_FILES = {errno.EMFILE, errno.ENFILE}


@dataclass(frozen=True, slots=True)
class PlainRows:
    """The rows of a shard that lie in its map as they are handed out.

    Attributes:
        codes: Of a dictionary shard, (T,) uint32; else None.
        rows: Its dictionary, (V, dim), or its values, (T, dim).
        raw: The bytes of ``rows``.
    """

    codes: NDArray[np.uint32] | None
    rows: NDArray[Any]
    raw: memoryview

    @classmethod
    def of_arrays(cls, codes: NDArray[np.uint32] | None, rows: NDArray[Any]) -> PlainRows:
        """The rows of a shard; at least one, and contiguous."""
        return cls(codes, rows, rows.data.cast("B"))


@dataclass(frozen=True, slots=True)
class MappedFile:
    """A file in memory.

    Attributes:
        buffer: Its bytes, but for the first ones.
        num_zeros: How many bytes at its beginning are zeros instead of the file's.
    """

    buffer: mmap.mmap
    num_zeros: int


def map_file(path: Path, *, first_offset: int) -> MappedFile | None:
    """Map a file; None where the file system or the process's limits do not allow it.

    Args:
        path: The file.
        first_offset: Where the first byte lies that is needed of it.

    Raises:
        OSError: if it cannot be opened, or too many files are open.
    """
    with path.open("rb") as file:
        for access in (mmap.ACCESS_COPY, mmap.ACCESS_READ):
            try:
                mapped = mmap.mmap(file.fileno(), 0, access=access)
            except OSError as error:
                if error.errno in _TOO_MANY_FILES:
                    raise
                continue
            if access == mmap.ACCESS_READ:
                return MappedFile(mapped, 0)
            num_zeros = min(first_offset, _MAX_ZEROED_BYTES)
            mapped[:num_zeros] = bytes(num_zeros)
            return MappedFile(mapped, num_zeros)
    return None


class PaddedPositions:
    """The positions of the tokens of texts that are padded to one length. Any threads."""

    def __init__(self) -> None:
        self._tables: dict[int, NDArray[np.int64]] = {}

    def of(
        self, starts: NDArray[np.int64], lengths: NDArray[np.int64], length: int
    ) -> NDArray[np.int64]:
        """The positions, (n, length) int64; negative where there is padding.

        Args:
            starts: Position of each text's first token, (n,).
            lengths: Tokens of each, (n,), at most ``length``.
            length: What they are padded to.
        """
        table = self._tables.get(length)
        if table is None:
            if length > _MAX_TABLE_LENGTH:
                return _offsets(lengths, length) + starts[:, np.newaxis]
            table = self._tables[length] = _offsets(np.arange(length + 1), length)
        # A row of it is what comparing would give, in 1 µs a batch of 64 × 48 instead of 11.
        positions: NDArray[np.int64] = table.take(lengths, axis=0)
        positions += starts[:, np.newaxis]
        return positions


def _offsets(lengths: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Shape (n, length): 0, 1, … up to each length, and then what stays negative."""
    offsets = np.arange(length)
    return np.where(offsets < lengths[:, np.newaxis], offsets, _PADDING)


@dataclass(frozen=True, slots=True)
class MappedRows:
    """The rows of a mapped dataset, for taking some of them into a batch.

    Attributes:
        rows: Shape (lead + T, …): the dataset's own are the last T. As bytes, where they do not
            lie at a multiple of their dtype's size.
        lead: How many places before the dataset's first row they begin.
        has_zeros: Whether the first of them is a row of zeros.
    """

    rows: NDArray[Any]
    lead: int
    has_zeros: bool

    @classmethod
    def of_dataset(cls, mapped: MappedFile, place: DatasetPlace) -> MappedRows:
        """The rows of a dataset of a mapped file, neither compressed nor empty."""
        row_bytes = row_bytes_of(place)
        lead, start = divmod(place.offset or 0, row_bytes)
        shape: tuple[int, ...] = (lead + place.shape[0], *place.shape[1:])
        dtype = place.dtype
        if start % dtype.itemsize:
            # NumPy would copy all of them first, each time that some are taken.
            shape, dtype = (shape[0], row_bytes), np.dtype(np.uint8)
        rows: NDArray[Any] = np.ndarray(shape, dtype, buffer=mapped.buffer, offset=start)
        rows.flags.writeable = False
        return cls(rows, lead, start + row_bytes <= mapped.num_zeros)

    def take_padded(self, places: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Take rows, zeros in the places of padding.

        Args:
            places: Shape (n, L), of rows in ``rows``; negative where there is padding.
            out: Shape (n, L, dim), contiguous, of the dataset's dtype.
        """
        target = out.reshape(-1, out.shape[2]).view(self.rows.dtype)
        # Clipped, a negative place is the first: the zeros. Any other mode would take into a
        # buffer of its own first.
        self.rows.take(places.reshape(-1), axis=0, out=target, mode="clip")
        if not self.has_zeros:
            rows = whole_rows(target)
            np.copyto(rows, np.zeros(1, rows.dtype), where=places.reshape(-1) < 0)

    def take_texts(
        self, starts: NDArray[np.int64], lengths: NDArray[np.int64], out: NDArray[Any]
    ) -> bool:
        """Copy each text's rows at once, zeros after them, if that is the fastest way.

        Args:
            starts: Position of each text's first row, (n,).
            lengths: How many it has, (n,), at most L.
            out: Shape (n, L, dim), contiguous, of the dataset's dtype.

        Returns:
            Whether it was done.
        """
        if self.has_zeros and self.rows.strides[0] < _WIDE_ROW_BYTES:
            return False
        numbers = self.rows.view(out.dtype)
        first = (starts + self.lead).tolist()
        for matrix, start, length in zip(out, first, lengths.tolist(), strict=True):
            matrix[:length] = numbers[start : start + length]
            matrix[length:] = 0
        return True


def copy_texts(
    sources: Sequence[PlainRows],
    starts: Sequence[int],
    lengths: Sequence[int],
    out: NDArray[Any],
) -> None:
    """The rows of n texts, each from a shard of its own, into a batch, zeros after them.

    Args:
        sources: Each text's shard.
        starts: Position of each text's first token there.
        lengths: Tokens of each, at most L.
        out: Shape (n, L, dim), contiguous; overwritten.
    """
    if not out.size:
        return
    row_bytes = out.shape[2] * out.itemsize
    text_bytes = out.shape[1] * row_bytes
    # All at once, and the rows as slices of bytes: 64 texts of 5 KB in 48 took 71 µs, where
    # slices of arrays, the end of each zeroed apart, took 107.
    out.fill(0)
    target = out.data.cast("B")
    places = zip(sources, starts, lengths, strict=True)
    for text, (source, start, length) in enumerate(places):
        if source.codes is None:
            begin, first, num_bytes = text * text_bytes, start * row_bytes, length * row_bytes
            target[begin : begin + num_bytes] = source.raw[first : first + num_bytes]
        else:
            codes = source.codes[start : start + length]
            source.rows.take(codes, axis=0, out=out[text, :length], mode="clip")


def widen_into(
    numbers: NDArray[Any], scales: NDArray[np.float32] | None, out: NDArray[np.float32]
) -> None:
    """`embedcache.store.shards.codec.widen` of numbers (n, L, dim), bfloat16 or int8, into a batch.

    Args:
        numbers: bfloat16 as bits, or int8.
        scales: Of int8, (n, L); None for bfloat16.
        out: Shape (n, L, dim), float32; overwritten.
    """
    if scales is None:
        np.left_shift(numbers, np.uint32(16), out=out.view(np.uint32))
    else:
        np.multiply(numbers, scales[..., np.newaxis], out=out)
