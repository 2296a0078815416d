"""What a started server refuses, cuts and holds: large, slow, packed and deep requests."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.embedcache.service.conftest import LONG_STORED, STORED
from tests.embedcache.service.serving import ServerProcess, eventually, read_all, start_server

CONFIG = """
[limits]
read_timeout_s = 1.0
max_texts = 32
"""
HEADERS = b"POST /v1/features HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HIT = {"texts": [STORED[0]]}
MIB = 1 << 20


@pytest.fixture(scope="module")
def server(store_path: Path, write_config: Callable[[str], Path]) -> Iterator[ServerProcess]:
    with start_server(store_path, "--config", str(write_config(CONFIG))) as started:
        yield started


@pytest.fixture(scope="module")
def patient(store_path: Path, write_config: Callable[[str], Path]) -> Iterator[ServerProcess]:
    """A server with more patience for slow clients, and with a short deadline and queue."""
    config = write_config("[limits]\ndeadline_s = 1\nmax_queued_texts = 1\nread_timeout_s = 4\n")
    with start_server(store_path, "--config", str(config)) as started:
        yield started


@pytest.fixture
def connection(server: ServerProcess) -> Iterator[socket.socket]:
    with server.connect() as connected:
        yield connected


def _status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    return int(answer[9:12])


def _code(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"])


def _send_until_refused(connection: socket.socket, piece: bytes, most: int) -> int:
    """Send a piece again and again, and at most so many bytes; the number that were taken."""
    sent = 0
    try:
        while sent < most:
            connection.sendall(piece)
            sent += len(piece)
    except (BrokenPipeError, ConnectionResetError):
        pass
    return sent


# Too large


def test_body_larger_than_the_limit_is_413_by_its_length(
    server: ServerProcess, connection: socket.socket
) -> None:
    before = server.metrics()["embedcache_received_bytes_total"]
    connection.sendall(HEADERS + b"Content-Length: 2097153\r\nExpect: 100-continue\r\n\r\n")
    answer = read_all(connection)
    # Nor was it asked for: there is no 100 Continue before.
    assert (_status(answer), _code(answer)) == (413, "body_too_large")
    assert server.metrics()["embedcache_received_bytes_total"] == before


def test_body_of_the_limit_is_read(server: ServerProcess) -> None:
    body = json.dumps(HIT).encode()
    answer = server.request("POST", "/v1/features", body + b" " * (2 * MIB - len(body)))
    assert answer.status == 200
    over = server.request("POST", "/v1/features", body + b" " * (2 * MIB + 1 - len(body)))
    assert (over.status, over.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("size", [1, 16, 4096])
def test_endless_body_in_chunks_is_cut(patient: ServerProcess, size: int) -> None:
    connection = patient.connect()
    connection.sendall(HEADERS + b"Transfer-Encoding: chunked\r\n\r\n")
    answers: list[bytes] = []
    reader = threading.Thread(target=lambda: answers.append(read_all(connection)))
    reader.start()
    chunk = b"%x\r\n" % size + b"x" * size + b"\r\n"
    piece = chunk * max(1, 4096 // size)
    overhead = len(chunk) / size
    sent = _send_until_refused(connection, piece, round(64 * MIB * overhead))
    reader.join()
    connection.close()
    code = "body_too_large" if size > 32 else "body_in_pieces"
    assert (_status(answers[0]), _code(answers[0])) == (413, code)
    assert sent / overhead < 32 * MIB
    assert patient.request("POST", "/v1/features", HIT).status == 200


def test_three_megabytes_in_tiny_chunks_are_413(patient: ServerProcess) -> None:
    chunks = b"10\r\n" + b"x" * 16 + b"\r\n"
    with patient.connect() as connection:
        connection.sendall(HEADERS + b"Transfer-Encoding: chunked\r\n\r\n")
        _send_until_refused(connection, chunks * 1024, round(3 * MIB / 16 * len(chunks)))
        answer = read_all(connection)
    assert (_status(answer), _code(answer)) == (413, "body_in_pieces")


def test_small_body_in_tiny_chunks_is_read(connection: socket.socket) -> None:
    connection.sendall(HEADERS + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
    body = json.dumps(HIT).encode() + b" " * 10_000
    connection.sendall(b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
    assert _status(read_all(connection)) == 200


def test_headers_without_end_are_431(connection: socket.socket) -> None:
    connection.sendall(b"GET /health HTTP/1.1\r\nX: " + b"x" * (128 << 10))
    assert _status(read_all(connection)) == 431


# Packed


def test_gzip_bomb_is_415_and_not_read(server: ServerProcess) -> None:
    bomb = gzip.compress(bytes(256 * MIB >> 2), 9)
    assert len(bomb) < 100_000
    answer = server.request("POST", "/v1/features", bomb, headers={"Content-Encoding": "gzip"})
    assert (answer.status, answer.json()["error"]["code"]) == (415, "content_encoding")


def test_packed_body_is_not_asked_for(connection: socket.socket) -> None:
    connection.sendall(
        HEADERS + b"Content-Encoding: gzip\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
    )
    assert _status(read_all(connection)) == 415


def test_identity_is_no_packing(server: ServerProcess) -> None:
    answer = server.request("POST", "/v1/features", HIT, headers={"Content-Encoding": "identity"})
    assert answer.status == 200


# Deep, or no JSON


@pytest.mark.parametrize(
    "path", ["/v1/features", "/v1/embeddings", "/embed", "/embed_all", "/tokenize", "/"]
)
@pytest.mark.parametrize(
    "body",
    [b"[" * 200_000, b'{"a":' * 200_000, b'{"texts":' + b"[" * 1000 + b"]" * 1000 + b"}", b"\xff",
     b"", b"nul", b'{"texts": ["\\ud800"]}', b'{"inputs": NaN}'],
    ids=["lists", "objects", "texts", "no-utf8", "empty", "no-json", "surrogate", "nan"],
)  # fmt: skip
def test_what_is_no_request_is_422(server: ServerProcess, path: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    assert server.request("POST", path, body, headers=headers).status == 422


# Slow


def test_headers_that_do_not_come_are_cut(connection: socket.socket) -> None:
    connection.sendall(b"GET /health HTTP/1.1\r\nHost:")
    assert _status(read_all(connection)) == 408


def test_headers_that_drip_are_cut(connection: socket.socket) -> None:
    def drip() -> None:
        for byte in b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 1000:
            time.sleep(0.02)
            if _send_until_refused(connection, bytes([byte]), 1) == 0:
                return

    dripping = threading.Thread(target=drip)
    dripping.start()
    # Two minutes of them would be whole; they are cut after the second that is allowed.
    assert _status(read_all(connection)) == 408
    dripping.join()


def test_connection_that_says_nothing_is_closed(connection: socket.socket) -> None:
    assert read_all(connection) == b""


def _ask_for_health(connection: socket.socket) -> None:
    """One whole request and its whole answer, which may come in pieces."""
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    received = b""
    while not received.endswith(b'{"status":"ok"}'):
        piece = connection.recv(1 << 16)
        assert piece, received
        received += piece
    assert received.startswith(b"HTTP/1.1 200")


def test_line_ends_do_not_keep_a_connection_open(connection: socket.socket) -> None:
    _ask_for_health(connection)
    connection.sendall(b"\r\n")
    assert _status(read_all(connection)) == 408


def test_second_request_on_a_connection_is_cut_too(connection: socket.socket) -> None:
    _ask_for_health(connection)
    connection.sendall(b"GET /hea")
    assert _status(read_all(connection)) == 408


def test_requests_sent_at_once_are_answered_in_turn(connection: socket.socket) -> None:
    connection.sendall(
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2
        + b"GET /nope HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    answer = read_all(connection)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert answer.count(b"HTTP/1.1 404") == 1


@pytest.mark.parametrize("length", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
def test_body_that_does_not_come_is_408(connection: socket.socket, length: bytes) -> None:
    connection.sendall(HEADERS + length + b"\r\n\r\n" + b"1\r\n{\r\n")
    answer = read_all(connection)
    assert (_status(answer), _code(answer)) == (408, "slow_body")


def test_client_that_goes_in_its_body_is_logged_and_no_error(server: ServerProcess) -> None:
    with server.connect() as connection:
        connection.sendall(HEADERS + b"X-Request-ID: gone\r\nContent-Length: 100\r\n\r\n{")

    def line() -> list[dict[str, Any]]:
        return [line for line in server.log_lines() if line.get("request_id") == "gone"]

    assert [found["status"] for found in eventually(line)] == [499]


def test_answer_that_nobody_takes_is_dropped(server: ServerProcess) -> None:
    body = json.dumps({"texts": [LONG_STORED] * 32}).encode()
    whole = server.request("POST", "/v1/features", body).body
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        held = connection.getsockname()[1]
        connection.sendall(HEADERS + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert eventually(lambda: not _is_connected(server.pid, held))
        assert len(read_all(connection)) < len(whole)
    assert server.request("GET", "/health").status == 200


def _is_connected(pid: int, port: int) -> bool:
    """Whether a process holds its end of the connection from a port of this machine."""
    import psutil

    connections = psutil.Process(pid).net_connections("tcp")
    return any(found.raddr and found.raddr.port == port for found in connections)


# Too much, too late


def test_late_request_is_504_and_its_text_is_kept(patient: ServerProcess) -> None:
    late = {"texts": ["a text that nobody has stored before"]}
    answer = patient.request("POST", "/v1/features", late)
    assert (answer.status, answer.json()["error"]["code"]) == (504, "deadline")
    # The module is still being loaded, or is just about to compute.
    full = patient.request("POST", "/v1/features", {"texts": ["more", "than", "one"]})
    assert (full.status, full.json()["error"]["code"][:5]) == (429, "queue")
    assert int(full.headers["Retry-After"]) >= 1
    assert patient.request("POST", "/v1/features", HIT).status == 200

    def answered() -> Any:
        again = patient.request("POST", "/v1/features", late)
        return again.json() if again.status == 200 else None

    assert eventually(answered)["view"]
    assert patient.total("embedcache_computed_texts_total") == 1


def test_five_hundred_slow_connections_do_not_hold_up_others(patient: ServerProcess) -> None:
    slow_headers = b"POST /v1/features HTTP/1.1\r\nHost: localhost\r\nX:"
    slow_body = HEADERS + b"Content-Length: 100\r\n\r\n{"
    slow = [patient.connect() for _ in range(500)]
    try:
        for number, connection in enumerate(slow):
            connection.sendall(slow_headers if number % 2 else slow_body)
        held = eventually(lambda: len(os.listdir(f"/proc/{patient.pid}/fd")) >= 500)
        answers = [patient.request("POST", "/v1/features", HIT).status for _ in range(50)]
        ends = [_status(read_all(connection)) for connection in slow]
    finally:
        for connection in slow:
            connection.close()
    assert held
    assert answers == [200] * 50
    assert ends == [408] * 500


def test_more_connections_than_files_do_not_end_the_server(
    store_path: Path, write_config: Callable[[str], Path]
) -> None:
    config = write_config("[limits]\nread_timeout_s = 600\n")
    with start_server(store_path, "--config", str(config), max_files=200) as server:
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(server.connect()) for _ in range(400)]
            assert eventually(lambda: sum(map(_is_dropped, connections)) == 300)

        def is_answered() -> bool:
            with contextlib.suppress(OSError):
                return server.request("POST", "/v1/features", HIT).status == 200
            return False

        assert eventually(is_answered)
        assert server.stop() == 0
    assert "Traceback" not in server.stderr


def _is_dropped(connection: socket.socket) -> bool:
    """Whether the other end has closed a connection on which nothing was sent."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
