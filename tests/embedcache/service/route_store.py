"""A store for the tests of the interfaces: made by hand, no module, no TensorFlow.

Each text's matrix is made from its words, so that every test knows what it must be answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedcache.keys import keys_of_texts
from embedcache.store.database.records import DatasetRecord
from embedcache.store.dataset import DatasetWriter
from embedcache.store.store import FeatureStore, open_store
from embedcache.view import FeatureView

DIM = 6
MAX_WORDS = 40
VIEW = FeatureView(
    module_digest="0" * 32, signature="__call__", tokenizer="space", dim=DIM, max_tokens=MAX_WORDS
)
"""Tells the ids and the places of its tokens; the default."""
SILENT_VIEW = FeatureView(
    module_digest="1" * 32, signature="__call__", tokenizer="space", dim=DIM + 2, dtype="float32"
)
"""Tells neither ids nor places."""
HANDLE, SILENT_HANDLE = "builtin:of-tests", "https://tfhub.dev/silent/1"

LONG_TEXT = "long " * (MAX_WORDS + 5)
TEXTS = ("a gripping film", "not for me", "größer als 東京 🙂", "one", "", LONG_TEXT)
LABELS = (("good",), ("bad",), ("good", "ünusual"), (), ("bad",), ("good",))
SPLITS = ("train", "train", "train", "dev", "test", "test")
MISSING = "this text is not stored"


def words_of(text: str, view: FeatureView = VIEW) -> list[str]:
    """The words that a view has rows of."""
    return text.split()[: view.max_tokens]


def matrix_of(text: str, view: FeatureView = VIEW) -> NDArray[np.float32]:
    """A text's matrix under a view, (words, dim), rounded as the view stores it."""
    rows = [_row_of(word, view.dim) for word in words_of(text, view)]
    matrix = np.array(rows, np.float64).reshape(-1, view.dim)
    return matrix.astype(view.dtype).astype(np.float32)


def token_id(word: str) -> int:
    """What stands for a word's number in the module's vocabulary."""
    return int.from_bytes(blake2b(word.encode(), digest_size=2).digest(), "little")


def mean_of(text: str, view: FeatureView = VIEW, *, normalize: bool = True) -> NDArray[np.float64]:
    """The mean of a text's rows, (dim,), in another way than the code takes it."""
    matrix = matrix_of(text, view).astype(np.float64)
    if len(matrix) == 0:
        return np.zeros(view.dim)
    mean = np.array([sum(column) / len(column) for column in matrix.T.tolist()])
    norm = float(np.linalg.norm(mean))
    return mean / norm if normalize and norm else mean


def _row_of(word: str, dim: int) -> NDArray[np.float64]:
    seed = list(blake2b(word.encode(), digest_size=8).digest())
    return np.random.default_rng(seed).normal(0.0, 1.0, dim)


@dataclass(frozen=True)
class RouteStore:
    """Where the store is, and the version of its dataset."""

    path: Path
    version: str


def make_route_store(path: Path, texts: Sequence[str] = TEXTS) -> RouteStore:
    """Make it: all texts under both views, and the dataset ``films/small`` of `TEXTS`."""
    with open_store(path) as store:
        put_texts(store, texts, SILENT_VIEW)
        put_texts(store, texts, VIEW)
    version = register(path, "films/small", TEXTS, labels=LABELS, splits=SPLITS)
    return RouteStore(path, version)


def register(
    path: Path,
    name: str,
    texts: Sequence[str],
    *,
    labels: Sequence[tuple[str, ...]],
    splits: Sequence[str],
) -> str:
    """Register a dataset that was last built under `VIEW`; its version."""
    with open_store(path) as store:
        with DatasetWriter(store.layout.tmp) as documents:
            documents.add(keys_of_texts(texts), labels, splits, None)
            version, num_unique = documents.finish()
            documents.publish(store.layout.dataset_path(version))
        record = DatasetRecord(name, version, len(texts), num_unique, [], 0.0)
        store.catalog.add_dataset(record, view=VIEW.fingerprint, report={})
    return version


def put_texts(store: FeatureStore, texts: Sequence[str], view: FeatureView) -> None:
    """Store texts under one of the views, in one shard."""
    tells = view is VIEW
    store.catalog.add_view(view, HANDLE if tells else SILENT_HANDLE)
    matrices = [matrix_of(text, view) for text in texts]
    lengths = np.array([len(matrix) for matrix in matrices], np.int64)
    cut = np.array([len(text.split()) > view.max_tokens for text in texts])
    writer = store.writer(view)
    writer.add_values(
        keys_of_texts(texts),
        lengths,
        cut,
        values=np.concatenate(matrices).astype(view.dtype),
        token_ids=_token_ids(texts) if tells else None,
        spans=_spans(texts) if tells else None,
    )
    writer.flush()


def _token_ids(texts: Sequence[str]) -> NDArray[np.uint32]:
    return np.array([token_id(word) for text in texts for word in words_of(text)], np.uint32)


def _spans(texts: Sequence[str]) -> NDArray[np.uint32]:
    spans: list[tuple[int, int]] = []
    for text in texts:
        end = 0
        for word in words_of(text):
            start = text.encode().index(word.encode(), end)
            end = start + len(word.encode())
            spans.append((start, end))
    return np.array(spans, np.uint32).reshape(-1, 2)
