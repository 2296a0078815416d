"""The stream's tests fill stores as the store's own tests do."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from embedcache.keys import keys_of_texts
from embedcache.store.database.records import DatasetRecord
from embedcache.store.dataset import DatasetWriter
from embedcache.store.store import FeatureStore

Register = Callable[..., None]


@pytest.fixture(scope="session")
def programs() -> ModuleType:
    path = Path(__file__).parents[1] / "store" / "programs.py"
    spec = importlib.util.spec_from_file_location("stream_tests_programs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def register(store: FeatureStore, programs: ModuleType) -> Register:
    """Registers a dataset of texts, labels and splits."""

    def register_dataset(
        name: str,
        texts: Sequence[str],
        labels: Sequence[tuple[str, ...]] | None = None,
        splits: Sequence[str] | None = None,
    ) -> None:
        with DatasetWriter(store.layout.tmp) as writer:
            writer.add(keys_of_texts(texts), labels, splits, None)
            version, num_unique = writer.finish()
            writer.publish(store.layout.dataset_path(version))
        record = DatasetRecord(name, version, len(texts), num_unique, [], 0.0)
        store.catalog.add_dataset(record, view=programs.VIEW.fingerprint, report={})

    return register_dataset


@pytest.fixture
def numbered(store: FeatureStore, programs: ModuleType, register: Register) -> FeatureStore:
    """Dataset ``numbered``: 150 texts, ``text 0`` and on, in three dictionary shards.

    Each has one of the labels a, b and c, or two, or none.
    """
    texts = [f"text {number}" for number in range(150)]
    for part in (texts[:70], texts[70:90], texts[90:]):
        programs.put(store, part, encoding="dictionary")
    labels = [("a",), ("b", "c"), (), ("c",), ("a", "b")] * 30
    register("numbered", texts, labels)
    return store
