"""A shard: an immutable HDF5 file of many features of one view.

Read through one memory map: h5py looks at the metadata only, so its global lock is in
nobody's way. What is compressed, and a file that cannot be mapped, is read in blocks (see
`embedcache.store.shards.blocks`). ``docs/shard-format.md`` is the specification,
`embedcache.store.shards.image` the writing half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from embedcache.errors import CorruptShardError
from embedcache.keys import Keys, split_keys
from embedcache.ragged import RaggedArray, expand_ranges, splits_of_lengths, whole_rows
from embedcache.store.shards.blocks import BlockRows, ShardBytes
from embedcache.store.shards.checks import BlockChecks
from embedcache.store.shards.codec import STORAGE_DTYPES, VALUE_DTYPES, join_scales, widen
from embedcache.store.shards.damage import corrupt_message, mapped_read_errors
from embedcache.store.shards.format import (
    BLOCK_BYTES,
    KNOWN_FLAGS,
    Arrays,
    attributes_checksum,
    content_digest,
)
from embedcache.store.shards.padding import (
    MappedFile,
    MappedRows,
    PaddedPositions,
    PlainRows,
    map_file,
    widen_into,
)
from embedcache.store.shards.structure import DatasetPlace, check_structure, read_attributes


class Shard:
    """An open shard. Threads may read it at the same time; a fork may not share it.

    The structure is checked from the metadata before any data is read. Each block's
    checksum is checked once, when it is first touched; of what cannot be mapped, each time
    that it is read. An open shard stays readable when its file is deleted.

    Attributes:
        view: What the features were made with.
        keys: Shape (n, 16), uint8, strictly ascending.
        row_splits: Shape (n + 1,), int64.
        flags: Shape (n,), uint8.
        plain_rows: Its rows, once all of them have been checked; None as long as not, and where
            they do not lie in the map as they are handed out.
    """

    def __init__(self, path: Path) -> None:
        """Open and check a shard.

        Raises:
            CorruptShardError: if it is missing (`MissingShardError`), cut short, damaged or no
                shard at all.
            StoreVersionError: if a newer embedcache wrote it.
            StoreError: if this process may not open it, or has too many files open.
        """
        self.path = path
        with mapped_read_errors(path):
            with h5py.File(path, "r", locking=False) as file:
                attributes = read_attributes(file.attrs)
                self.view, self._places = check_structure(file, attributes, block_bytes=BLOCK_BYTES)
                self._checksums: NDArray[np.uint64] = file["checksums"][()]
            self._arrays, self._mapped = _map_arrays(path, self._places)
            self._checks = BlockChecks(path, self._places, self._checksums, block_bytes=BLOCK_BYTES)
            self._blocks = _read_in_blocks(path, self._places, self._arrays, self._checks)
        self.plain_rows: PlainRows | None = None
        self._tables: dict[str, MappedRows] = {}
        self._row_names = ["dictionary", "codes"] if self.is_dictionary else ["values"]
        if "scales" in self._places:
            self._row_names.append("scales")
        self._is_plain = VALUE_DTYPES[self.view.dtype] == STORAGE_DTYPES[self.view.dtype]
        self._pads_from_map = all(
            name in self._arrays and self._places[name].num_bytes for name in self._row_names
        )
        if attributes_checksum(attributes) != int(self._checksums[0]):
            raise self._corrupt("its attributes are not what was written")
        keys, splits, flags = (self._whole(name) for name in ("keys", "row_splits", "flags"))
        self.keys: Keys = keys
        self.row_splits: NDArray[np.int64] = splits
        self.flags: NDArray[np.uint8] = flags
        self._check_order(int(attributes["num_tokens"]))
        if np.any(self.flags & ~np.uint8(KNOWN_FLAGS[attributes["version"]])):
            raise self._corrupt(f"it has flags that version {attributes['version']} does not know")

    @property
    def places(self) -> Mapping[str, DatasetPlace]:
        """What each of its datasets is, and where; the checksums left out."""
        return self._places

    @property
    def digest(self) -> str:
        """The digest of its content, by which a shard is named."""
        return content_digest(self._checksums)

    @property
    def num_tokens(self) -> int:
        """The rows of all texts together."""
        return int(self.row_splits[-1])

    @property
    def is_dictionary(self) -> bool:
        """Whether each distinct row is kept once, with a code for each token."""
        return "dictionary" in self._places

    def __len__(self) -> int:
        return len(self.keys)

    def take(
        self, positions: NDArray[np.int64], *, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Rows by token position, shape (len(positions), dim), of the value dtype.

        Args:
            positions: Of tokens.
            out: Where to put them, contiguous; None: into an array of their own.

        Raises:
            CorruptShardError: if the bytes touched are not what was written.
        """
        if out is None:
            numbers, scales = self._take_numbers(positions)
            return widen(numbers, scales, self.view.dtype)
        name = self._row_names[0]
        if self._is_plain and name in self._arrays:
            rows: NDArray[Any] = self.codes(positions) if self.is_dictionary else positions
            self._verify(name, self._checks.unchecked_of(name, rows, 1))
            # Any other mode would take into a buffer of its own first. All rows are there.
            self._arrays[name].take(rows, axis=0, out=out, mode="clip")
        else:
            out[...] = self.take(positions)
        return out

    def take_stored(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        """Stored rows (see `embedcache.store.shards.codec`) by token position, (n, row_width).

        Raises:
            CorruptShardError: if the bytes touched are not what was written.
        """
        numbers, scales = self._take_numbers(positions)
        return numbers if scales is None else join_scales(numbers, scales)

    def codes(self, positions: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Rows of the dictionary by token position, (len(positions),); of dictionary shards.

        Raises:
            CorruptShardError: if the bytes touched are not what was written.
        """
        return self._take("codes", positions)

    def stored_dictionary(self) -> NDArray[Any]:
        """All stored rows of the dictionary, (V, row_width); perhaps not to be written to.

        Raises:
            CorruptShardError: if a byte of it is not what was written.
        """
        numbers = self._whole("dictionary")
        return numbers if not self._is_scaled else join_scales(numbers, self._whole("scales"))

    def dictionary_with_zeros(self) -> MappedRows | None:
        """The dictionary behind a row of zeros, as it is handed out; None where there is none.

        Raises:
            CorruptShardError: if a byte of it is not what was written.
        """
        if not (self.is_dictionary and self._is_plain and self._pads_from_map):
            return None
        self._verify("dictionary", self._checks.unchecked("dictionary"))
        table = self._rows_of("dictionary")
        return table if table.has_zeros else None

    def read(self, rows: NDArray[np.int64]) -> RaggedArray:
        """The features of some texts, by their row in this shard, in the order given."""
        starts = self.row_splits[rows]
        lengths = self.row_splits[rows + 1] - starts
        return RaggedArray(self.take(expand_ranges(starts, lengths)), splits_of_lengths(lengths))

    def gather_padded(
        self,
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        out: NDArray[Any],
        *,
        positions: PaddedPositions,
    ) -> None:
        """The rows of n texts into a batch, zeros after the end of each.

        Args:
            starts: Position of each text's first token, (n,).
            lengths: Tokens of each, (n,), at most L.
            out: Shape (n, L, dim), contiguous, of the value dtype; overwritten.
            positions: What is kept from batch to batch.

        Raises:
            CorruptShardError: if the bytes touched are not what was written.
        """
        if not self._pads_from_map:
            self._put_padded(starts, lengths, out)
            return
        for name in self._row_names:
            # Of a dictionary all, as nearly every batch needs rows from all over it.
            if self.is_dictionary and name != "codes":
                self._verify(name, self._checks.unchecked(name))
            else:
                self._verify(name, self._checks.unchecked_of(name, starts, lengths))
        if self.plain_rows is None:
            self.plain_rows = self._find_plain_rows()
        name, num_tokens = self._row_names[0], out.shape[1]
        table = self._rows_of(name)
        if self._is_plain and not self.is_dictionary:
            if not table.take_texts(starts, lengths, out):
                places = positions.of(starts + table.lead, lengths, num_tokens)
                table.take_padded(places, out)
            return
        places = positions.of(starts, lengths, num_tokens)
        if self._is_plain:
            table.take_padded(self._rows_of_codes(places, table.lead), out)
        else:
            self._widen_padded(table, places, out)

    def _find_plain_rows(self) -> PlainRows | None:
        arrays = [self._arrays[name] for name in self._row_names]
        if not self._is_plain or any(map(self._checks.unchecked, self._row_names)):
            return None
        # NumPy would copy all of an array that is not aligned, each time that some is taken.
        if not all(array.flags.aligned for array in arrays):
            return None
        return PlainRows.of_arrays(self._arrays.get("codes"), arrays[0])

    def _rows_of_codes(self, places: NDArray[np.int64], lead: int) -> NDArray[np.int64]:
        """Rows of the dictionary by token position, ``lead`` added; padding stays negative."""
        codes = self._arrays["codes"].take(places, mode="clip")
        rows: NDArray[np.int64] = np.add(codes, lead, dtype=np.int64)
        rows |= places >> 63
        return rows

    def _widen_padded(
        self, table: MappedRows, places: NDArray[np.int64], out: NDArray[Any]
    ) -> None:
        """`gather_padded` of what is not stored as it is handed out."""
        rows = self._rows_of_codes(places, 0) if self.is_dictionary else places
        scales = None
        if self._is_scaled:
            scales = self._arrays["scales"].take(rows, mode="clip")
            np.copyto(scales, 0, where=rows < 0)
        numbers = np.empty(out.shape, STORAGE_DTYPES[self.view.dtype])
        table.take_padded(np.where(rows < 0, rows, rows + table.lead), numbers)
        widen_into(numbers, scales, out)

    def _put_padded(self, starts: NDArray[Any], lengths: NDArray[Any], out: NDArray[Any]) -> None:
        """`gather_padded` of what is not mapped."""
        rows = self.take(expand_ranges(starts, lengths))
        out[...] = 0
        firsts = np.arange(len(starts)) * out.shape[1]
        flat = whole_rows(out.reshape(-1, out.shape[2]))
        np.put(flat, expand_ranges(firsts, lengths), whole_rows(np.ascontiguousarray(rows)))

    def read_spans(self, row: int) -> NDArray[np.uint32] | None:
        """The UTF-8 byte range [start, end) of each token of a text, shape (num_tokens, 2).

        Args:
            row: The text's row in this shard.

        Returns:
            The caller's own array; None if the shard has no spans. A token that stands for
            no bytes of its own, as a special token, has start == end.

        Raises:
            CorruptShardError: if the bytes touched are not what was written.
            IndexError: if there is no such row.
        """
        return self.read_tokens("spans", *self._range(row))

    def read_token_ids(self, row: int) -> NDArray[np.uint32] | None:
        """The vocabulary id of each token of a text, shape (num_tokens,); as `read_spans`."""
        return self.read_tokens("token_ids", *self._range(row))

    def read_tokens(self, name: str, start: int, stop: int) -> NDArray[np.uint32] | None:
        """What is known of the tokens at positions [start, stop); None if the shard lacks it.

        Args:
            name: Of `TOKEN_DATASETS`.
            start: The first token.
            stop: The one after the last.

        Raises:
            CorruptShardError: if the bytes touched are not what was written.
        """
        if name not in self._places:
            return None
        array = self._arrays.get(name)
        if array is None:
            return self._unmapped.read(name, start, stop)
        self._verify(name, self._checks.unchecked_of(name, np.array([start]), stop - start))
        return array[start:stop].copy()

    def _range(self, row: int) -> tuple[int, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return int(self.row_splits[row]), int(self.row_splits[row + 1])

    def verify_all(self) -> None:
        """Check every block.

        Raises:
            CorruptShardError: at the first one that is not what was written.
        """
        for name in self._places:
            if name in self._arrays:
                self._verify(name, self._checks.unchecked(name))
            else:
                self._unmapped.load_all(name)

    @property
    def _is_scaled(self) -> bool:
        return "scales" in self._places

    @property
    def _unmapped(self) -> BlockRows:
        if self._blocks is None:
            raise ValueError("the whole shard is mapped")
        return self._blocks

    def _take_numbers(
        self, positions: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Numbers (n, dim) of the storage dtype, and the scales (n,) of int8."""
        rows: NDArray[Any] = self.codes(positions) if self.is_dictionary else positions
        name = self._row_names[0]
        numbers = self._take(name, rows)
        return numbers, self._take("scales", rows) if self._is_scaled else None

    def _take(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        array = self._arrays.get(name)
        if array is None:
            return self._unmapped.take(name, rows)
        self._verify(name, self._checks.unchecked_of(name, rows, 1))
        return array.take(rows, axis=0)

    def _whole(self, name: str) -> NDArray[Any]:
        array = self._arrays.get(name)
        if array is None:
            return self._unmapped.read(name, 0, self._places[name].shape[0])
        self._verify(name, self._checks.unchecked(name))
        return array

    def _rows_of(self, name: str) -> MappedRows:
        rows = self._tables.get(name)
        if rows is None:
            if self._mapped is None:
                raise ValueError("the shard is not mapped")
            rows = self._tables[name] = MappedRows.of_dataset(self._mapped, self._places[name])
        return rows

    def _verify(self, name: str, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._verify_block(name, block)

    def _verify_block(self, name: str, block: int) -> None:
        raw = self._arrays[name].reshape(-1).view(np.uint8)
        self._checks.check(name, block, raw[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])

    def _check_order(self, num_tokens: int) -> None:
        splits = self.row_splits
        # Compared, not subtracted: the difference of two hostile offsets may wrap around.
        if splits[0] != 0 or splits[-1] != num_tokens or np.any(splits[1:] < splits[:-1]):
            raise self._corrupt("its row_splits decrease or overrun")
        high, low = split_keys(self.keys)
        ascending = (high[:-1] < high[1:]) | ((high[:-1] == high[1:]) & (low[:-1] < low[1:]))
        if not ascending.all():
            raise self._corrupt("its keys do not ascend")

    def _corrupt(self, reason: str) -> CorruptShardError:
        return CorruptShardError(corrupt_message(self.path, reason))


def _map_arrays(path: Path, places: Mapping[str, DatasetPlace]) -> tuple[Arrays, MappedFile | None]:
    """Arrays over one memory map of the file, of all that can be mapped; none may be written to."""
    plain = {name: place for name, place in places.items() if place.offset is not None}
    offsets = [place.offset or 0 for place in plain.values() if place.num_bytes]
    mapped = map_file(path, first_offset=min(offsets, default=0))
    arrays: Arrays = {}
    for name, place in plain.items():
        if not place.num_bytes:
            arrays[name] = np.empty(place.shape, place.dtype)
        elif mapped is not None:
            array: NDArray[Any] = np.ndarray(
                place.shape, place.dtype, buffer=mapped.buffer, offset=place.offset or 0
            )
            array.flags.writeable = False
            arrays[name] = array
    return arrays, mapped


def _read_in_blocks(
    path: Path, places: Mapping[str, DatasetPlace], mapped: Arrays, checks: BlockChecks
) -> BlockRows | None:
    """The datasets that are not mapped; None if all are."""
    unmapped = {name: place for name, place in places.items() if name not in mapped}
    if not unmapped:
        return None
    source = ShardBytes(path, unmapped, block_bytes=BLOCK_BYTES)

    def load(name: str, block: int) -> NDArray[np.uint8]:
        start = block * BLOCK_BYTES
        with mapped_read_errors(path):
            stop = min(start + BLOCK_BYTES, unmapped[name].num_bytes)
            raw = source.read(name, start, stop)
        checks.check(name, block, raw)
        return raw

    return BlockRows(unmapped, load, block_bytes=BLOCK_BYTES)
