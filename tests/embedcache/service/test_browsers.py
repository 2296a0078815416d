"""What a web page of another site sends to a service without keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from embedcache.service.browsers import refuse_other_pages
from embedcache.service.errors import ServiceProblem
from tests.embedcache.service.serving import ServerProcess, start_server


@pytest.mark.parametrize(
    "host",
    [None, b"localhost", b"localhost:8080", b"127.0.0.1:8080", b"192.168.1.7", b"[::1]:8080"],
)
@pytest.mark.parametrize("fetch_site", [None, b"same-origin", b"none"])
def test_programs_and_the_own_page_are_answered(
    host: bytes | None, fetch_site: bytes | None
) -> None:
    refuse_other_pages(host, fetch_site)


@pytest.mark.parametrize("fetch_site", [b"cross-site", b"same-site", b"", b"anything"])
def test_page_of_another_site_is_refused(fetch_site: bytes) -> None:
    with pytest.raises(ServiceProblem, match="no web page of another site") as caught:
        refuse_other_pages(b"127.0.0.1:8080", fetch_site)
    assert caught.value.status == 403


@pytest.mark.parametrize(
    "host",
    [b"example.org", b"example.org:8080", b"localhost.example.org", b"127.0.0.1.example", b""],
)
def test_name_that_came_to_mean_this_machine_is_refused(host: bytes) -> None:
    with pytest.raises(ServiceProblem, match="--api-key-file"):
        refuse_other_pages(host, b"same-origin")


@pytest.fixture(scope="module")
def server(built_store: Path) -> Iterator[ServerProcess]:
    with start_server(built_store, "--read-only") as started:
        yield started


@pytest.mark.parametrize(
    ("name", "value"), [("Sec-Fetch-Site", "cross-site"), ("Host", "rebound.example.org")]
)
def test_started_server_refuses_them(server: ServerProcess, name: str, value: str) -> None:
    answer = server.request("POST", "/v1/features", {"texts": ["a"]}, headers={name: value})
    assert answer.status == 403
    assert b"other_site" in answer.body


def test_its_own_page_of_operations_works(server: ServerProcess) -> None:
    own = {"Sec-Fetch-Site": "same-origin"}
    assert server.request("GET", "/v1/views", headers=own).status == 200
