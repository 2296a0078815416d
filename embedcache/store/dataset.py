"""A registered corpus at rest: ordered keys, labels and splits, as plain ``.npy`` files.

One folder a version, named by its content. The files are written as the corpus streams
by, so that registering takes the same memory for any corpus, and read by memory map.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import CorpusError, CorruptShardError
from embedcache.keys import KEY_BYTES, Keys, split_keys
from embedcache.store.publish import (
    FILE_MODE,
    FOLDER_MODE,
    make_folder,
    mapped_os_errors,
    one_line,
    sync_folder,
)

NO_SPLIT = ""
_HEADER_BYTES = 128
_UNIQUE_PASS_KEYS = 1 << 19
_RECORD = "dataset.json"
_MAX_SPLITS = 256
_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "keys": ("|u1", (KEY_BYTES,)),
    "label_codes": ("<i4", ()),
    "label_splits": ("<i8", ()),
    "split_codes": ("|u1", ()),
    "ids": ("|u1", ()),
}
"""Dtype and shape of an entry of each file, in the order of the record's digests."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A version of a registered corpus.

    Attributes:
        name: What it is called.
        version: 32 hexadecimal digits: the digest of keys, labels, splits and ids in order.
        keys: Key of each document, (n, 16); memory-mapped.
        label_codes: Labels of all documents one after the other, (m,) int32, each a place
            in `label_names`.
        label_splits: Shape (n + 1,), int64: document i has
            ``label_codes[label_splits[i]:label_splits[i + 1]]``; none if it is unlabelled.
        label_names: The labels in sorted order.
        split_codes: Split of each document, (n,) uint8, a place in `split_names`.
        split_names: The splits in the order of the corpus; ``("",)`` if it has none.
    """

    name: str
    version: str
    keys: Keys
    label_codes: NDArray[np.int32]
    label_splits: NDArray[np.int64]
    label_names: tuple[str, ...]
    split_codes: NDArray[np.uint8]
    split_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def rows_of_split(self, split: str | None) -> NDArray[np.int64]:
        """The documents of a split in corpus order; all of them for None."""
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        if split not in self.split_names:
            return np.zeros(0, np.int64)
        return np.flatnonzero(self.split_codes == self.split_names.index(split))

    @property
    def num_labels(self) -> NDArray[np.int64]:
        """How many labels each document has, (n,)."""
        return np.diff(self.label_splits)

    def count_splits(self) -> dict[str, int]:
        """Documents of each split; empty if the corpus has no splits."""
        counts = np.bincount(self.split_codes, minlength=len(self.split_names)).tolist()
        return {name: count for name, count in zip(self.split_names, counts, strict=True) if name}

    def count_labels(self) -> dict[str, int]:
        """Documents of each label; empty if the corpus has none."""
        counts = np.bincount(self.label_codes, minlength=len(self.label_names)).tolist()
        return dict(zip(self.label_names, counts, strict=True))

    def first_labels(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """The first label of each document, (len(rows),) int32; -1 where there is none."""
        labels = np.full(len(rows), -1, np.int32)
        labelled = self.num_labels[rows] > 0
        labels[labelled] = self.label_codes[self.label_splits[rows[labelled]]]
        return labels


class _Column:
    """A ``.npy`` file of one column, written piece by piece."""

    def __init__(self, folder: Path, name: str) -> None:
        self._dtype, self._shape = _COLUMNS[name]
        self._file: BinaryIO = open(  # noqa: SIM115 - `close` and `abandon` close it
            folder / f"{name}.npy", "xb", opener=_open_private
        )
        self._file.write(b"\0" * _HEADER_BYTES)
        self.length = 0
        self.digest = blake2b(digest_size=16)

    def add(self, values: Any) -> None:
        array = np.ascontiguousarray(values, self._dtype)
        raw = array.tobytes()
        self._file.write(raw)
        self.digest.update(raw)
        self.length += len(array)

    def flush(self) -> None:
        """Hand over to the system what waits in the file's buffer."""
        self._file.flush()

    def close(self) -> None:
        """Write the header, now that the length is known, and force the file to the device."""
        self._file.seek(0)
        self._file.write(_npy_header(self._dtype, (self.length, *self._shape)))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close the file. What waits in its buffer may find no space: it is not wanted."""
        with suppress(OSError):
            self._file.close()


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, FILE_MODE)


def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The header of a ``.npy`` file, version 1.0, of `_HEADER_BYTES` whatever the shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    header = text.ljust(_HEADER_BYTES - 11).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


class DatasetWriter:
    """Writes a dataset version as its documents stream by; a context manager.

    Leaving it without `publish` leaves nothing behind.
    """

    def __init__(self, tmp_folder: Path) -> None:
        self._folder = tmp_folder / uuid.uuid4().hex
        self._label_codes: dict[str, int] = {}
        self._split_codes: dict[str, int] = {}
        self._num_labels = 0
        self._columns: dict[str, _Column] = {}

    def __enter__(self) -> DatasetWriter:
        make_folder(self._folder.parent)
        try:
            with mapped_os_errors(self._folder):
                self._folder.mkdir(mode=FOLDER_MODE)
                for name in _COLUMNS:
                    self._columns[name] = _Column(self._folder, name)
                self._columns["label_splits"].add([0])
        except BaseException:
            self._abandon()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._abandon()

    def _abandon(self) -> None:
        for column in self._columns.values():
            column.abandon()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(
        self,
        keys: Keys,
        labels: Sequence[tuple[str, ...]] | None,
        splits: Sequence[str] | None,
        ids: Sequence[str] | None,
    ) -> None:
        """Add documents.

        Args:
            keys: Shape (n, 16).
            labels: The labels of each, or None if the corpus has none.
            splits: The split of each, or None.
            ids: The corpus's own id of each, or None.

        Raises:
            CorpusError: if there are more than 256 splits.
            StoreError: if the device refuses.
        """
        split_codes = self._codes_of_splits(splits, len(keys))
        with mapped_os_errors(self._folder):
            self._columns["keys"].add(keys)
            # Before these keys are looked up: `gc` spares what it finds in here.
            self._columns["keys"].flush()
            self._add_labels(labels, len(keys))
            self._columns["split_codes"].add(split_codes)
            if ids is not None:
                lines = "".join(json.dumps(name) + "\n" for name in ids)
                self._columns["ids"].add(np.frombuffer(lines.encode(), np.uint8))

    def _codes_of_splits(self, splits: Sequence[str] | None, num_texts: int) -> NDArray[np.uint8]:
        codes = self._split_codes
        names = [NO_SPLIT] if splits is None else splits
        # Nearly always the same for the whole batch: `count` is a loop in C.
        is_same = splits is None or (names and names.count(names[0]) == num_texts)
        found = [codes.setdefault(name, len(codes)) for name in (names[:1] if is_same else names)]
        if len(codes) > _MAX_SPLITS:
            raise CorpusError(
                f"the corpus has more than {_MAX_SPLITS} splits (one is {names[-1][:40]!r}); name"
                " the field that holds them with --split-field"
            )
        return np.full(num_texts, found[0] if is_same else found, np.uint8)

    def _add_labels(self, labels: Sequence[tuple[str, ...]] | None, num_texts: int) -> None:
        if labels is None:
            self._columns["label_splits"].add(np.full(num_texts, self._num_labels))
            return
        codes = self._label_codes
        flat = [codes.setdefault(name, len(codes)) for names in labels for name in names]
        self._columns["label_codes"].add(flat)
        lengths = np.fromiter(map(len, labels), np.int64, len(labels))
        self._columns["label_splits"].add(np.cumsum(lengths) + self._num_labels)
        self._num_labels += len(flat)

    def __len__(self) -> int:
        return self._columns["keys"].length

    def finish(self) -> tuple[str, int]:
        """Complete the files.

        Returns:
            The version, and the number of distinct texts.

        Raises:
            StoreError: if the device refuses.
        """
        record = {
            "labels": list(self._label_codes),
            "splits": list(self._split_codes) or [NO_SPLIT],
            "columns": [column.digest.hexdigest() for column in self._columns.values()],
        }
        text = json.dumps(record, sort_keys=True).encode()
        with mapped_os_errors(self._folder):
            for column in self._columns.values():
                column.close()
            with open(self._folder / _RECORD, "xb", opener=_open_private) as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            num_unique = count_unique(_map_column(self._folder, "keys"))
        return blake2b(text, digest_size=16).hexdigest(), num_unique

    def publish(self, target: Path) -> None:
        """Move the finished files to their place; fine if that version is there and whole.

        Raises:
            StoreError: if the device refuses.
        """
        make_folder(target.parent)
        if target.exists() and not is_whole(target):
            with mapped_os_errors(target):
                damaged = self._folder.with_name(uuid.uuid4().hex)
                target.rename(damaged)
                shutil.rmtree(damaged, ignore_errors=True)
        with mapped_os_errors(target):
            sync_folder(self._folder)
            if not target.exists():
                try:
                    self._folder.rename(target)
                except OSError:
                    # Another process published the same version in between.
                    if not target.is_dir():
                        raise
            sync_folder(target.parent)


def is_whole(folder: Path) -> bool:
    """Whether a folder holds the dataset version that it is named by; it is read once."""
    try:
        load_dataset("", folder.name, folder)
    except CorruptShardError:
        return False
    return True


def load_dataset(name: str, version: str, folder: Path) -> Dataset:
    """Map a dataset version. Its files are read once, to compare their digests.

    Raises:
        CorruptShardError: if its files are missing or not what was written.
    """
    try:
        text = (folder / _RECORD).read_bytes()
        if blake2b(text, digest_size=16).hexdigest() != version:
            raise _damaged(folder, f"{_RECORD} is not what was written")
        record = json.loads(text)
        columns = {column: _map_column(folder, column) for column in _COLUMNS}
    except (OSError, ValueError) as error:
        raise _damaged(folder, one_line(error)) from error
    for column, digest in zip(_COLUMNS, record["columns"], strict=True):
        if blake2b(columns[column].data, digest_size=16).hexdigest() != digest:
            raise _damaged(folder, f"{column}.npy is not what was written")
    names: list[str] = record["labels"]
    order = sorted(range(len(names)), key=names.__getitem__)
    place = np.empty(len(names), np.int32)
    place[order] = np.arange(len(names), dtype=np.int32)
    return Dataset(
        name=name,
        version=version,
        keys=columns["keys"],
        label_codes=place[columns["label_codes"]] if names else np.zeros(0, np.int32),
        label_splits=columns["label_splits"],
        label_names=tuple(names[position] for position in order),
        split_codes=columns["split_codes"],
        split_names=tuple(record["splits"]),
    )


def _map_column(folder: Path, name: str) -> NDArray[Any]:
    """A column's array over a read-only memory map.

    Raises:
        ValueError: if the file is not the one that `_Column` writes for its size.
    """
    dtype, shape = _COLUMNS[name]
    with (folder / f"{name}.npy").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    entry_bytes = np.dtype(dtype).itemsize * (shape[0] if shape else 1)
    length, rest = divmod(len(mapped) - _HEADER_BYTES, entry_bytes)
    whole = (length, *shape)
    if length < 0 or rest or mapped[:_HEADER_BYTES] != _npy_header(dtype, whole):
        raise ValueError(f"{name}.npy has been cut short or changed")
    return np.ndarray(whole, dtype, buffer=mapped, offset=_HEADER_BYTES)


def _damaged(folder: Path, reason: str) -> CorruptShardError:
    return CorruptShardError(
        f"{folder}: the dataset is missing or damaged ({reason}); run the same `embedcache build`"
        " again"
    )


def count_unique(keys: Keys) -> int:
    """How many distinct keys there are, in bounded memory: by ranges of their first byte."""
    num_passes = min(256, max(1, -(-len(keys) // _UNIQUE_PASS_KEYS)))
    bounds = np.linspace(0, 256, num_passes + 1).astype(int)
    total = 0
    for low, high in itertools.pairwise(bounds.tolist()):
        chosen = [
            block[(block[:, 0] >= low) & (block[:, 0] < high)]
            for block in _blocks(keys, _UNIQUE_PASS_KEYS)
        ]
        total += _count_unique_in_memory(np.concatenate(chosen)) if chosen else 0
    return total


def _count_unique_in_memory(keys: Keys) -> int:
    high, low = split_keys(keys)
    # Sorted alone, not as an order of the keys: NumPy is several times faster at that, and
    # most keys differ in their first half already.
    ordered = np.sort(high)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated) == 0:
        return len(keys)
    places = np.searchsorted(repeated, high)
    places[places == len(repeated)] = 0
    is_repeated = repeated[places] == high
    high, low = high[is_repeated], low[is_repeated]
    order = np.lexsort((low, high))
    high, low = high[order], low[order]
    again = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    return len(keys) - int(np.count_nonzero(again))


def _blocks(keys: Keys, size: int) -> list[Keys]:
    return [keys[start : start + size] for start in range(0, len(keys), size)]
