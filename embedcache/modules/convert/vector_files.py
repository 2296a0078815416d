"""Files of word vectors → words and one float32 table: GloVe, word2vec, fastText's .vec.

    glove           lines of a word and its numbers
    word2vec-text   the same after a line "N D" (fastText's .vec too)
    word2vec-bin    a line "N D", then N times: word, space, D little-endian float32, and
                    perhaps a newline

Each may be compressed with gzip. What is held in memory is the table, the words, and a few
blocks of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import ModuleError
from embedcache.modules.convert.vector_lines import LineError, count_numbers, parse_lines, shown
from embedcache.modules.convert.vector_source import VectorSource, open_source

FORMATS = ("glove", "word2vec-text", "word2vec-bin")
MAX_WORD_BYTES = 1 << 16
"""Longest word of a binary file; a place without any space is no word."""

MAX_DIM = 1 << 16
"""Widest vectors; the widest of those that people publish have some thousand numbers."""

MAX_LINE_BYTES = 1 << 22
"""Longest line of a text file: `MAX_DIM` numbers of 60 bytes and their word."""

# Half of what glibc can be told this way.
_KEPT_BYTES = 1 << 24

_HEADER = re.compile(rb"(\d{1,30}) (\d{1,30}) ?\r?")
_FETCH_AGAIN = "fetch or write the file again"
_WRONG_FORMAT = f"give its format, one of {', '.join(FORMATS)}, or correct the file"

Batch = tuple[list[bytes], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class WordVectors:
    """A vocabulary and its vectors.

    Attributes:
        words: V distinct words, as they stand in the file: UTF-8 where the file is. None is
            empty or holds a line end; those of GloVe may hold spaces.
        vectors: (V, D) float32, finite; row i is the vector of word i.
        format: One of `FORMATS`.
        duplicates: How many words were left out because they had stood before.
    """

    words: list[bytes]
    vectors: NDArray[np.float32]
    format: str
    duplicates: int = 0


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the beginning of a file tells; `num_rows` is None where no header does."""

    format: str
    dim: int
    num_rows: int | None
    header_bytes: int


def read_word_vectors(
    path: Path,
    *,
    format: str | None = None,  # noqa: A002  # the field's word, as in `CorpusOptions`
    max_words: int | None = None,
) -> WordVectors:
    """Read a file of word vectors.

    Args:
        path: The file; gzip is recognised by its content.
        format: One of `FORMATS`; None tells it by the content.
        max_words: Read so many distinct words and no further; None reads all. Such files
            mostly have the frequent words first.

    Returns:
        The words in the file's order. A word that stands there twice has its first vector.

    Raises:
        ModuleError: if the file cannot be read, is of another kind, or is damaged; one line
            with the line (in a binary file, the word) and the reason. A header that promises
            more than the file can hold is refused before any memory is taken for it.
    """
    if format is not None and format not in FORMATS:
        raise ModuleError(f"{format!r} is no format of word vectors; use {', '.join(FORMATS)}")
    if max_words is not None and max_words < 1:
        raise ModuleError(f"max_words is {max_words}: no word would be left; use 1 or more")
    with open_source(path) as source:
        layout = _tell_layout(source, format)
        source.skip(layout.header_bytes)
        table = _Table(source, layout, max_words)
        is_binary = layout.format == "word2vec-bin"
        batches = _iter_binary(source, table) if is_binary else _iter_lines(source, table)
        for words, vectors in batches:
            table.append(words, vectors)
        return table.finish()


class _Table:
    """The rows read so far, and how many more are wanted."""

    def __init__(self, source: VectorSource, layout: _Layout, max_words: int | None) -> None:
        self.layout = layout
        self._source = source
        self._max_words = max_words
        self._words: list[bytes] = []
        self._seen: set[bytes] = set()
        self._duplicates = 0
        capacity = 0
        # The size of compressed content is not known, so its header can lie by a factor of
        # a thousand: there the table grows with what is read.
        if layout.num_rows is not None and not source.is_compressed:
            capacity = min(layout.num_rows, max_words or layout.num_rows)
        try:
            self._vectors = np.empty((capacity, layout.dim), np.float32)
        except MemoryError:
            raise self._no_memory(capacity) from None

    @property
    def num_read(self) -> int:
        """Rows read, duplicates included."""
        return len(self._words) + self._duplicates

    @property
    def room(self) -> int | None:
        """How many rows may be read at once; None: any number."""
        limits = []
        if self._max_words is not None:
            limits.append(self._max_words - len(self._words))
        if self.layout.num_rows is not None:
            limits.append(self.layout.num_rows - self.num_read)
        return min(limits, default=None)

    @property
    def is_cut(self) -> bool:
        """Whether reading stopped at `max_words`, before the end of the file."""
        return len(self._words) == self._max_words

    def append(self, words: list[bytes], vectors: NDArray[np.float32]) -> None:
        """Take rows, but for those of words that are there already."""
        fresh = []
        for position, word in enumerate(words):
            if word not in self._seen:
                self._seen.add(word)
                fresh.append(position)
        if len(fresh) < len(words):
            self._duplicates += len(words) - len(fresh)
            words, vectors = [words[position] for position in fresh], vectors[fresh]
        start, stop = len(self._words), len(self._words) + len(words)
        if stop > len(self._vectors):
            # By a quarter, not by double: the new part costs memory at once (it is zeroed),
            # while moving the old one is cheap (the system remaps its pages).
            self._resize(stop + stop // 4)
        self._vectors[start:stop] = vectors
        self._words += words

    def finish(self) -> WordVectors:
        """All rows; the table gives its memory away and is not used any further."""
        if len(self._words) < len(self._vectors):
            self._resize(len(self._words))
        return WordVectors(self._words, self._vectors, self.layout.format, self._duplicates)

    def _resize(self, num_rows: int) -> None:
        try:
            self._vectors.resize((num_rows, self.layout.dim), refcheck=False)
        except MemoryError:
            raise self._no_memory(num_rows) from None

    def _no_memory(self, num_rows: int) -> ModuleError:
        num_bytes = num_rows * self.layout.dim * 4
        return self._source.fault(
            "",
            f"no memory for {num_rows} vectors of {self.layout.dim} numbers ({num_bytes} bytes)",
            "read fewer of them with max_words",
        )


def _tell_layout(source: VectorSource, told_format: str | None) -> _Layout:
    first, _, rest = source.head.partition(b"\n")
    header = _HEADER.fullmatch(first) if told_format != "glove" else None
    if header is not None:
        num_rows, dim = int(header[1]), int(header[2])
        is_text = told_format == "word2vec-text" or (
            told_format is None and _begins_with_text(rest, dim)
        )
        file_format = "word2vec-text" if is_text else "word2vec-bin"
        layout = _Layout(file_format, dim, num_rows, len(first) + 1)
        _check_header(source, layout)
        return layout
    if told_format in ("word2vec-text", "word2vec-bin"):
        reason = f"{shown(first)} is not a header, a count of words and a width"
        raise source.fault("1", reason, _WRONG_FORMAT)
    dim = count_numbers(first.removesuffix(b"\r").removesuffix(b" "))
    if not dim:
        reason = f"{shown(first)} is not a word followed by its numbers"
        raise source.fault("1", reason, _WRONG_FORMAT)
    return _Layout("glove", dim, None, 0)


def _check_header(source: VectorSource, layout: _Layout) -> None:
    """Raise if a header promises what is no use, or more than the file can hold."""
    promise = f"the header promises {layout.num_rows} words of {layout.dim} numbers"
    if not layout.num_rows or not 1 <= layout.dim <= MAX_DIM:
        advice = f"{_FETCH_AGAIN}; widths go from 1 to {MAX_DIM}"
        raise source.fault("1", f"{promise}, which is no use", advice)
    if layout.format == "word2vec-bin":  # a word of one byte, a space, the numbers
        smallest = layout.header_bytes + layout.num_rows * (2 + 4 * layout.dim)
    else:  # a word, for each number a space and a digit, a line end but for the last line
        smallest = layout.header_bytes + layout.num_rows * (2 + 2 * layout.dim) - 1
    if smallest > source.max_bytes:
        reason = (
            f"{promise}, at least {smallest} bytes, but the file has"
            f" {'at most ' if source.is_compressed else ''}{source.max_bytes}"
        )
        raise source.fault("1", reason, _FETCH_AGAIN)


def _begins_with_text(content: bytes, dim: int) -> bool:
    """Whether a file with a header goes on as text, perhaps faulty, and not as bytes."""
    line, newline, _ = content.partition(b"\n")
    if newline and count_numbers(line.removesuffix(b"\r").removesuffix(b" ")) >= dim:
        return True
    _, _, numbers = content.partition(b" ")
    sample = numbers[: 4 * dim]
    return bool(sample) and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in sample)


def _iter_lines(source: VectorSource, table: _Table) -> Iterator[Batch]:
    """The rows of a text file, as many at a time as there are in a block."""
    # Freed at once, this makes glibc keep the parser's arrays of 0.5 MB for the next block;
    # else it gives them back to the system each time, and faults cost half of all time.
    array_of_no_use = np.empty(_KEPT_BYTES, np.uint8)
    del array_of_no_use
    next_line = 1 + (table.layout.num_rows is not None)
    for block in _iter_whole_lines(source):
        left = block
        while left and table.room != 0:
            stop = _end_of_lines(left, table.room)
            try:
                batch = parse_lines(left[:stop], table.layout.dim)
            except LineError as fault:
                place = str(next_line + fault.position)
                raise source.fault(place, fault.reason, _WRONG_FORMAT) from None
            next_line += len(batch[0])
            yield batch
            left = left[stop:]
        if table.is_cut:
            return
        if left.strip():
            reason = f"more lines than the {table.layout.num_rows} that the header promises"
            raise source.fault(str(next_line), reason, "correct the header")
    _check_complete(source, table)


def _iter_whole_lines(source: VectorSource) -> Iterator[bytes]:
    """Blocks that end where a line ends; the last one gets its line end if it has none."""
    parts: list[bytes] = []
    for block in source.iter_blocks():
        cut = block.rfind(b"\n") + 1
        if cut:
            yield b"".join([*parts, block[:cut]])
            parts = []
        if cut < len(block):
            parts.append(block[cut:])
        if sum(map(len, parts)) > MAX_LINE_BYTES:
            raise source.fault(
                "", f"a line is longer than {MAX_LINE_BYTES} bytes", "give a file of word vectors"
            )
    if parts:
        yield b"".join(parts) + b"\n"


def _end_of_lines(block: bytes, num_lines: int | None) -> int:
    """Where the first `num_lines` lines end, or the block if it has fewer."""
    if num_lines is None or block.count(b"\n") <= num_lines:
        return len(block)
    newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
    return int(newlines[num_lines - 1]) + 1


def _iter_binary(source: VectorSource, table: _Table) -> Iterator[Batch]:
    """The rows of a binary file, as many at a time as there are in a block."""
    longest_row = MAX_WORD_BYTES + 2 + 4 * table.layout.dim
    blocks = source.iter_blocks()
    content, is_last = b"", False
    while table.room != 0:
        while not is_last and len(content) < longest_row:
            block = next(blocks, b"")
            content, is_last = content + block, not block
        # A row is cut out only where the longest one would be whole, or at the file's end.
        batch, stop = _cut_rows(source, content, table, 0 if is_last else longest_row)
        yield batch
        content = content[stop:]
    if not table.is_cut and (content + next(blocks, b"")).strip(b"\r\n"):
        reason = f"more bytes follow the {table.layout.num_rows} words that the header promises"
        raise source.fault("", reason, _WRONG_FORMAT)


def _cut_rows(
    source: VectorSource, content: bytes, table: _Table, least_left: int
) -> tuple[Batch, int]:
    """The rows that begin where `least_left` bytes are left, and where the last one ends."""
    dim, room, number, place = table.layout.dim, table.room, table.num_read, 0
    words: list[bytes] = []
    starts: list[int] = []
    last_place = len(content) - least_left
    while place <= last_place and len(words) != room:
        word, start = _word_at(source, content, place, dim, number + len(words) + 1)
        words.append(word)
        starts.append(start)
        place = start + 4 * dim
    return (words, _vectors_at(source, content, starts, dim, number + 1)), place


def _word_at(
    source: VectorSource, content: bytes, place: int, dim: int, number: int
) -> tuple[bytes, int]:
    """The word that begins at `place`, and where its vector begins."""
    if content[place : place + 1] == b"\n":  # word2vec ends a row so, gensim does not
        place += 1
    space = content.find(b" ", place, place + MAX_WORD_BYTES + 1)
    if (space < 0 and len(content) - place <= MAX_WORD_BYTES) or (
        space >= 0 and space + 1 + 4 * dim > len(content)
    ):
        raise source.fault(
            f"word {number}", "the file ends before its vector does: truncated", _FETCH_AGAIN
        )
    word = content[place:space] if space >= 0 else b""
    if not word or b"\n" in word or b"\r" in word:
        reason = f"the word {shown(word)} holds a line end" if word else "no word stands there"
        raise source.fault(f"word {number}", reason, _WRONG_FORMAT)
    return word, space + 1


def _vectors_at(
    source: VectorSource, content: bytes, starts: list[int], dim: int, first_number: int
) -> NDArray[np.float32]:
    vectors = np.empty((len(starts), dim), np.float32)
    for row, start in enumerate(starts):
        vectors[row] = np.frombuffer(content, "<f4", dim, start)
    is_finite = np.isfinite(vectors)
    if not is_finite.all():
        row, column = divmod(int(np.argmin(is_finite)), dim)
        raise source.fault(
            f"word {first_number + row}",
            f"number {column + 1} of {dim} is {vectors[row, column]}, not a finite number",
            _WRONG_FORMAT,
        )
    return vectors


def _check_complete(source: VectorSource, table: _Table) -> None:
    promised = table.layout.num_rows
    if promised is not None and table.num_read < promised:
        count = f"{table.num_read} of the {promised} words"
        reason = f"the file ends after {count} that its header promises"
        raise source.fault(str(table.num_read + 1), reason, _FETCH_AGAIN)
