"""txt and fastText: a document is a line."""

from __future__ import annotations

from collections.abc import Iterator

from embedcache.corpus.documents import DocumentBatch, LabelMemo, LineNumbers, repeated
from embedcache.corpus.lines import LineReader
from embedcache.corpus.messages import corpus_error
from embedcache.corpus.sources import Source

LABEL_PREFIX = b"__label__"


def iter_lines(source: Source, reader: LineReader, max_documents: int) -> Iterator[DocumentBatch]:
    """The documents of a txt file: its lines as they are."""
    for chunk in reader.iter_chunks(max_documents):
        num_lines = len(chunk.lines)
        lines = range(chunk.first_line, chunk.first_line + num_lines)
        splits = repeated(source.split, num_lines)
        yield DocumentBatch(source, chunk.lines, None, splits, None, lines)


def iter_fasttext(
    source: Source, reader: LineReader, max_documents: int
) -> Iterator[DocumentBatch]:
    """The documents of a fastText file."""
    known = LabelMemo(_labels_of_prefix)
    for chunk in reader.iter_chunks(max_documents):
        lines: LineNumbers = range(chunk.first_line, chunk.first_line + len(chunk.lines))
        records = chunk.lines
        if b"" in records:
            lines = [number for number, line in zip(lines, records, strict=True) if line]
            records = [line for line in records if line]
        if not records:
            continue
        labels: list[tuple[str, ...]] = []
        texts: list[bytes] = []
        for number, line in zip(lines, records, strict=True):
            prefix, _, text = line.partition(b" ")
            try:
                found = known[prefix]
                while text.startswith(LABEL_PREFIX):
                    prefix, _, text = text.partition(b" ")
                    found += known[prefix]
            except ValueError as error:
                raise corpus_error(
                    source.path,
                    number,
                    str(error),
                    "begin the line with __label__NAME and one space, or read the file with"
                    " --format txt",
                ) from None
            labels.append(found)
            texts.append(text)
        splits = repeated(source.split, len(texts))
        yield DocumentBatch(source, texts, labels, splits, None, lines)


def _labels_of_prefix(prefix: bytes) -> tuple[str, ...]:
    name = prefix.removeprefix(LABEL_PREFIX)
    if not prefix.startswith(LABEL_PREFIX):
        raise ValueError("no label: the line does not begin with __label__")
    if not name:
        raise ValueError("a label has no name")
    if b"\t" in name:
        raise ValueError("a tab follows a label")
    return (name.decode(),)
