"""Features from NumPy's ``.npz``: all texts in one array, or an array a text.

Nothing is unpickled. What an array claims is compared with the archive's directory before it
is read, and ``values`` are read piece by piece.
"""

from __future__ import annotations

import itertools
import json
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import ExchangeError, StoreVersionError
from embedcache.exchange.damage import mapped_source_errors
from embedcache.exchange.sources import (
    FeatureSource,
    Layers,
    ShapeList,
    StoredDocuments,
    choose_layers,
)
from embedcache.keys import KEY_BYTES, Keys
from embedcache.ragged import RaggedArray
from embedcache.view import FeatureView

_POSITIONAL = "arr_"
"""What ``numpy.savez`` puts before the number of an array without a name."""
_ARCHIVE_ERRORS = (
    OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, OverflowError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_MAX_TEXTS = 1 << 28
_SKIP_BYTES = 1 << 20

Entry = tuple[tuple[int, ...], np.dtype[Any], bool]
"""Shape, dtype, and whether it lies column by column."""


class Archive:
    """An open ``.npz``; a context manager. Errors name the file."""

    def __init__(self, path: str) -> None:
        self.path = path
        with self.mapped():
            self._zip = zipfile.ZipFile(path)
        self._places = {
            place.filename.removesuffix(".npy"): place for place in self._zip.infolist()
        }

    @property
    def names(self) -> list[str]:
        """Of its arrays."""
        return list(self._places)

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[IO[bytes], Entry]]:
        """The stream of an array's numbers, and what its header says.

        Raises:
            ExchangeError: if the header claims another size than the archive.
        """
        place = self._places[name]
        with self._zip.open(place) as stream:
            version = np.lib.format.read_magic(stream)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read is None:
                raise ExchangeError(f"{self.path}: array {name!r} is of version {version}")
            shape, is_fortran, dtype = read(stream)
            num_bytes = math.prod(shape) * dtype.itemsize
            if dtype.hasobject or place.file_size - stream.tell() != num_bytes:
                raise ExchangeError(
                    f"{self.path}: array {name!r} claims {shape} {dtype}, which is not what the"
                    " file holds; write it again with numpy.savez"
                )
            yield stream, (shape, dtype, is_fortran)

    def shape_of(self, name: str) -> Entry:
        """What the header of an array says."""
        with self.open(name) as (_, entry):
            return entry

    def read(self, name: str, *, num_entries: int | None = None) -> NDArray[Any]:
        """A whole array.

        Args:
            name: Of the array.
            num_entries: How many entries it must have along its first axis.

        Raises:
            ExchangeError: if it has another number, or more than any file may have.
        """
        with self.open(name) as (stream, (shape, dtype, is_fortran)):
            found = shape[0] if shape else 1
            if found > _MAX_TEXTS or (num_entries is not None and shape[:1] != (num_entries,)):
                wanted = _MAX_TEXTS if num_entries is None else num_entries
                raise ExchangeError(
                    f"{self.path}: array {name!r} has {found} entries; expected {wanted}"
                )
            flat = np.frombuffer(_read_exactly(stream, math.prod(shape) * dtype.itemsize), dtype)
            return flat.reshape(shape, order="F" if is_fortran else "C")

    def mapped(self) -> AbstractContextManager[None]:
        """For reading it: what that raises becomes one line that names the file."""
        return mapped_source_errors(self.path, ".npz", _ARCHIVE_ERRORS)


def open_npz(path: str, *, layer: str | None) -> FeatureSource:
    """The features of an ``.npz`` file.

    Raises:
        ExchangeError: if it holds neither ``values`` and ``row_splits`` nor an array a text.
    """
    archive = Archive(path)
    try:
        with archive.mapped():
            if {"values", "row_splits"} <= set(archive.names):
                return PackedNpz(archive, layer=layer)
            return NumberedNpz(archive, layer=layer)
    except BaseException:
        archive.close()
        raise


class _NpzFeatures:
    """What both kinds have in common; a context manager that closes the archive."""

    is_tokenized = False
    is_stateful = False
    blanks_left_out: bool | None = None
    sentences: dict[str, int] | None = None
    documents: StoredDocuments | None = None
    exported_view: FeatureView | None = None

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._resources = ExitStack()
        self._resources.callback(archive.close)
        self.path = archive.path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._resources.close()


class PackedNpz(_NpzFeatures):
    """A `FeatureSource`: ``values`` (T, dim) and ``row_splits`` (n + 1,).

    What `embedcache.exchange.npz_writer` writes; ``keys`` and what else it has may be left out.
    """

    def __init__(self, archive: Archive, *, layer: str | None) -> None:
        super().__init__(archive)
        shape, dtype, is_fortran = archive.shape_of("values")
        if len(shape) != 2 or is_fortran:
            raise ExchangeError(
                f"{self.path}: array 'values' is {shape}, {'column' if is_fortran else 'row'} by"
                " row; it must be (tokens, dim), as numpy.ascontiguousarray makes it"
            )
        shapes = ShapeList(self.path, None)
        shapes.add(shape, dtype, "array 'values'")
        self.dtype = shapes.dtype
        self.layers: Layers = choose_layers(self.path, shape, layer)
        splits = _as_integers(archive, "row_splits")
        try:
            checked = RaggedArray(np.empty((shape[0], 0), np.float32), splits)
        except ValueError as error:
            raise ExchangeError(f"{self.path}: array 'row_splits': {error}") from error
        self.lengths = checked.lengths
        self._row_splits = splits
        self.documents = _read_documents(archive, len(self.lengths))
        self.exported_view = _read_view(archive, shape[1])
        self._stream: IO[bytes] | None = None
        self._next_row = 0

    def __enter__(self) -> PackedNpz:
        return self

    def read(self, first: int, last: int) -> NDArray[Any]:
        """The rows of texts [first, last), (T, width); ascending from call to call."""
        start, stop = self._row_splits[[first, last]].tolist()
        row_bytes = self.layers.width * self.dtype.itemsize
        with self._archive.mapped():
            if self._stream is None:
                opened = self._archive.open("values")
                self._stream, _ = self._resources.enter_context(opened)
            if start < self._next_row:
                raise ExchangeError(f"{self.path}: its texts can be read in their order only")
            _skip(self._stream, (start - self._next_row) * row_bytes)
            read = _read_exactly(self._stream, (stop - start) * row_bytes)
            self._next_row = stop
        return np.frombuffer(read, self.dtype).reshape(stop - start, self.layers.width)

    def name_of(self, text: int) -> str:
        """``text 3 of its row_splits``."""
        return f"text {text} of its row_splits"


class NumberedNpz(_NpzFeatures):
    """A `FeatureSource`: an array a text, ``"0"``, ``"1"``, … or ``"arr_0"``, … in their order."""

    def __init__(self, archive: Archive, *, layer: str | None) -> None:
        super().__init__(archive)
        names = set(archive.names)
        self._prefix = _POSITIONAL if f"{_POSITIONAL}0" in names else ""
        expected = [f"{self._prefix}{number}" for number in range(len(names))]
        if not names or names != set(expected):
            shown = ", ".join(map(repr, sorted(names)[:5])) or "nothing"
            missing = next((name for name in expected if name not in names), "0")
            raise ExchangeError(
                f"{self.path}: holds {shown}; expected values and row_splits, or one array a"
                f" line named by its number from 0 (there is no {missing!r})"
            )
        shapes = ShapeList(self.path, layer)
        for name in expected:
            shape, dtype, _ = archive.shape_of(name)
            shapes.add(shape, dtype, f"array {name!r}")
        self.lengths = np.array(shapes.lengths, np.int64)
        self.layers, self.dtype = shapes.layers, shapes.dtype

    def __enter__(self) -> NumberedNpz:
        return self

    def read(self, first: int, last: int) -> NDArray[Any]:
        """The rows of texts [first, last), (T, width)."""
        rows = np.empty((int(self.lengths[first:last].sum()), self.layers.width), self.dtype)
        start = 0
        with self._archive.mapped():
            for text in range(first, last):
                stop = start + int(self.lengths[text])
                array = self._archive.read(f"{self._prefix}{text}")
                rows[start:stop] = self.layers.rows_of(array)
                start = stop
        return rows

    def name_of(self, text: int) -> str:
        """``array 'arr_3'``."""
        return f"array '{self._prefix}{text}'"


def _read_exactly(stream: IO[bytes], num_bytes: int) -> bytes:
    found = stream.read(num_bytes) if num_bytes else b""
    if len(found) != num_bytes:
        raise EOFError("it ends too soon")
    return found


def _skip(stream: IO[bytes], num_bytes: int) -> None:
    while num_bytes > 0:
        num_bytes -= len(_read_exactly(stream, min(num_bytes, _SKIP_BYTES)))


def _as_integers(archive: Archive, name: str, num_entries: int | None = None) -> NDArray[np.int64]:
    array = archive.read(name, num_entries=num_entries)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ExchangeError(
            f"{archive.path}: array {name!r} is {array.shape} {array.dtype}; it must be one row of"
            " whole numbers"
        )
    return array.astype(np.int64)


def _read_documents(archive: Archive, num_texts: int) -> StoredDocuments | None:
    """What the file says of its documents; None where it has no keys."""
    names = set(archive.names)
    if "keys" not in names:
        return None
    truncated = np.zeros(num_texts, np.bool_)
    if "truncated" in names:
        truncated = archive.read("truncated", num_entries=num_texts).astype(np.bool_)
    labels = splits = ids = None
    if {"label_codes", "label_splits", "label_names"} <= names:
        labels = _read_labels(archive, num_texts)
    if {"split_codes", "split_names"} <= names:
        splits = _names_of_codes(archive, "split", num_texts)
        splits = splits if any(splits) else None
    if "ids" in names:
        ids = [str(name) for name in archive.read("ids", num_entries=num_texts).tolist()]
    keys = _read_keys(archive, num_texts)
    return StoredDocuments(keys, truncated, labels, splits, ids)


def _read_keys(archive: Archive, num_texts: int) -> Keys:
    """The keys as they are, or from 32 hexadecimal digits each."""
    found = archive.read("keys", num_entries=num_texts)
    if found.dtype == np.uint8 and found.shape == (num_texts, KEY_BYTES):
        return found
    if found.dtype.kind in "US" and found.shape == (num_texts,):
        joined = b"".join(found.astype(f"S{2 * KEY_BYTES}").tolist())
        raw = bytes.fromhex(joined.decode("ascii"))
        if len(raw) == num_texts * KEY_BYTES:
            return np.frombuffer(raw, np.uint8).reshape(-1, KEY_BYTES)
    raise ExchangeError(
        f"{archive.path}: array 'keys' is {found.shape} {found.dtype}; it must be (n,"
        f" {KEY_BYTES}) uint8, or (n,) texts of {2 * KEY_BYTES} hexadecimal digits"
    )


def _read_labels(archive: Archive, num_texts: int) -> list[tuple[str, ...]] | None:
    splits = _as_integers(archive, "label_splits", num_texts + 1)
    codes = _names_of_codes(archive, "label", None)
    if splits[0] != 0 or splits[-1] != len(codes) or np.any(splits[1:] < splits[:-1]):
        raise ExchangeError(f"{archive.path}: array 'label_splits' does not fit 'label_codes'")
    bounds = splits.tolist()
    if not codes:
        return None
    return [tuple(codes[start:stop]) for start, stop in itertools.pairwise(bounds)]


def _names_of_codes(archive: Archive, what: str, num_entries: int | None) -> list[str]:
    codes = _as_integers(archive, f"{what}_codes", num_entries)
    names = [str(name) for name in archive.read(f"{what}_names").tolist()]
    if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < len(names):
        raise ExchangeError(
            f"{archive.path}: array '{what}_codes' has numbers that '{what}_names' lacks"
        )
    return [names[code] for code in codes.tolist()]


def _read_view(archive: Archive, dim: int) -> FeatureView | None:
    """The view that an export was made from; None of a file that no export wrote."""
    if "metadata" not in archive.names:
        return None
    found = archive.read("metadata")
    if found.shape != () or found.dtype.kind != "U":
        return None
    try:
        record = json.loads(str(found))
        view = FeatureView.from_json(json.dumps(record["view"]))
    except StoreVersionError as error:
        raise ExchangeError(f"{archive.path}: {error}") from error
    except (ValueError, KeyError, TypeError):
        return None
    if view.dim != dim:
        raise ExchangeError(
            f"{archive.path}: its view is of dim {view.dim}, its values of {dim}; export it again"
        )
    return view
