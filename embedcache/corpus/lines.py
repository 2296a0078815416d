"""Files → lines: the byte level.

Everything streams: at any time one block, one unfinished line and one chunk are held.
"""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, cast

from embedcache.corpus.files import CountedFile, PieceFile
from embedcache.corpus.messages import STDIN, corpus_error, text_of_error
from embedcache.errors import CorpusError

BLOCK_BYTES = 1 << 20
"""Bytes read at a time. Larger blocks were not faster, and cost memory."""

HEAD_BYTES = 1 << 16
"""Bytes looked at to tell a format by its content."""

_UTF8_BOM = b"\xef\xbb\xbf"
# UTF-32 stands first: its little-endian mark begins with that of UTF-16.
_WIDE_BOMS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
# Files that are given for text by mistake. Without this table the reader would find invalid
# UTF-8 in them and advise `--encoding-errors replace`, which makes a corpus of noise.
BINARY_MAGIC = {
    b"PK\x03\x04": "a zip archive",
    b"PAR1\x15": "a Parquet file",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\xfd7zXZ\0": "compressed with xz",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"%PDF-": "a PDF document",
} | {b"BZh%d1AY&SY" % level: "compressed with bzip2" for level in range(1, 10)}


@dataclass(frozen=True, slots=True)
class LineChunk:
    """Successive lines of one source: valid UTF-8 without NUL, none too long."""

    first_line: int
    lines: list[bytes]


class LineReader:
    """The lines of one source, read once, from front to back, by one thread.

    A context manager, which opens and closes the file; standard input is left open.

    Args:
        path: The file; ``"-"`` is standard input. gzip is recognised by its magic bytes.
        max_line_bytes: Longest line, without its end.
        encoding_errors: ``"strict"``, or ``"replace"`` to put U+FFFD for what is not UTF-8.
        block_bytes: Bytes read at a time.
        on_read: Called with the number of bytes of each read of the file.
    """

    def __init__(
        self,
        path: str,
        *,
        max_line_bytes: int,
        encoding_errors: str = "strict",
        block_bytes: int = BLOCK_BYTES,
        on_read: Callable[[int], None],
    ) -> None:
        self.path = path
        self.max_line_bytes = max_line_bytes
        self._encoding_errors = encoding_errors
        self._block_bytes = block_bytes
        self._on_read = on_read
        self._next_line = 1
        self._resources = ExitStack()

    def __enter__(self) -> LineReader:
        with ExitStack() as resources:
            try:
                file = (
                    cast("PieceFile", sys.stdin.buffer)
                    if self.path == STDIN
                    else resources.enter_context(open(self.path, "rb"))
                )
            except OSError as error:
                raise self._error(None, text_of_error(error), "check the path") from None
            self._file = CountedFile(file, self._on_read)
            self._stream: CountedFile | gzip.GzipFile = self._file
            if self._read(2, self._file.peek) == b"\x1f\x8b":
                gunzipped = gzip.GzipFile(fileobj=cast("IO[bytes]", self._file), mode="rb")
                self._stream = resources.enter_context(gunzipped)
            self._head = self._read_head()
            self._resources = resources.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @property
    def head(self) -> bytes:
        """The first bytes of the text, at least `HEAD_BYTES` unless the text is shorter."""
        return self._head

    @property
    def digest(self) -> str:
        """The hexadecimal xxh3_128 of the file's bytes read so far, before decompression."""
        return self._file.hasher.hexdigest()

    def iter_chunks(self, max_lines: int, *, keep_ends: bool = False) -> Iterator[LineChunk]:
        r"""The lines in chunks of at most `max_lines`.

        Lines end with ``\n``, ``\r\n`` or ``\r``, which are cut off unless `keep_ends`. The
        last line needs no end; an end after it begins no further line.

        Raises:
            CorpusError: for invalid UTF-8, a NUL, a line that is too long, a read that
                fails, damaged gzip data.
        """
        for block in self._iter_whole_lines():
            first_line = self._next_line
            lines = self._validated(block).splitlines(keep_ends)
            if max(map(len, lines)) > self.max_line_bytes:
                self._check_lengths(lines)
            self._next_line += len(lines)
            for start in range(0, len(lines), max_lines):
                yield LineChunk(first_line + start, lines[start : start + max_lines])

    def _iter_whole_lines(self) -> Iterator[bytes]:
        """Blocks that end where a line ends; an unfinished line waits for its rest."""
        parts: list[bytes] = []
        num_waiting = 0
        for block in self._iter_blocks():
            if parts and parts[-1].endswith(b"\r"):
                block = b"".join([*parts, block])
                parts.clear()
                num_waiting = 0
            # A "\r" at the very end may be half of a "\r\n": it waits too.
            stop = len(block) - block.endswith(b"\r")
            cut = max(block.rfind(b"\n", 0, stop), block.rfind(b"\r", 0, stop)) + 1
            if cut:
                yield b"".join([*parts, block[:cut]])
                block = block[cut:]
                parts.clear()
                num_waiting = 0
            if block:
                parts.append(block)
                num_waiting += len(block)
            if num_waiting > self.max_line_bytes + 1:  # 1: the "\r" that may wait
                raise self._too_long(self._next_line)
        if parts:
            yield b"".join(parts)

    def _iter_blocks(self) -> Iterator[bytes]:
        for start in range(0, len(self._head), self._block_bytes):
            yield self._head[start : start + self._block_bytes]
        while block := self._read(self._block_bytes):
            yield block

    def _validated(self, block: bytes) -> bytes:
        valid = block.isascii() or _is_utf8(block)
        if not valid and self._encoding_errors == "replace":
            block, valid = block.decode("utf-8", "replace").encode(), True
        if not valid or b"\0" in block:
            raise self._first_defect(block)
        return block

    def _first_defect(self, block: bytes) -> CorpusError:
        for number, line in enumerate(block.splitlines(), self._next_line):
            nul = line.find(b"\0")
            try:
                (line if nul < 0 else line[:nul]).decode()
            except UnicodeDecodeError as error:
                return self._error(
                    number,
                    f"invalid UTF-8 at byte {error.start + 1} of the line"
                    f" (0x{line[error.start]:02x})",
                    "convert the file to UTF-8, or put U+FFFD for such bytes with"
                    " --encoding-errors replace",
                )
            if nul >= 0:
                return self._error(
                    number,
                    f"NUL character at byte {nul + 1} of the line",
                    "remove it, or convert the file to UTF-8 if it is UTF-16",
                )
        raise AssertionError("a block that is not valid holds a line that is not")

    def _check_lengths(self, lines: list[bytes]) -> None:
        for number, line in enumerate(lines, self._next_line):
            if len(line.rstrip(b"\r\n")) > self.max_line_bytes:
                raise self._too_long(number)

    def _too_long(self, line: int) -> CorpusError:
        return self._error(
            line,
            f"the line is longer than {self.max_line_bytes} bytes",
            "split it, or allow it with --max-text-bytes",
        )

    def _read_head(self) -> bytes:
        """Read enough to tell the format, and take the byte order mark off."""
        first = bytearray()
        while len(first) < HEAD_BYTES and (block := self._read(self._block_bytes)):
            first += block
        head = bytes(first)
        for mark, encoding in _WIDE_BOMS.items():
            if head.startswith(mark):
                raise self._error(
                    1,
                    f"this is {encoding} text (its first bytes are {mark.hex(' ')})",
                    f"convert it to UTF-8, as with: iconv -f {encoding} -t UTF-8",
                )
        for magic, kind in BINARY_MAGIC.items():
            if head.startswith(magic):
                raise self._error(1, f"this is no text but {kind}", "give its text as UTF-8")
        return head.removeprefix(_UTF8_BOM)

    def _read(self, size: int, read: Callable[[int], bytes] | None = None) -> bytes:
        """The one place where a read fails: every foreign error is mapped here."""
        try:
            return (read or self._stream.read)(size)
        except EOFError:
            reason = "the gzip data ends too early: the file is truncated"
        except (gzip.BadGzipFile, zlib.error) as error:
            reason = f"the gzip data is damaged ({text_of_error(error)})"
        except OSError as error:
            raise self._error(
                self._next_line, text_of_error(error), "check the file and its disk"
            ) from None
        raise self._error(self._next_line, reason, "fetch or compress the file again")

    def _error(self, line: int | None, reason: str, advice: str) -> CorpusError:
        return corpus_error(self.path, line, reason, advice)


def _is_utf8(block: bytes) -> bool:
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True
