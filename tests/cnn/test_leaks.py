"""Texts that stand in two parts are found, told, dropped or refused; nearly equal ones too."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn import TrainConfig, load_run, train
from cnn.leaks import find_equal
from cnn.near import near_finder, pool_texts
from embedcache.errors import TrainingError
from embedcache.keys import keys_of_texts

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SmallStore = Any
LINEAR = TrainConfig(preset="linear", epochs=1, batch_size=10)
PARTS = ("train",) * 20 + ("dev",) * 6 + ("test",) * 6


@pytest.fixture
def leaky(small: SmallStore) -> SmallStore:
    """Texts 1 and 3 of train are in test too, 1 twice; 2 is in dev, and 23 of dev in test."""
    texts = [f"text {number}" for number in range(1, 33)]
    texts[21] = texts[1]
    texts[26], texts[27], texts[28] = texts[0], texts[0], texts[2]
    texts[29] = texts[22]
    generator = np.random.default_rng(0)
    distinct = sorted(set(texts))
    small.put_texts(distinct, [generator.normal(0, 1, (3, 16)) for _ in distinct])
    labels = [("x",) if place % 2 else ("y",) for place in range(32)]
    small.put_dataset(texts, labels, splits=PARTS)
    return small


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    # TensorFlow warns too, of many models in one process.
    return [record.getMessage() for record in caplog.records if record.name == "cnn.leaks"]


def documents_of(leaks: list[dict[str, Any]]) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {tuple(leak["parts"]): tuple(leak["documents"]) for leak in leaks}


def test_equal_texts_are_told_with_their_numbers_and_kept_with_the_run(
    leaky: SmallStore, caplog: pytest.LogCaptureFixture
) -> None:
    run = train(leaky.store, "small", LINEAR)
    assert documents_of(run.record["leaks"]) == {
        ("train", "dev"): (1, 1),
        ("train", "test"): (2, 3),
        ("dev", "test"): (1, 1),
    }
    examples = {tuple(leak["parts"]): leak["examples"] for leak in run.record["leaks"]}
    assert examples["train", "test"] == [[1, 27], [1, 28], [3, 29]]
    assert {leak["kind"] for leak in run.record["leaks"]} == {"exact"}
    assert not any(leak["dropped"] for leak in run.record["leaks"])
    assert load_run(leaky.store, run.name).leaks == run.record["leaks"]
    assert len(warned(caplog)) == 3
    said = (
        "3 documents of test of dataset 'small' have a text that train has too: document 1 and 27"
    )
    assert said in caplog.text
    assert run.cost["run"]["texts"] == 20 + 6 + 6


def test_drop_takes_them_out_of_the_earlier_part(leaky: SmallStore) -> None:
    run = train(leaky.store, "small", replace(LINEAR, on_leak="drop"))
    assert all(leak["dropped"] for leak in run.record["leaks"])
    predictions = run.load_predictions()
    # Document 23 of dev stands in test; texts 1, 2 and 3 leave train.
    assert predictions.of_part("dev").rows.tolist() == [20, 21, 23, 24, 25]
    assert predictions.of_part("test").rows.tolist() == list(range(26, 32))
    assert run.cost["run"]["texts"] == 17 + 5 + 6


def test_error_refuses_with_the_numbers_and_the_ways_out(leaky: SmallStore) -> None:
    with pytest.raises(TrainingError, match="document 2 and 22") as caught:
        train(leaky.store, "small", replace(LINEAR, on_leak="error"))
    message = str(caught.value)
    assert "\n" not in message
    assert "--on-leak drop" in message
    assert leaky.store.catalog.runs() == []


def test_without_equal_texts_nothing_is_said(
    shared: SmallStore, caplog: pytest.LogCaptureFixture
) -> None:
    run = train(shared.store, "two", replace(LINEAR, on_leak="error"))
    assert run.record["leaks"] == []
    assert warned(caplog) == []


def test_folds_are_told_of_together(leaky: SmallStore, caplog: pytest.LogCaptureFixture) -> None:
    run = train(leaky.store, "small", replace(LINEAR, folds=2, on_leak="drop"))
    assert {leak["dropped"] for leak in run.record["leaks"]} == {True}
    assert "(2 folds together)" in caplog.text


def test_dropping_every_training_text_is_refused(small: SmallStore) -> None:
    texts = ["one", "two"] * 6
    small.put_texts(["one", "two"], [np.ones((1, 16)), np.ones((2, 16))])
    labels = [("x",), ("y",)] * 6
    small.put_dataset(texts, labels, splits=["train"] * 6 + ["dev", "dev"] + ["test"] * 4)
    with pytest.raises(TrainingError, match="every document of train has its like"):
        train(small.store, "small", replace(LINEAR, batch_size=None, on_leak="drop"))


def test_dropping_the_last_text_of_a_class_is_refused(small: SmallStore) -> None:
    texts = [*"abcdefgh", "a", "b"]
    small.put_texts(texts[:8], [np.ones((1, 16))] * 8)
    labels = [("x",), ("x",), *[("y",), ("z",)] * 3, ("x",), ("y",)]
    small.put_dataset(texts, labels, splits=["train"] * 8 + ["dev", "test"])
    with pytest.raises(TrainingError, match=r"only the split 'dev' .*the label 'x'"):
        train(small.store, "small", replace(LINEAR, batch_size=None, on_leak="drop"))


@given(st.lists(st.sampled_from("abcdefgh"), max_size=20), st.integers(0, 20))
def test_every_document_with_an_equal_text_in_the_other_part_is_found(
    texts: list[str], cut: int
) -> None:
    keys = keys_of_texts(texts)
    first, second = np.arange(len(texts))[:cut], np.arange(len(texts))[cut:]
    pairs = find_equal(keys, first, second)
    for one, other in pairs.tolist():
        assert one < cut <= other
        assert texts[one] == texts[other]
    common = set(texts[:cut]) & set(texts[cut:])
    wanted = [[row for row in part.tolist() if texts[row] in common] for part in (first, second)]
    assert [sorted(set(pairs[:, side].tolist())) for side in (0, 1)] == wanted


# Near duplicates


@pytest.fixture
def near(small: SmallStore) -> tuple[SmallStore, np.ndarray[Any, Any], list[str]]:
    """60 texts in six directions, some without tokens, one standing twice."""
    generator = np.random.default_rng(3)
    directions = generator.normal(0, 1, (6, 16))
    texts, matrices = [], []
    for number in range(60):
        length = number % 5
        noise = generator.normal(0, generator.choice([0.02, 0.4]), (length, 16))
        texts.append(f"near {number}")
        matrices.append(directions[number % 6] + noise)
    small.put_texts(texts, matrices)
    texts[50] = texts[13]
    return small, keys_of_texts(texts), texts


def brute_force(
    vectors: np.ndarray[Any, Any], texts: list[str], parts: tuple[Any, Any], threshold: float
) -> list[set[int]]:
    found: list[set[int]] = [set(), set()]
    for one, other in itertools.product(*(part.tolist() for part in parts)):
        if vectors[one] @ vectors[other] >= threshold - 1e-6 and texts[one] != texts[other]:
            found[0].add(one)
            found[1].add(other)
    return found


@pytest.mark.parametrize("block_bytes", [1, 700, 1 << 26])
@pytest.mark.parametrize("cut", [10, 45])
def test_near_duplicates_are_those_of_all_pairs_whatever_the_blocks(
    near: tuple[SmallStore, Any, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    block_bytes: int,
    cut: int,
) -> None:
    small, keys, texts = near
    monkeypatch.setattr("cnn.near._BLOCK_BYTES", block_bytes)
    monkeypatch.setattr("cnn.near._GATHER_BYTES", block_bytes)
    reader = small.store.reader(small.view)
    vectors = pool_texts(reader, reader.locate(keys))
    parts = np.arange(cut), np.arange(cut, 60)
    pairs = near_finder(reader, keys, 0.995)(*parts)
    wanted = brute_force(vectors, texts, parts, 0.995)
    assert [set(pairs[:, side].tolist()) for side in (0, 1)] == wanted
    assert 0 < len(wanted[0]) < cut
    for one, other in pairs.tolist():
        assert vectors[one] @ vectors[other] >= 0.995 - 1e-6
        assert texts[one] != texts[other]


def test_pooled_vectors_are_means_of_length_one(
    near: tuple[SmallStore, Any, list[str]],
) -> None:
    small, keys, texts = near
    reader = small.store.reader(small.view)
    vectors = pool_texts(reader, reader.locate(keys))
    features = small.store.get(small.view, texts)
    for place in range(60):
        matrix = features[place].astype(np.float64)
        mean = matrix.mean(axis=0) if len(matrix) else np.zeros(16)
        norm = np.linalg.norm(mean)
        np.testing.assert_allclose(vectors[place], mean / norm if norm else mean, atol=1e-5)


def test_near_duplicates_are_looked_for_when_asked(
    small: SmallStore, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"one {number}" for number in range(30)]
    rows = np.random.default_rng(5).normal(0, 1, (30, 16))
    rows[29] = 3 * rows[4] + 0.001
    small.put_texts(texts, [row[None] for row in rows])
    labels = [("x",), ("y",)] * 15
    small.put_dataset(texts, labels, splits=["train"] * 20 + ["dev"] * 5 + ["test"] * 5)
    assert train(small.store, "small", LINEAR).record["leaks"] == []
    config = replace(LINEAR, near_duplicates=0.99, on_leak="drop")
    (leak,) = train(small.store, "small", config).record["leaks"]
    assert leak == {
        "kind": "near", "parts": ["train", "test"], "documents": [1, 1], "examples": [[5, 30]],
        "dropped": True,
    }  # fmt: skip
    assert "have a pooled vector with a cosine of 0.99 or more to train: document 5" in caplog.text
    assert "1 of train are left out" in caplog.text


def test_layers_kept_apart_are_pooled_as_they_lie(
    tmp_path: Path, make_store: Callable[..., SmallStore]
) -> None:
    small = make_store(tmp_path / "store", num_layers=2, output="all:1,2", dim=16)
    small.put_texts(["a", "b"], [np.eye(16)[:2], np.eye(16)[:1]])
    reader = small.store.reader(small.view)
    vectors = pool_texts(reader, reader.locate(keys_of_texts(["a", "b"])))
    assert vectors[0] @ vectors[1] == pytest.approx(np.sqrt(0.5), abs=1e-3)
