"""The service's own interface, against a started server."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embedcache.keys import key_of_text, keys_of_texts
from embedcache.view import FeatureView
from embedcache.wire import json_of_array, unpack_arrays
from tests.embedcache.service import route_store
from tests.embedcache.service.route_store import DIM, LONG_TEXT, MISSING, SILENT_VIEW, TEXTS, VIEW
from tests.embedcache.service.serving import Answer, ServerProcess, start_server

NPZ = "application/x-npz"
ARROW = "application/vnd.apache.arrow.stream"
LENGTHS = [len(route_store.words_of(text)) for text in TEXTS]
CUT = [text == LONG_TEXT for text in TEXTS]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> route_store.RouteStore:
    return route_store.make_route_store(tmp_path_factory.mktemp("native") / "store")


@pytest.fixture(scope="module")
def server(
    store: route_store.RouteStore, write_config: Callable[[str], Path]
) -> Iterator[ServerProcess]:
    config = write_config(
        "[limits]\nmax_keys = 100\nmax_body_bytes = 5000\nmax_response_bytes = 2000\n"
    )
    options = ["--view", f"films={VIEW.fingerprint}", "--view", SILENT_VIEW.fingerprint]
    with start_server(store.path, "--read-only", "--config", str(config), *options) as started:
        yield started


def _keys(*texts: str) -> bytes:
    return b"".join(map(key_of_text, texts))


def _gather(server: ServerProcess, keys: bytes, view: str = "films") -> Answer:
    headers = {"Content-Type": "application/octet-stream"}
    return server.request("POST", f"/v1/features/{view}/gather", keys, headers=headers)


def _ask(server: ServerProcess, accept: str, *texts: str, view: str | None = None) -> Answer:
    body = {"texts": list(texts), "view": view}
    return server.request("POST", "/v1/features", body, headers={"Accept": accept})


def test_features_come_as_json(server: ServerProcess) -> None:
    answer = _ask(server, "application/json", *TEXTS)
    assert answer.headers["content-type"] == "application/json"
    record = answer.json()
    assert {name: record[name] for name in ("view", "dim", "dtype", "hits", "misses")} == {
        "view": VIEW.fingerprint,
        "dim": DIM,
        "dtype": "float16",
        "hits": len(TEXTS),
        "misses": 0,
    }
    for text, length, cut, feature in zip(TEXTS, LENGTHS, CUT, record["features"], strict=True):
        assert feature["key"] == key_of_text(text).hex()
        assert (feature["num_tokens"], feature["truncated"]) == (length, cut)
        values = np.array(feature["values"], np.float32).reshape(-1, DIM)
        np.testing.assert_array_equal(values, route_store.matrix_of(text), strict=True)


def test_features_come_as_npz_that_numpy_reads(server: ServerProcess) -> None:
    answer = _ask(server, NPZ, *TEXTS)
    assert answer.headers["content-type"] == NPZ
    with np.load(io.BytesIO(answer.body), allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["keys"], keys_of_texts(TEXTS), strict=True)
        np.testing.assert_array_equal(arrays["row_splits"], np.cumsum([0, *LENGTHS]), strict=True)
        np.testing.assert_array_equal(arrays["truncated"], CUT)
        expected = np.concatenate([route_store.matrix_of(text) for text in TEXTS])
        np.testing.assert_array_equal(arrays["values"], expected.astype(np.float16), strict=True)


@pytest.mark.parametrize(
    ("view", "kind"), [(VIEW, pa.float16()), (SILENT_VIEW, pa.float32())], ids=["half", "single"]
)
def test_features_come_as_an_arrow_stream(
    server: ServerProcess, view: FeatureView, kind: pa.DataType
) -> None:
    answer = _ask(server, ARROW, *TEXTS, view=view.fingerprint)
    assert answer.headers["content-type"] == ARROW
    with pa.ipc.open_stream(answer.body) as reader:
        table = reader.read_all()
    assert table.schema.field("key").type == pa.binary(16)
    assert table.schema.field("truncated").type == pa.bool_()
    assert table.schema.field("values").type == pa.list_(pa.list_(kind, view.dim))
    assert table.schema.metadata == {
        b"view": view.fingerprint.encode(),
        b"dim": str(view.dim).encode(),
        b"dtype": view.dtype.encode(),
    }
    assert table["key"].to_pylist() == [key_of_text(text) for text in TEXTS]
    for text, row in zip(TEXTS, table["values"], strict=True):
        values = np.array(row.as_py(), np.float32).reshape(-1, view.dim)
        np.testing.assert_array_equal(values, route_store.matrix_of(text, view), strict=True)
    cut = [len(text.split()) > view.max_tokens for text in TEXTS]
    assert table["truncated"].to_pylist() == cut


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        (f"{NPZ}, application/json;q=0.5", NPZ),
        (f"{NPZ};q=0.5, {ARROW};q=0.9, */*;q=0.1", ARROW),
        (f"application/json;q=0, {NPZ};q=0.001", NPZ),
        (f"text/html, {ARROW}", ARROW),
    ],
)
def test_the_form_that_is_wanted_most_is_chosen(
    server: ServerProcess, accept: str, expected: str
) -> None:
    assert _ask(server, accept, "one").headers["content-type"] == expected


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "nonsense"])
def test_a_form_that_there_is_none_of_is_refused(server: ServerProcess, accept: str) -> None:
    answer = _ask(server, accept, "one")
    assert answer.status == 406
    assert NPZ in answer.json()["error"]["message"]


def test_a_stored_text_is_found_by_its_key(server: ServerProcess) -> None:
    path = f"/v1/features/films/{key_of_text(TEXTS[0]).hex()}"
    feature = server.request("GET", path).json()["features"][0]
    expected = route_store.matrix_of(TEXTS[0])
    np.testing.assert_array_equal(np.array(feature["values"], np.float32), expected)
    answer = server.request("GET", path, headers={"Accept": NPZ})
    np.testing.assert_array_equal(unpack_arrays(answer.body)["values"], expected)


def test_a_key_that_is_not_stored_is_not_found(server: ServerProcess) -> None:
    answer = server.request("GET", f"/v1/features/films/{key_of_text(MISSING).hex()}")
    assert (answer.status, answer.json()["error"]["code"]) == (404, "not_stored")


@pytest.mark.parametrize("digits", ["abc", "g" * 32, "0" * 31, "0" * 34, "%20" + "0" * 32])
def test_what_is_no_key_is_refused(server: ServerProcess, digits: str) -> None:
    answer = server.request("GET", f"/v1/features/films/{digits}")
    assert (answer.status, answer.json()["error"]["code"]) == (422, "invalid_keys")


def test_a_lookup_tells_what_is_stored(server: ServerProcess) -> None:
    answer = server.request("POST", "/v1/features/films/lookup", _keys(*TEXTS, MISSING))
    arrays = unpack_arrays(answer.body)
    np.testing.assert_array_equal(arrays["num_tokens"], [*LENGTHS, -1])
    np.testing.assert_array_equal(arrays["truncated"], [*CUT, False])
    np.testing.assert_array_equal(arrays["windowed"], [False] * (len(TEXTS) + 1))
    assert [arrays[name].dtype for name in ("num_tokens", "truncated", "windowed")] == [
        np.int64,
        np.bool_,
        np.bool_,
    ]


def test_a_lookup_of_nothing_finds_nothing(server: ServerProcess) -> None:
    answer = server.request("POST", "/v1/features/films/lookup", b"")
    assert [len(array) for array in unpack_arrays(answer.body).values()] == [0, 0, 0]


def test_gathered_matrices_come_in_the_order_of_the_keys(server: ServerProcess) -> None:
    texts = [*reversed(TEXTS), TEXTS[0]]
    arrays = unpack_arrays(_gather(server, _keys(*texts)).body)
    expected = np.concatenate([route_store.matrix_of(text) for text in texts])
    np.testing.assert_array_equal(arrays["values"], expected)
    np.testing.assert_array_equal(arrays["keys"], keys_of_texts(texts))
    np.testing.assert_array_equal(np.diff(arrays["row_splits"]), [*reversed(LENGTHS), LENGTHS[0]])


def test_nothing_gathered_is_no_rows(server: ServerProcess) -> None:
    arrays = unpack_arrays(_gather(server, b"").body)
    assert arrays["values"].shape == (0, DIM)


def test_gathering_a_key_that_is_not_stored_names_its_place(server: ServerProcess) -> None:
    answer = _gather(server, _keys(TEXTS[0], MISSING))
    assert (answer.status, answer.json()["error"]["code"]) == (404, "not_stored")
    assert "key 2" in answer.json()["error"]["message"]


def test_an_answer_that_would_be_too_large_is_refused(server: ServerProcess) -> None:
    most = 2000 // (2 * DIM * route_store.MAX_WORDS)
    assert _gather(server, _keys(*[LONG_TEXT] * most)).status == 200
    answer = _gather(server, _keys(*[LONG_TEXT] * (most + 1)))
    assert (answer.status, answer.json()["error"]["code"]) == (413, "answer_too_large")


@pytest.mark.parametrize("path", ["lookup", "gather"])
def test_what_is_no_list_of_keys_is_refused(server: ServerProcess, path: str) -> None:
    answer = server.request("POST", f"/v1/features/films/{path}", b"x" * 17)
    assert (answer.status, answer.json()["error"]["code"]) == (422, "invalid_keys")
    answer = server.request("POST", f"/v1/features/films/{path}", bytes(16 * 101))
    assert (answer.status, answer.json()["error"]["code"]) == (413, "too_many_keys")


def test_hits_of_gathering_are_counted(server: ServerProcess) -> None:
    sample = f'embedcache_hits_total{{view="{VIEW.fingerprint}"}}'
    before = server.metrics().get(sample, 0)
    _gather(server, _keys(*TEXTS))
    assert server.metrics()[sample] == before + len(TEXTS)


def test_the_views_are_told_with_all_that_their_fingerprint_is_made_of(
    server: ServerProcess,
) -> None:
    views = server.request("GET", "/v1/views").json()["views"]
    assert [view["alias"] for view in views] == ["films", None]
    assert [view["default"] for view in views] == [True, False]
    for record, view in zip(views, (VIEW, SILENT_VIEW), strict=True):
        assert FeatureView.from_json(json.dumps(record["view"])) == view
        assert record["fingerprint"] == view.fingerprint
        assert (record["texts"], record["shards"]) == (len(TEXTS), 1)
    assert views[0]["tokens"] == sum(LENGTHS)
    assert views[1]["module"] == route_store.SILENT_HANDLE


def test_the_datasets_are_listed(server: ServerProcess, store: route_store.RouteStore) -> None:
    datasets = server.request("GET", "/v1/datasets").json()["datasets"]
    assert datasets[0].pop("created_at") >= 0
    assert datasets == [
        {
            "name": "films/small",
            "version": store.version,
            "texts": len(TEXTS),
            "unique": len(TEXTS),
            "newest_view": VIEW.fingerprint,
        }
    ]


@pytest.mark.parametrize("suffix", ["", "@{version}"])
def test_a_dataset_comes_with_its_labels_and_splits(
    server: ServerProcess, store: route_store.RouteStore, suffix: str
) -> None:
    path = "/v1/datasets/films/small" + suffix.format(version=store.version)
    arrays = unpack_arrays(server.request("GET", path, headers={"Accept": NPZ}).body)
    record = json_of_array(arrays["record"])
    assert (record["name"], record["version"]) == ("films/small", store.version)
    assert record["newest_view"] == VIEW.fingerprint
    np.testing.assert_array_equal(arrays["keys"], keys_of_texts(TEXTS))
    codes, splits = arrays["label_codes"], arrays["label_splits"]
    labels = [
        tuple(record["label_names"][code] for code in codes[splits[row] : splits[row + 1]])
        for row in range(len(TEXTS))
    ]
    assert labels == list(route_store.LABELS)
    names = [record["split_names"][code] for code in arrays["split_codes"]]
    assert names == list(route_store.SPLITS)


def test_a_dataset_that_is_not_there_is_not_found(server: ServerProcess) -> None:
    answer = server.request("GET", "/v1/datasets/nothing")
    assert (answer.status, answer.json()["error"]["code"]) == (404, "unknown_name")


def test_a_service_without_runs_lists_none(server: ServerProcess) -> None:
    assert server.request("GET", "/v1/runs").json() == {"runs": []}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"texts": ["\\ud800"]}', "invalid_json"),
        (b'{"texts": ["\xff"]}', "invalid_json"),
        (b'{"texts": [NaN]}', "invalid_json"),
        (b'{"texts": ' + b"[" * 4000, "invalid_json"),
        (b'{"texts": ' + b"[" * 900 + b"]" * 900 + b"}", "invalid_request"),
        (b'{"texts": [1e999]}', "invalid_json"),
        (b'{"texts": [true]}', "invalid_request"),
        (b'{"texts": {}}', "invalid_request"),
        (b'{"texts": []}', "no_texts"),
        (b'{"texts": ["a"], "view": 7}', "invalid_request"),
        (b'{"texts": ["a"], "more": 7}', "invalid_request"),
        (b"{}", "invalid_request"),
        (b"null", "invalid_request"),
        (b"", "invalid_json"),
    ],
)
def test_a_body_that_is_no_request_is_refused(
    server: ServerProcess, body: bytes, code: str
) -> None:
    answer = server.request("POST", "/v1/features", body)
    assert (answer.status, answer.json()["error"]["code"]) == (422, code)


def test_a_refusal_shows_nothing_of_the_text(server: ServerProcess) -> None:
    for body in ({"texts": ["private"], "view": ["private"]}, {"texts": [["private"]]}):
        answer = server.request("POST", "/v1/features", body)
        assert answer.status == 422
        assert b"private" not in answer.body
    assert "private" not in server.stderr


def test_a_view_that_is_not_there_is_not_found(server: ServerProcess) -> None:
    answer = _ask(server, "*/*", "one", view="nothing")
    assert (answer.status, answer.json()["error"]["code"]) == (404, "unknown_view")
