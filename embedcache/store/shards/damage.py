"""What reading a damaged, hostile or missing file raises → errors that name the file."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedcache.errors import CorruptShardError, StoreError, StoreVersionError
from embedcache.store.publish import one_line

# What h5py raises on damaged or hostile files, seen by flipping every bit of a shard.
_H5PY_ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError,
                IndexError, OverflowError, MemoryError)  # fmt: skip
# The process's or the machine's trouble, not the file's: a whole shard is not to be blamed.
_NOT_THE_FILE = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class MissingShardError(CorruptShardError):
    """There is no such file: it was lost, or retired by another process and deleted since."""


def corrupt_message(path: Path, reason: str) -> str:
    """One line about a damaged file, and what mends it."""
    return (
        f"{path}: {reason}; run `embedcache verify --fix`, then the same `embedcache build` again"
    )


@contextmanager
def mapped_read_errors(path: Path) -> Iterator[None]:
    """Turn what reading a damaged file raises into embedcache's errors, naming the path."""
    try:
        yield
    except FileNotFoundError:
        raise MissingShardError(corrupt_message(path, "is missing")) from None
    except StoreVersionError as error:
        raise StoreVersionError(f"{path}: {error}") from None
    except _H5PY_ERRORS as error:
        if isinstance(error, OSError) and error.errno in _NOT_THE_FILE:
            raise StoreError(
                f"{path}: cannot be opened ({os.strerror(error.errno)}); change what forbids it"
                " and run the same command again"
            ) from error
        raise CorruptShardError(
            corrupt_message(path, f"cannot be read ({one_line(error)})")
        ) from error
