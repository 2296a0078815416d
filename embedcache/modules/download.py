"""A URL → its bytes on this machine, or one line that says why not.

HTTP is asked as TF Hub's hosting protocol says (https://www.tensorflow.org/hub/hosting):
with ``?tf-hub-format=compressed`` the answer is the module's .tar.gz. TensorFlow Hub is not
asked to do it: it has no timeout, keeps nothing to check a download by, and takes
TensorFlow's seconds of import. It serves ``gs://``, which needs TensorFlow's file system.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from embedcache.errors import ModuleError
from embedcache.modules.parsing import ARCHIVE_SUFFIXES, Handle
from embedcache.quiet import quiet_native_stderr

_BLOCK_BYTES = 1 << 20
_MAX_REASON = 300
_COMPRESSED = "tf-hub-format=compressed"
# TF Hub's mirror for China keeps the archives in another place.
_MIRROR = "https://hub.tensorflow.google.cn/"
_MIRROR_ARCHIVES = "https://gcs.tensorflow.google.cn/tfhub-modules/{}.tar.gz"
_ADVICE = {
    401: "log in there with a browser",
    403: "log in there with a browser and see whether the module is public",
    404: "check the name and the version",
    410: "check the name and the version",
    429: "try again later",
}
_SERVER_ERRORS = 500


def download_archive(handle: Handle, target: Path, *, timeout_s: float) -> None:
    """Download the .tar.gz of an http or https handle into a new file.

    Args:
        handle: Of the kind ``"url"``.
        target: The file; must not exist.
        timeout_s: The longest wait for an answer, and for each further piece of it, in seconds.

    Raises:
        ModuleError: if the server cannot be reached, says no, sends a web page, or breaks off.
        OSError: if the file system refuses to write.
    """
    url = _archive_url(handle.target)
    with target.open("xb") as file:
        for block in _blocks(handle, url, timeout_s):
            file.write(block)


def cannot_be_fetched(handle: Handle, reason: str, advice: str) -> ModuleError:
    """The error of a module that does not come: its handle, its URL, why, and what next."""
    url = "" if handle.target == handle.text else f" from {handle.target}"
    reading = ""
    if handle.guessed:
        reading = f"there is no folder {handle.text}, so it was read as a name of Kaggle's; "
    return ModuleError(
        f"{handle.text}: cannot be fetched{url} ({one_line(reason)}); {reading}{advice}, or"
        " download it by other means and name its folder or .tar.gz instead"
    )


def one_line(reason: object) -> str:
    """A foreign text on one line of bounded length."""
    line = " ".join(str(reason).split())
    return line if len(line) <= _MAX_REASON else line[:_MAX_REASON] + "…"


def _archive_url(url: str) -> str:
    if url.startswith(_MIRROR):
        return _MIRROR_ARCHIVES.format(url.removeprefix(_MIRROR))
    split = urlsplit(url)
    path = quote(split.path, safe="/%:@!$&'()*+,;=~-._")
    query = split.query
    if not path.endswith(ARCHIVE_SUFFIXES):
        # Not where an archive is named: another parameter breaks a signed URL.
        query = f"{query}&{_COMPRESSED}" if query else _COMPRESSED
    return urlunsplit((split.scheme, split.netloc, path, query, ""))


def _blocks(handle: Handle, url: str, timeout_s: float) -> Iterator[bytes]:
    """The body of a response in blocks; raises unless it is whole and an archive."""
    received = 0
    with _mapped_network_errors(handle), _open_url(url, timeout_s) as response:
        expected = response.length  # None where the server does not say
        kind = response.headers.get_content_type()
        while block := response.read(_BLOCK_BYTES):
            if not received and (kind == "text/html" or block.lstrip()[:1] == b"<"):
                raise cannot_be_fetched(
                    handle,
                    "the server sent a web page, not an archive",
                    "look at the page with a browser: it may ask to log in or to accept a licence",
                )
            received += len(block)
            yield block
        # http.client does not complain when a body that is read in pieces ends early.
        if expected is not None and received != expected:
            raise cannot_be_fetched(
                handle, f"broke off after {received:,} of {expected:,} bytes", "try again"
            )


def _open_url(url: str, timeout_s: float) -> HTTPResponse:
    # The scheme is http or https: parse_handle refuses others, urllib refuses redirects to them.
    response: HTTPResponse = urllib.request.urlopen(url, timeout=timeout_s)  # noqa: S310
    return response


@contextmanager
def _mapped_network_errors(handle: Handle) -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        with error:
            advice = _ADVICE.get(error.code, "check the address")
            if error.code >= _SERVER_ERRORS:
                advice = "try again later"
            raise cannot_be_fetched(handle, f"HTTP {error.code} {error.reason}", advice) from error
    except TimeoutError as error:
        raise cannot_be_fetched(handle, "the server does not answer", "try again later") from error
    except (OSError, HTTPException, ValueError) as error:
        cause = getattr(error, "reason", error)  # urllib wraps what the socket raised
        reason = getattr(cause, "strerror", None) or str(cause) or type(error).__name__
        raise cannot_be_fetched(handle, reason, "check the address and the network") from error


def fetch_from_bucket(handle: Handle, folder: Path) -> Path:
    """Fetch a module of a ``gs://`` URL through TensorFlow Hub; this imports TensorFlow.

    Args:
        handle: Of the kind ``"url"``: a SavedModel's folder in a bucket, or an archive there.
        folder: An existing empty folder on this machine.

    Returns:
        The folder below ``folder`` that holds the files.

    Raises:
        ModuleError: if it does not come.
        OSError: if the file system refuses to write.
    """
    with quiet_native_stderr():
        import tensorflow as tf
        import tensorflow_hub as hub
    try:
        with _hub_cache(folder):
            found = hub.resolve(handle.target)
        if not Path(found).is_relative_to(folder):
            _copy_tree(tf.io.gfile, found, folder / "copied")
            return folder / "copied"
    except (tf.errors.OpError, OSError, ValueError, RuntimeError, EOFError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of this machine's file system: TensorFlow's have no number
        raise cannot_be_fetched(handle, str(error), "check the address and the network") from error
    return Path(found)


@contextmanager
def _hub_cache(folder: Path) -> Iterator[None]:
    """Let TensorFlow Hub keep what it fetches in a folder, and print nothing on the way."""
    names = ("TFHUB_CACHE_DIR", "TFHUB_DOWNLOAD_PROGRESS")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ["TFHUB_CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["TFHUB_CACHE_DIR"]
        os.environ.update(before)


def _copy_tree(gfile: Any, source: str, target: Path) -> None:
    """Copy a folder of any of TensorFlow's file systems to this machine."""
    for folder, _, names in gfile.walk(source):
        below = target / folder.removeprefix(source).strip("/")
        if ".." in below.parts:
            raise ValueError(f"{folder} would lie outside the module")
        below.mkdir(parents=True, exist_ok=True)
        for name in names:
            source_file = gfile.GFile(posixpath.join(folder, name), "rb")
            with source_file as read, (below / posixpath.basename(name)).open("xb") as written:
                shutil.copyfileobj(read, written, _BLOCK_BYTES)
