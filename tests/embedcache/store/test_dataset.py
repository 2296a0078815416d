"""Registered corpora at rest."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import embedcache.store.dataset as dataset_module
from embedcache.errors import (
    CorpusError,
    CorruptShardError,
    DiskFullError,
    StoreError,
    UnknownNameError,
)
from embedcache.keys import keys_of_texts
from embedcache.store.database.records import DatasetRecord
from embedcache.store.dataset import Dataset, DatasetWriter, count_unique, load_dataset
from embedcache.store.store import FeatureStore

Document = tuple[str, tuple[str, ...], str]

DOCUMENTS: list[Document] = [
    ("good", ("pos",), "train"),
    ("bad", ("neg",), "train"),
    ("both", ("pos", "neg", "é"), "train"),
    ("none", (), "test"),
    ("good", ("pos",), "test"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def _publish(
    folder: Path,
    documents: Sequence[Document] = DOCUMENTS,
    *,
    labels: bool = True,
    splits: bool = True,
    ids: bool = False,
    batch: int = 2,
) -> tuple[str, Path, int]:
    """Write a dataset in batches; its version, its folder and the number of distinct texts."""
    with DatasetWriter(folder / "tmp") as writer:
        for start in range(0, len(documents), batch):
            part = documents[start : start + batch]
            writer.add(
                keys_of_texts([text for text, _, _ in part]),
                [names for _, names, _ in part] if labels else None,
                [split for _, _, split in part] if splits else None,
                [f"id-{start + place}" for place in range(len(part))] if ids else None,
            )
        assert len(writer) == len(documents)
        version, num_unique = writer.finish()
        target = folder / "datasets" / version
        writer.publish(target)
    return version, target, num_unique


def _load(version: str, target: Path) -> Dataset:
    return load_dataset("name", version, target)


def test_dataset_comes_back_as_it_was_added(folder: Path) -> None:
    version, target, num_unique = _publish(folder)
    dataset = _load(version, target)
    assert num_unique == 4
    assert (len(dataset), dataset.name, dataset.version) == (5, "name", version)
    np.testing.assert_array_equal(
        dataset.keys, keys_of_texts([text for text, _, _ in DOCUMENTS]), strict=True
    )
    assert dataset.label_names == ("neg", "pos", "é")
    assert dataset.num_labels.tolist() == [1, 1, 3, 0, 1]
    labels = np.split(dataset.label_codes, dataset.label_splits[1:-1])
    named = [tuple(dataset.label_names[code] for code in codes) for codes in labels]
    assert named == [names for _, names, _ in DOCUMENTS]
    assert dataset.label_codes.dtype == np.int32
    assert dataset.split_names == ("train", "test")
    assert dataset.rows_of_split("test").tolist() == [3, 4]
    assert dataset.rows_of_split("train").tolist() == [0, 1, 2]
    assert dataset.rows_of_split(None).tolist() == [0, 1, 2, 3, 4]
    assert dataset.rows_of_split("dev").tolist() == []
    assert dataset.first_labels(np.array([3, 2, 0])).tolist() == [-1, 1, 1]
    assert dataset.count_splits() == {"train": 3, "test": 2}
    assert dataset.count_labels() == {"neg": 2, "pos": 3, "é": 1}
    assert not list((folder / "tmp").iterdir())


def test_dataset_without_labels_and_splits(folder: Path) -> None:
    version, target, _ = _publish(folder, labels=False, splits=False)
    dataset = _load(version, target)
    assert (dataset.label_names, dataset.split_names) == ((), ("",))
    assert dataset.num_labels.tolist() == [0] * 5
    assert dataset.first_labels(np.arange(5)).tolist() == [-1] * 5
    assert (dataset.count_splits(), dataset.count_labels()) == ({}, {})
    assert len(dataset.rows_of_split("")) == 5


def test_dataset_of_no_documents(folder: Path) -> None:
    version, target, num_unique = _publish(folder, [])
    dataset = _load(version, target)
    assert (len(dataset), num_unique) == (0, 0)
    assert dataset.keys.shape == (0, 16)
    assert dataset.rows_of_split(None).tolist() == []


def test_files_are_plain_npy_and_private(folder: Path) -> None:
    _, target, _ = _publish(folder, ids=True)
    loaded = {path.stem: np.load(path) for path in target.glob("*.npy")}
    assert {name: (array.dtype.str, array.shape) for name, array in loaded.items()} == {
        "keys": ("|u1", (5, 16)),
        "label_codes": ("<i4", (6,)),
        "label_splits": ("<i8", (6,)),
        "split_codes": ("|u1", (5,)),
        "ids": ("|u1", (35,)),
    }
    assert loaded["ids"].tobytes().splitlines() == [b'"id-%d"' % number for number in range(5)]
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in target.iterdir()} == {0o600}


def test_same_content_is_the_same_version_however_it_comes(folder: Path) -> None:
    version, target, _ = _publish(folder)
    inodes = {path.name: path.stat().st_ino for path in target.iterdir()}
    for batch in (1, 5):
        assert _publish(folder, batch=batch)[0] == version
    assert {path.name: path.stat().st_ino for path in target.iterdir()} == inodes


@pytest.mark.parametrize(
    "changed",
    [
        DOCUMENTS[::-1],
        DOCUMENTS[:-1],
        [*DOCUMENTS, DOCUMENTS[0]],
        [("good ", ("pos",), "train"), *DOCUMENTS[1:]],
        [("good", ("neg",), "train"), *DOCUMENTS[1:]],
        [("good", ("pos", "neg"), "train"), *DOCUMENTS[1:]],
        [("good", ("pos",), "test"), *DOCUMENTS[1:]],
        [("good", ("POS",), "train"), *DOCUMENTS[1:]],
    ],
)
def test_other_content_or_order_is_another_version(folder: Path, changed: list[Document]) -> None:
    assert _publish(folder)[0] != _publish(folder, changed)[0]


def test_labels_splits_and_ids_are_part_of_the_version(folder: Path) -> None:
    versions = {
        _publish(folder)[0],
        _publish(folder, labels=False)[0],
        _publish(folder, splits=False)[0],
        _publish(folder, ids=True)[0],
    }
    assert len(versions) == 4


@pytest.mark.parametrize("step", ["entered", "added", "finished"])
def test_writer_left_without_publishing_leaves_nothing(folder: Path, step: str) -> None:
    with DatasetWriter(folder / "tmp") as writer:
        if step != "entered":
            writer.add(keys_of_texts(["a"]), [("x",)], ["train"], None)
        if step == "finished":
            writer.finish()
    assert not list((folder / "tmp").iterdir())
    assert not (folder / "datasets").exists()


def test_too_many_splits_say_which_field_is_meant(folder: Path) -> None:
    names = [f"a whole sentence, number {number}" for number in range(257)]
    with (
        DatasetWriter(folder / "tmp") as writer,
        pytest.raises(CorpusError, match=r"more than 256 splits .*--split-field") as caught,
    ):
        writer.add(keys_of_texts(names), None, names, None)
    assert "\n" not in str(caught.value)
    documents: list[Document] = [(name, (), name) for name in names[:256]]
    version, target, _ = _publish(folder, documents)
    assert len(_load(version, target).split_names) == 256


@pytest.mark.parametrize("damage", ["cut", "gone", "empty", "longer", "flipped"])
@pytest.mark.parametrize(
    "name", ["keys.npy", "label_codes.npy", "label_splits.npy", "split_codes.npy", "dataset.json"]
)
def test_damaged_file_is_one_line_and_the_same_build_mends_it(
    folder: Path, name: str, damage: str
) -> None:
    version, target, _ = _publish(folder)
    path = target / name
    content = path.read_bytes()
    path.unlink()
    if damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 2]))
    elif damage != "gone":
        path.write_bytes({"cut": content[:-1], "empty": b"", "longer": content + b"\0"}[damage])
    with pytest.raises(CorruptShardError, match=r"damaged .*again") as caught:
        _load(version, target)
    assert "\n" not in str(caught.value)
    assert str(target) in str(caught.value)
    assert _publish(folder)[0] == version
    assert len(_load(version, target)) == 5
    assert not list((folder / "tmp").iterdir())


def test_one_flipped_bit_in_any_byte_is_refused(folder: Path) -> None:
    version, target, _ = _publish(folder, ids=True)
    bits = np.random.default_rng(0)
    for path in sorted(target.iterdir()):
        content = path.read_bytes()
        for position in range(len(content)):
            damaged = bytearray(content)
            damaged[position] ^= 1 << int(bits.integers(8))
            path.write_bytes(damaged)
            with pytest.raises(CorruptShardError):
                _load(version, target)
        path.write_bytes(content)
    assert len(_load(version, target)) == 5


def test_flips_would_be_served_if_the_digests_were_not_compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness itself: with this bug seeded, the test above must fail."""

    class Same(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __ne__(self, other: object) -> bool:
            return False

    version, target, _ = _publish(folder)

    class Blind:
        def __init__(self, *arguments: Any, **named: Any) -> None:
            self._digest = blake2b(*arguments, **named)

        def hexdigest(self) -> str:
            return Same(self._digest.hexdigest())

    monkeypatch.setattr(dataset_module, "blake2b", Blind)
    path = target / "label_codes.npy"
    content = bytearray(path.read_bytes())
    content[128] ^= 1
    path.write_bytes(content)
    assert _load(version, target).first_labels(np.array([0])).tolist() != [1]


def test_another_datasets_files_are_refused(folder: Path) -> None:
    _, target, _ = _publish(folder)
    other, _, _ = _publish(folder, DOCUMENTS[:2])
    with pytest.raises(CorruptShardError):
        _load(other, target)
    with pytest.raises(CorruptShardError):
        _load("0" * 32, folder / "datasets" / ("0" * 32))


def test_writers_of_one_version_at_once_all_succeed(folder: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        versions = {version for version, _, _ in pool.map(lambda _: _publish(folder), range(8))}
    assert len(versions) == 1
    assert not list((folder / "tmp").iterdir())


def test_another_process_may_publish_the_version_in_between(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.rename

    def late(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", real)
        _publish(folder)
        return real(path, target)

    monkeypatch.setattr(Path, "rename", late)
    version, target, _ = _publish(folder)
    assert len(_load(version, target)) == 5


@pytest.mark.parametrize("call", [0, 1, 4, 5, 6, 7])
@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EIO, StoreError)])
def test_device_that_refuses_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: int, code: int, kind: type[StoreError]
) -> None:
    """``call`` counts the fsyncs: five columns, the record, the folder, the one above."""
    (folder / "tmp").mkdir(parents=True)
    (folder / "datasets").mkdir()
    real, calls = os.fsync, iter(range(100))

    def faulty(descriptor: int) -> None:
        if next(calls) == call:
            raise OSError(code, os.strerror(code))
        real(descriptor)

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", faulty)
        with pytest.raises(kind) as caught:
            _publish(folder)
    assert "\n" not in str(caught.value)
    assert not list((folder / "tmp").iterdir())
    assert len(list((folder / "datasets").iterdir())) == (1 if call == 7 else 0)
    version, target, _ = _publish(folder)
    assert len(_load(version, target)) == 5


@pytest.mark.parametrize("limit", [0, 100, 200, 1000, 20_000])
def test_full_disk_is_one_line_and_leaves_nothing(folder: Path, limit: int) -> None:
    import resource

    documents: list[Document] = [(str(number), ("x",), "train") for number in range(3000)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(DiskFullError, match="no space left") as caught:
            _publish(folder, documents, batch=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert not list((folder / "tmp").iterdir())
    assert not (folder / "datasets").exists()


def test_folder_for_temporary_files_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tmp").write_bytes(b"")
    with pytest.raises(StoreError), DatasetWriter(tmp_path / "tmp"):
        pass


@pytest.mark.parametrize("pass_keys", [1, 3, 1 << 22])
def test_distinct_texts_are_counted_in_bounded_memory(
    monkeypatch: pytest.MonkeyPatch, pass_keys: int
) -> None:
    monkeypatch.setattr(dataset_module, "_UNIQUE_PASS_KEYS", pass_keys)
    texts = [str(number % 70) for number in range(200)]
    assert count_unique(keys_of_texts(texts)) == 70
    assert count_unique(keys_of_texts([])) == 0


@given(st.lists(st.tuples(st.sampled_from([b"\0", b"\1", b"\xff"]), st.sampled_from([b"a", b"b"]))))
def test_texts_that_agree_in_half_their_key_are_counted_as_a_set_does(
    halves: list[tuple[bytes, bytes]],
) -> None:
    keys = [high * 8 + low * 8 for high, low in halves]
    array = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16)
    assert count_unique(array) == len(set(keys))


# In a store


@pytest.fixture
def register(store: FeatureStore, programs: ModuleType) -> Callable[..., str]:
    def register_documents(name: str, documents: Sequence[Document]) -> str:
        version, _, num_unique = _publish(store.path, documents)
        record = DatasetRecord(name, version, len(documents), num_unique, [], 0.0)
        store.catalog.add_dataset(record, view=programs.VIEW.fingerprint, report={})
        return version

    return register_documents


def test_store_loads_the_newest_version_or_the_one_that_is_named(
    store: FeatureStore, register: Callable[..., str]
) -> None:
    old, new = register("name", DOCUMENTS[:2]), register("name", DOCUMENTS)
    assert len(store.load_dataset("name")) == 5
    assert len(store.load_dataset()) == 5
    assert len(store.load_dataset(f"name@{old[:10]}")) == 2
    assert store.load_dataset(f"name@{new}").version == new
    with pytest.raises(UnknownNameError, match="no dataset 'other'; there are: name"):
        store.load_dataset("other")


def test_view_of_a_dataset_is_the_one_last_built_or_the_one_named(
    store: FeatureStore, programs: ModuleType, register: Callable[..., str]
) -> None:
    other = replace(programs.VIEW, max_tokens=3)
    for view in (programs.VIEW, other):
        store.catalog.add_view(view, "x")
    register("name", DOCUMENTS)
    dataset = store.load_dataset("name")
    assert store.view_of_dataset(dataset).view == programs.VIEW
    assert store.view_of_dataset(dataset, other.fingerprint[:8]).view == other
    with pytest.raises(UnknownNameError):
        store.view_of_dataset(dataset, "nothing")
