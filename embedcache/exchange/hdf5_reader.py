"""Features from HDF5 with one dataset a text, as AllenNLP's ``elmo`` and bilm-tf wrote it.

=========  ==============================================  =================================
           AllenNLP, ``allennlp elmo IN OUT --all``        bilm-tf, ``dump_bilm_embeddings``
=========  ==============================================  =================================
name       number of the line from 0, ``"0"``, ``"1"``, …  the same
shape      (3, T, 1024); (T, 1024) with ``--top`` or        (layers, T, dim)
           ``--average``
dtype      float32                                         float32
tokens     ``line.strip().split()``; begin and end of the  the same
           sentence are taken off
blank      refused by the command                          a dataset of no tokens
line
texts      ``sentence_to_index``: one string, the JSON of  none
           sentence → name of its last dataset; not with
           ``--forget-sentences``
=========  ==============================================  =================================

Such a file may come from anyone and claim anything: links, virtual and external datasets and
filters are refused, and sizes looked at, before any number is read.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from embedcache.errors import ExchangeError
from embedcache.exchange.damage import mapped_source_errors
from embedcache.exchange.sources import ShapeList, StoredDocuments
from embedcache.view import FeatureView

SENTENCES_NAME = "sentence_to_index"

_HDF5_ERRORS = (
    OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, AttributeError,
)  # fmt: skip
"""RecursionError, of deep JSON, is a RuntimeError."""


class Hdf5Features:
    """A `FeatureSource` of one dataset a text; a context manager.

    Args:
        path: The file.
        layer: See `choose_layers`.
        blanks_left_out: See `FeatureSource`.

    Raises:
        ExchangeError: if the file is not of this kind, or claims what it does not have.
    """

    is_tokenized = True
    is_stateful = True
    documents: StoredDocuments | None = None
    exported_view: FeatureView | None = None

    def __init__(self, path: str, *, layer: str | None, blanks_left_out: bool | None) -> None:
        self.path = path
        self.blanks_left_out = blanks_left_out
        with self._mapped():
            self._file = h5py.File(path, "r", locking=False)
        try:
            with self._mapped():
                shapes = self._check_datasets(layer)
                self.sentences = self._read_sentences()
            self.lengths = np.array(shapes.lengths, np.int64)
            self.layers, self.dtype = shapes.layers, shapes.dtype
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Hdf5Features:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def read(self, first: int, last: int) -> NDArray[Any]:
        """The rows of texts [first, last), (T, width)."""
        num_rows = int(self.lengths[first:last].sum())
        rows = np.empty((num_rows, self.layers.width), self.dtype)
        start = 0
        with self._mapped():
            for text in range(first, last):
                stop = start + int(self.lengths[text])
                if stop > start:
                    rows[start:stop] = self._read_one(text)
                start = stop
        return rows

    def name_of(self, text: int) -> str:
        """``dataset '3'``."""
        return f"dataset '{text}'"

    def _read_one(self, text: int) -> NDArray[Any]:
        dataset, layers = self._file[str(text)], self.layers
        if layers.chosen is not None:
            return np.asarray(dataset[layers.chosen])
        return layers.rows_of(dataset[()])

    def _check_datasets(self, layer: str | None) -> ShapeList:
        names = set(self._file) - {SENTENCES_NAME}
        for name in sorted(names):
            if not (name.isascii() and name.isdecimal() and str(int(name)) == name):
                raise ExchangeError(
                    f"{self.path}: holds {name[:60]!r}, which is not the number of a line; only"
                    " files with a dataset '0', '1', … for each line can be imported (elmo"
                    " without --use-sentence-keys)"
                )
        missing = next((n for n in range(len(names)) if str(n) not in names), None)
        if missing is not None:
            raise ExchangeError(
                f"{self.path}: dataset '{missing}' is missing, though there are {len(names)} up"
                f" to '{max(map(int, names))}'; the line that it belongs to cannot be told"
            )
        shapes, num_file_bytes = ShapeList(self.path, layer), os.path.getsize(self.path)
        for number in range(len(names)):
            dataset = self._plain_dataset(str(number), num_file_bytes)
            shapes.add(dataset.shape, dataset.dtype, self.name_of(number))
        return shapes

    def _plain_dataset(self, name: str, num_file_bytes: int) -> Any:
        """A dataset that lies in this file as it is, and not beyond its end."""
        where = f"{self.path}: dataset {name!r}"
        if not isinstance(self._file.get(name, getlink=True), h5py.HardLink):
            raise ExchangeError(f"{where} is a link; only datasets in the file itself are read")
        dataset = self._file[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
            raise ExchangeError(f"{where} is no array; only datasets of numbers are read")
        plist = dataset.id.get_create_plist()
        is_plain = plist.get_layout() == h5py.h5d.CONTIGUOUS and not plist.get_nfilters()
        if not is_plain or plist.get_external_count():
            raise ExchangeError(
                f"{where} is not stored plainly; `h5repack -l CONTI -f NONE` writes a file of"
                " plain datasets"
            )
        num_bytes = math.prod(dataset.shape) * dataset.dtype.itemsize
        offset = dataset.id.get_offset()
        if num_bytes and (offset is None or offset + num_bytes > num_file_bytes):
            raise ExchangeError(
                f"{where} claims {num_bytes} bytes that the file does not have; it was cut short"
                " or never finished"
            )
        return dataset

    def _read_sentences(self) -> dict[str, int] | None:
        if SENTENCES_NAME not in self._file:
            return None
        where = f"{self.path}: {SENTENCES_NAME}"
        if not isinstance(self._file.get(SENTENCES_NAME, getlink=True), h5py.HardLink):
            raise ExchangeError(f"{where} is a link; only datasets in the file itself are read")
        dataset = self._file[SENTENCES_NAME]
        is_text = isinstance(dataset, h5py.Dataset) and h5py.check_string_dtype(dataset.dtype)
        plain = is_text and dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
        if not plain or dataset.shape != (1,) or dataset.id.get_create_plist().get_external_count():
            raise ExchangeError(f"{where} is not the one string that AllenNLP writes")
        found = json.loads(dataset[0])
        return {str(sentence): int(number) for sentence, number in found.items()}

    def _mapped(self) -> AbstractContextManager[None]:
        return mapped_source_errors(self.path, "HDF5", _HDF5_ERRORS)
