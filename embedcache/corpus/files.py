"""Files on disk: whether they can be read, their size, and their bytes counted and hashed."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from typing import Protocol

import xxhash

from embedcache.corpus.messages import STDIN, corpus_error, text_of_error


def size_of_source(path: str) -> int | None:
    """The size of a source in bytes; None where it has none: standard input, a pipe.

    Raises:
        CorpusError: if there is nothing that could be read: no such file, a directory, no
            permission.
    """
    if path == STDIN:
        if sys.stdin is None:
            raise corpus_error(path, None, "standard input is closed", "name a file instead")
        return None
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise corpus_error(path, None, "no such file", "check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise corpus_error(path, None, text_of_error(error), "check the path") from None
    if stat.S_ISDIR(status.st_mode):
        raise corpus_error(path, None, "this is a directory", "name the files in it")
    if stat.S_ISSOCK(status.st_mode):
        raise corpus_error(path, None, "this is a socket", "name a file instead")
    if not os.access(path, os.R_OK):
        raise corpus_error(path, None, "permission denied", "make the file readable to this user")
    return status.st_size if stat.S_ISREG(status.st_mode) else None


class PieceFile(Protocol):
    """A buffered binary file."""

    def read(self, size: int, /) -> bytes | None:
        """The next bytes: fewer than `size` only at the end. None where that would block."""

    def read1(self, size: int, /) -> bytes | None:
        """The next bytes, with at most one system call."""


class CountedFile:
    """A binary file whose bytes are counted and hashed as they are read."""

    def __init__(self, file: PieceFile, on_read: Callable[[int], None]) -> None:
        self.hasher = xxhash.xxh3_128()
        self._file = file
        self._on_read = on_read
        self._peeked = b""

    def peek(self, size: int) -> bytes:
        """The next bytes, which the next read returns again."""
        self._peeked = self._read_file(size)
        return self._peeked

    def read(self, size: int) -> bytes:
        """The next bytes: fewer than `size` only at the end."""
        peeked, self._peeked = self._peeked[:size], self._peeked[size:]
        return peeked + self._read_file(size - len(peeked))

    def _read_file(self, size: int) -> bytes:
        # Piece by piece: `read` would loop in C until it has it all, and a signal that comes
        # between two of its system calls is not seen before the next byte arrives.
        pieces: list[bytes] = []
        missing = size
        while missing:
            # `read1` gives b"" at the end, and also where it would block, which `read` tells.
            piece = self._file.read1(missing) or self._file.read(1)
            if piece is None:
                raise BlockingIOError(None, "standard input is set not to block")
            if not piece:
                break
            pieces.append(piece)
            missing -= len(piece)
        block = b"".join(pieces)
        self.hasher.update(block)
        self._on_read(len(block))
        return block
