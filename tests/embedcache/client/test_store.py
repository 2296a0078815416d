"""RemoteStore: the same features as a local store's, and only keys over the wire."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

import embedcache
from embedcache.client.answers import RemoteDataset
from embedcache.client.store import RemoteStore
from embedcache.errors import (
    CorpusError,
    KeyNotFoundError,
    ServiceError,
    StoreError,
    UnknownNameError,
)
from embedcache.keys import keys_of_texts
from embedcache.store.database.records import ViewRecord
from embedcache.store.shards.codec import to_storage
from embedcache.store.store import FeatureStore
from embedcache.view import FeatureView
from tests.embedcache.client.conftest import TEXTS
from tests.embedcache.client.small_server import Fault, SmallServer, problem
from tests.embedcache.store import programs

VIEW = programs.VIEW.fingerprint


def assert_same(found: embedcache.RaggedArray, expected: embedcache.RaggedArray) -> None:
    np.testing.assert_array_equal(found.values, expected.values, strict=True)
    np.testing.assert_array_equal(found.row_splits, expected.row_splits, strict=True)


@pytest.mark.parametrize(
    "texts",
    [TEXTS, TEXTS[700:300:-7], ["text 3", "text 1", "text 3"], ["text 0"], []],
    ids=["all", "some", "repeated", "one", "none"],
)
def test_get_gives_what_a_local_store_gives(
    remote: RemoteStore, numbered: FeatureStore, texts: list[str]
) -> None:
    assert_same(remote.get(VIEW, texts), numbered.get(VIEW, texts))
    assert_same(remote.get(VIEW, texts), numbered.get(VIEW, texts))


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16", "int8"])
def test_every_storage_dtype_is_read_as_it_is_locally(
    server: SmallServer, remote: RemoteStore, dtype: str
) -> None:
    view = replace(programs.VIEW, dtype=dtype, dim=8)
    store = server.store
    store.catalog.add_view(view, "builtin:nothing")
    writer = store.writer(view)
    matrices = [programs.matrix_of(text, 8).astype(np.float32) for text in TEXTS[:50]]
    rows = to_storage(np.concatenate(matrices), dtype)
    lengths = np.array([len(matrix) for matrix in matrices])
    writer.add_values(keys_of_texts(TEXTS[:50]), lengths, np.zeros(50, np.bool_), values=rows)
    writer.flush()
    assert_same(remote.get(view, TEXTS[:50]), store.get(view, TEXTS[:50]))


def test_arrays_that_were_got_are_the_callers(remote: RemoteStore) -> None:
    first = remote.get(VIEW, TEXTS[:20])
    first.values[:] = 7
    assert not (remote.get(VIEW, TEXTS[:20]).values == 7).any()


def test_texts_stay_here_where_keys_are_enough(server: SmallServer, remote: RemoteStore) -> None:
    remote.get(VIEW, TEXTS[:50])
    remote.contains(VIEW, [*TEXTS[:50], "a secret that nobody stored"])
    with pytest.raises(KeyNotFoundError):
        remote.get(VIEW, ["a secret that nobody stored"])
    sent = b"".join(asked.body + asked.path.encode() for asked in server.requests)
    assert b"text" not in sent
    assert b"secret" not in sent


def test_contains_says_which(remote: RemoteStore) -> None:
    found = remote.contains(VIEW, ["text 1", "nothing", "text 2"])
    assert (found.tolist(), found.dtype) == ([True, False, True], np.bool_)
    assert remote.contains(VIEW, []).tolist() == []


def test_a_text_that_is_not_stored_is_told_of_as_a_local_store_does(
    remote: RemoteStore, numbered: FeatureStore
) -> None:
    texts = ["text 1", "no", "text 2", "nor this"]
    messages = []
    for store in (remote, numbered):
        with pytest.raises(KeyNotFoundError) as caught:
            store.get(VIEW, texts)
        messages.append(str(caught.value))
    assert messages[0].split(";")[0] == messages[1].split(";")[0]
    assert messages[0].startswith("2 of 4 texts have no features under view")
    assert "(the first: text 2)" in messages[0]


def test_a_view_is_found_by_its_beginning_its_alias_or_itself(
    server: SmallServer, remote: RemoteStore
) -> None:
    def rename(record: dict[str, list[dict[str, str]]]) -> object:
        record["views"][0]["alias"] = "words"
        return record

    server.faults = [Fault(twist_json=rename)]
    assert remote.reader("words").view == programs.VIEW
    for name in (VIEW, VIEW[:6], programs.VIEW, ViewRecord(VIEW, programs.VIEW, "")):
        assert remote.reader(name) is remote.reader("words")


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_a_view_that_is_not_there_names_those_that_are(remote: RemoteStore, name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"no view '{name}'; there are: {VIEW}"):
        remote.get(name, ["text 1"])


def test_a_view_of_the_callers_that_the_service_lacks_is_an_error(remote: RemoteStore) -> None:
    with pytest.raises(ServiceError, match="404 unknown_view"):
        remote.get(replace(programs.VIEW, dim=64), ["text 1"])


def test_lists_tell_what_there_is(remote: RemoteStore, numbered: FeatureStore) -> None:
    (view,) = remote.views()
    assert (view.fingerprint, view.record.view, view.is_default) == (VIEW, programs.VIEW, True)
    assert view.record == numbered.catalog.find_view(VIEW)
    record = numbered.catalog.find_dataset()
    expected = RemoteDataset("numbered", record.version, 1500, 1500, record.created_at, VIEW)
    assert remote.datasets() == (expected,)


@pytest.mark.parametrize("name", [None, "numbered", "numbered@VERSION", "numbered@VER"])
def test_a_dataset_is_what_it_is_locally(
    remote: RemoteStore, numbered: FeatureStore, name: str | None
) -> None:
    expected = numbered.load_dataset()
    if name is not None:
        name = name.replace("VERSION", expected.version).replace("VER", expected.version[:7])
    found = remote.load_dataset(name)
    assert (found.name, found.version) == (expected.name, expected.version)
    assert found.label_names == expected.label_names == ("a", "b", "c")
    assert found.split_names == expected.split_names
    for field in ("keys", "label_codes", "label_splits", "split_codes"):
        np.testing.assert_array_equal(
            getattr(found, field), getattr(expected, field), strict=True, err_msg=field
        )


@pytest.mark.parametrize("name", ["other", "numbered@ffffffff", "other@1"])
def test_a_dataset_that_is_not_there_names_those_that_are(remote: RemoteStore, name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"no dataset .*; there are: numbered"):
        remote.load_dataset(name)


def test_the_view_of_a_dataset_is_the_one_it_was_built_under(
    remote: RemoteStore, numbered: FeatureStore
) -> None:
    dataset = remote.load_dataset()
    expected = numbered.view_of_dataset(dataset)
    assert remote.view_of_dataset(dataset) == expected
    assert remote.view_of_dataset(dataset, VIEW[:8]) == expected
    with pytest.raises(UnknownNameError):
        remote.view_of_dataset(replace(dataset, version="0" * 32))


def test_embed_sends_only_the_texts_that_are_missing(
    server: SmallServer, remote: RemoteStore
) -> None:
    texts = ["new 1", "text 5", "new 2", "new 1"]
    found = remote.embed(VIEW, texts)
    for text, matrix in zip(texts, found, strict=True):
        np.testing.assert_array_equal(matrix, programs.matrix_of(text), strict=True)
    assert server.embedded == ["new 1", "new 2"]
    assert_same(remote.embed(VIEW, texts), server.store.get(VIEW, texts))
    assert server.embedded == ["new 1", "new 2"]


def test_embed_keeps_to_the_texts_that_a_request_may_have(
    server: SmallServer, remote: RemoteStore
) -> None:
    texts = [f"new {number}" for number in range(70)]
    server.max_texts = 10
    assert_same(remote.embed(VIEW, texts), server.store.get(VIEW, texts))
    asked = server.count("features")
    # 32 and 16 were too many; 8 at a time were not.
    assert asked == 2 + 9
    remote.embed(VIEW, [f"newer {number}" for number in range(16)])
    assert server.count("features") == asked + 2


def test_embed_keeps_to_the_bytes_that_a_request_may_have(
    server: SmallServer, remote: RemoteStore
) -> None:
    texts = [f"{number} " + "é" * 200_000 for number in range(5)]
    remote.embed(VIEW, texts)
    sizes = [len(asked.body) for asked in server.requests if asked.what == "features"]
    assert len(sizes) == 3
    assert max(sizes) < 1 << 20


def test_embed_without_a_cache_gives_the_same(server: SmallServer) -> None:
    with embedcache.connect(server.url, cache_bytes=0) as remote:
        texts = ["new 1", *TEXTS[:10], "new 2"]
        assert_same(remote.embed(VIEW, texts), server.store.get(VIEW, texts))


def test_a_refusal_to_compute_is_one_line(server: SmallServer, remote: RemoteStore) -> None:
    remote.reader(VIEW)
    refused = Fault(status=403, body=problem("compute_scope", "the key may not compute"))
    server.faults = [None, refused]
    with pytest.raises(ServiceError) as caught:
        remote.embed(VIEW, ["new"])
    assert str(caught.value) == (
        f"{server.url}: the service refused (403 compute_scope): the key may not compute; use an"
        " API key with that scope"
    )


@pytest.mark.parametrize("what", ["get", "contains", "embed"])
def test_a_lone_surrogate_is_refused_here(
    server: SmallServer, remote: RemoteStore, what: str
) -> None:
    remote.reader(VIEW)
    asked = len(server.requests)
    with pytest.raises(CorpusError, match="lone surrogate"):
        getattr(remote, what)(VIEW, ["a \ud800 text"])
    assert len(server.requests) == asked


def test_look_ups_keep_to_the_keys_that_a_request_may_have(
    server: SmallServer, remote: RemoteStore
) -> None:
    server.max_keys = 400
    assert remote.contains(VIEW, TEXTS).all()
    # 1500 and 750 were too many; 375 at a time were not.
    assert server.count("lookup") == 2 + 4


def test_gathers_keep_to_the_bytes_that_an_answer_may_have(
    server: SmallServer, remote: RemoteStore
) -> None:
    server.max_bytes = 4000
    assert_same(remote.get(VIEW, TEXTS), server.store.get(VIEW, TEXTS))
    asked = server.count("gather")
    total = server.store.get(VIEW, TEXTS).values.nbytes
    assert asked < 3 * total / server.max_bytes


def test_one_text_that_is_larger_than_an_answer_may_be_is_one_line(
    server: SmallServer, remote: RemoteStore
) -> None:
    server.max_bytes = 1
    with pytest.raises(ServiceError, match=r"413 answer_too_large.*ask for less at once"):
        remote.get(VIEW, TEXTS[:10])


def test_texts_that_were_removed_meanwhile_are_told_of(
    server: SmallServer, remote: RemoteStore
) -> None:
    reader = remote.reader(VIEW)
    refs = reader.locate(keys_of_texts(TEXTS[:10]))
    server.faults = [Fault(status=404, body=problem("not_stored", "one is missing"))]
    with pytest.raises(KeyNotFoundError, match=r"have been removed from view .* while they were"):
        reader.gather(refs)


def test_several_threads_read_the_same(remote: RemoteStore, numbered: FeatureStore) -> None:
    expected = numbered.get(VIEW, TEXTS)
    failures: list[BaseException] = []

    def read(first: int) -> None:
        try:
            for _ in range(3):
                part = remote.get(VIEW, TEXTS[first::4])
                assert_same(part, numbered.get(VIEW, TEXTS[first::4]))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert_same(remote.get(VIEW, TEXTS), expected)


def test_the_shared_store_of_a_closed_service_is_an_error_of_embedcache(
    remote: RemoteStore,
) -> None:
    remote.close()
    with pytest.raises(embedcache.EmbedCacheError):
        remote.get(VIEW, ["text 1"])
    assert not issubclass(ServiceError, StoreError)


def test_predicting_takes_a_list_of_texts(remote: RemoteStore) -> None:
    with pytest.raises(TypeError, match="put it in a list"):
        remote.predict("last", "one text")


def test_a_view_that_is_no_view_here_is_refused(server: SmallServer, remote: RemoteStore) -> None:
    def newer(record: dict[str, list[dict[str, dict[str, int]]]]) -> object:
        record["views"][0]["view"]["schema"] = 99
        return record

    server.faults = [Fault(twist_json=newer)]
    with pytest.raises(ServiceError, match=r"view schema 99.*update embedcache"):
        remote.views()
    assert isinstance(remote.views()[0].record.view, FeatureView)
