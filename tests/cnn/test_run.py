"""Runs at rest: found again, whole or not there, and predicting the same."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import embedcache.embedder
from cnn import Prediction, Run, TrainConfig, load_run, train
from cnn.run import _BATCH_BYTES, _BATCH_TEXTS, _batches_by_length
from cnn.saving import new_run_name, publish_run
from embedcache.errors import (
    DiskFullError,
    EmbedCacheError,
    StoreError,
    TrainingError,
    UnknownNameError,
)
from embedcache.store import open_store

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SmallStore = Any
TRAIN_DEV_TEST = ("train", "train", "train", "dev", "test")
TEXTS = [f"two {label} {number}" for number in range(20) for label in ("bad", "good")]


class FakeModel:
    """What `publish_run` needs of a model."""

    def __init__(self, error: OSError | None = None) -> None:
        self._error = error

    def save(self, path: Path) -> None:
        path.write_bytes(b"weights")
        if self._error is not None:
            raise self._error


def publish(small: SmallStore, name: str, model: FakeModel | None = None) -> Run:
    record = {"run": name, "dataset": "d", "version": "v", "view": "w"}
    details = {"config": {}, "labels": ["x", "y"]}
    return publish_run(
        small.store, model or FakeModel(), record=record, details=details, history=[]
    )


def test_a_loaded_run_predicts_the_same(shared: SmallStore, two_run: Run) -> None:
    loaded = load_run(shared.store, two_run.name)
    assert loaded.predict(TEXTS) == two_run.predict(TEXTS)
    assert loaded.metrics == two_run.metrics
    assert loaded.labels == ("bad", "good")
    assert loaded.config == two_run.config
    assert loaded.history == two_run.history


def test_predictions_name_the_most_probable_label(two_run: Run) -> None:
    predictions = two_run.predict(TEXTS)
    wanted = [text.split()[1] for text in TEXTS]
    assert np.mean([p.label == label for p, label in zip(predictions, wanted, strict=True)]) > 0.9
    for prediction in predictions:
        assert set(prediction.probabilities) == {"bad", "good"}
        assert sum(prediction.probabilities.values()) == pytest.approx(1.0, abs=1e-6)
        assert prediction.probability == max(prediction.probabilities.values())
        assert prediction.probabilities[prediction.label] == prediction.probability


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_features_that_are_stored_smaller_are_trained_on_as_float32(
    tmp_path: Path, make_store: Any, dtype: str
) -> None:
    small = make_store(tmp_path / "store", dtype=dtype)
    texts, labels = small.put_classes({"bad": 60, "good": 60}, splits=TRAIN_DEV_TEST)
    config = TrainConfig(filters=8, kernel_sizes=(2,), epochs=4, batch_size=12, learning_rate=0.02)
    run = train(small.store, "small", config)
    predictions = load_run(small.store, run.name).predict(texts)
    assert np.mean([p.label == label for p, label in zip(predictions, labels, strict=True)]) > 0.9
    assert {str(tensor.dtype) for tensor in run._load_model().inputs} == {"float32", "int32"}


def test_a_prediction_does_not_depend_on_the_other_texts(two_run: Run) -> None:
    for text, together in zip(TEXTS[:14], two_run.predict(TEXTS)[:14], strict=True):
        (alone,) = two_run.predict([text])
        assert alone.label == together.label
        assert alone.probability == pytest.approx(together.probability, abs=1e-5)


def test_a_text_without_tokens_has_a_prediction(two_run: Run) -> None:
    (prediction,) = two_run.predict(["two bad 0"])
    assert np.isfinite(prediction.probability)


def test_no_texts_have_no_predictions(two_run: Run) -> None:
    assert two_run.predict([]) == []


def test_one_string_is_no_list_of_texts(two_run: Run) -> None:
    with pytest.raises(TypeError, match="put it in a list"):
        two_run.predict("two bad 1")


def test_only_texts_that_are_not_stored_are_embedded(
    shared: SmallStore, two_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    class FakeEmbedder:
        def __init__(self, _store: Any, view: str) -> None:
            self._view = view

        def embed_texts(self, texts: list[str]) -> None:
            asked.append((self._view, texts))
            shared.put_texts(texts, [np.full((3, 16), 0.1)] * len(texts))

        def finish(self) -> None:
            pass

    monkeypatch.setattr(embedcache.embedder, "Embedder", FakeEmbedder)
    assert len(two_run.predict(["two bad 1", "brand new", "two good 1"])) == 3
    assert asked == [(shared.view.fingerprint, ["brand new"])]
    two_run.predict(["brand new"])
    assert len(asked) == 1


def test_a_run_is_found_by_name_by_prefix_and_as_the_last(small: SmallStore) -> None:
    publish(small, "20260101-one")
    publish(small, "20260102-two")
    assert load_run(small.store, "20260101-one").name == "20260101-one"
    assert load_run(small.store, "20260101").name == "20260101-one"
    assert load_run(small.store, "last").name == "20260102-two"


@pytest.mark.parametrize("name", ["2026", "three", ""])
def test_a_name_of_no_run_or_of_several_is_unknown(small: SmallStore, name: str) -> None:
    publish(small, "20260101-one")
    publish(small, "20260102-two")
    with pytest.raises(UnknownNameError):
        load_run(small.store, name)


def copy_store(shared: SmallStore, run: Run, tmp_path: Path) -> Run:
    shutil.copytree(shared.store.path, tmp_path / "copy")
    return load_run(open_store(tmp_path / "copy"), run.name)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped"])
def test_a_damaged_model_is_refused_in_one_line(
    shared: SmallStore, two_run: Run, tmp_path: Path, damage: str
) -> None:
    run = copy_store(shared, two_run, tmp_path)
    path = run.path / "model.keras"
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(content[:-100])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"model\.keras: .*missing or damaged") as caught:
        run.predict(["two bad 1"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"labels": 1}'])
def test_a_damaged_run_file_is_refused_in_one_line(
    small: SmallStore, content: bytes | None
) -> None:
    path = publish(small, "one").path / "run.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"run\.json: .*missing or damaged") as caught:
        load_run(small.store, "one")
    assert "\n" not in str(caught.value)


def test_a_run_without_its_model_file_is_refused(small: SmallStore) -> None:
    (publish(small, "one").path / "model.keras").unlink()
    with pytest.raises(TrainingError, match=r"model\.keras: .*missing or damaged"):
        load_run(small.store, "one")


def test_files_of_a_run_are_private_and_say_what_made_it(two_run: Run) -> None:
    assert sorted(path.name for path in two_run.path.iterdir()) == [
        "history.json",
        "model.keras",
        "predictions.npz",
        "run.json",
    ]
    assert two_run.path.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in two_run.path.iterdir()} == {0o600}
    details = json.loads((two_run.path / "run.json").read_text())
    assert details["record"] == two_run.record
    assert details["metrics"] == two_run.metrics
    assert details["dataset"] == {"name": "two", "version": two_run.record["version"]}
    assert {"embedcache", "keras", "backend"} <= set(details["versions"])


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, DiskFullError), (errno.EIO, StoreError)]
)
def test_a_run_that_cannot_be_written_leaves_nothing(
    small: SmallStore, number: int, error: type[EmbedCacheError]
) -> None:
    with pytest.raises(error):
        publish(small, "one", FakeModel(OSError(number, "no")))
    assert small.store.catalog.runs() == []
    assert list(small.store.layout.runs.iterdir()) == []
    assert list(small.store.layout.tmp.iterdir()) == []


def test_a_run_that_cannot_be_catalogued_leaves_nothing(small: SmallStore) -> None:
    publish(small, "one")
    shutil.rmtree(small.store.layout.runs / "one")
    with pytest.raises(StoreError):
        publish(small, "one")  # the catalog has that name
    assert list(small.store.layout.runs.iterdir()) == []


@pytest.mark.parametrize(
    ("dataset", "part"),
    [
        ("sst2", "sst2"),
        ("My Data/2026", "my-data-2026"),
        ("фильмы", "dataset"),
        ("x" * 99, "x" * 24),
    ],
)
def test_run_names_say_what_they_are_and_fit_the_catalog(dataset: str, part: str) -> None:
    name = new_run_name(dataset, "kim")
    assert re.fullmatch(rf"\d{{8}}-\d{{6}}-{part}-kim-[0-9a-f]{{4}}", name)
    assert len(name) <= 64


def test_one_prediction_is_a_value() -> None:
    assert Prediction("x", 1.0, {"x": 1.0}) == Prediction("x", 1.0, {"x": 1.0})


@given(st.lists(st.integers(0, 5000), max_size=200), st.sampled_from([256, 9216 * 2, 1 << 24]))
def test_batches_to_predict_have_every_text_once_and_bounded_sizes(
    lengths: list[int], row_bytes: int
) -> None:
    counts = np.array(lengths, np.int64)
    batches = list(_batches_by_length(counts, row_bytes=row_bytes))
    order = np.concatenate([np.zeros(0, np.int64), *batches])
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert (np.diff(counts[order]) >= 0).all()
    for batch in batches:
        assert 1 <= len(batch) <= _BATCH_TEXTS
        assert len(batch) == 1 or len(batch) * counts[batch].max() * row_bytes <= _BATCH_BYTES


def test_batches_to_predict_are_full_where_they_may_be() -> None:
    batches = _batches_by_length(np.full(130, 56), row_bytes=9216 * 2)
    assert [len(batch) for batch in batches] == [64, 64, 2]
    batches = _batches_by_length(np.full(130, 112), row_bytes=9216 * 2)
    assert [len(batch) for batch in batches] == [32, 32, 32, 32, 2]
