"""Is a shard's file what was written, and if the catalog does not name it: into it again.

Shards are the truth, the catalog is not: whatever it lost is taken up from the files.
"""

from __future__ import annotations

import errno
import os
from hashlib import blake2b
from pathlib import Path

from embedcache.errors import CorruptShardError, StoreError
from embedcache.store.catalog import Catalog
from embedcache.store.layout import StoreLayout
from embedcache.store.publish import make_folder, mapped_os_errors
from embedcache.store.records import ShardRecord
from embedcache.store.shard import Shard

_READ_BYTES = 8 << 20
_FILES_TROUBLE = {errno.EIO, errno.EISDIR, errno.ENOENT}


def shard_fault(path: Path, digest: str) -> str | None:
    """Why a shard's file is not what was written; None if it is. It is read whole.

    Raises:
        StoreVersionError: if it is whole and a newer embedcache's.
        StoreError: if this process cannot open it.
    """
    try:
        if file_digest(path) != digest:
            return "its bytes are not those that its name is the digest of"
        Shard(path).verify_all()
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


def file_digest(path: Path) -> str:
    """The 16-byte BLAKE2b of a file as 32 hexadecimal digits."""
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


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
        _adopt(layout, catalog, path)
    return orphans


def orphan_shards(layout: StoreLayout, catalog: Catalog) -> list[Path]:
    """The files among the shards that the catalog does not name."""
    known = {layout.shard_path(record.view, record.digest) for record in catalog.shards()}
    return [path for path in sorted(layout.shards.glob("*/*")) if path not in known]


def _adopt(layout: StoreLayout, catalog: Catalog, path: Path) -> None:
    digest = path.stem
    if shard_fault(path, digest) is not None:
        quarantine(layout, path)
        return
    shard = Shard(path)
    fingerprint = shard.view.fingerprint
    if path != layout.shard_path(fingerprint, digest):
        # Another view's, or not named as a shard: no reader would find it there.
        quarantine(layout, path)
        return
    if fingerprint not in {record.fingerprint for record in catalog.views()}:
        # The handle was the catalog's alone; the next build gives it again.
        catalog.add_view(shard.view, "")
    size = path.stat().st_size
    catalog.add_shard(ShardRecord(digest, fingerprint, len(shard), shard.num_tokens, size))


def quarantine(layout: StoreLayout, path: Path) -> None:
    """Put a file of the shards aside; nothing is deleted."""
    target = layout.quarantine / f"{path.parent.name}-{path.name}"
    make_folder(target.parent)
    with mapped_os_errors(path):
        os.replace(path, target)
