"""The writer: shards that are published behind, rows of every kind, and what it costs."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from embedcache.errors import DiskFullError, EncodingError, StoreError
from embedcache.keys import keys_of_texts
from embedcache.ragged import splits_of_lengths
from embedcache.store.publish import PendingFile
from embedcache.store.shards.codec import from_storage, to_storage
from embedcache.store.shards.format import FLAG_TRUNCATED, FLAG_WINDOWED, content_digest
from embedcache.store.shards.shard import Shard
from embedcache.store.store import FeatureStore, open_store
from embedcache.store.upkeep.compact import CompactOptions, compact_store
from embedcache.store.upkeep.maintain import verify_store
from embedcache.store.writer import ShardWriter, WriterLimits
from embedcache.view import STORAGE_DTYPES, FeatureView

ENCODINGS = ("dense", "dictionary")
COMPRESSIONS = ("none", "zstd")


class Gate:
    """Holds publishing up until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        real = PendingFile.commit

        def commit(file: PendingFile, target: Path) -> None:
            self.reached.set()
            assert self.opened.wait(30)
            real(file, target)

        monkeypatch.setattr(PendingFile, "commit", commit)


def _keys(*texts: str) -> list[bytes]:
    return [bytes(key) for key in keys_of_texts(texts)]


def _shard_of(store: FeatureStore, view: FeatureView, number: int = -1) -> Shard:
    record = store.catalog.shards(view.fingerprint)[number]
    return Shard(store.layout.shard_path(view.fingerprint, record.digest))


# Behind


def test_next_shard_is_filled_while_the_last_is_being_written(
    store: FeatureStore, programs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.catalog.add_view(programs.VIEW, "x")
    writer = store.writer(programs.VIEW)
    gate = Gate(monkeypatch)
    programs.add_texts(writer, ["a", "b"])
    writer.close_shard()
    assert gate.reached.wait(30)
    programs.add_texts(writer, ["c"])
    pending = writer.pending
    assert all(key in pending for key in _keys("a", "b", "c"))
    assert (len(pending), writer.published) == (3, [])
    assert not store.contains(programs.VIEW, ["a", "b", "c"]).any()
    gate.opened.set()
    writer.flush()
    assert [record.num_texts for record in writer.published] == [2, 1]
    assert len(writer.pending) == 0
    programs.assert_served(store, ["a", "b", "c"])


def test_key_on_its_way_to_the_device_is_not_taken_twice(
    store: FeatureStore, programs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.catalog.add_view(programs.VIEW, "x")
    writer = store.writer(programs.VIEW)
    gate = Gate(monkeypatch)
    programs.add_texts(writer, ["a"])
    writer.close_shard()
    assert gate.reached.wait(30)
    with pytest.raises(Exception, match="pending already"):
        programs.add_texts(writer, ["a"])
    gate.opened.set()
    writer.flush()


def test_pending_key_is_either_pending_or_in_the_store(
    store: FeatureStore, programs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks `pending` first and the store then sees it, whenever the thread publishes."""
    store.catalog.add_view(programs.VIEW, "x")
    reader, num_pending = store.reader(programs.VIEW), 0
    for number in range(30):
        writer = store.writer(programs.VIEW)
        text = str(number)
        programs.add_texts(writer, [text])
        (key,) = _keys(text)
        writer.close_shard()
        while True:
            pending = writer.pending
            is_stored = bool(reader.contains(keys_of_texts([text]))[0])
            assert key in pending or is_stored
            num_pending += key in pending
            if is_stored:
                break
        writer.flush()
    assert num_pending > 0


@pytest.mark.parametrize("close", [ShardWriter.close_shard, ShardWriter.flush])
def test_failure_behind_is_raised_by_the_next_call_and_nothing_is_lost(
    store: FeatureStore,
    programs: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    close: Callable[[ShardWriter], None],
) -> None:
    store.catalog.add_view(programs.VIEW, "x")
    writer = store.writer(programs.VIEW)
    with monkeypatch.context() as context:
        context.setattr(os, "fsync", _refuse)
        programs.add_texts(writer, ["a"])
        writer.close_shard()
        programs.add_texts(writer, ["b"])
        with pytest.raises(DiskFullError):
            close(writer)
    assert writer.published == []
    assert all(key in writer.pending for key in _keys("a", "b"))
    writer.flush()
    programs.assert_served(store, ["a", "b"])
    assert verify_store(store).orphans == []


def _refuse(_descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_process_that_ends_without_a_flush_finishes_the_shard_that_it_closed(
    tmp_path: Path, programs: ModuleType, run: Callable[..., str]
) -> None:
    path = tmp_path / "store"
    run("close_and_end", path)
    with open_store(path) as store:
        programs.assert_served(store, ["closed"])
        assert not store.contains(programs.VIEW, ["open"]).any()


def test_abandoned_writer_drops_what_is_open_and_waits_for_what_is_being_written(
    store: FeatureStore, programs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.catalog.add_view(programs.VIEW, "x")
    writer = store.writer(programs.VIEW)
    gate = Gate(monkeypatch)
    programs.add_texts(writer, ["a"])
    writer.close_shard()
    programs.add_texts(writer, ["b"])
    assert gate.reached.wait(30)
    timer = threading.Timer(0.05, gate.opened.set)
    timer.start()
    writer.abandon()
    timer.join()
    assert "publish-shard" not in {thread.name for thread in threading.enumerate()}
    assert len(writer.pending) == 0
    assert store.contains(programs.VIEW, ["a", "b"]).tolist() == [True, False]


def test_abandoned_writer_does_not_fail_once_more(
    store: FeatureStore, programs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.catalog.add_view(programs.VIEW, "x")
    writer = store.writer(programs.VIEW)
    with monkeypatch.context() as context:
        context.setattr(os, "fsync", _refuse)
        programs.add_texts(writer, ["a"])
        writer.close_shard()
        writer.abandon()
    writer.flush()
    assert not store.contains(programs.VIEW, ["a"]).any()
    assert verify_store(store).orphans == []


# Rows of every kind


def _stored(
    texts: list[str], view: FeatureView, *, seed: int
) -> tuple[dict[str, Any], NDArray[Any]]:
    """Arguments of `add_values` for texts, with tokens and flags; and their stored rows."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 6, len(texts))
    rows = rng.integers(-3, 4, (int(lengths.sum()), view.dim)).astype(np.float32)
    stored = to_storage(rows, view.dtype)
    starts = np.arange(len(rows), dtype=np.uint32)
    flags = rng.integers(0, 4, len(texts)).astype(np.uint8)
    return {
        "keys": keys_of_texts(texts),
        "lengths": lengths,
        "flags": flags,
        "token_ids": rng.integers(0, 1000, len(rows)).astype(np.uint32),
        "spans": np.stack([starts, starts + 1], axis=1),
    }, stored


def _add(writer: ShardWriter, texts: list[str], view: FeatureView, encoding: str, seed: int) -> Any:
    """Add texts with rows of one kind; what must come back for each: rows, flags, ids, spans."""
    arguments, stored = _stored(texts, view, seed=seed)
    if encoding == "dense":
        writer.add_values(**arguments, values=stored)
    else:
        table, codes = np.unique(stored, axis=0, return_inverse=True)
        codes = codes.reshape(-1).astype(np.uint32)
        writer.add_codes(**arguments, codes=codes, table=np.ascontiguousarray(table))
    splits = splits_of_lengths(arguments["lengths"])
    return {
        text: (
            from_storage(stored[start:stop], view.dtype).tolist(),
            int(arguments["flags"][place]),
            arguments["token_ids"][start:stop].tolist(),
            arguments["spans"][start:stop].tolist(),
        )
        for place, (text, start, stop) in enumerate(
            zip(texts, splits[:-1], splits[1:], strict=True)
        )
    }


def _found(store: FeatureStore, view: FeatureView, texts: list[str]) -> Any:
    refs, reader = store.locate(view, texts)
    features, tokens = reader.gather(refs), reader.token_records(refs)
    flags = refs.truncated * FLAG_TRUNCATED + refs.windowed * FLAG_WINDOWED
    return {
        text: (
            features[place].tolist(),
            int(flags[place]),
            tokens[place].token_ids.tolist(),
            tokens[place].spans.tolist(),
        )
        for place, text in enumerate(texts)
    }


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("dtype", STORAGE_DTYPES)
def test_every_dtype_encoding_and_compression_gives_back_what_was_added(
    store: FeatureStore, programs: ModuleType, dtype: str, encoding: str, compression: str
) -> None:
    view = replace(programs.VIEW, dtype=dtype)
    store.catalog.add_view(view, "x")
    limits = WriterLimits(encoding=encoding, compression=compression)
    writer = store.writer(view, limits=limits)
    expected = _add(writer, [f"one {number}" for number in range(40)], view, encoding, 0)
    if encoding == "dictionary":
        writer.close_shard()  # one shard takes the rows of one table
    expected |= _add(writer, [f"two {number}" for number in range(3)], view, encoding, 1)
    writer.flush()
    assert _found(store, view, list(expected)) == expected
    with open_store(store.path) as again:
        assert _found(again, view, list(expected)) == expected
        assert verify_store(again).is_well


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_name_is_the_digest_of_the_checksums_compressed_or_not(
    store: FeatureStore, programs: ModuleType, encoding: str
) -> None:
    store.catalog.add_view(programs.VIEW, "x")
    sizes = []
    for compression in COMPRESSIONS:
        limits = WriterLimits(encoding=encoding, compression=compression)
        writer = store.writer(programs.VIEW, limits=limits)
        _add(writer, [str(number) for number in range(2000)], programs.VIEW, encoding, 0)
        writer.flush()
        (record,) = writer.published
        sizes.append(record.num_bytes)
        path = store.layout.shard_path(record.view, record.digest)
        assert path.stat().st_size == record.num_bytes
        with h5py.File(path, locking=False) as file:
            assert content_digest(file["checksums"][()]) == record.digest
    assert sizes[1] < sizes[0]


def test_compressed_shards_need_a_package_and_say_so_at_once(
    store: FeatureStore, programs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda _number: False)
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(StoreError, match=r"pip install 'embedcache\[zstd\]'"):
        store.writer(programs.VIEW, limits=WriterLimits(compression="zstd"))


@pytest.mark.parametrize("value", ["", "gzip"])
def test_unknown_compression_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="compression must be none or zstd"):
        WriterLimits(compression=value)


def test_codes_of_another_table_are_refused(store: FeatureStore, programs: ModuleType) -> None:
    writer = store.writer(programs.VIEW)
    for num_rows, text in ((3, "a"), (4, "b")):
        _add_code(writer, text, num_rows)
    with pytest.raises(EncodingError, match="a table of 2 rows where there were 4"):
        _add_code(writer, "c", 2)
    assert len(writer.pending) == 2


def _add_code(writer: ShardWriter, text: str, num_rows: int) -> None:
    writer.add_codes(
        keys_of_texts([text]),
        np.array([1]),
        np.zeros(1, np.uint8),
        codes=np.zeros(1, np.uint32),
        table=np.ones((num_rows, 4), np.float16),
    )


# From shards to a shard


@pytest.mark.parametrize("target", ["auto", *ENCODINGS])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("dtype", STORAGE_DTYPES)
def test_merged_shards_hold_every_number_flag_id_and_span_as_it_was(
    store: FeatureStore, programs: ModuleType, dtype: str, encoding: str, target: str
) -> None:
    view = replace(programs.VIEW, dtype=dtype)
    store.catalog.add_view(view, "x")
    expected: dict[str, Any] = {}
    for part in range(3):
        writer = store.writer(view, limits=WriterLimits(encoding=encoding))
        texts = [f"{part} {number}" for number in range(20)]
        expected |= _add(writer, texts, view, encoding, part)
        writer.flush()
    compact_store(store, options=CompactOptions(encoding=target, grace_s=0))
    assert len(store.catalog.shards()) == 1
    assert _found(store, view, list(expected)) == expected
    shard = _shard_of(store, view)
    assert shard.is_dictionary == ((encoding if target == "auto" else target) == "dictionary")
    if shard.is_dictionary:
        rows = shard.stored_dictionary()
        assert len(np.unique(rows, axis=0)) == len(rows), "each distinct row once"


# Cost


@pytest.mark.parametrize("num_parts", [60, 120])
def test_shard_is_written_through_a_small_buffer(
    tmp_path: Path, run: Callable[..., str], num_parts: int
) -> None:
    num_bytes, growth = map(int, run("write_large", tmp_path / "store", num_parts).split())
    assert num_bytes > num_parts * 1000 * 512 * 2
    assert growth < 32 << 20, "16 MiB of buffer, and some for keys and places"
