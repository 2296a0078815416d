"""Handle → the folder of a SavedModel on this machine.

What a handle may be is told by `parse_handle`. A bundled module and a folder are used where
they lie; a URL and an archive are fetched or unpacked into the `ModuleCache` once. None of
this imports TensorFlow, but for fetching a ``gs://`` URL.
"""

from __future__ import annotations

from pathlib import Path

from embedcache.errors import ModuleError
from embedcache.modules.builtin import builtin_path
from embedcache.modules.cache import ModuleCache, default_cache_path
from embedcache.modules.digests import check_saved_model, files_digest, files_stamp, module_files
from embedcache.modules.parsing import DEFAULT_HANDLE, Handle, parse_handle

__all__ = [
    "DEFAULT_HANDLE",
    "IMPORTED_PREFIX",
    "IMPORTED_SIGNATURE",
    "Handle",
    "files_digest",
    "files_stamp",
    "is_folder",
    "module_files",
    "parse_handle",
    "resolve_handle",
]

IMPORTED_PREFIX = "imported:"
"""What stands before the name of features that `embedcache import` took: no module is known."""
IMPORTED_SIGNATURE = "imported"
"""The signature of the views of such features."""


def resolve_handle(handle: str, *, cache: ModuleCache | None = None) -> Path:
    """The local folder of a module, fetched first if it must be.

    Args:
        handle: See `parse_handle`.
        cache: Where fetched modules are kept; None: the user's cache, `default_cache_path`.

    Returns:
        The absolute path of a folder that holds a whole SavedModel.

    Raises:
        ModuleError: if there is no whole SavedModel, or it cannot be fetched.
    """
    if handle.startswith(IMPORTED_PREFIX):
        raise ModuleError(
            f"{handle}: names features that were imported; the module that made them is not known,"
            " so it cannot compute others: bring them with `embedcache import`, or name a module"
        )
    parsed = parse_handle(handle)
    if parsed.kind in ("url", "archive"):
        return (cache or ModuleCache(default_cache_path())).fetch(handle).path
    path = builtin_path(parsed.target) if parsed.kind == "builtin" else Path(parsed.target)
    check_saved_model(handle, path)
    return path


def is_folder(handle: str) -> bool:
    """Whether a handle names a folder, not a bundled module, an archive or a URL.

    Raises:
        ModuleError: if it names nothing, as `parse_handle` tells.
    """
    return parse_handle(handle).kind == "folder"
