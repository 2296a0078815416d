"""Health, readiness, metrics, the log and request ids of a started server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.embedcache.service.conftest import STORED
from tests.embedcache.service.serving import ServerProcess, eventually, start_server

HEX_ID = 16


@pytest.fixture(scope="module")
def server(store_path: Path) -> Iterator[ServerProcess]:
    with start_server(store_path) as started:
        yield started


def _line_of(server: ServerProcess, request_id: str) -> dict[str, Any]:
    def find() -> dict[str, Any] | None:
        lines = [line for line in server.log_lines() if line.get("request_id") == request_id]
        return lines[0] if lines else None

    line = eventually(find)
    assert line is not None
    return dict(line)


def test_server_lives_and_is_ready(server: ServerProcess) -> None:
    assert server.request("GET", "/health").json() == {"status": "ok"}
    assert server.request("GET", "/ready").json() == {"status": "ready", "queue": 0}


def test_hits_are_counted_by_view_and_nothing_is_computed(server: ServerProcess) -> None:
    before = server.total("embedcache_hits_total")
    assert server.request("POST", "/v1/features", {"texts": list(STORED[:3])}).status == 200
    metrics = server.metrics()
    (view,) = [
        name.partition('"')[2][:-2] for name in metrics if name.startswith("embedcache_hits_total")
    ]
    (served,) = server.request("GET", "/v1/views").json()["views"]
    assert view == served["fingerprint"]
    assert server.total("embedcache_hits_total") == before + 3
    assert server.total("embedcache_misses_total") == 0
    assert server.total("embedcache_computed_texts_total") == 0


def test_requests_are_counted_by_route_and_never_by_path(server: ServerProcess) -> None:
    server.request("GET", "/a/text/that/nobody/must/see")
    server.request("GET", "/v1/features/0000/ffff")
    names = [name for name in server.metrics() if name.startswith("embedcache_requests_total")]
    assert not [name for name in names if "nobody" in name or "ffff" in name]
    assert any('route="unmatched",status="404"' in name for name in names)
    assert any('route="/v1/features/{view}/{key}"' in name for name in names)
    assert server.metrics()["embedcache_in_flight"] == 1  # the one that asks


def test_bytes_are_counted(server: ServerProcess) -> None:
    before = server.metrics()
    body = b'{"texts": ["' + STORED[0].encode() + b'"]}'
    answer = server.request("POST", "/v1/features", body)
    asked = server.metrics()
    received = "embedcache_received_bytes_total"
    assert asked[received] - before[received] == len(body)
    sent = asked["embedcache_sent_bytes_total"] - before["embedcache_sent_bytes_total"]
    # And the answer that told the numbers before.
    assert sent > len(answer.body)


def test_unknown_method_is_no_label_of_its_own(server: ServerProcess) -> None:
    assert server.request("PROPFIND", "/health").status == 405
    names = [name for name in server.metrics() if name.startswith("embedcache_requests_total")]
    assert not [name for name in names if "PROPFIND" in name]
    assert any('method="OTHER"' in name for name in names)


def test_request_is_logged_without_its_texts(server: ServerProcess) -> None:
    text = "a secret that was never stored"
    body = {"texts": [STORED[0], STORED[1]], "view": text}
    answer = server.request("POST", "/v1/features", body, headers={"X-Request-ID": "my-id-1"})
    assert answer.headers["X-Request-ID"] == "my-id-1"
    assert answer.status == 404
    line = _line_of(server, "my-id-1")
    assert line["event"] == "request"
    assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/features", 404)
    assert line["seconds"] > 0
    assert text not in server.stderr


def test_log_tells_hits(server: ServerProcess) -> None:
    body = {"texts": list(STORED[:5])}
    answer = server.request("POST", "/v1/features", body, headers={"X-Request-ID": "my-id-2"})
    line = _line_of(server, "my-id-2")
    assert (line["texts"], line["hits"], line["misses"]) == (5, 5, 0)
    assert line["sent_bytes"] == len(answer.body)
    assert STORED[0] not in server.stderr


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, "a\tb"])
def test_unfit_request_id_is_replaced(server: ServerProcess, sent: str) -> None:
    answer = server.request("GET", "/health", headers={"X-Request-ID": sent})
    assert len(answer.headers["X-Request-ID"]) == HEX_ID
    assert set(answer.headers["X-Request-ID"]) <= set("0123456789abcdef")


def test_unknown_path_and_method_are_json(server: ServerProcess) -> None:
    missing = server.request("GET", "/no/such/path")
    assert (missing.status, missing.json()["error"]["code"]) == (404, "no_route")
    wrong = server.request("DELETE", "/v1/views")
    assert (wrong.status, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["Allow"] == "GET"
    assert "/docs" in missing.json()["error"]["message"]
    assert "takes GET" in wrong.json()["error"]["message"]


def test_the_address_alone_leads_to_the_docs(server: ServerProcess) -> None:
    answer = server.request("GET", "/")
    # The client has followed.
    assert answer.status == 200
    assert b"/openapi.json" in answer.body
    assert "/v1/features" in server.request("GET", "/openapi.json").json()["paths"]


def test_reload_lists_the_views(server: ServerProcess) -> None:
    views = server.request("GET", "/v1/views").json()["views"]
    reloaded = server.request("POST", "/v1/reload").json()["views"]
    assert reloaded == [view["fingerprint"] for view in views]


def test_description_has_every_operation(server: ServerProcess) -> None:
    paths = server.request("GET", "/openapi.json").json()["paths"]
    assert {"/health", "/ready", "/metrics", "/v1/reload", "/v1/features", "/embed"} <= set(paths)
    assert "swagger-ui" in server.request("GET", "/docs").body.decode()


def test_hits_leave_tensorflow_keras_out_of_the_server(server: ServerProcess) -> None:
    assert server.request("POST", "/v1/features", {"texts": [STORED[0]]}).status == 200
    mapped = Path(f"/proc/{server.pid}/maps").read_text()
    assert "uvloop" in mapped
    assert "tensorflow" not in mapped
    assert "keras" not in mapped
    assert "jax" not in mapped
