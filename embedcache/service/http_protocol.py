"""Connections that cannot be held by sending, or by reading, as slowly as one likes.

uvicorn bounds the time that an idle connection stays open, and nothing else: a client that
sends a header a minute, or takes no answer, keeps its connection and its memory.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from embedcache.service.exchange import IN_PIECES_KEY
from embedcache.service.settings import Limits

_MAX_HEADER_BYTES = 64 << 10
"""Of a request line and headers; about eight times what common servers and proxies take."""

_MIN_READ_BYTES = 64 << 10
"""What a client must take of an answer that waits for it, in each time that it has to send one."""

_MAX_PIECES = 1 << 16
"""Of a body: one of 2 MiB in chunks of 32 bytes. Parsing a chunk takes about as long whatever its
size (1 µs), so that a body of single bytes would take seconds from everybody else."""

_END_S = 1
"""How long connections have at the very end, when all requests were answered."""


class ConnectionConfig(uvicorn.Config):
    """uvicorn's configuration for a service, and its limits.

    Args:
        app: The application.
        limits: What requests may take.
        max_connections: Open at once; further ones are closed, as each is a file, and shards
            and the catalog need some too.
    """

    def __init__(self, app: Any, *, limits: Limits, max_connections: int) -> None:
        super().__init__(
            app,
            http=TimedConnection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            # Its tracebacks and its warnings about bad requests: the middleware tells both.
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=math.ceil(limits.keep_alive_s),
            timeout_graceful_shutdown=_END_S,
        )
        self.limits = limits
        self.max_connections = max_connections


class TimedConnection(HttpToolsProtocol):
    """One connection: headers must be whole in time, and answers be taken.

    How long a body may take is the middleware's matter.
    """

    config: ConnectionConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timeout_s = self.config.limits.read_timeout_s
        self._headers_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None
        self._is_in_headers = False
        self._header_bytes = 0
        self._num_pieces = 0
        self._unsent_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        if len(self.connections) > self.config.max_connections:
            transport.abort()
            return
        self._headers_timer = self.loop.call_later(self._timeout_s, self._cut_headers)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop every timer."""
        self._stop_headers_timer()
        self._stop_answer_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and see whether headers are still awaited: most come whole, and need no timer."""
        super().data_received(data)
        if not (self._is_in_headers or self._has_no_request()):
            self._header_bytes = 0
            self._stop_headers_timer()
            return
        self._header_bytes += len(data)
        if self._header_bytes > _MAX_HEADER_BYTES:
            self._close_with(b"431 Request Header Fields Too Large")
        elif self._headers_timer is None:
            self._headers_timer = self.loop.call_later(self._timeout_s, self._cut_headers)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._is_in_headers = True

    def on_headers_complete(self) -> None:
        """Its headers are whole."""
        self._is_in_headers = False
        self._num_pieces = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of its body; too many of them are dropped, and the middleware is told."""
        self._num_pieces += 1
        if self._num_pieces <= _MAX_PIECES:
            super().on_body(body)
        elif self._num_pieces == _MAX_PIECES + 1:
            self.cycle.scope[IN_PIECES_KEY] = True  # type: ignore[literal-required]
            self.cycle.message_event.set()

    def pause_writing(self) -> None:
        """An answer waits for its reader."""
        super().pause_writing()
        self._watch_answer()

    def resume_writing(self) -> None:
        """Most of it has been taken."""
        super().resume_writing()
        self._stop_answer_timer()

    def _has_no_request(self) -> bool:
        """Whether none is being answered, as after line ends that begin no request."""
        return self.cycle is None or self.cycle.response_complete

    def _cut_headers(self) -> None:
        self._headers_timer = None
        if not self._has_no_request():
            # Of a further request that was sent before this one's answer.
            self._headers_timer = self.loop.call_later(self._timeout_s, self._cut_headers)
        elif self._header_bytes:
            self._close_with(b"408 Request Timeout")
        else:
            self.transport.close()

    def _close_with(self, status: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
            self.transport.close()

    def _watch_answer(self) -> None:
        self._stop_answer_timer()
        self._unsent_bytes = self.transport.get_write_buffer_size()
        self._answer_timer = self.loop.call_later(self._timeout_s, self._check_answer)

    def _check_answer(self) -> None:
        """Drop a connection whose reader takes next to nothing."""
        taken = self._unsent_bytes - self.transport.get_write_buffer_size()
        if taken < _MIN_READ_BYTES:
            self.transport.abort()
        else:
            self._watch_answer()

    def _stop_headers_timer(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def _stop_answer_timer(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None
