"""How a server's process begins and ends: one clear line for each fault, and no lost work."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import embedcache
from tests.embedcache.service.conftest import STORED
from tests.embedcache.service.serving import (
    ROOT,
    Answer,
    ServerProcess,
    eventually,
    read_all,
    run_serve,
    start_server,
)

HALF = (
    b"POST /v1/features HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    b"Content-Length: 50\r\n\r\n{"
)
REST = b'"texts": ["%s"]' % STORED[0].encode()


# How it begins


def _busy_port() -> tuple[socket.socket, str]:
    taken = socket.create_server(("127.0.0.1", 0))
    return taken, str(taken.getsockname()[1])


def _error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a command that failed has printed."""
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_port_in_use_is_told(store_path: Path) -> None:
    taken, port = _busy_port()
    with taken:
        line = _error_of(run_serve(store_path, "--port", port))
    assert f"cannot listen at 127.0.0.1:{port}: Address already in use" in line
    assert "--port" in line


def test_address_of_another_machine_is_told(store_path: Path, key_file: Path) -> None:
    line = _error_of(
        run_serve(store_path, "--host", "192.0.2.1", "--port", "0", "--api-key-file", str(key_file))
    )
    assert "cannot listen at 192.0.2.1:0: Cannot assign requested address" in line


def test_open_address_without_keys_is_refused(store_path: Path) -> None:
    line = _error_of(run_serve(store_path, "--host", "0.0.0.0", "--port", "0"))
    assert "can be reached from other machines" in line
    assert "--api-key-file" in line


@pytest.mark.parametrize("option", ["--view", "--run"])
def test_name_of_nothing_is_told(store_path: Path, option: str) -> None:
    line = _error_of(run_serve(store_path, "--port", "0", option, "nothing-of-that-name"))
    assert "nothing-of-that-name" in line


def test_faults_in_the_files_are_told(
    store_path: Path, tmp_path: Path, write_config: Callable[[str], Path]
) -> None:
    config = write_config("hots = '::'")
    line = _error_of(run_serve(store_path, "--config", str(config)))
    assert f"{config}: there is no setting 'hots'" in line
    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef\n")
    keys.chmod(0o644)
    line = _error_of(run_serve(store_path, "--port", "0", "--api-key-file", str(keys)))
    assert "others can read" in line
    keys.chmod(0o600)
    keys.write_text("0123456789abcdef everything\n")
    line = _error_of(run_serve(store_path, "--port", "0", "--api-key-file", str(keys)))
    assert f"{keys}, line 1: scopes are some of" in line


def test_missing_store_is_told(tmp_path: Path) -> None:
    assert "none" in _error_of(run_serve(tmp_path / "none", "--port", "0"))


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "orjson", "prometheus_client"])
def test_missing_extra_is_told_with_what_to_install(
    store_path: Path, tmp_path: Path, package: str
) -> None:
    code = f"raise ModuleNotFoundError('No module named {package}', name='{package}')\n"
    (tmp_path / f"{package}.py").write_text(code)
    line = _error_of(run_serve(store_path, "--port", "0", env={"PYTHONPATH": str(tmp_path)}))
    assert f"embedcache serve needs {package}" in line
    assert "pip install 'embedcache[service]'" in line


def test_options_go_before_the_file(
    store_path: Path, write_config: Callable[[str], Path], key_file: Path
) -> None:
    taken, port = _busy_port()
    config = write_config(f'port = {port}\nhost = "127.0.0.2"\nread_only = true\n')
    # `start_server` gives the option --port 0.
    with taken, start_server(store_path, "--config", str(config)) as server:
        assert server.url == f"http://127.0.0.2:{server.port}"
        assert server.port != int(port)
        answer = server.request("POST", "/v1/features", {"texts": ["never stored"]})
        assert (answer.status, answer.json()["error"]["code"]) == (404, "not_stored")


def test_help_of_all_commands_and_of_serve_needs_no_framework() -> None:
    code = (
        "import sys, contextlib, io\nfrom cli.main import run\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    run(['--help']); run(['serve', '--help'])\n"
        "print({'fastapi', 'uvicorn', 'pydantic', 'orjson', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


# How it ends


@pytest.fixture
def server(store_path: Path) -> Iterator[ServerProcess]:
    with start_server(store_path) as started:
        yield started


def _in_flight(server: ServerProcess, number: int) -> bool:
    """Whether so many requests are being answered, besides the one that asks."""
    return bool(eventually(lambda: server.metrics()["embedcache_in_flight"] == number + 1))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_idle_server_ends_at_once(server: ServerProcess, number: int, status: int) -> None:
    assert server.request("GET", "/ready").status == 200
    with server.connect() as idle:
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answered = idle.recv(1 << 16)
        server.signal(number)
        assert server.wait() == status
        assert (answered + read_all(idle)).endswith(b'{"status":"ok"}')
    assert "Traceback" not in server.stderr
    # The log is whole.
    assert [line["route"] for line in server.log_lines()] == ["/ready", "/health"]


def test_draining_server_refuses_new_requests_and_answers_the_old(server: ServerProcess) -> None:
    body = REST + b"}"
    head = HALF.replace(b"50", b"%d" % (len(body) + 1))
    with server.connect() as connection:
        connection.sendall(head)
        assert _in_flight(server, 1)
        server.signal(signal.SIGTERM)
        ready = eventually(lambda: _refused(server.request("GET", "/ready")))
        assert ready.json()["error"]["message"] == "the service is ending"
        refused = server.request("POST", "/v1/features", {"texts": [STORED[0]]})
        assert (refused.status, refused.json()["error"]["code"]) == (503, "draining")
        assert int(refused.headers["Retry-After"]) >= 1
        assert server.request("GET", "/health").status == 200
        assert server.metrics()["embedcache_in_flight"] == 2
        connection.sendall(body)
        assert read_all(connection).startswith(b"HTTP/1.1 200")
    assert server.wait() == 0


def _refused(answer: Answer) -> Answer | None:
    return answer if answer.status == 503 else None


def test_second_signal_ends_at_once(server: ServerProcess) -> None:
    with server.connect() as connection:
        connection.sendall(HALF)
        assert _in_flight(server, 1)
        server.signal(signal.SIGTERM)
        assert eventually(lambda: _refused(server.request("GET", "/ready")))
        server.signal(signal.SIGTERM)
        assert server.wait() == 130
        assert read_all(connection) == b""


def test_draining_ends_after_its_time(
    store_path: Path, write_config: Callable[[str], Path]
) -> None:
    config = write_config("[limits]\ndrain_s = 0.5\nread_timeout_s = 600\n")
    with start_server(store_path, "--config", str(config)) as server, server.connect() as slow:
        slow.sendall(HALF)
        assert _in_flight(server, 1)
        assert server.stop() == 0
        read_all(slow)
    assert "Traceback" not in server.stderr


def test_miss_in_flight_is_answered_and_committed(
    store_path: Path, write_config: Callable[[str], Path]
) -> None:
    # The module takes its time to load where all cores are busy.
    config = write_config("[limits]\ndeadline_s = 600\ndrain_s = 600\n")
    text = "a text that was being computed when the end came"
    answers: list[Answer] = []
    with start_server(store_path, "--config", str(config)) as server:

        def ask() -> None:
            answers.append(server.request("POST", "/v1/features", {"texts": [text]}))

        asking = threading.Thread(target=ask)
        asking.start()
        assert _in_flight(server, 1)
        assert server.stop(timeout_s=600) == 0
        asking.join()
    (answer,) = answers
    assert answer.status == 200
    assert answer.json()["misses"] == 1
    with embedcache.open_store(store_path) as store:
        values = store.get(answer.json()["view"], [text])[0]
    answered = np.asarray(answer.json()["features"][0]["values"], values.dtype)
    np.testing.assert_array_equal(answered, values)
