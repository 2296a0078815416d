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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

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


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the device."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_temporary(chunks: Sequence[Buffer], tmp_folder: Path) -> Path:
    """Write chunks to a new file under ``tmp_folder`` and force them to the device.

    The file is removed again if anything fails. A failed fsync is never tried again: the
    kernel may have dropped the pages and the second call would succeed.

    Raises:
        StoreError: if the device refuses; `DiskFullError` when it is full.
    """
    path = tmp_folder / uuid.uuid4().hex
    with mapped_os_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        try:
            try:
                for chunk in chunks:
                    _write_all(descriptor, memoryview(chunk))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    return path


def _write_all(descriptor: int, remaining: memoryview) -> None:
    """Write a buffer whole: one call may write less than it was given."""
    while len(remaining):
        remaining = remaining[os.write(descriptor, remaining) :]


def publish_file(chunks: Sequence[Buffer], target: Path, *, tmp_folder: Path) -> None:
    """Make ``target`` hold exactly the chunks, durably, or leave it as it was.

    A shard's name is the digest of its content, so a file that lies there already (an
    orphan of a killed run, or another process's) should hold the same bytes. It is
    replaced all the same: an orphan may have been damaged, and this one is known to be
    whole. Readers that have the old file mapped keep it until they close it.

    Raises:
        StoreError: if the device refuses; `DiskFullError` when it is full.
    """
    make_folder(target.parent)
    make_folder(tmp_folder)
    temporary = write_temporary(chunks, tmp_folder)
    with mapped_os_errors(target):
        try:
            os.replace(temporary, target)
            sync_folder(target.parent)
            # Who made the folder may have been killed, or not yet forced its name. The one
            # above the store itself need not be ours to open.
            with suppress(PermissionError):
                sync_folder(target.parent.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
