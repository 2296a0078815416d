"""API keys: the file's rules, and what each scope may do on a started server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from embedcache.errors import ServiceError
from embedcache.service.auth import ALL_SCOPES, KeyRing, check_open_host, load_keys
from tests.embedcache.service.conftest import KEYS, STORED
from tests.embedcache.service.serving import ServerProcess, start_server

LONG = "0123456789abcdef"


def _keys(folder: Path, content: str, mode: int = 0o600) -> KeyRing:
    path = folder / "keys"
    path.write_text(content, encoding="utf-8")
    path.chmod(mode)
    return load_keys(path)


def test_line_gives_a_key_and_its_scopes(tmp_path: Path) -> None:
    keys = _keys(tmp_path, f"# comment\n\n{LONG}1\n{LONG}2 read # why\n{LONG}3 admin,read\n")
    assert keys.scopes_of(f"Bearer {LONG}1".encode()) == {"read", "compute"}
    assert keys.scopes_of(f"bearer  {LONG}2".encode()) == {"read"}
    assert keys.scopes_of(f"Bearer {LONG}3".encode()) == {"read", "admin"}


@pytest.mark.parametrize(
    "shown",
    [None, b"", b"Bearer", b"Bearer ", b"Bearer 0123456789abcde", b"Bearer 0123456789abcdef0",
     b"Basic 0123456789abcdef", b"0123456789abcdef", b"Bearer \xff"],
)  # fmt: skip
def test_anything_but_the_whole_key_has_no_scopes(tmp_path: Path, shown: bytes | None) -> None:
    assert _keys(tmp_path, LONG).scopes_of(shown) is None


def test_without_keys_everything_is_allowed() -> None:
    assert KeyRing().scopes_of(None) == ALL_SCOPES


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "there is no API key in it"),
        ("# nothing\n", "there is no API key in it"),
        ("short\n", "line 1: a key is at least 16 printable ASCII characters"),
        ("ключключключключключ\n", "line 1: a key is at least 16 printable ASCII"),
        (f"{LONG}\n{LONG} write\n", "line 2: the same key as on a line above"),
        (f"{LONG} write\n", "line 1: scopes are some of read, compute, admin"),
        (f"{LONG} read, compute\n", "line 1: a line is KEY, or KEY SCOPE,SCOPE; this one has more"),
    ],
)
def test_fault_in_the_key_file_names_the_line_and_never_the_key(
    tmp_path: Path, content: str, said: str
) -> None:
    with pytest.raises(ServiceError) as caught:
        _keys(tmp_path, content)
    assert said in str(caught.value)
    assert LONG not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_key_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ServiceError, match="chmod 600"):
        _keys(tmp_path, LONG, mode)


def test_missing_key_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="cannot be read: No such file"):
        load_keys(tmp_path / "none")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    check_open_host(host, KeyRing())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "localhost.x"])
def test_other_addresses_need_keys(tmp_path: Path, host: str) -> None:
    with pytest.raises(ServiceError, match="--api-key-file"):
        check_open_host(host, KeyRing())
    check_open_host(host, _keys(tmp_path, LONG))


@pytest.fixture(scope="module")
def server(store_path: Path, key_file: Path) -> Iterator[ServerProcess]:
    with start_server(store_path, "--api-key-file", str(key_file)) as started:
        yield started


def test_no_key_is_401_and_says_how(server: ServerProcess) -> None:
    answer = server.request("POST", "/v1/features", {"texts": [STORED[0]]})
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert answer.json()["error"]["code"] == "unauthorized"


@pytest.mark.parametrize("path", ["/v1/views", "/v1/models", "/info", "/metrics", "/no/such"])
def test_wrong_key_is_401_everywhere(server: ServerProcess, path: str) -> None:
    assert server.request("GET", path, token="x" * 20).status == 401


@pytest.mark.parametrize("path", ["/health", "/ready", "/docs", "/openapi.json"])
def test_supervisors_and_readers_of_the_description_need_no_key(
    server: ServerProcess, path: str
) -> None:
    assert server.request("GET", path).status == 200


@pytest.mark.parametrize("name", ["reader", "computer", "admin"])
def test_every_key_reads_what_is_stored(server: ServerProcess, name: str) -> None:
    answer = server.request("POST", "/v1/features", {"texts": [STORED[0]]}, token=KEYS[name])
    assert answer.status == 200
    assert (answer.json()["hits"], answer.json()["misses"]) == (1, 0)


def test_miss_without_the_scope_compute_is_403(server: ServerProcess) -> None:
    answer = server.request(
        "POST", "/v1/features", {"texts": ["never stored"]}, token=KEYS["reader"]
    )
    assert answer.status == 403
    assert answer.json()["error"]["code"] == "compute_scope"


@pytest.mark.parametrize(("method", "path"), [("GET", "/metrics"), ("POST", "/v1/reload")])
def test_operations_need_the_scope_admin(server: ServerProcess, method: str, path: str) -> None:
    refused = server.request(method, path, token=KEYS["computer"])
    assert (refused.status, refused.json()["error"]["code"]) == (403, "admin_scope")
    assert server.request(method, path, token=KEYS["admin"]).status == 200


def test_refusals_have_the_form_of_their_interface(server: ServerProcess) -> None:
    openai = server.request("POST", "/v1/embeddings", {"input": "a", "model": "m"}).json()
    assert openai["error"]["type"] == "authentication_error"
    tei = server.request("POST", "/embed", {"inputs": "a"}).json()
    assert set(tei) == {"error", "error_type"}
    tf_serving = server.request("POST", "/v1/models/run:predict", {"instances": ["a"]}).json()
    assert isinstance(tf_serving["error"], str)


def test_with_keys_the_service_may_have_any_name(server: ServerProcess) -> None:
    headers = {"Host": "features.example.org", "Sec-Fetch-Site": "cross-site"}
    answer = server.request("GET", "/v1/views", headers=headers, token=KEYS["reader"])
    assert answer.status == 200


def test_no_key_is_in_the_log(server: ServerProcess) -> None:
    server.request("GET", "/v1/views", token=KEYS["reader"])
    assert KEYS["reader"] not in server.stderr
