"""Connection: patience with a service that is busy or away, and one clear line when it ends."""

from __future__ import annotations

import logging
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

import embedcache
from embedcache.client import connection as connection_module
from embedcache.client.connection import Connection, Request
from embedcache.client.store import RemoteStore
from embedcache.errors import ServiceError
from embedcache.store.store import FeatureStore
from tests.embedcache.client.small_server import Fault, SmallServer, problem, serving

VIEWS = Request("GET", "/v1/views")


Connect = Callable[..., Connection]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes connections that are closed in the end."""
    with ExitStack() as stack:

        def make(url: str, timeout_s: float = 20) -> Connection:
            return stack.enter_context(closing(Connection(url, api_key=None, timeout_s=timeout_s)))

        yield make


@pytest.fixture
def connection(server: SmallServer, connect: Connect) -> Connection:
    return connect(server.url)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    "fault",
    [
        Fault(is_reset=True),
        Fault(status=429, headers=(("Retry-After", "0"),)),
        Fault(status=503, headers=(("Retry-After", "0"),)),
        Fault(status=502),
        Fault(status=504),
    ],
    ids=lambda fault: str(fault.status or "reset"),
)
def test_what_may_pass_is_asked_again(
    server: SmallServer, connection: Connection, fault: Fault
) -> None:
    server.faults = [fault, fault]
    assert connection.ask(VIEWS).status == 200
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 406, 413, 422, 429, 500, 503])
def test_a_refusal_is_not_asked_again(
    server: SmallServer, connection: Connection, status: int
) -> None:
    server.faults = [Fault(status=status, body=problem("some_code", "it may not be"))]
    with pytest.raises(ServiceError, match=f"refused \\({status} some_code\\): it may not be"):
        connection.ask(VIEWS)
    assert len(server.requests) == 1


def test_a_status_that_the_caller_sees_to_is_handed_over(
    server: SmallServer, connection: Connection
) -> None:
    server.faults = [Fault(status=404, body=problem("not_stored", "no"))]
    answer = connection.ask(Request("GET", "/v1/views", allowed=(404,)))
    assert (answer.status, answer.problem) == (404, ("not_stored", "no"))


def test_a_refusal_says_what_to_do_next(server: SmallServer, connection: Connection) -> None:
    server.faults = [
        Fault(status=401, body=problem("no_key", "no key")),
        Fault(status=500, headers=(("X-Request-ID", "abc-1"),)),
    ]
    with pytest.raises(ServiceError) as caught:
        connection.ask(VIEWS)
    expected = f"{server.url}: the service refused (401 no_key): no key; pass `api_key=…`"
    assert str(caught.value).startswith(expected)
    with pytest.raises(ServiceError, match=r"\(500\): it gives no reason \(request abc-1\)$"):
        connection.ask(VIEWS)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": "a sentence of another interface"}', "a sentence of another interface"),
        (b"<html>no\nsuch page</html>", "it gives no reason"),
        (b'{"error": {"code": "x", "message": "two\\nlines\\u001b[31m"}}', "two lines[31m"),
        (b"[" * 100_000, "it gives no reason"),
    ],
)
def test_a_refusal_is_one_line_whatever_the_body(
    server: SmallServer, connection: Connection, body: bytes, message: str
) -> None:
    server.faults = [Fault(status=422, body=body)]
    with pytest.raises(ServiceError) as caught:
        connection.ask(VIEWS)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_service_that_is_not_there_is_one_line_when_the_time_is_over(connect: Connect) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServiceError) as caught:
        connect(url, 0.2).ask(VIEWS)
    line = str(caught.value)
    assert line.startswith(f"{url}: the service cannot be reached (")
    assert "refused" in line
    assert "embedcache serve" in line


def test_a_service_that_starts_in_time_is_reached(numbered: FeatureStore, connect: Connect) -> None:
    port = free_port()
    asked = connect(f"http://127.0.0.1:{port}", 30)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(asked.ask(VIEWS).status))
    thread.start()
    with serving(numbered, port):
        thread.join()
    assert found == [200]


def test_waiting_is_told_of_once(
    server: SmallServer, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults = [Fault(is_reset=True)] * 3
    with caplog.at_level(logging.WARNING, logger="embedcache.client"):
        connection.ask(VIEWS)
    (line,) = caplog.messages
    assert line.startswith(f"{server.url}: the service cannot be reached (")


def test_a_time_that_the_service_asks_for_and_that_is_too_long_is_not_waited(
    server: SmallServer, connect: Connect
) -> None:
    busy = Fault(status=429, headers=(("Retry-After", "3600"),), body=problem("full", "full"))
    server.faults = [busy]
    with pytest.raises(ServiceError, match=r"\(429 full\): full; it is busy"):
        connect(server.url, 0.3).ask(VIEWS)
    assert len(server.requests) == 1


def test_an_answer_that_never_comes_ends_with_the_time(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServiceError, match=r"has not answered for 0.2 s; it may be computing"):
            connect(url, 0.2).ask(VIEWS)


def test_an_answer_that_is_larger_than_it_may_be_is_not_read(connection: Connection) -> None:
    with pytest.raises(ServiceError, match="larger than 10 bytes"):
        connection.ask(Request("GET", "/v1/views", max_answer_bytes=10))


def test_a_compressed_answer_is_refused(server: SmallServer, connection: Connection) -> None:
    server.faults = [Fault(headers=(("Content-Encoding", "gzip"),))]
    with pytest.raises(ServiceError, match="compressed"):
        connection.ask(VIEWS)


def test_no_redirection_is_followed(server: SmallServer, connection: Connection) -> None:
    elsewhere = ("Location", f"http://127.0.0.1:{free_port()}/v1/views")
    server.faults = [Fault(status=307, headers=(elsewhere,))]
    with pytest.raises(ServiceError, match="refused \\(307\\)"):
        connection.ask(VIEWS)


def test_closing_ends_what_waits(connect: Connect) -> None:
    asked = connect(f"http://127.0.0.1:{free_port()}", 600)
    errors: list[str] = []

    def ask() -> None:
        with pytest.raises(ServiceError) as caught:
            asked.ask(VIEWS)
        errors.append(str(caught.value))

    thread = threading.Thread(target=ask)
    thread.start()
    asked.close()
    thread.join()
    assert "has been closed; connect again" in errors[0]


def test_a_name_that_stands_for_no_host_is_not_waited_for(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_such_host(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    with pytest.raises(ServiceError, match=r"Name or service not known.*check the address"):
        connect("http://nowhere.invalid", 600).ask(VIEWS)


def test_a_server_without_tls_behind_an_https_address_is_one_line(
    server: SmallServer, connect: Connect
) -> None:
    url = server.url.replace("http", "https")
    with pytest.raises(ServiceError, match=r"cannot be reached \(.*SSL.*check the address"):
        connect(url, 600).ask(VIEWS)


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8080", "ftp://host", "http://", "http://host:port", "http://[::1"],
)
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(ServiceError, match="is no address of a service; write one such as"):
        embedcache.connect(url)


def test_secrets_in_an_address_are_refused_and_not_shown() -> None:
    for url in ("http://me:secret@host", "http://host/?key=secret", "http://host/#secret"):
        with pytest.raises(ServiceError, match="an API key is given as api_key") as caught:
            embedcache.connect(url)
        assert "secret" not in str(caught.value)


def test_a_service_behind_a_path_is_asked_there(server: SmallServer, connect: Connect) -> None:
    with pytest.raises(ServiceError, match=r"404.*is this the address"):
        connect(f"{server.url}/a/b/").ask(VIEWS)
    assert server.requests[0].path == "/a/b/v1/views"


def test_the_key_is_sent_and_never_shown(server: SmallServer) -> None:
    key = "k" * 24
    with embedcache.connect(server.url, api_key=key) as remote:
        remote.views()
        server.faults = [Fault(status=403, body=problem("compute_scope", "no"))]
        with pytest.raises(ServiceError, match="403 compute_scope") as caught:
            remote.views()
        shown = repr(remote) + str(remote) + str(caught.value)
    assert server.requests[0].headers["authorization"] == f"Bearer {key}"
    assert key not in shown
    with embedcache.connect(server.url) as remote:
        remote.views()
    assert "authorization" not in server.requests[-1].headers


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
def test_what_cannot_be_a_key_is_refused_at_once(key: str) -> None:
    with pytest.raises(ServiceError, match="printable ASCII") as caught:
        embedcache.connect("http://host", api_key=key)
    assert not key or key not in str(caught.value)


def test_a_copy_asks_for_itself(server: SmallServer) -> None:
    with embedcache.connect(server.url, api_key="k" * 24, timeout_s=7, cache_bytes=99) as remote:
        remote.views()
        again: RemoteStore = pickle.loads(pickle.dumps(remote))
    with again:
        assert len(again.views()) == 1
    assert again.__reduce__() == remote.__reduce__()
    assert server.requests[-1].headers["authorization"] == "Bearer " + "k" * 24


def test_a_closed_store_says_so(remote: RemoteStore) -> None:
    remote.views()
    remote.close()
    with pytest.raises(ServiceError, match="has been closed; connect again"):
        remote.views()


def test_after_a_fork_the_child_must_connect_anew(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.ask(VIEWS)
    parent = connection_module.os.getpid()
    monkeypatch.setattr(connection_module.os, "getpid", lambda: parent + 1)
    with pytest.raises(ServiceError, match="connected before a fork; connect again"):
        connection.ask(VIEWS)


def test_nothing_is_asked_before_something_is_needed(server: SmallServer) -> None:
    with embedcache.connect(server.url):
        assert server.requests == []


def test_without_the_library_one_line_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['httpx2'] = None\n"
        "import embedcache\n"
        "with embedcache.connect('http://127.0.0.1:9') as remote:\n"
        "    try: remote.views()\n"
        "    except embedcache.EmbedCacheError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith("the HTTP client httpx2 cannot be imported")
    assert "`pip install 'embedcache[client]'`" in line


def test_importing_and_connecting_leave_the_library_out() -> None:
    code = (
        "import embedcache, sys\n"
        "embedcache.FeatureStream\n"
        "embedcache.connect('http://127.0.0.1:9').close()\n"
        "print('httpx2' in sys.modules, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
