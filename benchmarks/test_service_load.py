"""The client of B12, asking a real server of Python's own library and the bare socket."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import b12_service
from benchmarks.measure import WrongAnswerError
from benchmarks.scale import TINY
from benchmarks.service_cells import compare_rows
from benchmarks.service_load import Load, LoadClient, PreparedRequest, http_request
from benchmarks.service_peers import loopback_request
from benchmarks.service_processes import Peer
from embedcache import RaggedArray

BODIES = {"/short": b"x" * 10, "/long": b"y" * 3_000_000}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer with the path's body, once what was sent has come whole."""
        self.rfile.read(int(self.headers["Content-Length"]))
        body = BODIES.get(self.path)
        self.send_response(404 if body is None else 200)
        if self.path != "/unknown-length":
            self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_arguments: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a server that answers `BODIES`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def client() -> Iterator[LoadClient]:
    """The client's process."""
    with LoadClient() as started:
        yield started


def _ask(client: LoadClient, port: int, *paths: str, connections: int = 1, count: int) -> Load:
    client.prepare("asked", [http_request("POST", path, b"a body") for path in paths])
    return Load(
        requests="asked",
        port=port,
        connections=connections,
        min_requests=count,
        max_requests=count,
    )


def test_answers_are_counted_whole_whatever_their_size(client: LoadClient, port: int) -> None:
    tally = client.run(_ask(client, port, "/short", "/long", connections=3, count=7))
    assert len(tally.latencies) == 7
    assert tally.body_bytes == 4 * 10 + 3 * 3_000_000
    assert tally.received_bytes > tally.body_bytes
    assert 0 < tally.latencies.min() <= tally.latencies.max() <= tally.seconds


def test_more_connections_than_requests_send_no_more(client: LoadClient, port: int) -> None:
    assert len(client.run(_ask(client, port, "/short", connections=4, count=2)).latencies) == 2


def test_requests_that_warm_connections_up_are_not_counted(client: LoadClient, port: int) -> None:
    client.prepare("warm", [http_request("POST", "/short", b"")])
    load = Load(requests="warm", port=port, connections=2, min_requests=5)
    tally = client.run(load)
    assert tally.body_bytes == 10 * len(tally.latencies) == 50


def test_an_answer_that_is_no_200_is_no_result(client: LoadClient, port: int) -> None:
    with pytest.raises(WrongAnswerError, match=r"asked: HTTP/1.1 404 "):
        client.run(_ask(client, port, "/short", "/other", count=2))
    # The process goes on.
    assert len(client.run(_ask(client, port, "/short", count=1)).latencies) == 1


def test_an_answer_without_its_length_is_no_result(
    client: LoadClient, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BODIES, "/unknown-length", b"z")
    with pytest.raises(WrongAnswerError, match="no Content-Length"):
        client.run(_ask(client, port, "/unknown-length", count=1))


def test_the_bare_socket_answers_as_many_bytes_as_it_is_asked_for(client: LoadClient) -> None:
    client.prepare("bare", [PreparedRequest(loopback_request(40_000, 5_000_000), 5_000_000)])
    with Peer("loopback") as loopback:
        load = Load(requests="bare", port=loopback.port, min_requests=3, max_requests=3)
        tally = client.run(load)
    assert tally.body_bytes == tally.received_bytes == 15_000_000


@pytest.mark.parametrize(
    ("rows", "splits", "message"),
    [
        ([[1.0, 2.0], [3.0, 5.0]], [0, 2], "other rows"),
        ([[1.0, 2.0], [3.0, 4.0]], [0, 1, 2], "other numbers of tokens"),
        ([[4.0, 5.0]], None, "other vectors"),
    ],
)
def test_answers_that_are_not_what_is_stored_are_no_result(
    rows: list[list[float]], splits: list[int] | None, message: str
) -> None:
    stored = RaggedArray.from_matrices([np.array([[1, 2], [3, 4]], np.float16)], dim=2)
    found = np.array(rows, np.float32), None if splits is None else np.array(splits)
    with pytest.raises(WrongAnswerError, match=message):
        compare_rows("asked", found, stored)


@pytest.mark.parametrize("vector", [[2.0, 3.0], [4.0, 6.0]])
def test_a_mean_of_rows_is_taken_whatever_its_length(vector: list[float]) -> None:
    stored = RaggedArray.from_matrices([np.array([[1, 2], [3, 4]], np.float16)], dim=2)
    compare_rows("asked", (np.array([vector], np.float32), None), stored)


def test_where_the_services_packages_are_missing_all_is_left_out_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        b12_service, "installed_version", lambda name: None if name == "uvicorn" else "1"
    )
    report = b12_service.run(TINY, tmp_path)
    assert report.series == []
    assert report.skipped == ["all of it: not installed: uvicorn"]
