"""csv and tsv: a document is a row of a table."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Literal

from embedcache.corpus.documents import (
    DocumentBatch,
    LabelMemo,
    LineNumbers,
    choose_fields,
    repeated,
    splits_of_names,
)
from embedcache.corpus.lines import LineChunk, LineReader
from embedcache.corpus.messages import corpus_error
from embedcache.corpus.sources import CorpusOptions, Source
from embedcache.errors import CorpusError

Delimiter = Literal[",", "\t"]


def iter_table(
    source: Source,
    reader: LineReader,
    options: CorpusOptions,
    file_format: str,
    max_documents: int,
) -> Iterator[DocumentBatch]:
    """The documents of a csv, tsv or tsv-raw file."""
    delimiter: Delimiter = "," if file_format == "csv" else "\t"
    quoting = file_format != "tsv-raw"
    table = TableReader(reader, delimiter, quoting=quoting, max_rows=max_documents)
    first_row = table.read_header()
    if first_row is None:
        return
    header, header_line = first_row
    fields = choose_fields(source, options, header, header_line, "column")
    known = LabelMemo(_labels_of_cell)
    for rows in table.iter_rows():
        labels = splits = ids = None
        if fields.label is not None:
            labels = [known[cell] for cell in rows.column(header.index(fields.label))]
        if fields.split is not None:
            names = list(map(bytes.decode, rows.column(header.index(fields.split))))
            splits = splits_of_names(source, names, rows.lines)
        if fields.id is not None:
            ids = list(map(bytes.decode, rows.column(header.index(fields.id))))
        texts = rows.column(header.index(fields.text))
        splits = splits or repeated(source.split, len(texts))
        yield DocumentBatch(source, texts, labels, splits, ids, rows.lines)


def _labels_of_cell(cell: bytes) -> tuple[str, ...]:
    return (cell.decode(),) if cell else ()


@dataclass(frozen=True, slots=True)
class TableRows:
    """Successive rows of a table, all as wide as its header.

    Attributes:
        lines: The line where each row starts.
        cells: Of unquoted rows: every cell, row after row.
        rows: Of quoted rows: the cells of each.
    """

    num_columns: int
    lines: LineNumbers
    cells: list[bytes]
    rows: list[list[str]]

    def column(self, position: int) -> list[bytes]:
        """The cells of one column, as UTF-8."""
        if self.rows:
            return [row[position].encode() for row in self.rows]
        return self.cells[position :: self.num_columns]


class TableReader:
    r"""The rows of a table, in pieces; blank lines are left out.

    Args:
        reader: The table's lines.
        delimiter: What separates two fields.
        quoting: Whether ``"`` quotes a field, which may then hold delimiters, line ends and
            doubled quotes (RFC 4180); if not, every character stands for itself.
        max_rows: Most rows in one piece.
    """

    def __init__(
        self, reader: LineReader, delimiter: Delimiter, *, quoting: bool, max_rows: int
    ) -> None:
        self._reader = reader
        self._delimiter = delimiter
        self._quoting = quoting
        self._chunks = _ChunkQueue(reader.iter_chunks(max_rows, keep_ends=True))
        self._waiting: tuple[list[list[str]], LineNumbers] = [], []
        self._num_columns = 0

    def read_header(self) -> tuple[list[str], int] | None:
        """The names in the first row, and its line; None if there is no row at all."""
        for chunk in self._chunks:
            for number, line in enumerate(chunk.lines, chunk.first_line):
                if bare := line.rstrip(b"\r\n"):
                    rest = chunk.lines[number - chunk.first_line :]
                    if self._quoting and b'"' in bare:
                        rows, lines = self._read_quoted(LineChunk(number, rest))
                        header, self._waiting = rows[0], (rows[1:], lines[1:])
                    else:
                        header = bare.decode().split(self._delimiter)
                        self._chunks.put_back(LineChunk(number + 1, rest[1:]))
                    self._num_columns = len(header)
                    return header, number
        return None

    def iter_rows(self) -> Iterator[TableRows]:
        """The rows after the header.

        Raises:
            CorpusError: for a stray or unclosed quote, a record that is too long, a row that
                is not as wide as the header.
        """
        if self._waiting[0]:
            yield self._quoted_rows(*self._waiting)
        for chunk in self._chunks:
            block = b"".join(chunk.lines)
            if self._quoting and b'"' in block:
                piece = self._quoted_rows(*self._read_quoted(chunk))
            else:
                piece = self._plain_rows(block, chunk.first_line)
            if piece.lines:
                yield piece

    def _plain_rows(self, block: bytes, first_line: int) -> TableRows:
        """Rows without quotes, split all at once: twice as fast as csv, which makes lists."""
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        records = block.removesuffix(b"\n").split(b"\n")
        lines: LineNumbers = range(first_line, first_line + len(records))
        if b"" in records:
            lines = [number for number, record in zip(lines, records, strict=True) if record]
            records = [record for record in records if record]
        delimiter = self._delimiter.encode()
        if not set(map(bytes.count, records, repeat(delimiter))) <= {self._num_columns - 1}:
            widths = [record.count(delimiter) + 1 for record in records]
            raise self._ragged(widths, lines)
        cells = delimiter.join(records).split(delimiter) if records else []
        return TableRows(self._num_columns, lines, cells, [])

    def _quoted_rows(self, rows: list[list[str]], lines: LineNumbers) -> TableRows:
        if [] in rows:
            lines = [number for number, row in zip(lines, rows, strict=True) if row]
            rows = [row for row in rows if row]
        if not set(map(len, rows)) <= {self._num_columns}:
            raise self._ragged([len(row) for row in rows], lines)
        return TableRows(self._num_columns, lines, [], rows)

    def _read_quoted(self, chunk: LineChunk) -> tuple[list[list[str]], LineNumbers]:
        limit = self._reader.max_line_bytes
        if csv.field_size_limit() < limit:
            # The limit belongs to the process. It only guards against unclosed quotes, so
            # raising it breaks no other user of csv; lowering it, now or afterwards, could.
            csv.field_size_limit(limit)
        return _QuotedRecords(self._reader, self._chunks, chunk, self._delimiter).read()

    def _ragged(self, widths: list[int], lines: LineNumbers) -> CorpusError:
        line, width = next(
            (line, width)
            for line, width in zip(lines, widths, strict=True)
            if width != self._num_columns
        )
        return corpus_error(
            self._reader.path,
            line,
            f"the row has {width} field{'' if width == 1 else 's'}, the header {self._num_columns}",
            "give each row a field for every column, and check delimiters and quotes",
        )


class _ChunkQueue:
    """An iterator of chunks, to which the unread end of one can be put back."""

    def __init__(self, chunks: Iterator[LineChunk]) -> None:
        self._chunks = chunks
        self._first: LineChunk | None = None

    def __iter__(self) -> _ChunkQueue:
        return self

    def __next__(self) -> LineChunk:
        first, self._first = self._first, None
        return next(self._chunks) if first is None else first

    def put_back(self, chunk: LineChunk) -> None:
        """Make `chunk`, unless it is empty, the next one."""
        self._first = chunk if chunk.lines else None


class _QuotedRecords:
    """The rows of one chunk that holds quotes, the last of which may run into the next chunk."""

    def __init__(
        self, reader: LineReader, chunks: _ChunkQueue, chunk: LineChunk, delimiter: Delimiter
    ) -> None:
        self._reader = reader
        self._delimiter = delimiter
        self._chunks = chunks
        self._first_line = chunk.first_line
        self._lines = chunk.lines[:]
        self._ends: list[int] = []  # of each row: how many lines were used up after it
        self._rows = csv.reader(
            chain.from_iterable(self._iter_feeds()), delimiter=delimiter, strict=True
        )

    def read(self) -> tuple[list[list[str]], LineNumbers]:
        """All rows, with the line where each starts."""
        rows: list[list[str]] = []
        ends = self._ends
        try:
            for row in self._rows:
                rows.append(row)
                ends.append(self._rows.line_num)
        except csv.Error as error:
            raise self._error(error) from None
        if ends[-1] == len(ends):
            return rows, range(self._first_line, self._first_line + len(rows))
        starts = [0, *ends[:-1]]
        for start, end in zip(starts, ends, strict=True):
            if end - start > 1 and self._num_bytes(start, end) > self._reader.max_line_bytes:
                raise self._too_long(start)
        return rows, [self._first_line + start for start in starts]

    def _iter_feeds(self) -> Iterator[Iterable[str]]:
        """Lines for csv: the chunk's at once, then one by one those that its last row takes."""
        yield map(bytes.decode, self._lines)
        start = self._ends[-1] if self._ends else 0
        num_bytes = sum(map(len, self._lines[start:]))
        while self._is_unclosed() and (chunk := next(self._chunks, None)) is not None:
            for position, line in enumerate(chunk.lines):
                if not self._is_unclosed():
                    rest = LineChunk(chunk.first_line + position, chunk.lines[position:])
                    self._chunks.put_back(rest)
                    return
                self._lines.append(line)
                num_bytes += len(line)
                # Without this bound an unclosed quote would draw the whole file into memory.
                if num_bytes > self._reader.max_line_bytes + 2:  # 2: the last line's end
                    raise self._too_long(start)
                yield (line.decode(),)

    def _is_unclosed(self) -> bool:
        return not self._ends or self._ends[-1] < len(self._lines)

    def _num_bytes(self, start: int, end: int) -> int:
        """The length of the record in these lines, without its line end."""
        last = self._lines[end - 1]
        num_ends = len(last) - len(last.rstrip(b"\r\n"))
        return sum(map(len, self._lines[start:end])) - num_ends

    def _error(self, error: csv.Error) -> CorpusError:
        start = self._ends[-1] if self._ends else 0
        if "field limit" in str(error):
            return self._too_long(start)
        if "unexpected end" in str(error):
            reason = "a quote is opened in the record that starts here and never closed"
        else:
            reason = "stray quote: in the record that starts here, text follows a closing quote"
        return self._located(start, reason, "double the quotes inside a quoted field")

    def _too_long(self, start: int) -> CorpusError:
        return self._located(
            start,
            "the record that starts here is longer than"
            f" {self._reader.max_line_bytes} bytes, or its quote is never closed",
            "close the quote, or allow such a length with --max-text-bytes",
        )

    def _located(self, start: int, reason: str, advice: str) -> CorpusError:
        if self._delimiter == "\t":
            advice += ", or read quotes as plain characters with --format tsv-raw"
        return corpus_error(self._reader.path, self._first_line + start, reason, advice)
