"""A module's files: whether they are a whole SavedModel, their digest and their stamp."""

from __future__ import annotations

import re
from hashlib import blake2b
from pathlib import Path

from embedcache.errors import ModuleError
from embedcache.modules.parsing import ARCHIVE_SUFFIXES, DEFAULT_HANDLE

READ_BYTES = 8 << 20
_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")
_NUM_NAMED = 3
_SHARD = re.compile(r"variables\.data-[0-9]+-of-([0-9]+)")


def module_files(path: Path) -> list[Path]:
    """All files of a module, in the order of their relative names."""
    files = [file for file in path.rglob("*") if file.is_file()]
    return sorted(files, key=lambda file: file.relative_to(path).as_posix())


def files_stamp(path: Path) -> str:
    """Names, sizes and times of a module's files: while they stand, so does its digest."""
    digest = blake2b(digest_size=16)
    for file in module_files(path):
        status = file.stat()
        name = file.relative_to(path).as_posix()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def files_digest(path: Path) -> str:
    """The module's digest: BLAKE2b-16 of every file's relative name, size and content.

    Returns:
        32 hexadecimal digits; the same for the same files anywhere.
    """
    digest = blake2b(digest_size=16)
    for file in module_files(path):
        name = file.relative_to(path).as_posix()
        digest.update(f"{name}\0{file.stat().st_size}\n".encode())
        with file.open("rb") as opened:
            while block := opened.read(READ_BYTES):
                digest.update(block)
    return digest.hexdigest()


def holds_saved_model(path: Path) -> bool:
    """Whether a folder looks like a SavedModel, whole or not."""
    return any((path / name).is_file() for name in _MODEL_FILES)


def check_saved_model(handle: str, path: Path) -> None:
    """Raise unless the folder holds a SavedModel with all its files.

    Args:
        handle: For the message.
        path: The folder.

    Raises:
        ModuleError: if it is not there, is no SavedModel, or only a part of one.
    """
    try:
        _check_folder(handle, path)
        if missing := _missing_part(path):
            raise ModuleError(
                f"{handle}: half-downloaded ({missing}); delete {path} and fetch it again"
            )
    except OSError as error:
        raise ModuleError(
            f"{handle}: cannot be read ({error.strerror or error}); change the permissions of"
            f" {error.filename or path}, or name another folder"
        ) from error


def _check_folder(handle: str, path: Path) -> None:
    if not path.exists():
        raise ModuleError(
            f"{handle}: no such folder; name a SavedModel's folder or .tar.gz, a URL, or"
            f" {DEFAULT_HANDLE}"
        )
    if not path.is_dir():
        advice = f"a SavedModel's folder, or an archive ({', '.join(ARCHIVE_SUFFIXES)})"
        if path.name in _MODEL_FILES:
            advice = f"its folder, {path.parent}"
        raise ModuleError(f"{handle}: is a file, not a folder; name {advice}")
    if not holds_saved_model(path):
        inner = [str(child) for child in sorted(path.iterdir()) if holds_saved_model(child)]
        advice = "name the folder that has one, or fetch it again if a download was interrupted"
        if inner:
            advice = f"name {' or '.join(inner[:_NUM_NAMED])}"
        raise ModuleError(f"{handle}: no SavedModel there (no saved_model.pb in {path}); {advice}")


def _missing_part(path: Path) -> str | None:
    """What a SavedModel lacks; None if it is whole as far as the names and sizes tell."""
    for name in _MODEL_FILES:
        if (path / name).is_file() and not (path / name).stat().st_size:
            return f"{path / name} is empty"
    variables = path / "variables"
    index = variables / "variables.index"
    shards = [found for file in variables.glob("*") if (found := _SHARD.fullmatch(file.name))]
    if not index.is_file():
        return f"{variables} lacks its index" if shards else None
    if not index.stat().st_size:
        return f"{index} is empty"
    if not shards:
        return f"{variables} lacks its data"
    if len(shards) < (num_shards := int(shards[0][1])):
        return f"{variables} has {len(shards)} of {num_shards} data files"
    return None
