"""Is a shard's file what was written, and if the catalog does not name it: into it again.

Shards are the truth, the catalog is not: whatever it lost is taken up from the files.
"""

from __future__ import annotations

import errno
import os
from hashlib import blake2b
from pathlib import Path

import h5py
import numpy as np

from embedcache.errors import CorruptShardError, StoreError, StoreVersionError
from embedcache.store.database.catalog import Catalog
from embedcache.store.database.records import ShardRecord
from embedcache.store.layout import StoreLayout
from embedcache.store.publish import find_files, make_folder, mapped_os_errors
from embedcache.store.shards.format import attributes_checksum, content_digest
from embedcache.store.shards.shard import Shard
from embedcache.store.upkeep.retired import retired_path

_READ_BYTES = 8 << 20
_FILES_TROUBLE = {errno.EIO, errno.EISDIR, errno.ENOENT}
# What h5py raises on damaged files; see `embedcache.store.shards.shard`.
_H5PY_ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError,
                IndexError, OverflowError, MemoryError)  # fmt: skip


def shard_fault(path: Path, digest: str) -> str | None:
    """Why a shard's file is not what was written; None if it is. It is read whole.

    A shard is named by the digest of its checksums; one that an older embedcache wrote by
    the digest of its bytes.

    Raises:
        StoreVersionError: if it is whole and a newer embedcache's.
        StoreError: if this process cannot open it.
    """
    try:
        shard = Shard(path)
        shard.verify_all()
        if digest != shard.digest and digest != file_digest(path):
            return "its content is not what its name is the digest of"
    except StoreVersionError:
        # Or its version has been flipped: then its name tells.
        if digest == _claimed_digest(path) or digest == file_digest(path):
            raise
        return "its content is not what its name is the digest of"
    except CorruptShardError as error:
        return str(error)
    except OSError as error:
        if error.errno not in _FILES_TROUBLE:
            # The process's trouble, not the file's: a whole shard is not to be blamed.
            raise StoreError(
                f"{path}: cannot be opened ({error.strerror}); change what forbids it and run the"
                " same command again"
            ) from error
        return f"cannot be read ({error.strerror})"
    return None


def lasting_fault(path: Path, digest: str) -> str | None:
    """`shard_fault`, if it is found twice: a device that failed once may have kept the shard whole.

    Raises:
        StoreVersionError: as `shard_fault`.
        StoreError: as `shard_fault`.
    """
    return shard_fault(path, digest) and shard_fault(path, digest)


def file_digest(path: Path) -> str:
    """The 16-byte BLAKE2b of a file as 32 hexadecimal digits."""
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _claimed_digest(path: Path) -> str | None:
    """The name that a shard of an unknown version would have by its checksums.

    Only if its attributes, the version among them, have the first one; so far every version
    begins like that.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            attributes = {
                name: value.decode("ascii") if isinstance(value, bytes) else int(value)
                for name, value in file.attrs.items()
            }
            checksums = file["checksums"]
            is_plain = isinstance(file.get("checksums", getlink=True), h5py.HardLink)
            if not is_plain or checksums.ndim != 1 or checksums.dtype != np.dtype("<u8"):
                return None
            if checksums.nbytes > os.path.getsize(path):
                return None
            found = checksums[()]
    except _H5PY_ERRORS:
        return None
    if len(found) == 0 or attributes_checksum(attributes) != int(found[0]):
        return None
    return content_digest(found)


def adopt_shards(layout: StoreLayout, catalog: Catalog) -> list[Path]:
    """Catalogue the whole shards that it does not name, and quarantine what is none.

    Returns:
        The files that it did not name.

    Raises:
        StoreVersionError: if one is a newer embedcache's.
        StoreError: if the store cannot be written.
    """
    orphans = orphan_shards(layout, catalog)
    for path in orphans:
        adopt_shard(layout, catalog, path)
    return orphans


def orphan_shards(layout: StoreLayout, catalog: Catalog) -> list[Path]:
    """The files among the shards that the catalog neither names nor has retired."""
    # In this order: what another process catalogues, retires or deletes meanwhile is none.
    files = find_files(layout.shards, "*/*")
    known = {layout.shard_path(record.view, record.digest) for record in catalog.shards()}
    known |= {retired_path(layout, record) for record in catalog.retired()}
    return [path for path in files if path not in known and path.exists()]


def adopt_shard(layout: StoreLayout, catalog: Catalog, path: Path) -> bool:
    """Catalogue a shard's file, or quarantine it if it is none; whether it was catalogued.

    Raises:
        StoreVersionError: if it is a newer embedcache's.
        StoreError: if the store cannot be written.
    """
    digest = path.stem
    if lasting_fault(path, digest) is not None:
        quarantine(layout, path)
        return False
    shard = Shard(path)
    fingerprint = shard.view.fingerprint
    if path != layout.shard_path(fingerprint, digest):
        # Another view's, or not named as a shard: no reader would find it there.
        quarantine(layout, path)
        return False
    if fingerprint not in {record.fingerprint for record in catalog.views()}:
        # The handle was the catalog's alone; the next build gives it again.
        catalog.add_view(shard.view, "")
    size = path.stat().st_size
    record = ShardRecord(digest, fingerprint, len(shard), shard.num_tokens, size)
    return not catalog.add_shard(record, path)


def quarantine(layout: StoreLayout, path: Path) -> None:
    """Put a file of the store aside; nothing is deleted."""
    target = layout.quarantine / f"{path.parent.name}-{path.name}"
    make_folder(target.parent)
    with mapped_os_errors(path):
        os.replace(path, target)
