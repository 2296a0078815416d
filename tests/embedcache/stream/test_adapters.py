"""Streams for TensorFlow, torch, and functions that are compiled for each shape."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib.util import find_spec
from itertools import islice
from typing import Any

import numpy as np
import pytest

from embedcache.errors import TrainingError
from embedcache.store.store import FeatureStore
from embedcache.stream import FeatureStream, StreamConfig, StreamState, TokenTable
from embedcache.stream.epochs import as_jax_batches
from embedcache.stream.tensorflow_dataset import as_tensorflow_dataset
from embedcache.stream.torch_dataset import as_torch_dataset

HAS_TORCH = find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")


@pytest.fixture
def stream(numbered: FeatureStore) -> FeatureStream:
    config = StreamConfig(batch_size=16, length_buckets=True, window_texts=64, seed=1)
    return FeatureStream(numbered, "numbered", config=config)


@pytest.fixture
def full_stream(numbered: FeatureStore) -> FeatureStream:
    """With a table of tokens and all labels."""
    reader = numbered.reader(numbered.newest_view())
    table = TokenTable.of_texts(reader, numbered.load_dataset("numbered").keys)
    return FeatureStream(numbered, "numbered", token_table=table, multilabel=True, batch_size=32)


def test_tensorflow_takes_whole_batches_of_any_length(stream: FeatureStream) -> None:
    dataset = as_tensorflow_dataset(stream)
    inputs, labels = dataset.element_spec
    assert inputs["values"].shape.as_list() == [None, None, 4]
    assert (inputs["values"].dtype.name, inputs["lengths"].dtype.name) == ("float16", "int32")
    assert labels.shape.as_list() == [None]
    found = list(dataset.as_numpy_iterator())
    expected = list(stream.epoch(0))
    assert len(found) == len(expected)
    for (given, classes), batch in zip(found, expected, strict=True):
        np.testing.assert_array_equal(given["values"], batch.values, strict=True)
        np.testing.assert_array_equal(given["lengths"], batch.lengths, strict=True)
        np.testing.assert_array_equal(classes, batch.labels, strict=True)


def test_tensorflow_epochs_follow_one_another_from_any_state(stream: FeatureStream) -> None:
    whole = [batch.lengths for epoch in (1, 2) for batch in stream.epoch(epoch)]
    state = StreamState(1, 1, 4)
    dataset = as_tensorflow_dataset(stream, epochs=2, state=state)
    found = [inputs["lengths"] for inputs, _ in dataset.as_numpy_iterator()]
    assert [row.tolist() for row in found] == [row.tolist() for row in whole[4:]]
    endless = as_tensorflow_dataset(stream, epochs=None).take(35).as_numpy_iterator()
    assert len(list(endless)) == 35


def test_tensorflow_takes_token_numbers_and_all_labels(full_stream: FeatureStream) -> None:
    dataset = as_tensorflow_dataset(full_stream)
    assert dataset.element_spec[1].shape.as_list() == [None, 3]
    for (inputs, labels), batch in zip(dataset.as_numpy_iterator(), full_stream, strict=True):
        np.testing.assert_array_equal(inputs["token_numbers"], batch.token_numbers, strict=True)
        np.testing.assert_array_equal(labels, batch.labels, strict=True)


def test_keras_fits_on_the_tensorflow_dataset(stream: FeatureStream) -> None:
    """Batches of other lengths than the first ones too; each epoch has its own order."""
    import keras

    values = keras.Input((None, 4), dtype="float16", name="values")
    lengths = keras.Input((), dtype="int32", name="lengths")
    pooled = keras.layers.GlobalMaxPooling1D()(keras.layers.Conv1D(3, 3, padding="same")(values))
    outputs = keras.layers.Dense(3, activation="softmax")(pooled)
    model = keras.Model([values, lengths], outputs)
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    labelled = FeatureStream(
        stream._source.store, "numbered", rows=np.flatnonzero(stream.labels >= 0), batch_size=16
    )
    dataset = as_tensorflow_dataset(labelled, epochs=2)
    steps = labelled.num_batches
    history = model.fit(dataset, epochs=2, steps_per_epoch=steps, shuffle=False, verbose=0)
    assert len(history.history["loss"]) == 2
    assert np.isfinite(history.history["loss"]).all()


def test_jax_batches_have_few_lengths(numbered: FeatureStore, full_stream: FeatureStream) -> None:
    found = list(as_jax_batches(full_stream, epochs=2))
    expected = [batch for epoch in (0, 1) for batch in full_stream.epoch(epoch)]
    for arrays, batch in zip(found, expected, strict=True):
        assert set(arrays) == {"values", "lengths", "token_numbers", "labels", "rows"}
        assert arrays["values"].shape[1] in (8, 16, 24, 32, 48, 64)
        np.testing.assert_array_equal(arrays["values"][:, : batch.values.shape[1]], batch.values)
        np.testing.assert_array_equal(arrays["labels"], batch.labels)
    assert {thread.name for thread in threading.enumerate()}.isdisjoint({"batch-feed"})


def test_jax_batches_end_their_thread_when_they_are_dropped(stream: FeatureStream) -> None:
    batches = as_jax_batches(stream, epochs=None)
    assert len(list(islice(batches, 30))) == 30
    batches.close()  # type: ignore[attr-defined]
    assert {thread.name for thread in threading.enumerate()}.isdisjoint({"batch-feed"})


@pytest.mark.parametrize("adapt", [as_tensorflow_dataset, as_jax_batches])
def test_what_cannot_be_streamed_is_refused_at_once(
    stream: FeatureStream, adapt: Callable[..., Any]
) -> None:
    def begin(**options: Any) -> None:
        adapted = adapt(stream, **options)
        if adapt is as_jax_batches:
            next(adapted)

    with pytest.raises(ValueError, match="epochs must be at least 1, or None: got 0"):
        begin(epochs=0)
    with pytest.raises(TrainingError, match="is of seed 9, the stream has seed 1"):
        begin(state=StreamState(9, 0, 0))


@pytest.mark.skipif(HAS_TORCH, reason="torch is installed")
def test_missing_torch_is_one_clear_line(stream: FeatureStream) -> None:
    with pytest.raises(TrainingError, match=r"torch cannot be imported .* `pip install torch`"):
        as_torch_dataset(stream)


@needs_torch
def test_torch_takes_values_as_they_are(full_stream: FeatureStream) -> None:
    for tensors, batch in zip(as_torch_dataset(full_stream), full_stream, strict=True):
        assert {name: str(tensor.dtype) for name, tensor in tensors.items()} == {
            "values": "torch.float16",
            "lengths": "torch.int32",
            "token_numbers": "torch.int32",
            "labels": "torch.float32",
            "rows": "torch.int64",
        }
        for name in ("values", "lengths", "token_numbers", "rows"):
            np.testing.assert_array_equal(tensors[name].numpy(), getattr(batch, name), strict=True)
        np.testing.assert_array_equal(tensors["labels"].numpy(), batch.labels.astype(np.float32))


@needs_torch
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(("num_workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_torch_workers_share_an_epoch_and_resume_at_the_next_batch(
    stream: FeatureStream, num_workers: int, persistent: bool
) -> None:
    from torch.utils.data import DataLoader

    dataset = as_torch_dataset(stream)
    loader: Any = DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        persistent_workers=persistent,
        multiprocessing_context="fork" if num_workers else None,
    )
    orders = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        rows = [batch["rows"].tolist() for batch in loader]
        assert sorted(row for batch in rows for row in batch) == list(range(150))
        dataset.set_epoch(epoch, first_batch=5)
        assert [batch["rows"].tolist() for batch in loader] == rows[5:]
        orders.append(rows)
    assert orders[0] != orders[1]
