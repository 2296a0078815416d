"""Stores that are served: by the small server whose answers can be wrong, and by the real one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import embedcache
from embedcache.client.store import RemoteStore
from embedcache.keys import keys_of_texts
from embedcache.store.database.records import DatasetRecord
from embedcache.store.dataset import DatasetWriter
from embedcache.store.store import FeatureStore
from tests.embedcache.client.small_server import SmallServer, serving
from tests.embedcache.store import programs

TEXTS = [f"text {number}" for number in range(1500)]
LABELS = [("a",), ("b", "c"), (), ("c",), ("a", "b")] * 300
SPLITS = ["train", "train", "train", "dev", "test"] * 300


def register(store: FeatureStore, name: str, texts: Sequence[str]) -> None:
    """Register a dataset with labels and splits."""
    with DatasetWriter(store.layout.tmp) as writer:
        writer.add(keys_of_texts(texts), LABELS[: len(texts)], SPLITS[: len(texts)], None)
        version, num_unique = writer.finish()
        writer.publish(store.layout.dataset_path(version))
    record = DatasetRecord(name, version, len(texts), num_unique, [], 0.0)
    store.catalog.add_dataset(record, view=programs.VIEW.fingerprint, report={})


def fill(store: FeatureStore) -> None:
    """Dataset ``numbered``: `TEXTS` in three shards, two with a dictionary and one without."""
    for part, encoding in (
        (TEXTS[:500], "dictionary"), (TEXTS[500:900], "dense"), (TEXTS[900:], "dictionary"),
    ):  # fmt: skip
        programs.put(store, part, encoding=encoding)
    register(store, "numbered", TEXTS)


@pytest.fixture(scope="session")
def numbered_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filled store, for copying: filling one takes half a second."""
    path = tmp_path_factory.mktemp("numbered") / "store"
    with embedcache.open_store(path) as store:
        fill(store)
    return path


@pytest.fixture
def numbered(numbered_path: Path, tmp_path: Path) -> Iterator[FeatureStore]:
    path = tmp_path / "numbered"
    shutil.copytree(numbered_path, path)
    with embedcache.open_store(path) as store:
        yield store


@pytest.fixture
def server(numbered: FeatureStore) -> Iterator[SmallServer]:
    with serving(numbered) as started:
        yield started


@pytest.fixture
def remote(server: SmallServer) -> Iterator[RemoteStore]:
    with embedcache.connect(server.url, timeout_s=20) as connected:
        yield connected
