"""Handle → the folder of a SavedModel, and the digest of its files."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from embedcache.errors import ModuleError
from embedcache.modules.builtin import builtin_path
from embedcache.quiet import quiet_native_stderr

BUILTIN_PREFIX = "builtin:"
DEFAULT_HANDLE = "builtin:en-words-128"
_REMOTE_PREFIXES = ("https://", "http://", "gs://")
_READ_BYTES = 8 << 20


def resolve_handle(handle: str) -> Path:
    """The local folder of a module.

    Args:
        handle: ``builtin:NAME``, a folder, or a URL that `tensorflow_hub` resolves (which
            downloads it into TensorFlow Hub's own cache the first time).

    Raises:
        ModuleError: if there is no complete SavedModel.
    """
    if handle.startswith(BUILTIN_PREFIX):
        path = builtin_path(handle.removeprefix(BUILTIN_PREFIX))
    elif handle.startswith(_REMOTE_PREFIXES):
        path = _resolve_remote(handle)
    else:
        path = Path(handle).absolute()
    _check_saved_model(handle, path)
    return path


def is_folder(handle: str) -> bool:
    """Whether a handle names a folder, not a bundled module or a URL."""
    return not handle.startswith((BUILTIN_PREFIX, *_REMOTE_PREFIXES))


def _resolve_remote(handle: str) -> Path:
    with quiet_native_stderr():
        import tensorflow as tf
        import tensorflow_hub as hub
    try:
        return Path(hub.resolve(handle))
    except (OSError, ValueError, RuntimeError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModuleError(
            f"{handle}: cannot be fetched ({reason}); download it by other means and name its"
            " folder with --module"
        ) from error


def _check_saved_model(handle: str, path: Path) -> None:
    """Raise unless the folder holds a SavedModel whose variables are complete."""
    if not path.exists():
        raise ModuleError(
            f"{handle}: no such folder; name a SavedModel's folder, a URL, or {DEFAULT_HANDLE}"
        )
    if not ((path / "saved_model.pb").is_file() or (path / "saved_model.pbtxt").is_file()):
        raise ModuleError(f"{handle}: no SavedModel there (no saved_model.pb in {path})")
    variables = path / "variables"
    has_shards = any(variables.glob("variables.data-*"))
    if has_shards != (variables / "variables.index").is_file():
        raise ModuleError(
            f"{handle}: half-downloaded ({variables} lacks"
            f" {'its index' if has_shards else 'its data'}); delete the folder and fetch it again"
        )


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
            while block := opened.read(_READ_BYTES):
                digest.update(block)
    return digest.hexdigest()
