"""A small store of separable classes, made by hand: no module, no TensorFlow Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cnn import Run, TrainConfig, train
from embedcache.keys import keys_of_texts
from embedcache.store import FeatureStore, open_store
from embedcache.store.database.records import DatasetRecord
from embedcache.store.dataset import DatasetWriter
from embedcache.store.shards.codec import to_storage
from embedcache.view import FeatureView

DIM = 16
MAX_TOKENS = 12
TRAIN_DEV_TEST = ("train", "train", "train", "dev", "test")


@dataclass(frozen=True, slots=True)
class SmallStore:
    """A store, and ways to put things into it."""

    store: FeatureStore
    view: FeatureView

    def put_texts(self, texts: Sequence[str], matrices: Sequence[NDArray[Any]]) -> None:
        writer = self.store.writer(self.view)
        values = np.concatenate([np.zeros((0, self.view.dim)), *matrices])
        writer.add_values(
            keys_of_texts(texts),
            np.array([len(matrix) for matrix in matrices], np.int64),
            np.zeros(len(texts), np.bool_),
            values=to_storage(values.astype(np.float32), self.view.dtype),
        )
        writer.flush()

    def put_words(self, texts: Sequence[str], *, seed: int = 0) -> None:
        """Texts whose rows depend on their words alone, in a shard with a dictionary."""
        words = sorted({word for text in texts for word in text.split()})
        codes = {word: code for code, word in enumerate(words)}
        rows = np.random.default_rng(seed).normal(0.0, 0.3, (len(words), self.view.dim))
        writer = self.store.writer(self.view)
        writer.add_codes(
            keys_of_texts(texts),
            np.array([len(text.split()) for text in texts], np.int64),
            np.zeros(len(texts), np.bool_),
            codes=np.array([codes[word] for text in texts for word in text.split()], np.uint32),
            table=to_storage(rows.astype(np.float32), self.view.dtype),
        )
        writer.flush()

    def put_dataset(
        self,
        texts: Sequence[str],
        labels: Sequence[tuple[str, ...]] | None,
        *,
        splits: Sequence[str] | None = None,
        name: str = "small",
    ) -> str:
        layout = self.store.layout
        with DatasetWriter(layout.tmp) as documents:
            documents.add(keys_of_texts(texts), labels, splits, None)
            version, num_unique = documents.finish()
            documents.publish(layout.dataset_path(version))
        record = DatasetRecord(name, version, len(texts), num_unique, [], 0.0)
        self.store.catalog.add_dataset(record, view=self.view.fingerprint, report={})
        return name

    def put_classes(
        self,
        counts: dict[str, int],
        *,
        splits: Sequence[str] = (),
        name: str = "small",
    ) -> tuple[list[str], list[str]]:
        """Texts of classes that differ in one direction of one of their tokens.

        ``splits`` are dealt out in turn; ``()``: there are none.

        Text i of a class has i mod 13 tokens, so some have none: of those only the class of
        the least name is put, and can be told by having none.
        """
        generator = np.random.default_rng(7)
        texts, labels, matrices = [], [], []
        least = min(counts)
        for number, (label, count) in enumerate(sorted(counts.items())):
            for member in range(count):
                length = member % (MAX_TOKENS + 1)
                if length == 0 and label != least:
                    length = 1
                matrix = generator.normal(0.0, 0.1, (length, DIM))
                if length:
                    matrix[generator.integers(length), number] += 2.0
                texts.append(f"{name} {label} {member}")
                labels.append(label)
                matrices.append(matrix)
        order = generator.permutation(len(texts))
        texts = [texts[place] for place in order]
        labels = [labels[place] for place in order]
        self.put_texts(texts, [matrices[place] for place in order])
        names = list(islice(cycle(splits), len(texts))) or None
        self.put_dataset(texts, [(label,) for label in labels], splits=names, name=name)
        return texts, labels


@pytest.fixture(scope="session")
def make_store() -> Iterator[Callable[..., SmallStore]]:
    stores: list[FeatureStore] = []

    def make(path: Path, **view_fields: Any) -> SmallStore:
        store = open_store(path)
        plain = {"module_digest": "0" * 32, "signature": "__call__", "tokenizer": "module"}
        view = FeatureView(**{**plain, "dim": DIM, **view_fields})
        store.catalog.add_view(view, "builtin:none")
        stores.append(store)
        return SmallStore(store, view)

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def small(tmp_path: Path, make_store: Callable[..., SmallStore]) -> SmallStore:
    """An empty store with one view."""
    return make_store(tmp_path / "store")


@pytest.fixture(scope="session")
def shared(
    tmp_path_factory: pytest.TempPathFactory, make_store: Callable[..., SmallStore]
) -> SmallStore:
    """A store with the datasets "two" (train, dev and test) and "four" (no splits).

    Tests may add runs to it, and nothing else. "two" has 120, 40 and 40 texts, "four" 162 after
    a tenth is set aside: a batch size that divides them all takes one compilation, another two.
    """
    made = make_store(tmp_path_factory.mktemp("shared") / "store")
    made.put_classes({"bad": 100, "good": 100}, splits=TRAIN_DEV_TEST, name="two")
    made.put_classes({"a": 60, "b": 50, "c": 40, "d": 30}, name="four")
    return made


@pytest.fixture(scope="session")
def two_run(shared: SmallStore) -> Run:
    """A run of the kim preset on "two"."""
    config = TrainConfig(
        filters=8, kernel_sizes=(2, 3), epochs=8, batch_size=20, learning_rate=0.02
    )
    return train(shared.store, "two", config)


@pytest.fixture(scope="session")
def four_run(shared: SmallStore) -> Run:
    """A run of the basic preset on "four"."""
    config = TrainConfig(preset="basic", filters=16, epochs=10, batch_size=18, learning_rate=0.02)
    return train(shared.store, "four", config)
