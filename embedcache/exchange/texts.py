"""The text file that features were made from: its keys, and which matrix is whose."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedcache.corpus import CorpusOptions, CorpusReader, DocumentBatch, Source
from embedcache.errors import ExchangeError
from embedcache.exchange.sources import FeatureSource
from embedcache.keys import Keys, keys_of_utf8
from embedcache.store.dataset import DatasetWriter

NO_MATRIX = -1
_BATCH_DOCUMENTS = 4096


@dataclass(frozen=True, slots=True)
class Documents:
    """The documents of an import, in the order of the corpus.

    Attributes:
        keys: Of each, (n, 16).
        matrices: The number of each one's matrix in the source, (n,) int64, ascending;
            `NO_MATRIX` for a blank line that the source has none of.
        truncated: Whether each was cut, (n,) bool.
        places: Where each begins, for errors.
    """

    keys: Keys
    matrices: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    places: Places

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def num_blank(self) -> int:
        """Blank lines that the source has no matrix of."""
        return int(np.count_nonzero(self.matrices == NO_MATRIX))


@dataclass(frozen=True, slots=True)
class Places:
    """Where documents begin: ``file:line``.

    Attributes:
        paths: The files.
        starts: The first document of each file, ascending.
        lines: The line of each document, (n,); empty where there is no text file.
    """

    paths: Sequence[str]
    starts: Sequence[int]
    lines: NDArray[np.int64]

    def of(self, document: int) -> str:
        """The place of a document, counted from 0."""
        if not len(self.lines):
            return f"text {document}"
        path = self.paths[bisect.bisect_right(self.starts, document) - 1]
        return f"{path}:{self.lines[document]}"


def documents_of_keys(source: FeatureSource, writer: DatasetWriter) -> Documents:
    """The documents of a file that tells their keys itself; they are added to the dataset.

    Raises:
        ExchangeError: if it does not tell them.
    """
    stored = source.documents
    if stored is None:
        raise ExchangeError(
            f"{source.path}: does not tell which texts its features are of; name the text file"
            " with --texts"
        )
    for first in range(0, len(stored.keys), _BATCH_DOCUMENTS):
        part = slice(first, first + _BATCH_DOCUMENTS)
        writer.add(
            stored.keys[part],
            None if stored.labels is None else stored.labels[part],
            None if stored.splits is None else stored.splits[part],
            None if stored.ids is None else stored.ids[part],
        )
    matrices = np.arange(len(stored.keys), dtype=np.int64)
    return Documents(stored.keys, matrices, stored.truncated, Places((), (), np.zeros(0, np.int64)))


class TextReader:
    """Reads the text file of an import.

    Args:
        source: The features.
        sources: The text files.
        options: How they are read.
    """

    def __init__(
        self, source: FeatureSource, sources: Sequence[Source], options: CorpusOptions
    ) -> None:
        self._source = source
        self._corpus = CorpusReader(sources, options, batch_documents=_BATCH_DOCUMENTS)
        self._paths: list[str] = []
        self._starts: list[int] = []
        self._num_documents = 0
        self._num_not_blank = 0

    @property
    def digests(self) -> dict[str, str]:
        """Of the text files, once they are read."""
        return self._corpus.digests

    def read(self, writer: DatasetWriter) -> Documents:
        """Read all of it, adding the documents to a dataset, and see that it fits the features.

        Raises:
            CorpusError: if it cannot be read.
            ExchangeError: if it is not the text file of these features.
        """
        keys, lines, num_tokens = [], [], []
        for batch in self._corpus:
            self._note_place(batch)
            keys.append(keys_of_utf8(batch.texts))
            lines.append(np.array(batch.lines, np.int64))
            num_tokens.append(self._count_tokens(batch))
            writer.add(keys[-1], batch.labels, batch.splits, batch.ids)
            self._num_documents += len(batch.texts)
        places = Places(self._paths, self._starts, np.concatenate(lines))
        counts = np.concatenate(num_tokens)
        matrices = self._match(counts)
        if self._source.is_tokenized:
            self._require_lengths(matrices, counts, places)
        documents = Documents(
            np.concatenate(keys), matrices, np.zeros(len(counts), np.bool_), places
        )
        self._require_keys(documents)
        return documents

    def _note_place(self, batch: DocumentBatch) -> None:
        if not self._paths or self._paths[-1] != batch.source.path:
            self._paths.append(batch.source.path)
            self._starts.append(self._num_documents)

    def _count_tokens(self, batch: DocumentBatch) -> NDArray[np.int64]:
        """Tokens of each text as AllenNLP and bilm-tf count them: by Python's ``str.split``."""
        texts = [text.decode() for text in batch.texts]
        counts = [len(text.split()) for text in texts]
        if self._source.sentences is not None:
            for text, line, count in zip(texts, batch.lines, counts, strict=True):
                if count:
                    place = f"{batch.source.path}:{line}"
                    self._require_sentence(self._source.sentences, text.strip(), place)
                    self._num_not_blank += 1
        return np.array(counts, np.int64)

    def _require_sentence(self, sentences: dict[str, int], sentence: str, place: str) -> None:
        """The sentence must be one of the file's, at this line or, if it comes again, later."""
        number = sentences.get(sentence)
        if number is None or number < self._num_not_blank:
            told = "is none of" if number is None else f"is dataset '{number}' by"
            raise ExchangeError(
                f"{place}: its text {told} the sentences of {self._source.path}; name the very"
                " file that was embedded with --texts"
            )

    def _match(self, num_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which matrix each document has, (n,)."""
        source = self._source
        num_matrices, num_texts = len(source.lengths), len(num_tokens)
        is_blank = num_tokens == 0
        num_full = num_texts - int(np.count_nonzero(is_blank))
        if num_matrices == num_texts and (source.blanks_left_out is not True or not is_blank.any()):
            return np.arange(num_texts, dtype=np.int64)
        if source.is_tokenized and source.blanks_left_out is not False and num_matrices == num_full:
            return np.where(is_blank, NO_MATRIX, np.cumsum(~is_blank) - 1)
        blank = f" ({num_texts - num_full} of them blank)" if num_full != num_texts else ""
        raise ExchangeError(
            f"{source.path}: holds features of {num_matrices} texts, but {self._paths[0]} has"
            f" {num_texts}{blank}; name the very file that was embedded with --texts"
        )

    def _require_lengths(
        self, matrices: NDArray[np.int64], num_tokens: NDArray[np.int64], places: Places
    ) -> None:
        lengths = np.where(matrices == NO_MATRIX, 0, self._source.lengths[matrices])
        wrong = np.flatnonzero(lengths != num_tokens)
        if len(wrong):
            first = int(wrong[0])
            name = self._source.name_of(int(matrices[first]))
            raise ExchangeError(
                f"{self._source.path}: {name} has {lengths[first]} tokens, but"
                f" {places.of(first)} has {num_tokens[first]} between its spaces (so have"
                f" {len(wrong)} lines in all); name the very file that was embedded with --texts"
            )

    def _require_keys(self, documents: Documents) -> None:
        """Where the features' file tells the keys too, they must be these."""
        stored = self._source.documents
        if stored is None:
            return
        wrong = np.flatnonzero((stored.keys != documents.keys).any(axis=1))
        if len(wrong):
            raise ExchangeError(
                f"{documents.places.of(int(wrong[0]))}: is not the text whose key"
                f" {self._source.path} tells; name the very file that was embedded, or leave"
                " --texts out"
            )
        documents.truncated[:] = stored.truncated
