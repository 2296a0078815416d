"""The reader of a whole corpus, and how it tells the format of a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from embedcache.corpus.documents import DocumentBatch
from embedcache.corpus.files import size_of_source
from embedcache.corpus.jsonl import iter_json
from embedcache.corpus.lines import BLOCK_BYTES, LineReader
from embedcache.corpus.messages import corpus_error, quoted
from embedcache.corpus.plain import LABEL_PREFIX, iter_fasttext, iter_lines
from embedcache.corpus.sources import FORMATS, CorpusOptions, Source, require_agreement
from embedcache.corpus.table import iter_table

_FORMAT_OF_EXTENSION = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_DEFAULT_OPTIONS = CorpusOptions()


class CorpusReader:
    """The documents of a corpus, in the order of its sources and of their lines.

    Each iteration reads the files again, in one pass. Not for several threads at once.

    Args:
        sources: The files, as `parse_sources` or `sources_of` gives them.
        options: How to read them.
        batch_documents: Most documents in one batch. A batch never spans two sources.

    Attributes:
        bytes_read: Bytes read so far in this iteration, as they lie on disk (of a gzip file:
            compressed).
        digests: The hexadecimal xxh3_128 of each file's bytes as they lie on disk, by path;
            there once a source is finished.

    Raises:
        CorpusError: in the constructor, if the sources do not agree with each other or with
            the options; in iteration, for anything that cannot be read: see the module.
        ValueError: for `batch_documents` below 1.
    """

    bytes_read: int
    digests: dict[str, str]

    def __init__(
        self,
        sources: Sequence[Source],
        options: CorpusOptions = _DEFAULT_OPTIONS,
        *,
        batch_documents: int = 4096,
        _block_bytes: int = BLOCK_BYTES,
    ) -> None:
        if batch_documents < 1:
            raise ValueError(f"batch_documents must be at least 1: got {batch_documents}")
        self._sources = require_agreement(list(sources))
        for source in self._sources:
            if source.split is not None and options.split_field is not None:
                raise corpus_error(
                    source.path,
                    None,
                    f"the source names the split {source.split}, and --split-field"
                    f" {quoted(options.split_field)} another",
                    "give one of the two",
                )
        self._options = options
        self._batch_documents = batch_documents
        self._block_bytes = _block_bytes
        self.bytes_read = 0
        self.digests = {}

    @property
    def bytes_total(self) -> int | None:
        """The sizes of all files on disk together; None with standard input or a pipe.

        Raises:
            CorpusError: if a file is not there or cannot be read.
        """
        sizes = [size_of_source(source.path) for source in self._sources]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    def __iter__(self) -> Iterator[DocumentBatch]:
        for source in self._sources:
            size_of_source(source.path)  # all, before the first is read
        self.bytes_read = 0
        self.digests = {}
        for source in self._sources:
            yield from self._iter_source(source)

    def _iter_source(self, source: Source) -> Iterator[DocumentBatch]:
        num_documents = 0
        with LineReader(
            source.path,
            max_line_bytes=self._options.max_text_bytes,
            encoding_errors=self._options.encoding_errors,
            block_bytes=self._block_bytes,
            on_read=self._count_bytes,
        ) as reader:
            for batch in self._iter_batches(source, reader):
                num_documents += len(batch.texts)
                yield batch
            if not num_documents:
                raise corpus_error(
                    source.path, None, "the file holds no documents", "leave it out or fill it"
                )
            self.digests[source.path] = reader.digest

    def _iter_batches(self, source: Source, reader: LineReader) -> Iterator[DocumentBatch]:
        options, max_documents = self._options, self._batch_documents
        file_format = options.format or _format_of(source.path, reader.head)
        if file_format == "jsonl":
            return iter_json(source, reader, options, max_documents)
        if file_format in ("csv", "tsv", "tsv-raw"):
            return iter_table(source, reader, options, file_format, max_documents)
        _require_no_fields(source, options, file_format)
        if file_format == "fasttext":
            return iter_fasttext(source, reader, max_documents)
        return iter_lines(source, reader, max_documents)

    def _count_bytes(self, num_bytes: int) -> None:
        self.bytes_read += num_bytes


def _format_of(path: str, head: bytes) -> str:
    stem, extension = os.path.splitext(path.lower())
    if extension == ".gz":
        extension = os.path.splitext(stem)[1]
    if extension in _FORMAT_OF_EXTENSION:
        return _FORMAT_OF_EXTENSION[extension]
    start = head.lstrip(b"\r\n")
    if start.startswith(LABEL_PREFIX):
        return "fasttext"
    return "jsonl" if extension != ".txt" and start.startswith(b"{") else "txt"


def _require_no_fields(source: Source, options: CorpusOptions, file_format: str) -> None:
    for role in ("text", "label", "split", "id"):
        if getattr(options, f"{role}_field") is not None:
            raise corpus_error(
                source.path,
                None,
                f"--{role}-field is given, but the file is read as {file_format}, which has no"
                " fields",
                f"leave it out, or name another --format: {', '.join(FORMATS[2:])}",
            )
