"""The one middleware: what every request goes through before its route, and after.

    draining → key → coding → size → body → deadline → route → headers, log, metrics

Pure ASGI: a hit takes a fraction of a millisecond, of which Starlette's BaseHTTPMiddleware
alone would take a good part.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING

from embedcache.errors import EmbedCacheError
from embedcache.service.browsers import refuse_other_pages
from embedcache.service.errors import ServiceProblem, problem_of
from embedcache.service.exchange import Disconnected, Exchange
from embedcache.service.metrics import UNMATCHED
from embedcache.service.request_notes import SCOPE_KEY, RequestNotes

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from embedcache.service.services import Services

# Answered without a key, and while draining: a supervisor has none, and the interface's
# description tells nothing of what is stored.
_OPEN_PATHS = frozenset({"/health", "/ready", "/docs", "/docs/oauth2-redirect", "/openapi.json"})
_DRAINING_PATHS = _OPEN_PATHS | {"/metrics"}
_ADMIN_PATHS = frozenset({"/metrics", "/v1/reload"})

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})

_STATUS_DISCONNECTED = 499
"""In the log and the metrics, of a request whose client went away; nginx's number for it."""

_GRACE_S = 1.0
"""After its deadline a route has so long to say itself what was late; then it is cancelled."""

_DRAINING_RETRY_S = 5.0

_NO_SCOPES: frozenset[str] = frozenset()


class ServiceMiddleware:
    """Admits requests, reads their bodies, renders every error, logs and counts.

    Args:
        app: What answers a request that was admitted; its body is then whole.
        services: The service's settings, keys, metrics, state and log.
    """

    def __init__(self, app: ASGIApp, *, services: Services) -> None:
        self._app = app
        self._services = services
        self._limits = services.settings.limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        exchange = Exchange(scope, receive, send)
        notes = RequestNotes(exchange.request_id, _NO_SCOPES, started + self._limits.deadline_s)
        scope[SCOPE_KEY] = notes
        self._services.state.enter()
        try:
            await self._answer(exchange, notes)
        finally:
            self._services.state.leave()
            self._record(exchange, notes, time.monotonic() - started)

    async def _answer(self, exchange: Exchange, notes: RequestNotes) -> None:
        """Have the request answered: by its route, or by the error that it met."""
        try:
            self._admit(exchange, notes)
            body = await exchange.read_body(
                max_bytes=self._limits.max_body_bytes, timeout_s=self._limits.read_timeout_s
            )
            await self._answer_in_time(exchange, notes, body)
        except Disconnected:
            exchange.status = _STATUS_DISCONNECTED
        except EmbedCacheError as error:
            await self._refuse(exchange, problem_of(error))
        except Exception as error:  # the last boundary: no traceback reaches a user
            self._log_unexpected(exchange, error)
            await self._refuse(
                exchange,
                ServiceProblem(
                    500,
                    "internal",
                    "the service failed at this; its log tells where, under the request id"
                    f" {exchange.request_id}",
                ),
            )

    def _admit(self, exchange: Exchange, notes: RequestNotes) -> None:
        """Refuse a request by what its headers tell.

        Raises:
            ServiceProblem: 503 while draining, 401, 403, 415 or 413.
        """
        path = exchange.path
        if self._services.state.is_draining and path not in _DRAINING_PATHS:
            raise ServiceProblem(
                503,
                "draining",
                "the service is ending and takes no new requests",
                retry_after_s=_DRAINING_RETRY_S,
            )
        scopes = self._services.auth.scopes_of(exchange.authorization)
        if path not in _OPEN_PATHS:
            if self._services.auth.is_open:
                refuse_other_pages(exchange.host, exchange.fetch_site)
            if scopes is None:
                raise ServiceProblem(
                    401,
                    "unauthorized",
                    "an API key is needed: send the header Authorization: Bearer KEY",
                    headers={"WWW-Authenticate": 'Bearer realm="embedcache"'},
                )
            notes.scopes = scopes
            notes.require("admin" if path in _ADMIN_PATHS else "read")
        if exchange.is_encoded:
            raise ServiceProblem(
                415,
                "content_encoding",
                "compressed bodies are not read; send the body without Content-Encoding",
            )
        exchange.check_length(self._limits.max_body_bytes)

    async def _answer_in_time(self, exchange: Exchange, notes: RequestNotes, body: bytes) -> None:
        """Let the route answer, and cancel it well after its deadline.

        Raises:
            ServiceProblem: 504, if no answer had begun by then.
        """
        left_s = notes.deadline + _GRACE_S - time.monotonic()
        try:
            async with asyncio.timeout(left_s) as deadline:

                async def send(message: Message) -> None:
                    if not exchange.has_started:
                        # How long a client takes to read the answer is its own matter.
                        deadline.reschedule(None)
                    await exchange.send(message)

                await self._app(exchange.scope, exchange.replay(body), send)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise ServiceProblem(
                504,
                "deadline",
                f"not answered within {self._limits.deadline_s:g} seconds; what is being computed"
                " goes on and is kept, so the same request may hit later",
            ) from None

    async def _refuse(self, exchange: Exchange, problem: ServiceProblem) -> None:
        exchange.problem = problem
        if not exchange.has_started:
            await exchange.send_problem(problem, max_discarded_bytes=self._limits.max_body_bytes)
        # Else the server closes the connection, as the answer is not whole.

    def _record(self, exchange: Exchange, notes: RequestNotes, seconds: float) -> None:
        """A line in the log, and the metrics."""
        path = exchange.path
        route = path if path in _OPEN_PATHS else _route_of(exchange.scope)
        method = exchange.scope["method"]
        if method not in _METHODS:
            method = "OTHER"
        self._services.metrics.end_request(
            method,
            route,
            status=exchange.status,
            seconds=seconds,
            received_bytes=exchange.received_bytes,
            sent_bytes=exchange.sent_bytes,
        )
        line = {
            "event": "request",
            "time": round(time.time(), 3),
            "request_id": exchange.request_id,
            "method": method,
            "route": route,
            "status": exchange.status,
            "seconds": round(seconds, 6),
            "received_bytes": exchange.received_bytes,
            "sent_bytes": exchange.sent_bytes,
            "texts": notes.texts,
            "hits": notes.hits,
            "misses": notes.misses,
        }
        if exchange.problem is not None:
            line["code"] = exchange.problem.code
            if exchange.problem.status >= 500:
                # Of the store or the module; what a client sent is told by its code alone.
                line["message"] = exchange.problem.cause
        self._services.access_log.write(line)

    def _log_unexpected(self, exchange: Exchange, error: Exception) -> None:
        """Where it happened, without the message: it may quote a text."""
        last = traceback.extract_tb(error.__traceback__)[-1]
        self._services.access_log.write(
            {
                "event": "error",
                "time": round(time.time(), 3),
                "request_id": exchange.request_id,
                "error": type(error).__name__,
                "at": f"{last.filename}:{last.lineno}",
            }
        )
        if os.environ.get("EMBEDCACHE_TRACEBACK"):
            traceback.print_exception(error, file=sys.stderr)


def _route_of(scope: Scope) -> str:
    """The route's template: never the path itself, which is anything that somebody sends."""
    path: str = getattr(scope.get("route"), "path", UNMATCHED)
    return path
