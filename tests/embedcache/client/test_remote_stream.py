"""A stream from a service gives the batches that the store itself gives, bit for bit."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedcache
from embedcache.client import reader as reader_module
from embedcache.client.store import RemoteStore
from embedcache.errors import KeyNotFoundError, ServiceError, TrainingError
from embedcache.keys import keys_of_texts
from embedcache.store.store import FeatureStore
from embedcache.stream import FeatureStream, Prefetcher, StreamConfig, StreamState, TokenTable
from tests.embedcache.client.conftest import TEXTS, register
from tests.embedcache.client.small_server import Fault, SmallServer, serving
from tests.embedcache.service.serving import ServerProcess, start_server
from tests.embedcache.store import programs

VIEW = programs.VIEW.fingerprint
CONFIGS = {
    "full": StreamConfig(shuffle="full", seed=3),
    "auto": StreamConfig(seed=3),
    "corpus order": StreamConfig(shuffle="none", batch_size=100),
    "length buckets": StreamConfig(shuffle="full", length_buckets=True, batch_size=16, seed=1),
    "token budget": StreamConfig(shuffle="full", batch_tokens=256, seed=2),
    "buckets and budget": StreamConfig(
        shuffle="full", length_buckets=True, batch_tokens=512, window_texts=600
    ),
    "a worker": StreamConfig(shuffle="full", worker=1, num_workers=3),
}


@pytest.fixture(scope="module")
def service(numbered_path: Path) -> Iterator[ServerProcess]:
    """The real server, of the store that nobody writes to."""
    with start_server(numbered_path) as started:
        yield started


@pytest.fixture
def local(numbered_path: Path) -> Iterator[FeatureStore]:
    with embedcache.open_store(numbered_path) as store:
        yield store


@pytest.fixture
def connected(service: ServerProcess) -> Iterator[RemoteStore]:
    with embedcache.connect(service.url, timeout_s=60) as remote:
        yield remote


def assert_same_batches(found: FeatureStream, expected: FeatureStream, epoch: int) -> None:
    for batch, other in zip(found.epoch(epoch), expected.epoch(epoch), strict=True):
        for field in ("values", "lengths", "labels", "keys", "rows"):
            np.testing.assert_array_equal(
                getattr(batch, field), getattr(other, field), strict=True, err_msg=field
            )


def num_gathers(service: ServerProcess) -> float:
    """Requests for matrices and for lengths that the server has counted."""
    found = [
        value
        for name, value in service.metrics().items()
        if name.startswith("embedcache_requests_total") and "/v1/features" in name
    ]
    return sum(found)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("cache_bytes", [1 << 30, 40_000, 0])
def test_two_epochs_are_those_of_the_store(
    service: ServerProcess, local: FeatureStore, config: StreamConfig, cache_bytes: int
) -> None:
    with embedcache.connect(service.url, cache_bytes=cache_bytes) as remote:
        found, expected = (
            FeatureStream(store, "numbered", config=config) for store in (remote, local)
        )
        assert (found.view, found.dim, found.dtype) == (VIEW, 4, "float16")
        assert (len(found), found.num_texts) == (len(expected), 1500)
        assert found.order_digest == expected.order_digest
        for epoch in range(2):
            assert_same_batches(found, expected, epoch)


def test_a_split_and_all_labels_are_those_of_the_store(
    connected: RemoteStore, local: FeatureStore
) -> None:
    found, expected = (
        FeatureStream(store, "numbered", split="dev", multilabel=True)
        for store in (connected, local)
    )
    assert found.label_names == expected.label_names
    assert found.num_texts == 300
    assert_same_batches(found, expected, 0)
    np.testing.assert_array_equal(found.labels, expected.labels, strict=True)


def test_auto_is_a_full_shuffle(connected: RemoteStore) -> None:
    assert FeatureStream(connected, "numbered").config.shuffle == "full"


def test_blocks_are_of_neighbouring_keys_and_every_text_comes_once(
    connected: RemoteStore, local: FeatureStore
) -> None:
    config = StreamConfig(shuffle="block", window_texts=64)
    stream = FeatureStream(connected, "numbered", config=config)
    expected = local.get(VIEW, TEXTS)
    orders = [np.concatenate([batch.rows for batch in stream.epoch(e)]) for e in range(2)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(1500))
    assert orders[0].tolist() != orders[1].tolist()
    (use,) = stream._reader.shard_uses(stream._refs)
    ordered = sorted(map(bytes, stream._refs.keys))
    assert [ordered[start] for start in use.starts] == list(map(bytes, stream._refs.keys))
    for batch in stream:
        for row, length, matrix in zip(batch.rows, batch.lengths, batch.values, strict=True):
            np.testing.assert_array_equal(matrix[:length], expected[int(row)])


def test_the_second_epoch_asks_for_nothing(service: ServerProcess, connected: RemoteStore) -> None:
    stream = FeatureStream(connected, "numbered", seed=5)
    before = num_gathers(service)
    list(stream.epoch(0))
    after = num_gathers(service)
    assert after > before
    list(stream.epoch(1))
    assert num_gathers(service) == after


def test_without_a_cache_the_second_epoch_asks_again(service: ServerProcess) -> None:
    with embedcache.connect(service.url, cache_bytes=0) as remote:
        stream = FeatureStream(remote, "numbered", seed=5)
        list(stream.epoch(0))
        before = num_gathers(service)
        list(stream.epoch(1))
        assert num_gathers(service) > before


def test_each_worker_gives_what_it_gives_of_the_store(
    connected: RemoteStore, local: FeatureStore
) -> None:
    found, expected = (FeatureStream(store, "numbered", seed=2) for store in (connected, local))
    for worker in range(2):
        assert_same_batches(found.for_worker(worker, 2), expected.for_worker(worker, 2), 1)


def test_after_a_fork_a_worker_connects_anew(connected: RemoteStore, local: FeatureStore) -> None:
    stream = FeatureStream(connected, "numbered", seed=2)
    stream._process -= 1
    worker = stream.for_worker(0, 2)
    assert worker._source.store is not connected
    assert_same_batches(worker, FeatureStream(local, "numbered", seed=2).for_worker(0, 2), 0)
    worker._source.store.close()


def test_a_pickled_stream_connects_anew(connected: RemoteStore, local: FeatureStore) -> None:
    stream = pickle.loads(pickle.dumps(FeatureStream(connected, "numbered", seed=4)))
    assert_same_batches(stream, FeatureStream(local, "numbered", seed=4), 0)
    stream._source.store.close()


def test_a_stream_goes_on_from_a_state_of_the_store(
    connected: RemoteStore, local: FeatureStore
) -> None:
    batches = FeatureStream(local, "numbered", seed=6).iterate()
    for _ in range(30):
        next(batches)
    state = StreamState.from_record(batches.state.to_record())
    again = FeatureStream(connected, "numbered", seed=6).iterate(state)
    for _ in range(5):
        np.testing.assert_array_equal(next(again).values, next(batches).values, strict=True)
    assert again.state == batches.state


def test_a_prefetcher_reads_ahead(connected: RemoteStore, local: FeatureStore) -> None:
    found, expected = (FeatureStream(store, "numbered") for store in (connected, local))
    with Prefetcher(found.epoch(0)) as ahead:
        for batch, other in zip(ahead, expected.epoch(0), strict=True):
            np.testing.assert_array_equal(batch.values, other.values, strict=True)


def test_tokens_are_numbered_as_those_of_the_store(
    connected: RemoteStore, local: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "_GROUP_BYTES", 9000)
    keys = keys_of_texts(TEXTS[:1000])
    found, expected = (
        TokenTable.of_texts(store.reader(VIEW), keys) for store in (connected, local)
    )
    np.testing.assert_array_equal(found.rows, expected.rows, strict=True)
    assert found.digest == expected.digest
    streams = [FeatureStream(store, "numbered", token_table=found) for store in (connected, local)]
    for batch, other in zip(streams[0], streams[1], strict=True):
        np.testing.assert_array_equal(batch.token_numbers, other.token_numbers, strict=True)


def test_rows_that_never_repeat_are_no_tokens(server: SmallServer, remote: RemoteStore) -> None:
    store, num_rows = server.store, 2000
    view = embedcache.FeatureView(
        module_digest="1" * 32, signature="__call__", tokenizer="module", dim=2, dtype="float32"
    )
    store.catalog.add_view(view, "builtin:nothing")
    writer = store.writer(view)
    rows = np.arange(2 * num_rows, dtype=np.float32).reshape(num_rows, 2)
    keys = keys_of_texts(["one", "two"])
    lengths = np.array([num_rows // 2] * 2)
    writer.add_values(keys, lengths, np.zeros(2, np.bool_), values=rows)
    writer.flush()
    with pytest.raises(TrainingError, match="keeps no dictionary of tokens"):
        TokenTable.of_texts(remote.reader(view.fingerprint), keys)
    with pytest.raises(KeyNotFoundError, match="lacks 1 of 2 texts"):
        TokenTable.of_texts(remote.reader(view.fingerprint), keys_of_texts(["one", "three"]))


def test_texts_that_the_view_lacks_are_told_of_with_the_command(
    server: SmallServer, remote: RemoteStore
) -> None:
    register(server.store, "more", [*TEXTS[:20], "new", "newer"])
    with pytest.raises(KeyNotFoundError, match=r"lacks 2 of 22 texts of dataset 'more'.*--module"):
        FeatureStream(remote, "more")


def test_a_stream_sends_keys_only(server: SmallServer, remote: RemoteStore) -> None:
    list(FeatureStream(remote, "numbered"))
    bodies = [asked.body for asked in server.requests if asked.body]
    assert {asked.what for asked in server.requests if asked.body} == {"lookup", "gather"}
    known = set(map(bytes, keys_of_texts(TEXTS)))
    sent = [body[at : at + 16] for body in bodies for at in range(0, len(body), 16)]
    assert set(sent) <= known
    # Each length once; each matrix at most once, and none of texts without tokens.
    assert len(sent) < 2 * len(TEXTS)


def test_what_lies_before_a_state_is_not_asked_for(
    server: SmallServer, remote: RemoteStore
) -> None:
    stream = FeatureStream(remote, "numbered", batch_size=100)
    list(stream.epoch(0, first_step=13))
    gathered = sum(len(asked.body) // 16 for asked in server.requests if asked.what == "gather")
    assert 100 < gathered <= 200


def test_one_request_fetches_several_batches(
    server: SmallServer, remote: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = FeatureStream(remote, "numbered", batch_size=10)
    list(stream.epoch(0))
    assert server.count("gather") == 1
    monkeypatch.setattr(reader_module, "AHEAD_BYTES", 1)
    with embedcache.connect(server.url) as other:
        batches = FeatureStream(other, "numbered", batch_size=10)
        list(batches.epoch(0))
    assert server.count("gather") == 1 + len(batches)


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
def test_texts_that_stand_twice_in_a_dataset_are_read_twice(
    server: SmallServer, monkeypatch: pytest.MonkeyPatch, cache_bytes: int
) -> None:
    register(server.store, "twice", [*TEXTS[:30], *TEXTS[:30]])
    monkeypatch.setattr(reader_module, "AHEAD_BYTES", 300)
    with embedcache.connect(server.url, cache_bytes=cache_bytes) as remote:
        found, expected = (
            FeatureStream(store, "twice", batch_size=7) for store in (remote, server.store)
        )
        for epoch in range(2):
            assert_same_batches(found, expected, epoch)


def test_faults_on_the_way_change_nothing(
    server: SmallServer, remote: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "AHEAD_BYTES", 1)
    found, expected = (
        FeatureStream(store, "numbered", batch_size=300) for store in (remote, server.store)
    )
    busy = Fault(status=429, headers=(("Retry-After", "0"),))
    server.faults = [Fault(is_reset=True), None, busy, None, Fault(status=502)]
    assert_same_batches(found, expected, 0)
    assert server.faults == []


def test_a_server_that_is_killed_in_mid_epoch_is_one_clear_line(
    numbered_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "AHEAD_BYTES", 1)
    with start_server(numbered_path) as server, embedcache.connect(server.url, timeout_s=1) as away:
        with Prefetcher(FeatureStream(away, "numbered", batch_size=50).epoch(0)) as batches:
            next(batches)
            server.kill()
            with pytest.raises(ServiceError) as caught:
                list(batches)
        line = str(caught.value)
        assert line.startswith(f"{server.url}: the service cannot be reached (")
        assert "for 1 s; check that `embedcache serve` runs there" in line
        assert line.isprintable()


def test_a_server_that_is_started_again_in_mid_epoch_is_read_on(
    numbered_path: Path, local: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "AHEAD_BYTES", 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = ("--port", str(probe.getsockname()[1]))
    expected = FeatureStream(local, "numbered", batch_size=50)
    restarted: list[ServerProcess] = []
    with start_server(numbered_path, *port) as server:
        with embedcache.connect(server.url, timeout_s=120) as remote:
            batches = FeatureStream(remote, "numbered", batch_size=50).epoch(0)
            found: list[Any] = [next(batches)]
            server.kill()
            again = threading.Thread(
                target=lambda: restarted.append(start_server(numbered_path, *port))
            )
            again.start()
            found += batches
            again.join()
            with restarted[0]:
                assert num_gathers(restarted[0]) > 1
        for batch, other in zip(found, expected.epoch(0), strict=True):
            np.testing.assert_array_equal(batch.values, other.values, strict=True)


def test_a_small_server_is_what_the_real_one_is(
    service: ServerProcess, connected: RemoteStore, local: FeatureStore
) -> None:
    """What other tests try on the small server, they try on what the real one says."""
    with serving(local) as small, embedcache.connect(small.url) as other:
        assert connected.datasets() == other.datasets()
        (view,), (small_view,) = connected.views(), other.views()
        assert (view.record, view.is_default) == (small_view.record, small_view.is_default)
        dataset, small_dataset = connected.load_dataset(), other.load_dataset()
        for field in ("keys", "label_codes", "label_splits", "split_codes"):
            np.testing.assert_array_equal(
                getattr(dataset, field), getattr(small_dataset, field), strict=True
            )
        texts = [*TEXTS[:5], "not there"]
        assert connected.contains(VIEW, texts).tolist() == other.contains(VIEW, texts).tolist()
        assert connected.runs() == ()
