"""API keys: the file that they are read from, and which of them a request has shown."""

from __future__ import annotations

import hmac
import ipaddress
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from embedcache.errors import ServiceError

SCOPES = ("read", "compute", "admin")
_DEFAULT_SCOPES = frozenset({"read", "compute"})
ALL_SCOPES = frozenset(SCOPES)

_MIN_KEY_LENGTH = 16
"""Of characters: shorter keys can be found by trying."""

_MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key, of which only the digest is kept.

    Attributes:
        digest: SHA-256 of the key: all digests are equally long, so that comparing two
            tells nothing of the key's length either.
        scopes: What it allows.
    """

    digest: bytes
    scopes: frozenset[str]


class KeyRing:
    """The keys of a service; without any, every request may do everything."""

    def __init__(self, keys: Sequence[ApiKey] = ()) -> None:
        self._keys = tuple(keys)

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for."""
        return not self._keys

    def scopes_of(self, authorization: bytes | None) -> frozenset[str] | None:
        """What a request may do.

        Args:
            authorization: Its header ``Authorization``: ``Bearer KEY``.

        Returns:
            The scopes; None if it shows no key, or one that is not known. The time taken
            depends on the number of keys alone.
        """
        if not self._keys:
            return ALL_SCOPES
        scheme, _, token = (authorization or b"").partition(b" ")
        digest = sha256(token.strip()).digest()
        found: frozenset[str] | None = None
        for key in self._keys:
            if hmac.compare_digest(digest, key.digest):
                found = key.scopes
        return found if scheme.lower() == b"bearer" else None


def load_keys(path: Path) -> KeyRing:
    """The keys of a file: ``KEY [SCOPE[,SCOPE…]]`` a line; ``#`` begins a comment.

    Raises:
        ServiceError: if it cannot be read, others than its owner can read it, it has no key,
            or a line is wrong. The line is named by its number, never shown.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ServiceError(f"{path}: the API keys cannot be read: {reason}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ServiceError(
            f"{path}: others can read or write the API keys (mode {mode:04o}); run `chmod 600` on"
            " the file"
        )
    if len(content) > _MAX_FILE_BYTES:
        raise ServiceError(f"{path}: this is no file of API keys: it is larger than 1 MiB")
    keys = _parse_keys(content, path)
    if not keys:
        raise ServiceError(f"{path}: there is no API key in it; write one a line, such as one that"
                           " `openssl rand -hex 24` prints")  # fmt: skip
    return KeyRing(keys)


def _parse_keys(content: bytes, path: Path) -> list[ApiKey]:
    keys: list[ApiKey] = []
    for number, line in enumerate(content.splitlines(), start=1):
        words = line.partition(b"#")[0].split()
        if not words:
            continue
        place = f"{path}, line {number}"
        key = words[0]
        if len(words) > 2:
            raise ServiceError(f"{place}: a line is KEY, or KEY SCOPE,SCOPE; this one has more")
        if len(key) < _MIN_KEY_LENGTH or not all(0x20 < byte < 0x7F for byte in key):
            raise ServiceError(
                f"{place}: a key is at least {_MIN_KEY_LENGTH} printable ASCII characters"
            )
        digest = sha256(key).digest()
        if any(known.digest == digest for known in keys):
            raise ServiceError(f"{place}: the same key as on a line above")
        keys.append(ApiKey(digest, _scopes(words[1:], place)))
    return keys


def _scopes(words: Sequence[bytes], place: str) -> frozenset[str]:
    if not words:
        return _DEFAULT_SCOPES
    scopes = frozenset(words[0].decode(errors="replace").split(","))
    if not scopes <= ALL_SCOPES:
        raise ServiceError(f"{place}: scopes are some of {', '.join(SCOPES)}, with commas between")
    return scopes


def check_open_host(host: str, keys: KeyRing) -> None:
    """Refuse to be reachable from other machines where everybody may do everything.

    Raises:
        ServiceError: if the address is not the loopback's and there are no keys.
    """
    if keys.is_open and not _is_loopback(host):
        raise ServiceError(
            f"{host} can be reached from other machines, and no API key is set; name a file of keys"
            " with --api-key-file, or listen at 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        # A name may stand for any address, also for another one tomorrow.
        return False
