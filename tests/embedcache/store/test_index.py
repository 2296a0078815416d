"""The key index against a dict; lost, damaged and stale ones; how much is written."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

import embedcache
import embedcache.store.keyindex.index as index_module
import embedcache.store.keyindex.index_checks as checks_module
import embedcache.store.keyindex.segment as segment_module
from embedcache.errors import CorruptShardError, DamagedIndexError, StoreError
from embedcache.keys import KEY_BYTES, Keys, sort_order
from embedcache.store.keyindex.index import ViewIndex, remove_index, save_quietly, segment_paths
from embedcache.store.keyindex.index_checks import IndexChecks
from embedcache.store.keyindex.segment import Segment, write_segment
from embedcache.store.keyindex.sorted_keys import SortedKeys
from embedcache.store.publish import PendingFile
from embedcache.store.reader import ViewReader
from embedcache.store.store import FeatureStore, open_store

NUM_RANDOM_DAMAGES = 150
PROGRAM = Path(__file__).with_name("index_programs.py")

# Halves of few values: many keys agree in the first 8 bytes, and some in the last.
HALF = st.sampled_from([0, 1, 2, 255, 256, 1 << 63, (1 << 64) - 1])
KEY = st.tuples(HALF, HALF).map(lambda pair: (pair[0] << 64 | pair[1]).to_bytes(16, "big"))

Where = dict[bytes, list[tuple[str, int]]]


def _digest(number: int) -> str:
    return f"{number:032x}"


def _keys(keys: Sequence[bytes]) -> Keys:
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)


def _random(seed: int, count: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [rng.bytes(KEY_BYTES) for _ in range(count)]


def _add(index: ViewIndex, number: int, keys: Sequence[bytes], where: Where) -> ViewIndex:
    """The index with one more shard, and where its keys lie."""
    ordered = _keys(keys)[sort_order(_keys(keys))]
    for row, key in enumerate(ordered):
        where.setdefault(key.tobytes(), []).append((_digest(number), row))
    return index.with_shard(_digest(number), ordered)


def _index(shards: Sequence[Sequence[bytes]]) -> tuple[ViewIndex, Where]:
    index, where = ViewIndex.empty(), Where()
    for number, keys in enumerate(shards):
        index = _add(index, number, keys, where)
    return index, where


def _save(index: ViewIndex, folder: Path) -> ViewIndex:
    return index.save(folder / "view.index", tmp_folder=folder / "tmp")


def _load(folder: Path) -> ViewIndex:
    return ViewIndex.load(folder / "view.index")


def _assert_finds(index: ViewIndex, where: Where, others: Sequence[bytes] = ()) -> None:
    """Every key lies where it may, and the others nowhere but there."""
    queries = [*where, *others]
    numbers, rows = index.locate(_keys(queries))
    assert numbers.dtype == rows.dtype == np.int64
    shards = index.shards
    for query, number, row in zip(queries, numbers.tolist(), rows.tolist(), strict=True):
        if query in where:
            assert (shards[number], row) in where[query]
        else:
            assert (number, row) == (-1, -1)


# Lookups


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.lists(KEY, unique=True, max_size=12), st.booleans()), max_size=6),
    st.lists(KEY, max_size=20),
)
def test_index_finds_what_a_dict_finds(
    tmp_path_factory: pytest.TempPathFactory,
    shards: list[tuple[list[bytes], bool]],
    queries: list[bytes],
) -> None:
    folder = tmp_path_factory.mktemp("index")
    index, where = ViewIndex.empty(), Where()
    for number, (keys, is_saved) in enumerate(shards):
        index = _add(index, number, keys, where)
        if is_saved:
            index = _save(index, folder)
        _assert_finds(index, where, queries)
    index = _save(index, folder)
    assert _load(folder).shards == index.shards
    _assert_finds(_load(folder), where, queries)


@pytest.mark.parametrize("chunk_keys", [1, 7, 1 << 14])
def test_random_keys_are_found_in_every_segment_and_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_keys: int
) -> None:
    monkeypatch.setattr(index_module, "_CHUNK_KEYS", chunk_keys)
    monkeypatch.setattr(index_module, "_SMALL_KEYS", 10)
    monkeypatch.setattr(index_module, "_MERGED_IN_MEMORY_KEYS", 0)
    monkeypatch.setattr(segment_module, "_BLOCK_RECORDS", 16)
    monkeypatch.setattr(segment_module, "_BLOCK_ENTRIES", 8)
    index, where = ViewIndex.empty(), Where()
    for number, count in enumerate([2000, 300, 40, 9, 5]):
        index = _add(index, number, _random(number, count), where)
        if number < 3:
            index = _save(index, tmp_path)
    assert [len(segment) for segment in index.saved] == [2000, 300, 40]
    assert [len(segment) for segment in index.fresh] == [9, 5]
    shuffled = list(where)
    np.random.default_rng(0).shuffle(shuffled)
    _assert_finds(index, {key: where[key] for key in shuffled}, _random(99, 500))
    _assert_finds(_load(tmp_path), {key: where[key] for key in shuffled[:0]}, _random(99, 500))


@pytest.mark.parametrize("is_saved", [False, True])
def test_keys_that_agree_in_their_first_half_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_saved: bool
) -> None:
    monkeypatch.setattr(segment_module, "_BLOCK_RECORDS", 16)
    keys = [
        half + number.to_bytes(8, "big")
        for half in (bytes(8), b"\xff" * 8)
        for number in range(300)
    ]
    index, where = _index([keys, _random(0, 50)])
    if is_saved:
        _save(index, tmp_path)
        index = _load(tmp_path)
    nowhere = [bytes(8) + b"\xff" * 8, b"\xff" * 16, bytes(7) + b"\1" + bytes(8)]
    _assert_finds(index, where, nowhere)
    assert index.locate(_keys([keys[299], keys[0], *nowhere]))[1].tolist() == [299, 0, -1, -1, -1]


def test_empty_index_finds_nothing(tmp_path: Path) -> None:
    for index in (ViewIndex.empty(), _index([[]])[0], _save(_index([[], []])[0], tmp_path)):
        numbers, rows = index.locate(_keys([bytes(16), b"\xff" * 16]))
        assert (numbers.tolist(), rows.tolist()) == ([-1, -1], [-1, -1])
        assert index.locate(_keys([]))[0].shape == (0,)
        assert index.num_keys == 0


def test_threads_may_search_an_index_that_was_just_opened(tmp_path: Path) -> None:
    shards = [_random(number, 4000) for number in range(3)]
    index, where = _index(shards)
    _save(index, tmp_path)
    opened = _load(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        for searched in [pool.submit(_assert_finds, opened, where) for _ in range(8)]:
            searched.result()


# Merging


def test_merging_keeps_each_key_once(tmp_path: Path) -> None:
    keys = [number.to_bytes(16, "big") for number in range(10)]
    index, where = _index([keys, keys[5:], keys[:3]])
    assert index.needs_merge
    saved = _save(index, tmp_path)
    assert saved.num_keys == 10
    assert not saved.needs_merge
    _assert_finds(saved, where)


@pytest.mark.parametrize("piece_keys", [1, 7, 1 << 20])
@pytest.mark.parametrize("block_items", [1, 8, 1024])
def test_index_is_merged_piece_by_piece_as_it_is_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_keys: int, block_items: int
) -> None:
    monkeypatch.setattr(segment_module, "_PIECE_KEYS", piece_keys)
    monkeypatch.setattr(segment_module, "_BLOCK_RECORDS", block_items)
    monkeypatch.setattr(segment_module, "_BLOCK_ENTRIES", block_items)
    shards = [_random(size, size) for size in (20, 0, 33, 1)]
    ends = [bytes(16), b"\xff" * 16, bytes(8) + b"\xff" * 8, b"\xff" * 8 + bytes(8)]
    ordered = [_keys(keys)[sort_order(_keys(keys))] for keys in (*shards, ends, shards[0][:5])]
    segments = [Segment.of_shard(_digest(number), keys) for number, keys in enumerate(ordered)]
    expected = Segment.merged(segments)
    write_segment(segments, tmp_path / "view.index", tmp_folder=tmp_path / "tmp")
    (found,) = _load(tmp_path).saved
    assert found.shards == expected.shards
    assert len(found) == 58
    np.testing.assert_array_equal(found.keys.words, expected.keys.words)
    entries = found.keys.words.reshape(-1, 3)[:-1, 0] >> np.uint64(64 - found.keys.num_bits)
    counts = [int((entries < entry).sum()) for entry in range(len(found.keys.starts))]
    assert found.keys.starts.tolist() == counts
    found.find(found.keys.words[::3], found.keys.words[1::3])
    assert not list((tmp_path / "tmp").iterdir())


class _Counter:
    """Counts the bytes that are written to files of a store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_bytes = 0
        real = PendingFile.write_at

        def count(file: PendingFile, offset: int, buffer: bytes) -> None:
            self.num_bytes += memoryview(buffer).nbytes
            real(file, offset, buffer)

        monkeypatch.setattr(PendingFile, "write_at", count)


def test_small_shards_do_not_make_a_large_index_be_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_SMALL_KEYS", 64)
    written = _Counter(monkeypatch)
    index, where = ViewIndex.empty(), Where()
    index = _save(_add(index, 0, _random(0, 20_000), where), tmp_path)
    base_bytes = written.num_bytes
    assert base_bytes < 30 * 20_000
    written.num_bytes = 0
    sizes = np.random.default_rng(0).integers(0, 60, 120).tolist()
    for number, size in enumerate(sizes, start=1):
        index = _save(_add(index, number, _random(number, size), where), tmp_path)
        counts = [len(segment) for segment in index.saved]
        assert len(counts) <= 6
        assert all(large > 4 * small for large, small in itertools.pairwise(counts[:-1]))
        assert sum(count <= 64 for count in counts) <= 1
    # To write the base anew each time would be 120 times its bytes.
    assert written.num_bytes < 8 * base_bytes
    assert len([path for path in segment_paths(tmp_path / "view.index") if path.exists()]) <= 6
    _assert_finds(_load(tmp_path), where, _random(999, 100))


def test_a_key_is_written_a_logarithm_of_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_SMALL_KEYS", 0)
    written = _Counter(monkeypatch)
    index = ViewIndex.empty()
    num_saves, size = 256, 20
    for number in range(num_saves):
        index = _save(_add(index, number, _random(number, size), Where()), tmp_path)
    # Once for each time its segment grew by a quarter, of 28 bytes and the header's share.
    times = np.log(num_saves) / np.log(1.25)
    num_keys = num_saves * size
    assert num_keys * 24 * 2 < written.num_bytes < num_keys * 28 * times + 40_000 * num_saves
    assert index.num_keys == num_keys


def test_shards_that_come_in_memory_make_few_segments() -> None:
    index, where = _index([_random(number, 3) for number in range(200)])
    assert len(index.fresh) <= 8
    assert index.num_unmerged_keys == 600
    assert len(index.shards) == 200
    _assert_finds(index, where)


def test_a_segment_after_the_last_file_is_merged_with_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_SMALL_KEYS", 0)
    monkeypatch.setattr(index_module, "_MAX_SEGMENTS", 2)
    index, where = ViewIndex.empty(), Where()
    for number, size in enumerate([500, 50, 5, 1]):
        index = _save(_add(index, number, _random(number, size), where), tmp_path)
        assert len(index.saved) <= 2
    assert [len(segment) for segment in index.saved] == [500, 56]
    _assert_finds(_load(tmp_path), where)


# Files


@pytest.mark.parametrize("shards", [[[]], [[b"k" * 16], [], [b"j" * 16, b"l" * 16]]])
def test_saved_index_is_mapped_as_it_was(tmp_path: Path, shards: list[list[bytes]]) -> None:
    index, where = _index(shards)
    _save(index, tmp_path)
    loaded = _load(tmp_path)
    assert set(loaded.shards) == set(index.shards)
    assert not loaded.needs_merge
    _assert_finds(loaded, where, [bytes(16)])


def test_an_index_without_news_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = _save(_index([_random(0, 9)])[0], tmp_path)
    written = _Counter(monkeypatch)
    assert _save(saved, tmp_path) is saved
    assert _save(ViewIndex.empty(), tmp_path) == ViewIndex.empty()
    assert written.num_bytes == 0


def test_opening_and_one_key_read_little_and_nothing_is_compared_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = _random(0, 40_000)
    index, where = _index([keys])
    _save(index, tmp_path)
    compared: list[int] = []
    real = checks_module.checksum

    def count(content: np.ndarray) -> int:  # type: ignore[type-arg]
        compared.append(content.nbytes)
        return real(content)

    monkeypatch.setattr(checks_module, "checksum", count)
    loaded = _load(tmp_path)
    assert sum(compared) <= 24 * 1024
    loaded.locate(_keys(keys[:1]))
    assert sum(compared) <= 2 * 24 * 1024 + 16 * 1024
    _assert_finds(loaded, where)
    (size,) = [path.stat().st_size for path in tmp_path.glob("*.index*")]
    assert 0.99 * size < sum(compared) < size
    compared.clear()
    _assert_finds(loaded, where)
    loaded.save(tmp_path / "other.index", tmp_folder=tmp_path / "tmp")
    assert compared == []


def _saved(folder: Path) -> tuple[Path, bytes, Where]:
    index, where = _index([[number.to_bytes(16, "little") for number in range(20)], _random(0, 9)])
    _save(index, folder)
    path = folder / "view.index"
    return path, path.read_bytes(), where


def _is_empty(path: Path) -> bool:
    return ViewIndex.load(path).shards == ()


def test_index_cut_short_or_longer_is_empty(tmp_path: Path) -> None:
    path, content, _ = _saved(tmp_path)
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        assert _is_empty(path)
    path.write_bytes(content + b"\0")
    assert _is_empty(path)
    path.unlink()
    assert _is_empty(path)
    path.mkdir()
    assert _is_empty(path)


@pytest.mark.parametrize("block_items", [4, 1024])
def test_index_with_any_flipped_byte_is_refused_or_answers_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_items: int
) -> None:
    monkeypatch.setattr(segment_module, "_BLOCK_RECORDS", block_items)
    monkeypatch.setattr(segment_module, "_BLOCK_ENTRIES", block_items)
    path, content, where = _saved(tmp_path)
    bits = np.random.default_rng(0).integers(0, 8, len(content)).tolist()
    some = dict(itertools.islice(where.items(), 3))
    num_untouched = num_healed = 0
    for position, bit in enumerate(bits):
        damaged = bytearray(content)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        if _is_empty(path):
            continue
        with suppress(DamagedIndexError):
            _assert_finds(ViewIndex.load(path), some)
            num_untouched += 1
        with pytest.raises(DamagedIndexError, match=r"view\.index: the index is damaged; delete"):
            _assert_finds(ViewIndex.load(path), where, _random(1, 60))
        if position % 5:
            continue
        more = Where(where)
        index = _add(ViewIndex.load(path), 9, _random(9, 3), more)
        try:
            index.save(path, tmp_folder=tmp_path / "tmp")
        except DamagedIndexError:
            assert path.read_bytes() == damaged
            continue
        # Merging reads the records; what only leads to them is made anew.
        num_healed += 1
        _assert_finds(ViewIndex.load(path), more, _random(1, 50))
    assert num_healed < len(content) / 50
    assert (num_untouched > 0) == (block_items == 4), "small blocks: some are not needed"
    path.write_bytes(content)
    _assert_finds(ViewIndex.load(path), where)


def test_flipped_bytes_would_be_used_if_blocks_were_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IndexChecks, "_compare", lambda *_: None)
    path, content, where = _saved(tmp_path)
    num_wrong = 0
    for position in range(64, 264):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        try:
            _assert_finds(ViewIndex.load(path), where)
        except AssertionError:
            num_wrong += 1
        except DamagedIndexError:
            pass  # Only because it would look behind the end.
    assert num_wrong > 50


def test_quiet_saving_removes_an_index_that_is_damaged(tmp_path: Path) -> None:
    path, content, _ = _saved(tmp_path)
    path.write_bytes(b"\x01" * 8 + content[8:])
    index, where = ViewIndex.load(path), Where()
    assert len(index.shards) == 2
    index = _add(index, 9, _random(9, 3), where)
    assert save_quietly(index, path, tmp_folder=tmp_path / "tmp") is index
    assert not path.exists()
    assert save_quietly(index, path, tmp_folder=tmp_path / "tmp") is index


def test_random_bytes_for_an_index_are_empty(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "view.index"
    for number in range(NUM_RANDOM_DAMAGES):
        content = rng.bytes(int(rng.integers(0, 200)))
        if number % 2:
            content += (number % 9).to_bytes(8, "little") + rng.bytes(8) + b"ecindex2"
        path.write_bytes(content)
        assert _is_empty(path)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{}",
        b'{"format":"embedcache-index-2","count":-1,"num_bits":1,"shards":[]}',
        b'{"format":"embedcache-index-2","count":1e999,"num_bits":1,"shards":[]}',
        b'{"format":"embedcache-index-2","count":1,"num_bits":99,"shards":[]}',
        b'{"format":"embedcache-index-2","count":0,"num_bits":1,"shards":5}',
        b'{"format":"embedcache-index-2","count":"0","num_bits":1,"shards":[]}',
        b'{"format":"embedcache-index-9","count":0,"num_bits":1,"shards":[]}',
        b"[" * 100_000,
    ],
)
def test_odd_header_is_empty(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "view.index"
    path.write_bytes(
        bytes(48) + header + len(header).to_bytes(8, "little") + bytes(8) + b"ecindex2"
    )
    assert _is_empty(path)


def test_records_without_the_one_that_ends_a_walk_are_refused(tmp_path: Path) -> None:
    path, content, _ = _saved(tmp_path)
    keys = ViewIndex.load(path).saved[0].keys
    start, stop = keys.starts.nbytes, keys.starts.nbytes + keys.words.nbytes
    covered = slice(stop, len(content) - 24)
    for end in (b"\xff" * 24, bytes(24)):
        changed = bytearray(content)
        changed[stop - 24 : stop] = end
        checksum = xxhash.xxh3_64_intdigest(changed[start:stop])
        changed[stop : stop + 8] = checksum.to_bytes(8, "little")
        changed[-16:-8] = xxhash.xxh3_64_intdigest(changed[covered]).to_bytes(8, "little")
        path.write_bytes(changed)
        assert _is_empty(path) == (end == bytes(24))


def test_index_of_the_first_format_is_made_again(tmp_path: Path) -> None:
    header = b'{"format": "embedcache-index-1", "count": 1, "shards": ["a"], "checksum": 1}'
    path = tmp_path / "view.index"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(24))
    assert _is_empty(path)
    index, where = _index([_random(0, 9)])
    _save(index, tmp_path)
    _assert_finds(_load(tmp_path), where)


def test_index_that_cannot_be_saved_is_no_error_for_a_reader(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "view.index"
    index, _ = _index([_random(0, 3)])
    with pytest.raises(StoreError):
        index.save(path, tmp_folder=tmp_path)
    assert save_quietly(index, path, tmp_folder=tmp_path) is index
    remove_index(path)


# Several files, several processes


def _two_segments(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ViewIndex, Where]:
    monkeypatch.setattr(index_module, "_SMALL_KEYS", 0)
    index, where = ViewIndex.empty(), Where()
    for number, size in enumerate([500, 50]):
        index = _save(_add(index, number, _random(number, size), where), folder)
    assert [path.name for path in sorted(folder.glob("*.index*"))] == ["view.index", "view.index.1"]
    return index, where


def test_what_one_lost_file_covered_is_not_covered_and_the_rest_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, where = _two_segments(tmp_path, monkeypatch)
    (tmp_path / "view.index").unlink()
    left = _load(tmp_path)
    assert left.shards == (_digest(1),)
    _assert_finds(
        left, {key: places for key, places in where.items() if places[0][0] == _digest(1)}
    )
    again = _save(_add(left, 0, _random(0, 500), {}), tmp_path)
    assert again.num_keys == 550
    assert [path.name for path in tmp_path.glob("*.index*")] == ["view.index"]
    _assert_finds(_load(tmp_path), where)


def test_a_few_keys_do_not_take_the_file_of_a_segment_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, where = _two_segments(tmp_path, monkeypatch)
    (tmp_path / "view.index").unlink()
    index = _save(_add(_load(tmp_path), 2, _random(2, 3), where), tmp_path)
    names = [path.name for path in sorted(tmp_path.glob("*.index*"))]
    assert names == ["view.index.1", "view.index.2"]
    assert _load(tmp_path).shards == index.shards == (_digest(1), _digest(2))
    left = {key: places for key, places in where.items() if places[0][0] in index.shards}
    _assert_finds(_load(tmp_path), left)


def test_a_segment_that_names_a_shard_that_is_gone_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _two_segments(tmp_path, monkeypatch)
    path = tmp_path / "view.index"
    for live in ([], [_digest(0)], [_digest(1)], [_digest(0), _digest(1)]):
        assert list(ViewIndex.load(path, live=live).shards) == live


def test_a_segment_that_was_merged_but_not_removed_is_left_out_and_then_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, where = _two_segments(tmp_path, monkeypatch)
    stale = (tmp_path / "view.index.1").read_bytes()
    _save(_add(index, 2, _random(2, 400), where), tmp_path)
    (tmp_path / "view.index.1").write_bytes(stale)
    loaded = _load(tmp_path)
    assert (len(loaded.saved), loaded.num_keys) == (1, 950)
    _assert_finds(loaded, where)
    (tmp_path / "view.index.7").write_bytes(stale)
    _save(_add(_load(tmp_path), 3, _random(3, 2), where), tmp_path)
    assert [path.name for path in sorted(tmp_path.glob("*.index*"))] == [
        "view.index",
        "view.index.1",
    ]
    _assert_finds(_load(tmp_path), where)


def test_two_that_save_at_the_same_time_leave_an_index_that_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, where = _two_segments(tmp_path, monkeypatch)
    ones, others = Where(where), Where(where)
    one = _save(_add(index, 2, _random(2, 700), ones), tmp_path)
    other = _save(_add(index, 3, _random(3, 9), others), tmp_path)
    _assert_finds(one, ones)
    _assert_finds(other, others)
    left = _load(tmp_path)
    _assert_finds(
        left, {key: at for key, at in {**ones, **others}.items() if at[0][0] in left.shards}
    )


def test_whoever_is_killed_while_saving_leaves_an_index_that_is_right(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(embedcache.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, PROGRAM, tmp_path], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    steps = list(map(int, done.stdout.split()))
    assert len(steps) == 5
    assert min(steps) > 20


# In a store


def _index_path(store: FeatureStore, programs: ModuleType) -> Path:
    return store.layout.index_path(programs.VIEW.fingerprint)


def _reopened(store: FeatureStore) -> FeatureStore:
    store.close()
    return open_store(store.path, create=False)


def test_saved_index_spares_reading_the_shards(
    store: FeatureStore, programs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.put(store, ["a", "b"])
    programs.put(store, ["c"])
    store.reader(programs.VIEW).save_index()
    opened: list[str] = []
    real = ViewReader._open

    def spy(reader: ViewReader, digest: str) -> object:
        opened.append(digest)
        return real(reader, digest)

    monkeypatch.setattr(ViewReader, "_open", spy)
    with _reopened(store) as again:
        assert again.contains(programs.VIEW, ["a", "c", "x"]).tolist() == [True, True, False]
        assert opened == []
        programs.put(again, ["d"])
        assert again.contains(programs.VIEW, ["a", "d"]).all()
        assert len(opened) == 1


@pytest.mark.parametrize("damage", ["lost", "cut", "random", "another view's"])
def test_lost_or_damaged_index_is_made_again(
    store: FeatureStore, programs: ModuleType, damage: str
) -> None:
    programs.put(store, ["a", "b"])
    programs.put(store, ["c"])
    other = replace(programs.VIEW, max_tokens=9)
    programs.put(store, ["x"], view=other)
    for view in (programs.VIEW, other):
        store.reader(view).save_index()
    path = _index_path(store, programs)
    content = path.read_bytes()
    if damage == "lost":
        path.unlink()
    elif damage == "another view's":
        path.write_bytes(store.layout.index_path(other.fingerprint).read_bytes())
    else:
        path.write_bytes(content[:-9] if damage == "cut" else b"\x9a" * len(content))
    with _reopened(store) as again:
        programs.assert_served(again, ["a", "b", "c"])
        assert not again.contains(programs.VIEW, ["x"]).any()
        again.reader(programs.VIEW).save_index()
        assert len(ViewIndex.load(path).shards) == 2


def test_index_that_names_a_dead_shard_is_made_again(
    store: FeatureStore, programs: ModuleType
) -> None:
    programs.put(store, ["a", "b"])
    programs.put(store, ["c"])
    store.reader(programs.VIEW).save_index()
    dead = store.catalog.shards()[0]
    store.catalog.remove_shard(dead.digest)
    store.layout.shard_path(dead.view, dead.digest).unlink()
    for opened in (store, _reopened(store)):
        assert opened.contains(programs.VIEW, ["a", "c"]).tolist() == [False, True]
        programs.assert_served(opened, ["c"])
        opened.close()


def test_index_that_points_at_the_wrong_row_serves_nothing(
    store: FeatureStore, programs: ModuleType
) -> None:
    """A whole index of another state: its checksum fits, its rows do not."""
    programs.put(store, ["a", "b", "c"])
    (record,) = store.catalog.shards()
    keys = store.reader(programs.VIEW)._shard(0).keys
    path = _index_path(store, programs)
    for wrong in (keys[[1, 0, 2]], np.concatenate([keys, np.full((1, 16), 255, np.uint8)])):
        order = sort_order(wrong)
        words = SortedKeys.of_shard(wrong[order]).words.copy()
        words[2:-3:3] = order
        segment = Segment(SortedKeys.of_records(words[:-3].reshape(-1, 3)), (record.digest,))
        remove_index(path)
        ViewIndex((), (segment,)).save(path, tmp_folder=store.layout.tmp)
        with _reopened(store) as again:
            reader = again.reader(programs.VIEW)
            with pytest.raises(CorruptShardError, match="index is damaged; delete this file"):
                reader.locate(wrong)


def _damaged_blocks(store: FeatureStore, programs: ModuleType) -> None:
    """Records of a saved index changed in place, so that opening it does not notice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment_module, "_BLOCK_RECORDS", 1)
        store.reader(programs.VIEW).save_index()
    path = _index_path(store, programs)
    content = bytearray(path.read_bytes())
    starts_bytes = 4 << ViewIndex.load(path).saved[0].keys.num_bits
    for position in range(starts_bytes, starts_bytes + 24 * len(ViewIndex.load(path).saved[0])):
        content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("first_use", ["contains", "get", "save"])
def test_index_whose_blocks_are_damaged_is_made_again(
    store: FeatureStore,
    programs: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    first_use: str,
) -> None:
    monkeypatch.setattr(segment_module, "_BLOCK_RECORDS", 1)
    programs.put(store, ["a", "b"])
    programs.put(store, ["c"])
    _damaged_blocks(store, programs)
    path = _index_path(store, programs)
    assert len(ViewIndex.load(path).shards) == 2, "opening does not read the records"
    with _reopened(store) as again:
        if first_use == "contains":
            assert again.contains(programs.VIEW, ["a", "x", "c"]).tolist() == [True, False, True]
        elif first_use == "save":
            programs.put(again, ["d"])
            again.reader(programs.VIEW).save_index()
        programs.assert_served(again, ["a", "b", "c"])
        assert not path.exists()
        again.reader(programs.VIEW).save_index()
        assert len(ViewIndex.load(path).shards) >= 2
    with open_store(store.path) as again:
        programs.assert_served(again, ["a", "b", "c"])
