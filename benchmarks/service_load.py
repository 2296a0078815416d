"""The client of B12: a process that sends prepared bytes over keep-alive connections and counts.

It is as lean as Python allows, so that the server is what is measured: requests are made before,
of an answer only the status and ``Content-Length`` are read, and one buffer takes all that comes.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import select
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import WrongAnswerError

_BUFFER_BYTES = 1 << 20
_SILENCE_S = 150.0
_HEAD_END = b"\r\n\r\n"
_LENGTH_FIELD = b"\r\ncontent-length: "


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """Bytes to send, and how long the answer is.

    Attributes:
        sent: All of the request.
        answer_bytes: Of a server that does not speak HTTP; None: the answer's head says it.
    """

    sent: bytes
    answer_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to send: prepared requests in turn, each connection the next one when it is answered.

    Attributes:
        requests: What `LoadClient.prepare` called them.
        port: On the loopback.
        connections: How many, each with one request at a time.
        seconds: For how long; requests in flight then are waited for.
        min_requests: Of all connections together, also if they take longer.
        max_requests: None: as many as the time allows, after one on each connection that is not
            counted. Else none is sent beside these.
    """

    requests: str
    port: int
    connections: int = 1
    seconds: float = 0.0
    min_requests: int = 1
    max_requests: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What was answered.

    Attributes:
        seconds: From the first request to the last answer.
        received_bytes: Of answers, heads and bodies.
        body_bytes: Of the bodies alone.
        latencies: Seconds from sending a request until its answer is complete, one each.
    """

    seconds: float
    received_bytes: int
    body_bytes: int
    latencies: NDArray[np.float64]

    @property
    def requests_per_s(self) -> float:
        """Of all connections together."""
        return len(self.latencies) / self.seconds

    @property
    def megabytes_per_s(self) -> float:
        """Of the answers' bodies, in 10^6 bytes."""
        return self.body_bytes / self.seconds / 1e6


def http_request(
    method: str,
    path: str,
    body: bytes = b"",
    *,
    accept: str = "*/*",
    content_type: str = "application/json",
) -> PreparedRequest:
    """An HTTP/1.1 request with the headers that every client sends."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {accept}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return PreparedRequest(head.encode("ascii") + body)


class LoadClient:
    """The client's process. A context manager."""

    def __enter__(self) -> LoadClient:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve_pipe, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pipe.close()
        self._process.join()

    def prepare(self, name: str, requests: Sequence[PreparedRequest]) -> None:
        """Hand over requests, under a name."""
        self._pipe.send((name, list(requests)))

    def run(self, load: Load) -> Tally:
        """Send them.

        Raises:
            WrongAnswerError: if one is answered otherwise than with 200 and as many bytes as its
                head says, or a connection is lost.
        """
        self._pipe.send(load)
        found = self._pipe.recv()
        if not isinstance(found, Tally):
            raise WrongAnswerError(f"{load.requests}: {found}")
        return found


def _serve_pipe(pipe: Connection) -> None:
    """The process: take requests and loads until the pipe closes."""
    gc.disable()  # a collection would be in somebody's latency
    prepared: dict[str, list[PreparedRequest]] = {}
    while True:
        try:
            told = pipe.recv()
        except EOFError:
            return
        if not isinstance(told, Load):
            name, requests = told
            prepared[name] = requests
            continue
        try:
            found: Tally | str = _Run(told, prepared[told.requests]).tally()
        except (OSError, WrongAnswerError) as error:
            found = str(error)
        pipe.send(found)
        gc.collect()


class _Connection:
    """One connection and the answer that it waits for."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_SILENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at = 0.0
        self.received_bytes = 0
        self.body_bytes = 0
        self._head = b""
        self._missing: int | None = None

    def warm_up(self, request: PreparedRequest, buffer: bytearray) -> None:
        """Have one request answered that does not count: the server accepts and sets up."""
        self.send(request)
        while not self.receive(buffer):
            pass
        self.received_bytes = self.body_bytes = 0

    def send(self, request: PreparedRequest) -> None:
        """Send a request; the answer of the one before must be complete."""
        self._head = b""
        self._missing = request.answer_bytes
        self.sent_at = time.perf_counter()
        self.socket.sendall(request.sent)

    def receive(self, buffer: bytearray) -> bool:
        """Take what has come; whether the answer is complete."""
        count = self.socket.recv_into(buffer)
        if not count:
            raise WrongAnswerError("the server closed the connection")
        self.received_bytes += count
        if self._missing is None:
            count = self._read_head(buffer, count)
            if self._missing is None:
                return False
        self.body_bytes += count
        self._missing -= count
        if self._missing < 0:
            raise WrongAnswerError(f"{-self._missing} bytes more than the answer has")
        return self._missing == 0

    def _read_head(self, buffer: bytearray, count: int) -> int:
        """Find the length of the body; how many of its bytes are in the buffer."""
        self._head += buffer[:count]
        end = self._head.find(_HEAD_END)
        if end < 0:
            return 0
        if not self._head.startswith(b"HTTP/1.1 200 "):
            raise WrongAnswerError(self._head[:1000].decode("latin-1"))
        _, _, rest = self._head[: end + 2].lower().partition(_LENGTH_FIELD)
        if not rest:
            raise WrongAnswerError(f"no Content-Length: {self._head[:end].decode('latin-1')}")
        self._missing = int(rest.partition(b"\r\n")[0])
        return len(self._head) - end - len(_HEAD_END)


class _Run:
    """One load."""

    def __init__(self, load: Load, requests: Sequence[PreparedRequest]) -> None:
        self._load = load
        self._buffer = bytearray(_BUFFER_BYTES)
        self._requests: Iterator[PreparedRequest] = itertools.cycle(requests)
        self._latencies: list[float] = []

    def tally(self) -> Tally:
        """Connect, send, count, disconnect."""
        connections = [_Connection(self._load.port) for _ in range(self._load.connections)]
        try:
            with select.epoll() as poll:
                for connection in connections:
                    if self._load.max_requests is None:
                        connection.warm_up(next(self._requests), self._buffer)
                    poll.register(connection.socket.fileno(), select.EPOLLIN)
                seconds = self._run(poll, {each.socket.fileno(): each for each in connections})
        finally:
            for connection in connections:
                connection.socket.close()
        return Tally(
            seconds=seconds,
            received_bytes=sum(each.received_bytes for each in connections),
            body_bytes=sum(each.body_bytes for each in connections),
            latencies=np.array(self._latencies),
        )

    def _run(self, poll: select.epoll, connections: dict[int, _Connection]) -> float:
        """Keep every connection busy until it is enough; the seconds that it took."""
        most = self._load.max_requests
        started = time.perf_counter()
        until = started + self._load.seconds
        num_sent = 0
        for connection in connections.values():
            if most is None or num_sent < most:
                connection.send(next(self._requests))
                num_sent += 1
        num_open = num_sent
        while num_open:
            ready = poll.poll(_SILENCE_S)
            if not ready:
                raise WrongAnswerError(f"no answer within {_SILENCE_S:.0f} s")
            for number, _ in ready:
                connection = connections[number]
                if not connection.receive(self._buffer):
                    continue
                now = time.perf_counter()
                self._latencies.append(now - connection.sent_at)
                is_more = now < until or num_sent < self._load.min_requests
                if is_more and (most is None or num_sent < most):
                    connection.send(next(self._requests))
                    num_sent += 1
                else:
                    num_open -= 1
                    # The server closes what is idle while others still wait.
                    poll.unregister(number)
        return time.perf_counter() - started
