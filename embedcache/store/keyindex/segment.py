"""A segment of an index: the sorted keys of some shards, in memory or in a file of their own.

The file, all numbers little-endian::

    starts      2^num_bits entries, uint32
    records     of 24 bytes, count + 1 of them, the last of all ones
    checksums   uint64, xxh3 of each 1024 records, then of each 4096 entries
    header      JSON: format, count, num_bits, shards (their digests, by number)
    trailer     uint64 header bytes, uint64 xxh3 of checksums and header, 8 bytes of magic

Opening it reads the end alone; a block is compared with its checksum when it is first touched.
"""

from __future__ import annotations

import itertools
import json
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from embedcache.errors import DamagedIndexError
from embedcache.keys import Keys
from embedcache.store.keyindex.index_checks import IndexChecks, checksum, damaged
from embedcache.store.keyindex.sorted_keys import (
    RECORD_BYTES,
    RECORD_WORDS,
    Records,
    SortedKeys,
    merge_records,
    num_bits_for,
    starts_of,
)
from embedcache.store.publish import PendingFile

_FORMAT = "embedcache-index-2"
_MAGIC = b"ecindex2"
_TRAILER_BYTES = 24
_MAX_BITS = 32

# Of 24 and 16 KiB: a single key needs little to be read, and 10^7 keys few checksums.
_BLOCK_RECORDS = 1024
_BLOCK_ENTRIES = 4096

_PIECE_KEYS = 1 << 20
_SHARD_UNIT = np.uint64(1 << 32)


@dataclass(frozen=True, slots=True)
class Segment:
    """The keys of some shards.

    Attributes:
        keys: The keys with their places; the number of a shard is its place in ``shards``.
        shards: Digests of the shards that it covers.
        path: Its file; None: it is in memory.
    """

    keys: SortedKeys
    shards: tuple[str, ...]
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.int64]:
        """`SortedKeys.find`; and every shard named is one of ``shards``.

        Raises:
            DamagedIndexError: if not, or if a block is not what was written.
        """
        found = self.keys.find(high, low)
        if self.path is not None and int(found.max(initial=-1)) >> 32 >= len(self.shards):
            raise damaged(self.path)
        return found

    @classmethod
    def of_shard(cls, digest: str, keys: Keys) -> Segment:
        """The keys of one shard, in memory; they lie in ascending order there."""
        return cls(SortedKeys.of_shard(keys), (digest,))

    @classmethod
    def merged(cls, segments: Sequence[Segment]) -> Segment:
        """All keys of some segments, in memory."""
        (records,) = _merged_pieces(segments, 0)
        return cls(SortedKeys.of_records(records), _all_shards(segments))


def _all_shards(segments: Sequence[Segment]) -> tuple[str, ...]:
    return tuple(itertools.chain.from_iterable(segment.shards for segment in segments))


def _merged_pieces(segments: Sequence[Segment], num_bits: int) -> Iterator[Records]:
    """The records of all segments, ascending, for each value of so many first bits."""
    counts = [len(segment.shards) for segment in segments]
    first_numbers = list(itertools.accumulate(counts, initial=0))
    for number in range(1 << num_bits):
        pieces = []
        for segment, first in zip(segments, first_numbers, strict=False):
            piece = segment.keys.piece(number, num_bits)
            if first:
                piece = piece + np.array([0, 0, first * _SHARD_UNIT], np.uint64)
            pieces.append(piece)
        yield merge_records(pieces)


def write_segment(segments: Sequence[Segment], path: Path, *, tmp_folder: Path) -> None:
    """Merge segments into one file, durably and at once.

    They are merged a range of keys after the other, about a million at a time: memory stays
    the same for any number of keys.

    Raises:
        DamagedIndexError: if one of them is not what was written.
        StoreError: if the device refuses; the path is what it was then.
    """
    total = sum(map(len, segments))
    num_bits = num_bits_for(total)
    piece_bits = min(num_bits, max(0, (total - 1) // _PIECE_KEYS).bit_length())
    with PendingFile(tmp_folder) as file:
        writer = _SegmentWriter(file, num_bits, piece_bits)
        for number, records in enumerate(_merged_pieces(segments, piece_bits)):
            writer.add_piece(number, records)
        writer.finish(_all_shards(segments))
        file.commit(path)


class _SegmentWriter:
    """Puts pieces of records into a file, and the checksums of their blocks at its end."""

    def __init__(self, file: PendingFile, num_bits: int, piece_bits: int) -> None:
        self._file = file
        self._num_bits = num_bits
        self._piece_entries = 1 << (num_bits - piece_bits)
        self._num_records = 0
        self._record_checksums: list[int] = []
        self._entry_checksums: list[int] = []
        # Less than a block of them, until what is missing of it comes.
        self._records = np.zeros((0, RECORD_WORDS), np.uint64)
        self._entries = np.zeros(0, np.uint32)
        self._num_entries = 0

    def add_piece(self, number: int, records: Records) -> None:
        """Put the records with one value of the first bits; in ascending order of the value."""
        first = number * self._piece_entries
        entries = starts_of(
            records[:, 0], self._num_bits, first=first, num_entries=self._piece_entries
        )
        entries += np.uint32(self._num_records + len(self._records))
        self._put_entries(np.concatenate([self._entries, entries]), is_last=False)
        self._put_records(np.concatenate([self._records, records]), is_last=False)

    def finish(self, shards: Sequence[str]) -> None:
        """Put what is left, the checksums and the header."""
        count = self._num_records + len(self._records)
        end = np.full((1, RECORD_WORDS), np.iinfo(np.uint64).max)
        self._put_entries(self._entries, is_last=True)
        self._put_records(np.concatenate([self._records, end]), is_last=True)
        checksums = np.array([*self._record_checksums, *self._entry_checksums], "<u8").tobytes()
        record = {"format": _FORMAT, "count": count, "num_bits": self._num_bits, "shards": shards}
        header = json.dumps(record).encode()
        numbers = np.array([len(header), xxhash.xxh3_64_intdigest(checksums + header)], "<u8")
        tail = checksums + header + numbers.tobytes() + _MAGIC
        self._file.write_at(self._file.size, tail)

    def _put_records(self, records: Records, *, is_last: bool) -> None:
        whole = len(records) if is_last else len(records) // _BLOCK_RECORDS * _BLOCK_RECORDS
        put, self._records = records[:whole], records[whole:].copy()
        if not whole:
            return
        self._record_checksums += _block_checksums(put, _BLOCK_RECORDS)
        offset = (4 << self._num_bits) + RECORD_BYTES * self._num_records
        self._file.write_at(offset, np.ascontiguousarray(put, "<u8").data)
        self._num_records += whole

    def _put_entries(self, entries: NDArray[np.uint32], *, is_last: bool) -> None:
        whole = len(entries) if is_last else len(entries) // _BLOCK_ENTRIES * _BLOCK_ENTRIES
        put, self._entries = entries[:whole], entries[whole:].copy()
        if not whole:
            return
        self._entry_checksums += _block_checksums(put, _BLOCK_ENTRIES)
        self._file.write_at(4 * self._num_entries, np.ascontiguousarray(put, "<u4").data)
        self._num_entries += whole


def _block_checksums(array: NDArray[Any], block_items: int) -> list[int]:
    starts = range(0, len(array), block_items)
    return [checksum(array[start : start + block_items]) for start in starts]


def load_segment(path: Path) -> Segment | None:
    """Map the segment in a file; None if there is none, or its end is damaged."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _segment_of(mapped, path)
    except (
        OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, DamagedIndexError,
    ):  # fmt: skip
        return None


def _segment_of(mapped: mmap.mmap, path: Path) -> Segment | None:
    """The segment in a mapped file.

    Raises:
        ValueError, KeyError, TypeError, OverflowError, RecursionError, DamagedIndexError: if
            it is none.
    """
    trailer = mapped[-_TRAILER_BYTES:]
    if len(mapped) < _TRAILER_BYTES or trailer[16:] != _MAGIC:
        return None
    header_bytes = int.from_bytes(trailer[:8], "little")
    end = len(mapped) - _TRAILER_BYTES - header_bytes
    if end < 0:
        return None
    record = json.loads(mapped[end : len(mapped) - _TRAILER_BYTES])
    count, num_bits, shards = record["count"], record["num_bits"], record["shards"]
    if record["format"] != _FORMAT or not 1 <= num_bits <= _MAX_BITS or not 0 <= count < 1 << 32:
        return None
    num_blocks = -(-(count + 1) // _BLOCK_RECORDS)
    num_entry_blocks = -(-(1 << num_bits) // _BLOCK_ENTRIES)
    first_record = 4 << num_bits
    first_checksum = first_record + RECORD_BYTES * (count + 1)
    if end != first_checksum + 8 * (num_blocks + num_entry_blocks):
        return None
    covered = mapped[first_checksum : len(mapped) - _TRAILER_BYTES]
    if xxhash.xxh3_64_intdigest(covered) != int.from_bytes(trailer[8:16], "little"):
        return None
    starts = np.frombuffer(mapped, "<u4", 1 << num_bits)
    words = np.frombuffer(mapped, "<u8", RECORD_WORDS * (count + 1), first_record)
    checksums = np.frombuffer(mapped, "<u8", num_blocks + num_entry_blocks, first_checksum)
    checks = (
        IndexChecks(words, checksums[:num_blocks], RECORD_WORDS * _BLOCK_RECORDS, path),
        IndexChecks(starts, checksums[num_blocks:], _BLOCK_ENTRIES, path),
    )
    # Walks end at the last record.
    checks[0].check_range(len(words) - RECORD_WORDS, len(words))
    if (words[-RECORD_WORDS:] != np.iinfo(np.uint64).max).any():
        return None
    return Segment(SortedKeys(words, starts, checks), tuple(map(str, shards)), path)
