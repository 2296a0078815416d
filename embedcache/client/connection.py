"""Connection: requests to one service, with the patience and the errors that they all share."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from embedcache.errors import ServiceError

JSON = "application/json"
NPZ = "application/x-npz"
KEYS = "application/octet-stream"

MAX_ANSWER_BYTES = 256 << 20
"""Of an answer at most; the service's own limit is 64 MiB, unless it was told another."""
_IDLE_S = 4.0
"""For which an idle connection is kept: the service closes it after 5."""

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_MAX_SHOWN = 300
"""Characters of a service's own words that an error shows."""

_HINTS = {
    401: "pass `api_key=…`, one of the keys in the service's key file",
    403: "use an API key with that scope",
    404: "is this the address of an `embedcache serve` of this version?",
    413: "ask for less at once, or raise the service's limits",
    429: "it is busy: try later, or with a larger timeout_s",
    503: "try later, or look into the service's log",
    504: "what it has begun it goes on with: try later, or with a larger timeout_s",
}
_FINAL_TLS_ERRORS = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
"""OpenSSL's words for a certificate that is not trusted, and for HTTP where TLS is expected."""
_LOGGER = logging.getLogger("embedcache.client")


@dataclass(frozen=True, slots=True)
class Request:
    """A request that may be sent again: the same one twice has no other effect than once.

    Attributes:
        method: ``"GET"`` or ``"POST"``.
        path: What follows the service's address, ``/v1/views`` and so on.
        body: Its content.
        content_type: What the content is.
        accept: What the answer is to be.
        allowed: Error statuses that the caller sees to.
        max_answer_bytes: Of the answer, beyond which it is an error.
    """

    method: str
    path: str
    body: bytes | None = None
    content_type: str = JSON
    accept: str = JSON
    allowed: tuple[int, ...] = ()
    max_answer_bytes: int = MAX_ANSWER_BYTES

    @classmethod
    def post_json(
        cls, path: str, record: Any, *, accept: str = JSON, allowed: tuple[int, ...] = ()
    ) -> Request:
        """A POST request of a JSON value."""
        body = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
        return cls("POST", path, body, JSON, accept, allowed)

    @classmethod
    def post_keys(cls, path: str, keys: bytes, *, allowed: tuple[int, ...] = ()) -> Request:
        """A POST request of keys, 16 bytes each, that is answered with arrays."""
        return cls("POST", path, keys, KEYS, NPZ, allowed)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service has answered.

    Attributes:
        status: The HTTP status.
        headers: By name in lower case.
        body: The content, whole.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def problem(self) -> tuple[str, str]:
        """Of an error the code and the sentence, in whichever interface's form; ``("", "")``."""
        try:
            record = json.loads(self.body)
        except (ValueError, RecursionError):
            return "", ""
        error = record.get("error") if isinstance(record, dict) else None
        if isinstance(error, dict):
            return _shown(error.get("code")), _shown(error.get("message"))
        return "", _shown(error)


@dataclass(slots=True)
class _Patience:
    """How long one request may still take, with all its repetitions."""

    timeout_s: float
    started_s: float = field(default_factory=time.monotonic)
    pause_s: float = _FIRST_PAUSE_S
    num_pauses: int = 0

    @property
    def left_s(self) -> float:
        return self.started_s + self.timeout_s - time.monotonic()

    def count_pause(self) -> None:
        self.num_pauses += 1
        self.pause_s = min(2 * self.pause_s, _LONGEST_PAUSE_S)


class Connection:
    """Requests to a service, from any threads of one process. Constructing it opens nothing.

    Args:
        url: The service's address.
        api_key: What is sent as ``Authorization: Bearer``; None: nothing.
        timeout_s: What one request may take, with all its repetitions.

    Raises:
        ServiceError: if the address or the key cannot be one.
    """

    def __init__(self, url: str, *, api_key: str | None, timeout_s: float) -> None:
        self.url = _checked_url(url)
        self.timeout_s = timeout_s
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "embedcache"}
        if api_key is not None:
            if not api_key or not all("!" <= character <= "~" for character in api_key):
                raise ServiceError(
                    f"{self.url}: the API key must be printable ASCII characters without spaces;"
                    " give one that stands in the service's key file"
                )
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._client: Any = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._process = os.getpid()

    def close(self) -> None:
        """Close what is open, and end what waits for the service."""
        self._closed.set()
        with self._lock:
            if self._client is not None and self._process == os.getpid():
                self._client.close()
            self._client = None

    def ask(self, request: Request) -> Answer:
        """The answer to a request; it is sent again while the service cannot be reached.

        So it is where the service says when to try again (429 and 503 with ``Retry-After``),
        where a proxy does not reach it (502), and where it goes on with what it has begun (504).

        Raises:
            ServiceError: if it is not answered in time, or refused with a status other than
                those ``allowed``.
        """
        patience = _Patience(self.timeout_s)
        while True:
            try:
                answer = self._send(request, patience)
            except TimeoutError:
                raise self.error(
                    f"the service has not answered for {self.timeout_s:g} s; it may be computing"
                    " still: try later, or wait longer with timeout_s"
                ) from None
            except OSError as error:
                self._wait(patience.pause_s, patience, f"cannot be reached ({_reason(error)})")
                continue
            if answer.status < HTTPStatus.MULTIPLE_CHOICES or answer.status in request.allowed:
                return answer
            asked_s = _pause_asked_for(answer, patience.pause_s)
            if asked_s is None or asked_s >= patience.left_s:
                raise self.refusal(answer)
            self._wait(asked_s, patience, f"cannot answer now ({answer.status})")

    def error(self, problem: str) -> ServiceError:
        """An error of this service."""
        return ServiceError(f"{self.url}: {problem}")

    def wrong_answer(self, request: Request, what: str) -> ServiceError:
        """The error of an answer that is not what the service's interface says."""
        return self.error(
            f"the answer to {request.method} {request.path} is not what was asked for ({what});"
            " nothing of it is used: update embedcache here or there"
        )

    def refusal(self, answer: Answer) -> ServiceError:
        """The error of an answer with an error status: what was refused, why, what to do."""
        code, message = answer.problem
        kind = f"{answer.status} {code}".strip()
        asked_of = answer.headers.get("x-request-id", "")
        request_id = f" (request {_shown(asked_of)})" if asked_of and answer.status >= 500 else ""
        # What names a code is this service, and knows better.
        hint = "" if answer.status == HTTPStatus.NOT_FOUND and code else _HINTS.get(answer.status)
        words = f"{message or 'it gives no reason'}{request_id}"
        return self.error(f"the service refused ({kind}): {words}" + (f"; {hint}" if hint else ""))

    def _wait(self, pause_s: float, patience: _Patience, problem: str) -> None:
        if pause_s >= patience.left_s:
            raise self.error(
                f"the service {problem}, for {patience.timeout_s:g} s; check that `embedcache"
                " serve` runs there, or wait longer with timeout_s"
            )
        if not patience.num_pauses:
            _LOGGER.warning(
                "%s: the service %s; trying for %g s", self.url, problem, patience.timeout_s
            )
        patience.count_pause()
        if self._closed.wait(pause_s):
            raise self._closed_error()

    def _send(self, request: Request, patience: _Patience) -> Answer:
        """Send it once.

        Raises:
            OSError: if the service is not reached, or goes away.
            TimeoutError: if it does not answer in time.
            ServiceError: if it cannot be sent at all.
        """
        library, client = _import_library(), self._open()
        headers = {"Accept": request.accept}
        if request.body is not None:
            headers["Content-Type"] = request.content_type
        timeout = library.Timeout(max(patience.left_s, 1e-3))
        try:
            with client.stream(
                request.method, self.url + request.path,
                content=request.body, headers=headers, timeout=timeout,
            ) as response:  # fmt: skip
                return self._read(response, patience, request.max_answer_bytes)
        except library.ReadTimeout:
            raise TimeoutError from None
        except (library.InvalidURL, library.UnsupportedProtocol) as error:
            raise self.error(f"the request cannot be sent ({_reason(error)})") from None
        except (library.TransportError, library.StreamError) as error:
            if _is_final(error):
                raise self.error(
                    f"the service cannot be reached ({_reason(error)}); check the address"
                ) from None
            raise OSError(_reason(error)) from None
        except RuntimeError:
            # What the library says of a client that another thread has closed.
            if not self._closed.is_set():
                raise
            raise self._closed_error() from None

    def _read(self, response: Any, patience: _Patience, max_bytes: int) -> Answer:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise self.error("the answer is compressed, which was not asked for; ask without proxy")
        parts, num_bytes = [], 0
        for part in response.iter_raw():
            parts.append(part)
            num_bytes += len(part)
            if num_bytes > max_bytes:
                raise self.error(f"the answer is larger than {max_bytes} bytes; ask for less")
            if patience.left_s < 0:
                raise TimeoutError
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status_code, headers, b"".join(parts))

    def _open(self) -> Any:
        with self._lock:
            if self._process != os.getpid():
                raise self.error("connected before a fork; connect again in the child process")
            if self._closed.is_set():
                raise self._closed_error()
            if self._client is None:
                library = _import_library()
                limits = library.Limits(keepalive_expiry=_IDLE_S)
                self._client = library.Client(headers=self._headers, limits=limits)
            return self._client

    def _closed_error(self) -> ServiceError:
        return self.error("the connection has been closed; connect again")


def _pause_asked_for(answer: Answer, pause_s: float) -> float | None:
    """After how many seconds to try again; None: not at all."""
    if answer.status in (HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT):
        return pause_s
    asked = answer.headers.get("retry-after", "").strip()
    if answer.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE) and asked:
        # Else it is a date, as a proxy may send.
        return float(asked) if asked.isdecimal() else _LONGEST_PAUSE_S
    return None


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        is_address = False
    if not is_address:
        raise ServiceError(
            f"{url!r} is no address of a service; write one such as http://127.0.0.1:8080"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ServiceError(
            f"{parts.scheme}://{parts.hostname}: a service's address has no user, ? and #; an API"
            " key is given as api_key"
        )
    return url.rstrip("/")


def _import_library() -> ModuleType:
    try:
        import httpx2
    except ImportError as error:
        raise ServiceError(
            f"the HTTP client httpx2 cannot be imported ({error}); install it with"
            " `pip install 'embedcache[client]'`"
        ) from None
    return httpx2


def _is_final(error: BaseException) -> bool:
    """Whether trying again would not help: no such host, no TLS, or no trusted certificate."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME:
            return True
        cause = cause.__cause__ or cause.__context__
    return any(word in str(error) for word in _FINAL_TLS_ERRORS)


def _reason(error: BaseException) -> str:
    return _shown(str(error)) or type(error).__name__


def _shown(words: Any) -> str:
    """Somebody else's words as a part of one line."""
    text = " ".join(str(words or "").split())
    printable = "".join(character for character in text if character.isprintable())
    return printable if len(printable) <= _MAX_SHOWN else printable[:_MAX_SHOWN] + "…"
