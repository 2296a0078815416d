"""The commit protocol's file half: bytes → a whole, durable file, or none.

A file is written under ``tmp/``, forced to the device, renamed to its final name, and the
folder forced too. A kill at any point leaves at worst a temporary file or a whole file
that the catalog does not name yet; never half a file under a final name. The catalog's
transaction comes after, and only then is the work acknowledged.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from embedcache.errors import DiskFullError, StoreError, StoreReadOnlyError

FILE_MODE = 0o600
FOLDER_MODE = 0o700
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}

_MAX_MESSAGE = 300

Buffer = bytes | bytearray | memoryview


@contextmanager
def mapped_os_errors(path: Path) -> Iterator[None]:
    """Turn what the file system raises into embedcache's errors, naming the path."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise DiskFullError(
                f"{path}: no space left on the device; free some and run the same command"
                " again: what was finished is kept"
            ) from error
        if error.errno in _READ_ONLY:
            raise StoreReadOnlyError(
                f"{path}: cannot be written ({error.strerror}); choose another store with"
                " --store, or change its permissions"
            ) from error
        raise StoreError(
            f"{path}: {error.strerror or error}; mend that and run the same command again: what"
            " was finished is kept"
        ) from error


def one_line(error: BaseException) -> str:
    """A foreign error's text on one line, which a hostile file cannot make long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + "…"


def make_folder(folder: Path) -> None:
    """Make a folder, private to its owner, and its name durable; fine if it is there.

    Folders above it that are missing are made too, with the user's usual mode.
    """
    with mapped_os_errors(folder):
        if folder.is_dir():
            return
        above = [parent for parent in folder.parents if not parent.is_dir()]
        for parent in reversed(above):
            parent.mkdir(exist_ok=True)
            sync_folder(parent.parent)
        folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
        sync_folder(folder.parent)


def find_files(folder: Path, pattern: str) -> list[Path]:
    """What a folder holds by a glob pattern, sorted; nothing if it is not there.

    Raises:
        StoreError: if it cannot be looked into.
    """
    with mapped_os_errors(folder):
        return sorted(folder.glob(pattern))


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the device."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class PendingFile:
    """A new file under ``tmp/`` that becomes the target whole, or goes away; a context manager.

    Bytes may be written in any order; what is left out between them reads as zeros.
    """

    def __init__(self, tmp_folder: Path) -> None:
        self._path = tmp_folder / uuid.uuid4().hex
        self._descriptor: int | None = None
        self._size = 0

    def __enter__(self) -> PendingFile:
        make_folder(self._path.parent)
        with mapped_os_errors(self._path):
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with suppress(OSError):
                os.close(descriptor)
        # It is not there any more once it has its name.
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    @property
    def size(self) -> int:
        """The end of what has been written, in bytes."""
        return self._size

    def write_at(self, offset: int, buffer: Buffer) -> None:
        """Write a buffer whole: one call of the system may write less than it was given.

        Raises:
            StoreError: if the device refuses; `DiskFullError` when it is full.
        """
        remaining = memoryview(buffer).cast("B")
        descriptor = self._open_descriptor()
        self._size = max(self._size, offset + len(remaining))
        with mapped_os_errors(self._path):
            while len(remaining):
                written = os.pwrite(descriptor, remaining, offset)
                remaining, offset = remaining[written:], offset + written

    def commit(self, target: Path) -> None:
        """Make ``target`` this file, durably.

        A failed fsync is never tried again: the kernel may have dropped the pages and the
        second call would succeed.

        Raises:
            StoreError: if the device refuses; the target is what it was then.
        """
        make_folder(target.parent)
        with mapped_os_errors(self._path):
            descriptor = self._open_descriptor()
            os.fsync(descriptor)
            # Closed before it gets its name: a file system over a network tells only now
            # what it could not write.
            self._descriptor = None
            os.close(descriptor)
        with mapped_os_errors(target):
            os.replace(self._path, target)
            sync_folder(target.parent)
            # Who made the folder may have been killed, or not yet forced its name. The one
            # above the store itself need not be ours to open.
            with suppress(PermissionError):
                sync_folder(target.parent.parent)

    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise ValueError("the file is not open")
        return self._descriptor


def publish_file(chunks: Iterable[Buffer], target: Path, *, tmp_folder: Path) -> None:
    """Make ``target`` hold exactly the chunks, durably, or leave it as it was.

    A shard's name is the digest of its content, so a file that lies there already (an
    orphan of a killed run, or another process's) should hold the same features. It is
    replaced all the same: an orphan may have been damaged, and this one is known to be
    whole. Readers that have the old file mapped keep it until they close it.

    Raises:
        StoreError: if the device refuses; `DiskFullError` when it is full.
    """
    make_folder(target.parent)
    with PendingFile(tmp_folder) as file:
        for chunk in chunks:
            file.write_at(file.size, chunk)
        file.commit(target)
