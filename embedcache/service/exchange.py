"""Exchange: one request and its answer, between the server and the application."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from embedcache.service.errors import ServiceProblem, problem_body

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

IN_PIECES_KEY = "embedcache.in_pieces"
"""In the ASGI scope of a request whose body comes in more pieces than are read."""

_MAX_REQUEST_ID = 128

_STATUS_SLOW = 408

_DISCARD_S = 1.0
"""How long the rest of a refused body is read and dropped. A connection that is closed on bytes
that nobody read is reset, and then the client loses the answer too (RFC 9112, 9.6)."""


class Disconnected(Exception):  # noqa: N818 - no error: nobody is left to answer
    """The client has gone before its request was whole."""


class Exchange:
    """One request and its answer.

    Attributes:
        scope: The request's ASGI scope.
        path: Its path, decoded.
        request_id: The client's ``X-Request-ID`` if it is at most 128 printable ASCII
            characters, else a new one.
        authorization: The header of that name.
        host: The header of that name; None without.
        fetch_site: The header ``Sec-Fetch-Site``, which browsers send; None without.
        is_encoded: Whether the body has a ``Content-Encoding``.
        status: Of the answer; 0 before it has begun.
        received_bytes: Of the body, so far.
        sent_bytes: Of the answer's body, so far.
        problem: Why the request was refused.
    """

    __slots__ = (
        "_body_is_whole",
        "_length",
        "_receive",
        "_send",
        "authorization",
        "fetch_site",
        "host",
        "is_encoded",
        "path",
        "problem",
        "received_bytes",
        "request_id",
        "scope",
        "sent_bytes",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.path: str = scope["path"]
        self.authorization: bytes | None = None
        self.host: bytes | None = None
        self.fetch_site: bytes | None = None
        self.is_encoded = False
        self.status = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self.problem: ServiceProblem | None = None
        self._receive = receive
        self._send = send
        self._length: int | None = 0
        request_id = b""
        for name, value in scope["headers"]:
            if name == b"content-length":
                self._length = int(value)
            elif name == b"transfer-encoding":
                self._length = None
            elif name == b"host":
                self.host = value
            elif name == b"authorization":
                self.authorization = value
            elif name == b"x-request-id":
                request_id = value
            elif name == b"content-encoding":
                self.is_encoded |= value.strip().lower() not in (b"", b"identity")
            elif name == b"sec-fetch-site":
                self.fetch_site = value
        self.request_id = _request_id(request_id)
        self._body_is_whole = self._length == 0

    @property
    def has_started(self) -> bool:
        """Whether the answer has begun: it cannot become another one."""
        return self.status != 0

    def check_length(self, max_bytes: int) -> None:
        """Refuse a body by the length that its header tells.

        Raises:
            ServiceProblem: 413.
        """
        if self._length is not None and self._length > max_bytes:
            raise _too_large(max_bytes)

    async def read_body(self, *, max_bytes: int, timeout_s: float) -> bytes:
        """The whole body.

        Raises:
            ServiceProblem: 413 as soon as more than ``max_bytes`` have come, or too many small
                pieces; 408 if it is not whole within ``timeout_s``.
            Disconnected: if the client goes away.
        """
        if self._body_is_whole:
            return b""
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(timeout_s):
                while not self._body_is_whole:
                    chunks.append(await self._next_chunk())
                    if self.received_bytes > max_bytes:
                        raise _too_large(max_bytes)
                    if IN_PIECES_KEY in self.scope:
                        raise ServiceProblem(
                            413, "body_in_pieces", "the body comes in too many small chunks"
                        )
        except TimeoutError:
            raise ServiceProblem(
                408, "slow_body", f"the body has not come within {timeout_s:g} seconds"
            ) from None
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def replay(self, body: bytes) -> Receive:
        """What the application receives: the whole body at once, then what else happens."""
        is_first = True

        async def receive() -> Message:
            nonlocal is_first
            if is_first:
                is_first = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await self._receive()

        return receive

    async def send(self, message: Message) -> None:
        """Send a part of the answer, with the request's id among its headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            headers.append((b"x-request-id", self.request_id.encode()))
            message["headers"] = headers
        else:
            self.sent_bytes += len(message.get("body", b""))
        await self._send(message)

    async def send_problem(self, problem: ServiceProblem, *, max_discarded_bytes: int) -> None:
        """Answer with an error, also where the body was not read."""
        body = problem_body(problem, self.path)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        headers |= problem.headers
        is_unread = not self._body_is_whole
        if is_unread:
            headers["Connection"] = "close"
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send(
            {"type": "http.response.start", "status": problem.status, "headers": encoded}
        )
        await self.send({"type": "http.response.body", "body": body, "more_body": is_unread})
        if is_unread:
            if problem.status != _STATUS_SLOW:
                await self._discard(self.received_bytes + max_discarded_bytes)
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _discard(self, max_bytes: int) -> None:
        """Read on and drop, up to so many bytes in all and for a moment."""
        try:
            async with asyncio.timeout(_DISCARD_S):
                while not self._body_is_whole and self.received_bytes <= max_bytes:
                    if IN_PIECES_KEY in self.scope:
                        return
                    await self._next_chunk()
        except (TimeoutError, Disconnected):
            return

    async def _next_chunk(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk: bytes = message.get("body", b"")
        self.received_bytes += len(chunk)
        self._body_is_whole = not message.get("more_body", False)
        return chunk


def _request_id(sent: bytes) -> str:
    if 0 < len(sent) <= _MAX_REQUEST_ID and all(0x20 < byte < 0x7F for byte in sent):
        return sent.decode("ascii")
    return secrets.token_hex(8)


def _too_large(max_bytes: int) -> ServiceProblem:
    return ServiceProblem(
        413, "body_too_large", f"the body is larger than {max_bytes} bytes; send fewer texts"
    )
