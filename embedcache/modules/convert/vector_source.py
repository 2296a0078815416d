"""A file of word vectors as a stream of bytes, decompressed where it is gzip."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from embedcache.errors import ModuleError

BLOCK_BYTES = 1 << 19
"""Bytes read at a time. Larger blocks were not faster, and cost memory."""

HEAD_BYTES = 1 << 20
"""Bytes looked at to tell a format; the first line must end there."""

_UTF8_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
# DEFLATE cannot make more of a byte: RFC 1951 needs 2 bits for 258 bytes.
_MAX_EXPANSION = 1032
# Files that are given for word vectors by mistake.
_OTHER_KINDS = {
    b"PK\x03\x04": "a zip archive; unpack it and give the file inside",
    b"\xba\x16\x4f\x2f": "a fastText model (.bin); give the file .vec that comes with it",
    b"\x80\x04\x95": "a Python pickle; write it with gensim's save_word2vec_format",
    b"\x80\x03c": "a Python pickle; write it with gensim's save_word2vec_format",
    b"BZh": "compressed with bzip2; decompress it",
    b"\xfd7zXZ\0": "compressed with xz; decompress it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; decompress it",
    b"\xff\xfe": "UTF-16 text; convert it to UTF-8",
    b"\xfe\xff": "UTF-16 text; convert it to UTF-8",
}


class VectorSource:
    """The content of one file, read once, from front to back.

    Args:
        path: What errors call the file.
        stream: Its content, decompressed.
        max_bytes: How long the content can be at most.
        is_compressed: Whether `max_bytes` is a limit only, and not the length itself.
    """

    def __init__(
        self, path: Path, stream: BinaryIO, *, max_bytes: int, is_compressed: bool
    ) -> None:
        self.path = path
        self.is_compressed = is_compressed
        self._stream = stream
        head = self._read(HEAD_BYTES)
        if not head:
            raise self.fault("", "the file is empty", "give a file of word vectors")
        for magic, kind in _OTHER_KINDS.items():
            if head.startswith(magic):
                raise self.fault("", "no word vectors", f"this is {kind}", separator=": ")
        self.head = head.removeprefix(_UTF8_BOM)
        self.max_bytes = max_bytes - (len(head) - len(self.head))

    def skip(self, num_bytes: int) -> None:
        """Take a header off the head."""
        self.head = self.head[num_bytes:]

    def iter_blocks(self) -> Iterator[bytes]:
        """The content from the head on, in blocks; none is empty."""
        if self.head:
            yield self.head
        while block := self._read(BLOCK_BYTES):
            yield block

    def fault(self, place: str, reason: str, advice: str, *, separator: str = "; ") -> ModuleError:
        """The error of one line: file, place in it, reason, what to do next."""
        return _fault(self.path, place, reason + separator + advice)

    def _read(self, num_bytes: int) -> bytes:
        """The one place where a read fails: every foreign error is mapped here."""
        try:
            return self._stream.read(num_bytes)
        except EOFError:
            reason = "the gzip data ends too early: the file is truncated"
        except (gzip.BadGzipFile, zlib.error) as error:
            reason = f"the gzip data is damaged ({_reason_of(error)})"
        except OSError as error:
            raise self.fault("", _reason_of(error), "check the file and its disk") from None
        raise self.fault("", reason, "fetch or compress the file again")


@contextmanager
def open_source(path: Path) -> Iterator[VectorSource]:
    """Open a file of word vectors; it is closed when the context ends.

    Raises:
        ModuleError: if it cannot be read, is empty, or is plainly of another kind.
    """
    with ExitStack() as resources:
        try:
            if path.exists() and not path.is_file():
                raise _fault(path, "", "not a file; give a file of word vectors")
            file = resources.enter_context(path.open("rb"))
            num_bytes = path.stat().st_size
        except OSError as error:
            raise _fault(path, "", f"{_reason_of(error)}; check the path") from None
        is_compressed = file.peek(2)[:2] == _GZIP
        stream: BinaryIO = file
        if is_compressed:
            gunzipped = gzip.GzipFile(fileobj=file, mode="rb")
            stream = cast("BinaryIO", resources.enter_context(gunzipped))
            num_bytes *= _MAX_EXPANSION
        yield VectorSource(path, stream, max_bytes=num_bytes, is_compressed=is_compressed)


def _fault(path: Path, place: str, message: str) -> ModuleError:
    name = str(path) if str(path).isprintable() else ascii(str(path))
    if place.isdigit():
        name = f"{name}:{place}"
    elif place:
        name = f"{name}: {place}"
    return ModuleError(f"{name}: {message}")


def _reason_of(error: Exception) -> str:
    """The reason of a foreign error as one line without its path."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(reason.split())
