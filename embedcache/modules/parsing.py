"""Handle → what it names: a bundled module, a folder, an archive or a URL.

Kaggle's names and the several forms of its URLs become one URL, so that one module is
fetched and kept once, whatever way it is named. Nothing here touches the network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from embedcache.errors import ModuleError

BUILTIN_PREFIX = "builtin:"
DEFAULT_HANDLE = "builtin:en-words-128"
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz")
KAGGLE_EXAMPLE = "https://www.kaggle.com/models/google/nnlm/TensorFlow2/en-dim128/1"

HandleKind = Literal["builtin", "folder", "archive", "url"]

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_REMOTE_SCHEMES = ("https", "http", "gs")
_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_KAGGLE_NAME = re.compile(rf"({_PART})/({_PART})/({_PART})/({_PART})/([0-9]+)")
_KAGGLE_PATH = re.compile(
    rf"/models/({_PART})/({_PART})/(?:frameworks/)?({_PART})/(?:variations/)?({_PART})"
    r"/(?:versions/)?([0-9]+)/?"
)
_KAGGLE_HOSTS = ("kaggle.com", "www.kaggle.com")
# Kaggle's site and kagglehub write tensorFlow2, TF Hub's documentation TensorFlow2.
_FRAMEWORKS = {"tensorflow1": "TensorFlow1", "tensorflow2": "TensorFlow2"}
# They say how a module is asked for, not which: the address of a page has the second.
_QUERY_NOISE = ("tf-hub-format", "tfhub-redirect")


@dataclass(frozen=True, slots=True)
class Handle:
    """What a handle names.

    Attributes:
        text: The handle as the user gave it.
        kind: ``"builtin"``, ``"folder"``, ``"archive"`` (a local .tar.gz or .tgz) or ``"url"``.
        target: The bundled module's name, the absolute path, or the URL in its one form.
        guessed: Whether a relative path that does not exist was read as a name of Kaggle's.
    """

    text: str
    kind: HandleKind
    target: str
    guessed: bool = False

    @property
    def lasting(self) -> str:
        """A handle of the same module that is right in any working folder."""
        return self.text if self.kind == "builtin" else self.target


def parse_handle(handle: str) -> Handle:
    """Say what a handle names.

    Args:
        handle: ``builtin:NAME``; a folder; a local ``.tar.gz`` or ``.tgz``; an ``https://``,
            ``http://`` or ``gs://`` URL; or a name of Kaggle's,
            ``OWNER/MODEL/FRAMEWORK/VARIATION/VERSION``, unless a folder or file of that name
            exists.

    Raises:
        ModuleError: if it is empty, has another scheme, or is a malformed URL.
    """
    if not handle.strip():
        raise ModuleError(
            f"the module's handle is empty; name a SavedModel's folder, a URL, or {DEFAULT_HANDLE}"
        )
    if handle.startswith(BUILTIN_PREFIX):
        return Handle(handle, "builtin", handle.removeprefix(BUILTIN_PREFIX))
    if scheme := _SCHEME.match(handle):
        if scheme[1].lower() not in _REMOTE_SCHEMES:
            raise ModuleError(
                f"{handle}: a handle cannot start with {scheme[0]}; name a folder, a .tar.gz, an"
                f" https:// or gs:// URL, or {DEFAULT_HANDLE}"
            )
        return Handle(handle, "url", _one_form(handle))
    try:
        return _parse_path(handle)
    except (OSError, RuntimeError, ValueError) as error:
        # No permission to look, a name that is too long, no such user after ~.
        raise ModuleError(
            f"{handle}: cannot be read as a path ({getattr(error, 'strerror', None) or error});"
            " mend that, or name another folder"
        ) from error


def kaggle_url(parts: tuple[str, str, str, str, str]) -> str:
    """The one URL of OWNER, MODEL, FRAMEWORK, VARIATION and VERSION."""
    owner, model, framework, variation, version = parts
    framework = _FRAMEWORKS.get(framework.lower(), framework)
    return f"https://www.kaggle.com/models/{owner}/{model}/{framework}/{variation}/{version}"


def kaggle_parts(url: str) -> tuple[str, str, str, str, str] | None:
    """OWNER, MODEL, FRAMEWORK, VARIATION and VERSION of a Kaggle URL; None if it is none."""
    split = urlsplit(url)
    found = _KAGGLE_PATH.fullmatch(split.path)
    if split.netloc.lower() not in _KAGGLE_HOSTS or found is None:
        return None
    return found[1], found[2], found[3], found[4], found[5]


def _parse_path(handle: str) -> Handle:
    path = Path(handle).expanduser().absolute()
    if not path.exists():
        if found := _KAGGLE_NAME.fullmatch(handle):
            url = kaggle_url((found[1], found[2], found[3], found[4], found[5]))
            return Handle(handle, "url", url, guessed=True)
        is_archive = path.name.endswith(ARCHIVE_SUFFIXES)
    else:
        is_archive = path.name.endswith(ARCHIVE_SUFFIXES) and not path.is_dir()
    return Handle(handle, "archive" if is_archive else "folder", str(path))


def _one_form(url: str) -> str:
    """The URL without what does not say which module it is."""
    try:
        split = urlsplit(url)
        host, _ = split.hostname, split.port  # the port raises if it is no number
    except ValueError as error:
        raise ModuleError(f"{url}: is not a URL ({error}); correct it") from error
    if not host or any(character.isspace() for character in url):
        raise ModuleError(f"{url!r}: is not a URL; correct it")
    if split.username is not None:
        raise ModuleError(
            f"{split.scheme}://…@{host}{split.path}: a URL with a user name is not taken, for"
            " handles are kept; download it by other means and name its folder or archive"
        )
    if host in _KAGGLE_HOSTS and split.path.startswith("/models"):
        if parts := kaggle_parts(url):
            return kaggle_url(parts)
        raise ModuleError(
            f"{url}: names no version of a model of Kaggle's; complete it to OWNER/MODEL/"
            f"FRAMEWORK/VARIATION/VERSION, as in {KAGGLE_EXAMPLE}"
        )
    query = [part for part in split.query.split("&") if part.split("=")[0] not in _QUERY_NOISE]
    path = split.path.rstrip("/")
    return urlunsplit((split.scheme.lower(), split.netloc.lower(), path, "&".join(query), ""))
