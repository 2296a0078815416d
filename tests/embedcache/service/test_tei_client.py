"""Hugging Face's own client of text-embeddings-inference, unmodified, against a started server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.embedcache.service import route_store
from tests.embedcache.service.route_store import DIM, LONG_TEXT, MISSING, SILENT_VIEW, TEXTS, VIEW
from tests.embedcache.service.serving import ServerProcess, start_server


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> route_store.RouteStore:
    return route_store.make_route_store(tmp_path_factory.mktemp("tei") / "store")


@pytest.fixture(scope="module")
def server(store: route_store.RouteStore) -> Iterator[ServerProcess]:
    with start_server(store.path, "--read-only", "--view", VIEW.fingerprint) as started:
        yield started


@pytest.fixture(scope="module")
def silent_server(store: route_store.RouteStore) -> Iterator[ServerProcess]:
    with start_server(store.path, "--read-only", "--view", SILENT_VIEW.fingerprint) as started:
        yield started


def _client(server: ServerProcess, path: str) -> InferenceClient:
    return InferenceClient(model=server.url + path, token="not-needed")


@pytest.mark.parametrize("path", ["", "/", "/embed"])
def test_a_list_of_texts_gets_their_normalised_means(server: ServerProcess, path: str) -> None:
    vectors = _client(server, path).feature_extraction(list(TEXTS))
    assert vectors.dtype == np.float32
    expected = [route_store.mean_of(text) for text in TEXTS]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_a_single_text_gets_a_list_of_one_vector(server: ServerProcess) -> None:
    vectors = _client(server, "/embed").feature_extraction(TEXTS[0])
    np.testing.assert_allclose(vectors, [route_store.mean_of(TEXTS[0])], atol=1e-6)


def test_means_are_not_normalised_where_that_is_not_wanted(server: ServerProcess) -> None:
    vectors = _client(server, "/embed").feature_extraction(
        TEXTS[0], normalize=False, truncate=True, truncation_direction="right", dimensions=DIM
    )
    expected = [route_store.mean_of(TEXTS[0], normalize=False)]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_embed_all_gives_the_rows_as_they_are_stored(server: ServerProcess) -> None:
    rows = _client(server, "/embed_all").feature_extraction(TEXTS[2])
    np.testing.assert_array_equal(rows, [route_store.matrix_of(TEXTS[2])])


def test_embed_all_gives_a_matrix_of_each_text_however_long(server: ServerProcess) -> None:
    matrices = server.request("POST", "/embed_all", {"inputs": list(TEXTS)}).json()
    assert [len(matrix) for matrix in matrices] == [
        len(route_store.words_of(text)) for text in TEXTS
    ]
    for text, matrix in zip(TEXTS, matrices, strict=True):
        expected = route_store.matrix_of(text)
        rows = np.array(matrix, np.float32).reshape(-1, DIM)
        np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": LONG_TEXT, "truncate": False}, "more than 40 rows"),
        ({"text": LONG_TEXT, "truncation_direction": "left"}, "cut at its end"),
        ({"text": "one", "prompt_name": "query"}, "prompt_name"),
        ({"text": "one", "dimensions": DIM - 1}, "not shortened"),
    ],
)
def test_what_cannot_be_had_is_refused_and_said(
    server: ServerProcess, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(HfHubHTTPError, match=message) as caught:
        _client(server, "/embed").feature_extraction(**arguments)
    assert caught.value.response.status_code == 422
    assert caught.value.response.json()["error_type"] == "validation"


@pytest.mark.parametrize("arguments", [{"truncate": False}, {"truncation_direction": "left"}])
def test_a_text_that_was_not_cut_may_be_asked_for_uncut(
    server: ServerProcess, arguments: dict[str, Any]
) -> None:
    assert _client(server, "/embed").feature_extraction("one", **arguments).shape == (1, DIM)


def test_a_text_that_is_not_stored_is_told_in_teis_form(server: ServerProcess) -> None:
    with pytest.raises(HfHubHTTPError) as caught:
        _client(server, "/embed").feature_extraction(MISSING)
    assert caught.value.response.status_code == 404
    assert caught.value.response.json().keys() == {"error", "error_type"}


def test_tokens_have_ids_and_places_in_characters(server: ServerProcess) -> None:
    text = "größer als 東京 🙂"
    tokens = server.request("POST", "/tokenize", {"inputs": text}).json()
    assert [token["text"] for token in tokens[0]] == text.split()
    assert [token["id"] for token in tokens[0]] == [
        route_store.token_id(word) for word in text.split()
    ]
    assert [text[token["start"] : token["stop"]] for token in tokens[0]] == text.split()
    assert not any(token["special"] for token in tokens[0])


def test_tokens_of_several_texts_come_in_their_order(server: ServerProcess) -> None:
    answer = server.request("POST", "/tokenize", {"inputs": list(TEXTS)})
    assert [len(tokens) for tokens in answer.json()] == [
        len(route_store.words_of(text)) for text in TEXTS
    ]


def test_tokens_of_a_silent_module_are_counted(silent_server: ServerProcess) -> None:
    answer = silent_server.request("POST", "/tokenize", {"inputs": TEXTS[0]})
    unknown = {"id": None, "text": "", "special": False, "start": None, "stop": None}
    assert answer.json() == [[unknown] * 3]


def test_info_describes_the_default_view(server: ServerProcess) -> None:
    described = server.request("GET", "/info").json()
    assert described["model_id"] == route_store.HANDLE
    assert described["model_sha"] == VIEW.module_digest
    assert described["model_dtype"] == "float16"
    assert described["max_input_length"] == route_store.MAX_WORDS
    assert described["max_client_batch_size"] == 32
    assert described["model_type"] == {"embedding": {"pooling": "mean"}}


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs": ["\\ud800"]}',
        b'{"inputs": NaN}',
        b'{"inputs": "\xff"}',
        b"[" * 100_000,
        b'{"inputs": {"a": 1}}',
        b'{"inputs": []}',
        b'{"inputs": [null]}',
        b'{"input": "one"}',
        b"[]",
        b"",
    ],
)
@pytest.mark.parametrize("path", ["/", "/embed_all", "/tokenize"])
def test_a_body_that_is_no_request_is_refused(
    server: ServerProcess, path: str, body: bytes
) -> None:
    answer = server.request("POST", path, body)
    assert answer.status == 422
    assert answer.json().keys() == {"error", "error_type"}
