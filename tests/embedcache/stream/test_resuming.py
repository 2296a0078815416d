"""Streams that go on in mid-epoch, are shared by workers, pickled, and used after a fork."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import embedcache
from embedcache.errors import TrainingError
from embedcache.keys import keys_of_texts
from embedcache.store.reader import ViewReader
from embedcache.store.store import FeatureStore
from embedcache.stream import Batch, FeatureStream, StreamConfig, StreamState, TokenTable

CONFIGS = {
    "plain": StreamConfig(batch_size=16, seed=5),
    "corpus order": StreamConfig(batch_size=16, shuffle=False),
    "buckets": StreamConfig(batch_size=4, length_buckets=True, window_texts=40),
    "tokens": StreamConfig(batch_size=16, batch_tokens=72),
    "blocks": StreamConfig(batch_size=7, shuffle="block", window_texts=30, seed=2),
    "all of it": StreamConfig(
        batch_size=9, batch_tokens=64, length_buckets=True, shuffle="block", window_texts=50
    ),
    "worker": StreamConfig(batch_size=8, worker=1, num_workers=3),
    "worker, all of it": StreamConfig(
        batch_size=9, batch_tokens=64, length_buckets=True, shuffle="block", window_texts=50,
        worker=2, num_workers=4,
    ),
}  # fmt: skip


def assert_equal(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        for name in ("values", "lengths", "labels", "keys", "token_numbers", "rows"):
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name), strict=True)


@pytest.mark.parametrize("name", CONFIGS)
def test_epoch_resumes_at_every_step(numbered: FeatureStore, name: str) -> None:
    stream = FeatureStream(numbered, "numbered", config=CONFIGS[name], multilabel=True)
    whole = list(stream.epoch(1))
    assert len(whole) == stream.count_batches(1) > 3
    for step in range(len(whole) + 1):
        assert_equal(list(stream.epoch(1, first_step=step)), whole[step:])


@pytest.mark.parametrize("name", CONFIGS)
def test_state_names_the_very_next_batch(numbered: FeatureStore, name: str) -> None:
    """At every step of two epochs and a half, through JSON, in a stream opened anew."""
    stream = FeatureStream(numbered, "numbered", config=CONFIGS[name])
    num_batches = 2 * stream.count_batches(0) + 3
    endless = stream.iterate()
    expected = [(endless.state.to_record(), next(endless)) for _ in range(num_batches)]
    again = FeatureStream(numbered, "numbered", config=CONFIGS[name])
    for at in range(num_batches - 1):
        state = StreamState.from_record(json.loads(json.dumps(expected[at][0])))
        found = list(islice(again.iterate(state), 2))
        assert_equal(found, [batch for _, batch in expected[at : at + 2]])


def test_state_is_small_and_counts_epochs(numbered: FeatureStore) -> None:
    stream = FeatureStream(numbered, "numbered", batch_size=50)
    batches = stream.iterate()
    seen = []
    for _ in range(5):
        seen.append((batches.state.epoch, batches.state.step))
        next(batches)
    assert seen == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 1)]
    assert set(batches.state.to_record()) == {"seed", "epoch", "step", "order"}
    assert len(batches.state.order) < 30


def test_nothing_is_read_of_what_lies_before(
    numbered: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = FeatureStream(numbered, "numbered", batch_size=10)
    taken: list[int] = []
    prepare = ViewReader.prepare

    def count(reader: ViewReader, refs: Any, padded: Any) -> Any:
        taken.append(len(refs))
        return prepare(reader, refs, padded)

    monkeypatch.setattr(ViewReader, "prepare", count)
    assert len(list(stream.epoch(0, first_step=13))) == 2
    assert taken == [20]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 6}, "is of seed 5, the stream has seed 6"),
        ({"batch_size": 15}, r"another order of texts \(other texts, batches or shards\)"),
        ({"length_buckets": True}, "other texts, batches or shards"),
        ({"shuffle": "block"}, "shuffle='full'; the stream has 'block'"),
        ({"num_workers": 2}, "other texts, batches or shards"),
    ],
)
def test_state_of_another_stream_is_refused(
    numbered: FeatureStore, other: dict[str, Any], message: str
) -> None:
    config = StreamConfig(batch_size=16, seed=5)
    state = FeatureStream(numbered, "numbered", config=config).iterate().state
    stream = FeatureStream(numbered, "numbered", config=replace(config, **other))
    with pytest.raises(TrainingError, match=message) as caught:
        stream.iterate(state)
    assert "\n" not in str(caught.value)


def test_state_of_other_texts_is_refused(numbered: FeatureStore) -> None:
    state = FeatureStream(numbered, "numbered", rows=np.arange(100)).iterate().state
    other = FeatureStream(numbered, "numbered", rows=np.arange(1, 101))
    with pytest.raises(TrainingError, match="another order of texts"):
        other.iterate(state)
    with pytest.raises(TrainingError, match="epoch 0 has no step 9: it has 2; resume with the"):
        next(other.iterate(StreamState(0, 0, 9)))


def test_all_workers_have_one_state(numbered: FeatureStore) -> None:
    config = StreamConfig(batch_size=8, num_workers=3)
    digests = {
        FeatureStream(numbered, "numbered", config=replace(config, worker=w)).order_digest
        for w in range(3)
    }
    assert len(digests) == 1


def test_stream_without_texts_cannot_be_iterated_for_ever(numbered: FeatureStore) -> None:
    stream = FeatureStream(numbered, "numbered", rows=np.zeros(0, np.int64))
    with pytest.raises(TrainingError, match="has no batches for this worker: give it more texts"):
        stream.iterate()


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_are_the_positions_of_the_texts(numbered: FeatureStore, name: str) -> None:
    stream = FeatureStream(numbered, "numbered", config=CONFIGS[name])
    keys = keys_of_texts([f"text {number}" for number in range(150)])
    for batch in stream:
        np.testing.assert_array_equal(batch.keys, keys[batch.rows])
        assert batch.lengths.tolist() == stream.lengths[batch.rows].tolist()
        assert batch.labels.tolist() == stream.labels[batch.rows].tolist()


def test_order_is_that_of_the_batches(numbered: FeatureStore) -> None:
    for config in CONFIGS.values():
        if config.num_workers == 1:
            stream = FeatureStream(numbered, "numbered", config=config)
            found = np.concatenate([batch.rows for batch in stream.epoch(3)])
            np.testing.assert_array_equal(stream.order(3), found)


@pytest.mark.parametrize("name", ["worker", "worker, all of it"])
def test_workers_share_every_epoch(numbered: FeatureStore, name: str) -> None:
    config = CONFIGS[name]
    streams = [
        FeatureStream(numbered, "numbered", config=replace(config, worker=worker))
        for worker in range(config.num_workers)
    ]
    for epoch in range(2):
        steps = list(zip(*(stream.epoch(epoch) for stream in streams), strict=True))
        rows = np.concatenate([batch.rows for step in steps for batch in step])
        assert sorted(rows) == list(range(150))
        np.testing.assert_array_equal(rows, streams[0].order(epoch))


def test_share_of_a_share_is_a_worker_of_the_product(numbered: FeatureStore) -> None:
    config = StreamConfig(batch_size=5, worker=1, num_workers=2)
    stream = FeatureStream(numbered, "numbered", config=config)
    shares = [stream.for_worker(part, 3) for part in range(3)]
    assert [(share.config.worker, share.config.num_workers) for share in shares] == [
        (3, 6),
        (4, 6),
        (5, 6),
    ]


def test_stream_that_is_pickled_gives_the_same_batches(numbered: FeatureStore) -> None:
    table = TokenTable.of_texts(
        numbered.reader(numbered.newest_view()), numbered.load_dataset("numbered").keys[:60]
    )
    for name in ("plain", "worker, all of it"):
        stream = FeatureStream(
            numbered, "numbered", config=CONFIGS[name], token_table=table, multilabel=True
        )
        again = pickle.loads(pickle.dumps(stream))
        assert_equal(list(again.epoch(1)), list(stream.epoch(1)))
        assert again.config == stream.config
        assert again.order_digest == stream.order_digest


def test_pickled_stream_of_some_rows_of_a_loaded_dataset_keeps_them(
    numbered: FeatureStore,
) -> None:
    loaded = replace(numbered.load_dataset("numbered"), label_names=("x", "y", "z"))
    stream = FeatureStream(numbered, loaded, rows=np.array([9, 3, 77]), shuffle=False)
    again = pickle.loads(pickle.dumps(stream))
    assert again.label_names == ("x", "y", "z")
    assert_equal(list(again), list(stream))


def test_auto_is_settled_when_the_stream_is_opened(
    numbered: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = FeatureStream(numbered, "numbered")
    assert stream.config.shuffle == "full"
    pickled = pickle.dumps(stream)
    monkeypatch.setattr("embedcache.stream.orders.available_bytes", lambda: 100)
    assert pickle.loads(pickled).config.shuffle == "full"
    assert FeatureStream(numbered, "numbered").config.shuffle == "block"


_CHILD = """
import sys
from pathlib import Path
from embedcache.stream.stream import FeatureStream
import pickle
stream = pickle.loads(Path(sys.argv[1]).read_bytes())
print(*(int(row) for batch in stream.epoch(2) for row in batch.rows))
"""


def test_stream_opens_in_another_process(numbered: FeatureStore, tmp_path: Path) -> None:
    stream = FeatureStream(numbered, "numbered", config=CONFIGS["all of it"])
    (tmp_path / "stream.pickle").write_bytes(pickle.dumps(stream))
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path / "stream.pickle")],
        env={**os.environ, "PYTHONPATH": str(Path(embedcache.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert list(map(int, done.stdout.split())) == stream.order(2).tolist()


_FORK = """
import json, os, sys
import embedcache
from embedcache.stream.stream import FeatureStream
store = embedcache.open_store(sys.argv[1])
stream = FeatureStream(store, "numbered", batch_size=20)
expected = [batch.values.sum() for batch in stream]
for worker in range(2):
    child = os.fork()
    if not child:
        own = stream.for_worker(worker, 2)
        assert own._source.store is not store
        rows = sorted(int(row) for batch in own for row in batch.rows)
        os.write(1, json.dumps(rows).encode() + b"\\n")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
assert [batch.values.sum() for batch in stream] == expected
"""


def test_forked_children_open_the_store_anew(numbered: FeatureStore) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FORK, str(numbered.path)],
        env={**os.environ, "PYTHONPATH": str(Path(embedcache.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    parts = [set(json.loads(line)) for line in done.stdout.splitlines()]
    assert [len(part) for part in parts] == [75, 75]
    assert len(parts[0] | parts[1]) == 150


@pytest.mark.parametrize("name", ["buckets", "all of it"])
def test_threads_iterate_over_one_stream_at_once(numbered: FeatureStore, name: str) -> None:
    stream = FeatureStream(numbered, "numbered", config=CONFIGS[name])
    expected = [list(stream.epoch(number)) for number in range(4)]
    again = FeatureStream(numbered, "numbered", config=CONFIGS[name])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: list(again.epoch(number)), range(4)))
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)


def test_field_beside_config_is_refused(numbered: FeatureStore) -> None:
    with pytest.raises(ValueError, match="give batch_size and seed in config, or leave config out"):
        FeatureStream(numbered, "numbered", config=StreamConfig(), batch_size=4, seed=0)
    stream = FeatureStream(numbered, "numbered", config=StreamConfig(batch_size=4, seed=3))
    assert (stream.batch_size, stream.seed, stream.shuffle) == (4, 3, True)


def test_labels_of_several_are_ones_among_zeros(numbered: FeatureStore) -> None:
    stream = FeatureStream(numbered, "numbered", multilabel=True, batch_size=40)
    expected = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1], [1, 1, 0]] * 30, np.uint8)
    assert stream.label_names == ("a", "b", "c")
    np.testing.assert_array_equal(stream.labels, expected, strict=True)
    for batch in stream:
        np.testing.assert_array_equal(batch.labels, expected[batch.rows], strict=True)
    single = FeatureStream(numbered, "numbered")
    assert Counter(single.labels.tolist()) == {0: 60, 1: 30, -1: 30, 2: 30}


def test_values_are_those_of_the_store_in_every_configuration(
    numbered: FeatureStore, programs: ModuleType
) -> None:
    for config in CONFIGS.values():
        for batch in FeatureStream(numbered, "numbered", config=config):
            for row, length, matrix in zip(batch.rows, batch.lengths, batch.values, strict=True):
                np.testing.assert_array_equal(
                    matrix[:length], programs.matrix_of(f"text {row}"), strict=True
                )
                assert not matrix[length:].any()
