"""One entry of the module cache on disk: its record, and how it becomes durable and visible."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from embedcache.errors import ModuleError

CACHE_VARIABLE = "EMBEDCACHE_MODULES"
MODULE_FOLDER = "module"
_RECORD_FILE = "module.json"
_RECORD_VERSION = 1
_PUBLISH_TRIES = 10
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True, slots=True)
class CachedModule:
    """A module in the cache.

    Attributes:
        handle: What it was fetched from: the URL in its one form, or an archive's absolute path.
        path: The SavedModel's folder.
        digest: Of its files, as `files_digest` makes it.
        num_bytes: Of its files together.
        fetched_at: When; UTC.
    """

    handle: str
    path: Path
    digest: str
    num_bytes: int
    fetched_at: datetime


@dataclass(frozen=True, slots=True)
class EntryRecord:
    """What ``module.json`` holds.

    Attributes:
        module: What the user is told.
        stamp: Of the module's files, when they had its digest.
        source: Of a local archive its size and time when it was unpacked; else empty.
    """

    module: CachedModule
    stamp: str
    source: str


def read_record(entry: Path) -> EntryRecord:
    """What ``module.json`` says of an entry.

    Raises:
        ModuleError: if it is damaged, or written by a newer embedcache.
        FileNotFoundError: if there is no such entry.
    """
    file = entry / _RECORD_FILE
    try:
        record: Any = json.loads(file.read_bytes())
        if record["version"] != _RECORD_VERSION:
            raise ModuleError(
                f"{entry}: was made by another version of embedcache; use that one, or delete the"
                " folder and fetch the module again"
            )
        module = CachedModule(
            handle=str(record["handle"]),
            path=entry / MODULE_FOLDER,
            digest=str(record["digest"]),
            num_bytes=int(record["bytes"]),
            fetched_at=datetime.fromisoformat(record["fetched_at"]),
        )
        return EntryRecord(module, str(record["stamp"]), str(record["source"]))
    except FileNotFoundError:
        if not entry.exists():
            raise
        raise _damaged(file, "is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(file, "cannot be read") from error


def _damaged(file: Path, what: str) -> ModuleError:
    return ModuleError(f"{file}: {what}; delete {file.parent} and fetch the module again")


def write_record(entry: Path, record: EntryRecord, *, temporary: Path) -> None:
    """Write ``module.json`` whole, by way of a temporary file on the same device.

    Raises:
        OSError: if the file system refuses.
    """
    fields = {
        "version": _RECORD_VERSION,
        "handle": record.module.handle,
        "digest": record.module.digest,
        "bytes": record.module.num_bytes,
        "fetched_at": record.module.fetched_at.isoformat(),
        "stamp": record.stamp,
        "source": record.source,
    }
    try:
        with temporary.open("x", encoding="utf-8") as file:
            json.dump(fields, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, entry / _RECORD_FILE)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish_entry(staged: Path, entry: Path, *, replaced: Path | None) -> None:
    """Rename a staged entry to its final name, durably.

    Args:
        staged: A whole entry on the same device, not yet forced to it.
        entry: Its final name.
        replaced: Where an entry that is there already goes; None: it stays, and the staged
            one is left for the caller to remove.

    Raises:
        OSError: if the file system refuses.
    """
    _sync_tree(staged)
    for _ in range(_PUBLISH_TRIES):
        try:
            os.rename(staged, entry)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            if replaced is None:
                return  # another process was first, and its copy is as whole as ours
            with suppress(FileNotFoundError):
                os.rename(entry, replaced)
        else:
            _sync(entry.parent)
            return
    raise OSError(errno.EBUSY, "others keep replacing it", str(entry))


def _sync_tree(folder: Path) -> None:
    """Force all files and folders below a folder, and itself, to the device."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def mapped_os_errors(cache: Path) -> Iterator[None]:
    """Turn what the file system raises into one line that names the path and the way out."""
    try:
        yield
    except OSError as error:
        path, reason = error.filename or cache, error.strerror or error
        if error.errno in _NO_SPACE:
            raise ModuleError(
                f"{path}: no space left on the device; free some, or name another folder for"
                f" modules with ${CACHE_VARIABLE}, and fetch the module again"
            ) from error
        if error.errno in _NOT_ALLOWED:
            raise ModuleError(
                f"{path}: cannot be used ({reason}); change its permissions, or name another folder"
                f" for modules with ${CACHE_VARIABLE}"
            ) from error
        raise ModuleError(
            f"{path}: {reason}; mend that, or name another folder for modules with"
            f" ${CACHE_VARIABLE}"
        ) from error
