"""The modules that were fetched or unpacked: each one whole, or not there.

    NAME-HASH/module/       the SavedModel
    NAME-HASH/module.json   its handle, digest, bytes, time, and the stamp of its files
    tmp/UUID/               what is being fetched

A module is downloaded, unpacked, checked and forced to the device below ``tmp``, then
renamed into place. So a kill at any moment leaves at worst a folder in ``tmp``, which a
fetch a day later removes; TensorFlow Hub's half-empty cache folder cannot come to be. Of
two processes that fetch the same module the first to rename wins, and both use its copy.
"""

from __future__ import annotations

import builtins
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path

from embedcache.errors import ModuleError
from embedcache.modules.archives import archive_digest, extract_saved_model, find_saved_model
from embedcache.modules.digests import files_digest, files_stamp, module_files
from embedcache.modules.download import download_archive, fetch_from_bucket
from embedcache.modules.entries import (
    CACHE_VARIABLE,
    MODULE_FOLDER,
    CachedModule,
    EntryRecord,
    mapped_os_errors,
    publish_entry,
    read_record,
    write_record,
)
from embedcache.modules.parsing import ARCHIVE_SUFFIXES, Handle, parse_handle

TIMEOUT_S = 60.0
_STALE_S = 24 * 3600.0
_MAX_NAME = 60
_TMP = "tmp"


def default_cache_path() -> Path:
    """``$EMBEDCACHE_MODULES``, or else ``modules`` in embedcache's folder of user caches."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("embedcache", appauthor=False) / "modules"


class ModuleCache:
    """A folder of fetched modules, which several processes may use at the same time."""

    def __init__(self, path: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        """Nothing is read or made yet.

        Args:
            path: The folder; made by the first `fetch`.
            timeout_s: The longest wait for a server, in seconds.
        """
        self.path = path.absolute()
        self._timeout_s = timeout_s

    def get(self, handle: str) -> CachedModule | None:
        """The cached copy of a module; None if there is none, or the handle needs none.

        The copy of a local archive is that of the archive's bytes: an archive whose size or
        time have changed since is read through to find it.

        Raises:
            ModuleError: if the copy is not what was fetched.
        """
        parsed = parse_handle(handle)
        if parsed.kind in ("builtin", "folder"):
            return None
        with mapped_os_errors(self.path):
            return self._checked(parsed, self._entry(parsed))

    def fetch(self, handle: str, *, refresh: bool = False) -> CachedModule:
        """The cached copy of a module, fetched or unpacked first if there is none.

        Args:
            handle: A URL, a name of Kaggle's, or a local archive.
            refresh: Fetch it again and replace the copy.

        Raises:
            ModuleError: if it cannot be fetched, is not a whole SavedModel, or the cached copy
                is not what was fetched.
        """
        parsed = parse_handle(handle)
        if parsed.kind in ("builtin", "folder"):
            raise ModuleError(
                f"{handle}: is used where it lies and needs no fetching; name a URL or an archive"
            )
        with mapped_os_errors(self.path):
            entry = self._entry(parsed, trust_times=not refresh)
            if not refresh and (cached := self._checked(parsed, entry)):
                return cached
            self._remove_stale()
            with self._staging() as staging:
                staged = self._stage(parsed, staging)
                publish_entry(staged, entry, replaced=staging / "replaced" if refresh else None)
            cached = self._checked(parsed, entry)
        if cached is None:
            raise ModuleError(f"{handle}: was removed while it was fetched; fetch it again")
        return cached

    def remove(self, handle: str) -> bool:
        """Remove a module's copies, also damaged ones; whether there was any."""
        parsed = parse_handle(handle)
        if parsed.kind in ("builtin", "folder"):
            return False
        with mapped_os_errors(self.path):
            found = {record.path.parent for record in self.list() if record.handle == parsed.target}
            with suppress(ModuleError):  # an archive that is gone has no digest
                found |= {self._entry(parsed)} & set(self._entries())
            for entry in found:
                with self._staging() as staging, suppress(FileNotFoundError):
                    # Renamed first: whoever looks meanwhile sees all of it or nothing.
                    entry.rename(staging / entry.name)
        return bool(found)

    def list(self) -> builtins.list[CachedModule]:
        """All modules in the cache, by handle; their digests are not checked.

        An entry whose module.json cannot be read is left out.
        """
        records = []
        with mapped_os_errors(self.path):
            for entry in self._entries():
                with suppress(ModuleError, FileNotFoundError):
                    records.append(read_record(entry).module)
        return sorted(records, key=lambda record: (record.handle, record.fetched_at))

    def _entries(self) -> builtins.list[Path]:
        if not self.path.is_dir():
            return []
        children = sorted(self.path.iterdir())
        return [child for child in children if child.is_dir() and child.name != _TMP]

    def _entry(self, parsed: Handle, *, trust_times: bool = True) -> Path:
        """The folder of a module's copy, there or not."""
        identity = parsed.target
        name = re.sub(r"^[a-z]+://[^/]+/(models/)?", "", parsed.target)
        if parsed.kind == "archive":
            archive = Path(parsed.target)
            name = archive.name
            try:
                if trust_times and (entry := self._entry_of_archive(archive)):
                    return entry
                identity = f"archive {archive_digest(archive)}"
            except OSError as error:
                raise ModuleError(
                    f"{parsed.text}: the archive cannot be read ({error.strerror or error}); name"
                    " one that is there"
                ) from error
        for suffix in ARCHIVE_SUFFIXES:
            name = name.removesuffix(suffix)
        slug = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[-_MAX_NAME:].lstrip("-.")
        digest = blake2b(identity.encode(), digest_size=8).hexdigest()
        return self.path / f"{slug or 'module'}-{digest}"

    def _entry_of_archive(self, archive: Path) -> Path | None:
        """The entry that was made of an archive of this path, size and time."""
        source = _source_stamp(archive)
        for entry in self._entries():
            with suppress(ModuleError, FileNotFoundError):
                record = read_record(entry)
                if (record.module.handle, record.source) == (str(archive), source):
                    return entry
        return None

    def _checked(self, parsed: Handle, entry: Path) -> CachedModule | None:
        """The record of an entry whose files are what was fetched; None if there is none."""
        if not entry.exists():
            return None
        try:
            record = read_record(entry)
        except FileNotFoundError:
            return None  # removed this moment
        module = record.module
        stamp = files_stamp(module.path)
        if stamp == record.stamp:
            return module
        digest = files_digest(module.path)
        if digest != module.digest:
            raise ModuleError(
                f"the cached copy of {parsed.text} in {entry} has digest {digest}, was fetched with"
                f" {module.digest}; run `embedcache modules remove {parsed.text}` and fetch it"
                " again"
            )
        with suppress(OSError):  # a cache that cannot be written only digests once more
            write_record(entry, replace(record, stamp=stamp), temporary=self._temporary())
        return module

    def _stage(self, parsed: Handle, staging: Path) -> Path:
        """Make a whole entry below ``tmp``, not yet forced to the device."""
        unpacked, staged = staging / "unpacked", staging / "entry"
        unpacked.mkdir()
        staged.mkdir()
        source = ""
        if parsed.target.startswith("gs://"):
            found = find_saved_model(parsed.text, fetch_from_bucket(parsed, unpacked))
        else:
            archive = Path(parsed.target)
            if parsed.kind == "url":
                archive = staging / "download.tar.gz"
                download_archive(parsed, archive, timeout_s=self._timeout_s)
            else:
                source = _source_stamp(archive)
            found = extract_saved_model(parsed.text, archive, unpacked)
        path = found.rename(staged / MODULE_FOLDER)
        module = CachedModule(
            handle=parsed.target,
            path=path,
            digest=files_digest(path),
            num_bytes=sum(file.stat().st_size for file in module_files(path)),
            fetched_at=datetime.now(UTC).replace(microsecond=0),
        )
        record = EntryRecord(module, files_stamp(path), source)
        write_record(staged, record, temporary=staging / "module.json")
        return staged

    def _temporary(self) -> Path:
        return self.path / _TMP / uuid.uuid4().hex

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        """A folder of our own below ``tmp``, removed at the end."""
        staging = self._temporary()
        staging.mkdir(parents=True)
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _remove_stale(self) -> None:
        """Remove what killed processes left: what nobody has written to for a day."""
        for left in (self.path / _TMP).glob("*"):
            with suppress(FileNotFoundError):
                newest = max(path.lstat().st_mtime for path in (left, *left.rglob("*")))
                if newest < time.time() - _STALE_S:
                    shutil.rmtree(left, ignore_errors=True)


def _source_stamp(archive: Path) -> str:
    """Size and time of an archive: while they stand, so do its bytes."""
    status = archive.stat()
    return f"{status.st_size} {status.st_mtime_ns}"
