"""The middleware around applications that fail in ways that no route of the service does."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

from embedcache.errors import CorruptShardError
from embedcache.service.access_log import AccessLog
from embedcache.service.auth import KeyRing
from embedcache.service.metrics import ServiceMetrics
from embedcache.service.middleware import ServiceMiddleware
from embedcache.service.services import Services
from embedcache.service.settings import Limits, ServiceSettings

SECRET = "a text that no log may have"


async def _started(send: Any) -> None:
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _never(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.Event().wait()


async def _slow_after_the_start(scope: Any, receive: Any, send: Any) -> None:
    await _started(send)
    await asyncio.sleep(1.2)
    await send({"type": "http.response.body", "body": b"ok"})


async def _fails(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError(SECRET)


async def _times_out_itself(scope: Any, receive: Any, send: Any) -> None:
    raise TimeoutError(SECRET)


async def _fails_after_the_start(scope: Any, receive: Any, send: Any) -> None:
    await _started(send)
    raise RuntimeError(SECRET)


def _call(app: Any, **limits: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The messages that one request is answered with, and the log's lines."""
    read_end, write_end = os.pipe()
    log = AccessLog(write_end)
    services = Services(
        features=None,  # type: ignore[arg-type]
        predictions=None,  # type: ignore[arg-type]
        settings=ServiceSettings(limits=Limits(**limits)),
        metrics=ServiceMetrics(),
        auth=KeyRing(),
        access_log=log,
    )
    scope = {"type": "http", "method": "GET", "path": "/v1/views", "headers": []}
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def call() -> None:
        middleware = ServiceMiddleware(app, services=services)
        await middleware(scope, receive, send)  # type: ignore[arg-type]

    asyncio.run(call())
    assert services.state.in_flight == 0
    log.close()
    os.close(write_end)
    with os.fdopen(read_end, "rb") as stream:
        written = stream.read()
    assert SECRET.encode() not in written
    return sent, [json.loads(line) for line in written.splitlines()]


def test_route_that_never_answers_is_504() -> None:
    sent, lines = _call(_never, deadline_s=0.001)
    assert sent[0]["status"] == 504
    assert json.loads(sent[1]["body"])["error"]["code"] == "deadline"
    assert lines[-1]["status"] == 504


def test_answer_that_has_begun_may_take_longer() -> None:
    sent, _ = _call(_slow_after_the_start, deadline_s=0.001)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[1]["body"] == b"ok"


def test_unexpected_error_is_500_with_its_place_in_the_log() -> None:
    sent, lines = _call(_fails)
    body = json.loads(sent[1]["body"])["error"]
    assert (sent[0]["status"], body["code"]) == (500, "internal")
    assert SECRET not in body["message"]
    error, request = lines
    assert (error["error"], request["status"]) == ("RuntimeError", 500)
    assert error["at"].startswith(__file__)
    assert error["request_id"] in body["message"]


async def _finds_damage(_scope: Any, _receive: Any, _send: Any) -> None:
    raise CorruptShardError("/srv/store/shards/1a.h5: is damaged")


def test_damage_is_503_and_only_the_log_names_the_file() -> None:
    sent, lines = _call(_finds_damage)
    error = json.loads(sent[1]["body"])["error"]
    assert (sent[0]["status"], error["code"]) == (503, "store_unavailable")
    assert "/srv" not in error["message"]
    assert "log" in error["message"]
    assert lines[-1]["message"] == "/srv/store/shards/1a.h5: is damaged"
    assert (b"x-request-id", lines[-1]["request_id"].encode()) in sent[0]["headers"]


def test_timeout_of_the_route_itself_is_no_deadline() -> None:
    sent, _ = _call(_times_out_itself)
    assert sent[0]["status"] == 500


def test_error_after_the_start_leaves_the_answer_unfinished() -> None:
    sent, lines = _call(_fails_after_the_start)
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert lines[-1]["code"] == "internal"


def test_log_that_nobody_reads_holds_up_no_request() -> None:
    read_end, write_end = os.pipe()
    log = AccessLog(write_end)
    for number in range(50_000):
        log.write({"number": number, "filling": "x" * 100})
    log.close(timeout_s=0.2)
    # What is left was dropped, as there was no room for it either.
    os.set_blocking(read_end, False)
    assert os.read(read_end, 1 << 16).startswith(b'{"number":0,')
    os.close(read_end)
    log.close()
    os.close(write_end)
