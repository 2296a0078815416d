"""Merging small shards into large ones."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import embedcache
from embedcache.errors import CorruptShardError, StoreLockedError
from embedcache.keys import Keys, keys_of_texts
from embedcache.store.store import FeatureStore, open_store
from embedcache.store.upkeep import membership
from embedcache.store.upkeep.compact import CompactOptions, CompactReport, compact_store
from embedcache.store.upkeep.locking import maintenance_lock
from embedcache.store.upkeep.membership import NOWHERE, RankedKeys, first_copies, ranks_of
from embedcache.store.upkeep.rewrite import facts_of
from embedcache.store.writer import WriterLimits

TEXTS = [f"text {number}" for number in range(60)]
NOW = CompactOptions(grace_s=0)


def _compact(store: FeatureStore, options: CompactOptions = NOW) -> CompactReport:
    (report,) = compact_store(store, options=options)[0]
    return report


def _put_all(store: FeatureStore, upkeep: ModuleType, encoding: str = "dense") -> None:
    for start in range(0, len(TEXTS), 6):
        upkeep.put(store, TEXTS[start : start + 6], encoding=encoding)


def test_small_shards_become_one_and_nothing_is_lost(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    _put_all(store, upkeep)
    store.reader(upkeep.VIEW).save_index()
    before = store.catalog.shards()
    report = _compact(store)
    assert (report.shards_before, report.shards_after, report.rewritten) == (10, 1, 10)
    assert report.bytes_before == sum(record.num_bytes for record in before)
    assert (report.bytes_after, report.duplicates) == (store.catalog.shards()[0].num_bytes, 0)
    upkeep.assert_served(store, TEXTS)
    with open_store(store.path) as again:
        upkeep.assert_served(again, TEXTS)
    upkeep.assert_whole(store)
    files = list(store.layout.shards.glob("*/*"))
    assert [path.stem for path in files] == [store.catalog.shards()[0].digest]


@pytest.mark.parametrize("encoding", ["dense", "dictionary"])
def test_second_compact_does_nothing(
    store: FeatureStore, upkeep: ModuleType, encoding: str
) -> None:
    _put_all(store, upkeep, encoding)
    _compact(store)
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    assert _compact(store).rewritten == 0
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before


def test_one_small_shard_is_left_alone(store: FeatureStore, upkeep: ModuleType) -> None:
    upkeep.put(store, TEXTS)
    assert _compact(store).rewritten == 0


def test_large_shards_are_left_alone_and_small_ones_merged(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    limits = WriterLimits(max_shard_bytes=1500)
    upkeep.put(store, TEXTS[:40])
    (large,) = store.catalog.shards()
    for text in TEXTS[40:]:
        upkeep.put(store, [text])
    report = _compact(store, CompactOptions(limits=limits, grace_s=0))
    assert report.rewritten == 20
    assert 1 < report.shards_after < 10
    assert large in store.catalog.shards()
    assert _compact(store, CompactOptions(limits=limits, grace_s=0)).rewritten == 0
    upkeep.assert_served(store, TEXTS)


def test_text_limit_counts_too(store: FeatureStore, upkeep: ModuleType) -> None:
    options = CompactOptions(limits=WriterLimits(max_texts=20), grace_s=0)
    _put_all(store, upkeep)
    assert _compact(store, options).shards_after == 3
    assert _compact(store, options).rewritten == 0


def test_text_that_lies_twice_is_kept_once(store: FeatureStore, upkeep: ModuleType) -> None:
    upkeep.put(store, TEXTS[:40])
    upkeep.put(store, TEXTS[30:])
    upkeep.put(store, TEXTS[30:35])
    report = _compact(store)
    assert (report.duplicates, report.shards_after) == (15, 1)
    assert store.catalog.shards()[0].num_texts == len(TEXTS)
    upkeep.assert_served(store, TEXTS)


def test_shard_of_nothing_but_copies_goes(store: FeatureStore, upkeep: ModuleType) -> None:
    upkeep.put(store, TEXTS)
    (large,) = store.catalog.shards()
    upkeep.put(store, TEXTS[:5])
    report = _compact(store)
    assert (report.duplicates, report.rewritten) == (5, 1)
    assert store.catalog.shards() == [large]
    upkeep.assert_served(store, TEXTS)


def test_shards_with_and_without_token_ids_stay_apart(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    for start in range(0, 20, 5):
        upkeep.put(store, TEXTS[start : start + 5], with_tokens=start % 2 == 0)
    assert _compact(store).shards_after == 2
    assert _compact(store).rewritten == 0
    upkeep.assert_served(store, TEXTS[:5] + TEXTS[10:15])
    upkeep.assert_served(store, TEXTS[5:10] + TEXTS[15:20], with_tokens=False)


@pytest.mark.parametrize(
    ("wanted", "rows"), [("dense", "values"), ("dictionary", "codes"), ("auto", None)]
)
def test_encoding_is_changed_where_it_is_asked_for(
    store: FeatureStore, upkeep: ModuleType, wanted: str, rows: str | None
) -> None:
    for number, encoding in enumerate(("dense", "dictionary", "dense", "dictionary")):
        upkeep.put(store, TEXTS[number * 9 : number * 9 + 9], encoding=encoding)
    options = CompactOptions(encoding=wanted, grace_s=0)
    report = _compact(store, options)
    kinds = {facts_of(store, record).rows for record in store.catalog.shards()}
    assert kinds == ({rows} if rows else {"values", "codes"})
    assert report.shards_after == len(kinds)
    upkeep.assert_served(store, TEXTS[:36])
    assert _compact(store, options).rewritten == 0


def test_compression_is_changed_where_it_is_asked_for(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    pytest.importorskip("hdf5plugin")
    upkeep.put(store, TEXTS)
    for compression in ("zstd", "none"):
        options = CompactOptions(compression=compression, grace_s=0)
        assert _compact(store, options).rewritten == 1
        (record,) = store.catalog.shards()
        assert facts_of(store, record).compression == compression
        assert _compact(store, options).rewritten == 0
        assert _compact(store).rewritten == 0, "each as it is"
        with open_store(store.path) as again:
            upkeep.assert_served(again, TEXTS)
            upkeep.assert_whole(again)


def test_views_are_compacted_apart_and_one_can_be_chosen(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    for view in (upkeep.VIEW, upkeep.OTHER):
        for text in TEXTS[:4]:
            upkeep.put(store, [text], view=view)
    (report,), _ = compact_store(store, view=upkeep.OTHER.fingerprint[:8], options=NOW)
    assert (report.view, report.shards_after) == (upkeep.OTHER.fingerprint, 1)
    assert len(store.catalog.shards(upkeep.VIEW.fingerprint)) == 4
    assert _compact_all(store) == [1, 1]
    for view in (upkeep.VIEW, upkeep.OTHER):
        upkeep.assert_served(store, TEXTS[:4], view=view)


def _compact_all(store: FeatureStore) -> list[int]:
    return [report.shards_after for report in compact_store(store, options=NOW)[0]]


def test_empty_store_has_nothing_to_compact(store: FeatureStore) -> None:
    assert compact_store(store)[0] == []


def test_old_files_stay_for_the_grace_and_go_with_the_next_compact(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    _put_all(store, upkeep)
    _, swept = compact_store(store)
    assert (swept.files, swept.waiting_files) == (0, 10)
    assert len(list(store.layout.shards.glob("*/*"))) == 11
    upkeep.age(store)
    _, swept = compact_store(store)
    assert (swept.files, swept.waiting_files) == (10, 0)
    assert len(list(store.layout.shards.glob("*/*"))) == 1
    upkeep.assert_served(store, TEXTS)


def test_build_that_publishes_meanwhile_loses_nothing(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    _put_all(store, upkeep)
    extra = [f"extra {number}" for number in range(12)]

    def publish() -> None:
        with open_store(store.path) as own:
            for text in extra:
                upkeep.put(own, [text, *TEXTS[:2]])

    thread = threading.Thread(target=publish)
    thread.start()
    options = CompactOptions(limits=WriterLimits(max_texts=8))
    while thread.is_alive():
        compact_store(store, options=options)
    thread.join()
    upkeep.assert_served(store, TEXTS + extra)
    upkeep.assert_whole(store)
    assert _compact(store).shards_after == 1
    upkeep.assert_served(store, TEXTS + extra)


def test_reader_of_another_process_goes_on_while_the_files_are_there(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    _put_all(store, upkeep)
    with open_store(store.path) as reading:
        reader = reading.reader(upkeep.VIEW)
        keys = keys_of_texts(TEXTS)
        refs = reader.locate(keys)
        compact_store(store)
        assert len(reader.gather(refs)) == len(TEXTS)
        assert len(reader.gather(reader.locate(keys))) == len(TEXTS)
        upkeep.assert_served(reading, TEXTS)


def test_store_that_was_open_before_reads_on_after_the_old_files_are_gone(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    _put_all(store, upkeep)
    with open_store(store.path) as reading:
        upkeep.assert_served(reading, TEXTS[:6])
        compact_store(store, options=NOW)
        upkeep.assert_served(reading, TEXTS)


def test_reader_whose_index_names_shards_that_are_gone_finds_the_texts_in_the_new_ones(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    _put_all(store, upkeep)
    store.reader(upkeep.VIEW).save_index()
    with open_store(store.path) as reading:
        reader = reading.reader(upkeep.VIEW)
        keys = keys_of_texts(TEXTS)
        assert reader.contains(keys).all(), "from the index; no shard is open yet"
        compact_store(store, options=NOW)
        features = reader.gather(reader.locate(keys))
        for text, matrix in zip(TEXTS, features, strict=True):
            np.testing.assert_array_equal(matrix, upkeep.tokens_of(text)[0])


def test_places_found_before_are_good_after_the_files_are_gone(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    _put_all(store, upkeep)
    with open_store(store.path) as reading:
        reader = reading.reader(upkeep.VIEW)
        reader._max_open = 1
        refs = reader.locate(keys_of_texts(TEXTS))
        compact_store(store, options=NOW)
        features = reader.gather(refs)
        for text, matrix in zip(TEXTS, features, strict=True):
            np.testing.assert_array_equal(matrix, upkeep.tokens_of(text)[0])


def test_second_compact_at_once_is_refused(store: FeatureStore, upkeep: ModuleType) -> None:
    _put_all(store, upkeep)
    with maintenance_lock(store.layout), pytest.raises(StoreLockedError):
        compact_store(store)
    assert _compact(store).rewritten == 10


def test_damaged_shard_stops_it_before_anything_is_retired(
    store: FeatureStore, upkeep: ModuleType
) -> None:
    _put_all(store, upkeep)
    record = store.catalog.shards()[3]
    path = store.layout.shard_path(record.view, record.digest)
    content = bytearray(path.read_bytes())
    content[-1] ^= 4
    path.write_bytes(content[:-1])
    before = store.catalog.shards()
    with pytest.raises(CorruptShardError, match="verify --fix"):
        compact_store(store, options=NOW)
    assert store.catalog.shards() == before


@pytest.mark.parametrize("action", ["compact", "gc", "forget", "push"])
def test_killed_at_some_of_its_steps_it_loses_nothing_and_is_finished_by_the_next(
    tmp_path: Path, upkeep: ModuleType, action: str
) -> None:
    done = subprocess.run(
        [sys.executable, str(upkeep.__file__), action, str(tmp_path), "6"],
        capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(Path(embedcache.__file__).parents[1]), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    moments, killed = map(int, done.stdout.split())
    assert moments > 50
    assert killed >= 6


# Which texts are in which sets


def _keys(*first_bytes: int) -> Keys:
    """Keys that begin with these bytes, and are zero after."""
    keys = np.zeros((len(first_bytes), 16), np.uint8)
    keys[:, 0] = first_bytes
    return keys


@pytest.fixture(params=[1, 5, 1 << 21])
def _range_keys(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many ranges of keys as keys, with several, and with one."""
    monkeypatch.setattr(membership, "_RANGE_KEYS", request.param)
    monkeypatch.setattr(membership, "_BLOCK_KEYS", 3)


@pytest.mark.usefixtures("_range_keys")
def test_ranks_and_first_copies_are_those_of_plain_dicts() -> None:
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 256, (200, 16), dtype=np.uint8)
    # Keys that agree in all but the last byte, and the least and the largest ones.
    whole[:20] = whole[0]
    whole[:20, 15] = np.arange(20)
    whole[20], whole[21] = 0, 255
    shards = [whole[rng.permutation(200)[:80]] for _ in range(4)] + [whole[:0]]
    wanted = [(whole[rng.integers(0, 200, 50)], rank) for rank in (2, 0, 7)]
    ranks: dict[bytes, int] = {}
    for keys, rank in wanted:
        for key in map(bytes, keys):
            ranks[key] = max(rank, ranks.get(key, NOWHERE))
    ranked = [RankedKeys(_opener(keys), len(keys), rank) for keys, rank in wanted]
    found = ranks_of([_opener(keys) for keys in shards], 320, ranked)
    assert [array.tolist() for array in found] == [
        [ranks.get(key, NOWHERE) for key in map(bytes, keys)] for keys in shards
    ]
    seen: set[bytes] = set()
    expected = []
    for keys in shards:
        expected.append([key not in seen for key in map(bytes, keys)])
        seen |= set(map(bytes, keys))
    masks = first_copies([_opener(keys) for keys in shards], 320)
    assert [mask.tolist() for mask in masks] == expected


def _opener(keys: Keys) -> Callable[[], Keys]:
    return lambda: keys


@pytest.mark.usefixtures("_range_keys")
def test_nothing_has_no_ranks_and_no_copies() -> None:
    assert ranks_of([], 0, []) == []
    assert first_copies([], 0) == []
    (ranks,) = ranks_of([lambda: _keys(1, 2)], 2, [])
    assert ranks.tolist() == [NOWHERE, NOWHERE]
