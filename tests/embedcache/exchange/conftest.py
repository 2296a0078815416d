"""Files as other programs write them, and a store with something to export."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import embedcache
from embedcache.exchange.importing import ImportOptions, ImportReport, import_features
from embedcache.keys import keys_of_texts
from embedcache.store.database.records import DatasetRecord
from embedcache.store.dataset import DatasetWriter

FOLDER = Path(__file__).parent
TEXTS = [f"text {number}" for number in range(60)] + ["text 3", ""]
LABELS = [("b",) if number % 3 else ("a", "ü b") for number in range(len(TEXTS) - 2)] + [(), ("a",)]
SPLITS = ["train"] * 40 + ["test"] * (len(TEXTS) - 40)
IDS = [f"id-{number}\n\u2028é" for number in range(len(TEXTS))]


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"exchange_tests_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def foreign() -> ModuleType:
    return _load(FOLDER / "foreign.py")


@pytest.fixture(scope="session")
def programs() -> ModuleType:
    return _load(FOLDER.parent / "store" / "programs.py")


Import = Callable[..., ImportReport]


@pytest.fixture
def take(store: embedcache.FeatureStore) -> Import:
    """Imports a file under the name ``elmo``, with the settings of `ImportOptions`."""

    def import_file(
        path: Path, texts: Path | None = None, *, name: str = "elmo", **settings: Any
    ) -> ImportReport:
        options = ImportOptions(**settings)
        return import_features(store, path, name=name, texts=texts, options=options)

    return import_file


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes a text file."""

    def write(*lines: str, name: str = "sentences.txt", end: str = "\n") -> Path:
        path = tmp_path / name
        path.write_bytes("".join(line + end for line in lines).encode())
        return path

    return write


Register = Callable[..., None]


@pytest.fixture
def register(store: embedcache.FeatureStore, programs: ModuleType) -> Register:
    """Registers a dataset that was last built under the programs' view."""

    def register_dataset(name: str, texts: list[str], **columns: Any) -> None:
        with DatasetWriter(store.layout.tmp) as writer:
            given = (columns.get(column) for column in ("labels", "splits", "ids"))
            writer.add(keys_of_texts(texts), *given)
            version, num_unique = writer.finish()
            writer.publish(store.layout.dataset_path(version))
        record = DatasetRecord(name, version, len(texts), num_unique, [], 0.0)
        view = columns.get("view", programs.VIEW)
        store.catalog.add_dataset(record, view=view.fingerprint, report={})

    return register_dataset


@pytest.fixture
def filled(
    store: embedcache.FeatureStore, programs: ModuleType, register: Register
) -> embedcache.FeatureStore:
    """The dataset ``name``: labels, two splits, ids, a text that comes twice and an empty one."""
    texts = list(dict.fromkeys(TEXTS))
    programs.put(store, texts[:25])
    programs.put(store, texts[25:], encoding="dictionary")
    register("name", TEXTS, labels=LABELS, splits=SPLITS, ids=IDS)
    return store


@pytest.fixture
def corpus() -> dict[str, list[Any]]:
    """What the dataset ``name`` consists of."""
    return {"texts": TEXTS, "labels": LABELS, "splits": SPLITS, "ids": IDS}
