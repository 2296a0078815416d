"""A real server process for tests: `embedcache serve` at a port that is free.

with start_server(store_path, "--read-only") as server:
    urllib.request.urlopen(f"{server.url}/health")
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[3]
START_S = 120.0
"""Until a server listens: several of them start on two busy cores."""


@dataclass(frozen=True)
class Answer:
    """What a request was answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class ServerProcess:
    """A server, from its first line on standard error to its end. A context manager.

    Attributes:
        url: Such as ``http://127.0.0.1:40123``.
        host: Its address.
        port: Its port.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: list[str] = []
        self._arrived: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self._await_url()
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        self.host, self.port = host, int(port)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Of the server's process."""
        return self._process.pid

    @property
    def stderr(self) -> str:
        """What it has said up to now."""
        return "\n".join(self._lines)

    def log_lines(self) -> list[dict[str, Any]]:
        """The access log's lines up to now."""
        return [json.loads(line) for line in list(self._lines) if line.startswith("{")]

    def signal(self, number: int) -> None:
        """Send a signal to the server's own process."""
        self._process.send_signal(number)

    def connect(self) -> socket.socket:
        """A connection of its own, for what no well-behaved client sends."""
        return socket.create_connection((self.host, self.port), timeout=START_S)

    def wait(self, timeout_s: float = START_S) -> int:
        """Its exit status, once it has ended."""
        status = self._process.wait(timeout_s)
        self._reader.join(timeout_s)
        return status

    def stop(self, timeout_s: float = START_S) -> int:
        """SIGTERM, and wait.

        Returns:
            The exit status.
        """
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL, if it still runs, and wait."""
        if self._process.poll() is None:
            self._process.kill()
        self.wait()

    def metrics(self, token: str | None = None) -> dict[str, float]:
        """Each sample of ``/metrics``: ``'embedcache_hits_total{view="…"}'`` → its value."""
        lines = self.request("GET", "/metrics", token=token).body.decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def total(self, name: str, token: str | None = None) -> float:
        """The sum of a metric over its labels."""
        pattern = re.compile(rf"{re.escape(name)}(\{{.*\}})?")
        return sum(
            value for sample, value in self.metrics(token).items() if pattern.fullmatch(sample)
        )

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        token: str | None = None,
        timeout_s: float = 120.0,
    ) -> Answer:
        """One request on a connection of its own; bytes are sent as they are, else as JSON."""
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        request = urllib.request.Request(self.url + path, body, sent, method=method)  # type: ignore[arg-type]
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                self._lines.append(line.rstrip("\n"))
                self._arrived.put(line)
        self._arrived.put(None)

    def _await_url(self) -> str:
        end = time.monotonic() + START_S
        while (line := self._arrived.get(timeout=max(0.1, end - time.monotonic()))) is not None:
            if found := re.match(r"listening on (http://\S+)", line):
                return found[1]
        self._process.wait(START_S)
        raise AssertionError(f"the server ended before it listened: {self.stderr}")


def read_all(connection: socket.socket) -> bytes:
    """What a server sends until it closes the connection."""
    received = bytearray()
    try:
        while chunk := connection.recv(1 << 16):
            received += chunk
    except ConnectionResetError:
        pass
    return bytes(received)


def eventually(found: Callable[[], Any], timeout_s: float = START_S) -> Any:
    """What is found, as soon as it is: within a time that is only there to end a failing test."""
    end = time.monotonic() + timeout_s
    while not (what := found()) and time.monotonic() < end:
        time.sleep(0.02)
    return what


def start_server(
    store_path: Path | str,
    *options: str,
    env: Mapping[str, str] | None = None,
    max_files: int | None = None,
) -> ServerProcess:
    """Start `embedcache serve` on a store, and wait until it listens.

    Args:
        store_path: The store.
        options: Of `embedcache serve`; ``--port 0`` is given.
        env: More environment variables.
        max_files: How many files it may have open; None: as many as this process.
    """
    wrapper = () if max_files is None else ("prlimit", f"--nofile={max_files}:{max_files}")
    return ServerProcess(_popen(store_path, ("--port", "0", *options), env or {}, wrapper))


def run_serve(
    store_path: Path | str, *options: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`embedcache serve` where it is expected to end by itself."""
    process = _popen(store_path, options, env or {})
    try:
        _, errors = process.communicate(timeout=START_S)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, "", errors)


def _popen(
    store_path: Path | str,
    options: tuple[str, ...],
    env: Mapping[str, str],
    wrapper: tuple[str, ...] = (),
) -> subprocess.Popen[str]:
    script = "from cli.main import main; main()"
    others = {name: value for name, value in env.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", script, "--store", str(store_path), "serve"]
    return subprocess.Popen(
        [*wrapper, *command, *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": _python_path(env.get("PYTHONPATH")), **others},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Ctrl-C in the terminal of the tests is not the server's.
        start_new_session=True,
    )


def _python_path(first: str | None) -> str:
    """What a test puts first, this checkout, and what was there before."""
    parts = (first, str(ROOT), os.environ.get("PYTHONPATH"))
    return os.pathsep.join(part for part in parts if part)
