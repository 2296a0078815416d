"""The key index against a dict; lost, damaged and stale ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embedcache.store.index as index_module
from embedcache.errors import CorruptShardError, StoreError
from embedcache.keys import KEY_BYTES, Keys, sort_order
from embedcache.store.index import SortedKeys, ViewIndex, save_quietly
from embedcache.store.reader import ViewReader
from embedcache.store.store import FeatureStore, open_store

NUM_RANDOM_DAMAGES = 150

# Halves of few values: many keys agree in the first 8 bytes, and some in the last.
HALF = st.sampled_from([0, 1, 2, 255, 256, 1 << 63, (1 << 64) - 1])
KEY = st.tuples(HALF, HALF).map(lambda pair: (pair[0] << 64 | pair[1]).to_bytes(16, "big"))


def _merged(index: ViewIndex) -> ViewIndex:
    """The same keys in one part, merged at once."""
    return ViewIndex(index.shards, (SortedKeys.merged(index.parts),), len(index.shards))


def _keys(keys: list[bytes]) -> Keys:
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)


def _index(shards: list[list[bytes]]) -> tuple[ViewIndex, dict[bytes, list[tuple[int, int]]]]:
    """An index of shards, and where each key lies."""
    index, where = ViewIndex.empty(), dict[bytes, list[tuple[int, int]]]()
    for number, keys in enumerate(shards):
        ordered = _keys(keys)[sort_order(_keys(keys))]
        index = index.with_shard(f"{number:032x}", ordered)
        for row, key in enumerate(ordered):
            where.setdefault(key.tobytes(), []).append((number, row))
    return index, where


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(KEY, unique=True, max_size=12), max_size=5),
    st.lists(KEY, max_size=20),
    st.integers(0, 5),
)
def test_index_finds_what_a_dict_finds(
    shards: list[list[bytes]], queries: list[bytes], num_based: int
) -> None:
    base, _ = _index(shards[:num_based])
    index = _merged(base)
    for number, keys in enumerate(shards[num_based:], start=len(shards[:num_based])):
        index = index.with_shard(f"{number:032x}", _keys(keys)[sort_order(_keys(keys))])
    _, where = _index(shards)
    queries += list(where)
    for asked in (index, _merged(index)):
        numbers, rows = asked.locate(_keys(queries))
        for query, number, row in zip(queries, numbers.tolist(), rows.tolist(), strict=True):
            assert (number, row) in where.get(query, [(-1, -1)])


def test_keys_that_agree_in_their_first_half_are_told_apart() -> None:
    keys = [bytes(8) + number.to_bytes(8, "big") for number in range(300)]
    index, _ = _index([keys])
    numbers, rows = index.locate(_keys([keys[299], keys[0], bytes(8) + b"\xff" * 8]))
    assert numbers.tolist() == [0, 0, -1]
    assert rows.tolist() == [299, 0, -1]


def test_merging_keeps_each_key_once() -> None:
    keys = [number.to_bytes(16, "big") for number in range(10)]
    index, _ = _index([keys, keys[5:], keys[:3]])
    (base,) = _merged(index).parts
    assert len(base) == 10
    assert not _merged(index).needs_merge
    assert index.needs_merge


@pytest.mark.parametrize("piece_keys", [1, 7, 1 << 20])
def test_index_is_merged_piece_by_piece_as_it_is_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_keys: int
) -> None:
    monkeypatch.setattr(index_module, "_PIECE_KEYS", piece_keys)
    rng = np.random.default_rng(0)
    shards = [[rng.bytes(16) for _ in range(size)] for size in (20, 0, 33, 1)]
    ends = [bytes(16), b"\xff" * 16, bytes(8) + b"\xff" * 8, b"\xff" * 8 + bytes(8)]
    index, _ = _index([*shards, ends, shards[0][:5]])
    index.save(tmp_path / "view.index", tmp_folder=tmp_path / "tmp")
    (expected,) = _merged(index).parts
    (saved,) = ViewIndex.load(tmp_path / "view.index").parts
    assert len(saved) == 58
    for column in ("high", "low", "shards", "rows"):
        np.testing.assert_array_equal(getattr(saved, column), getattr(expected, column))
    assert not list((tmp_path / "tmp").iterdir())


def test_empty_index_finds_nothing() -> None:
    for index in (ViewIndex.empty(), _merged(ViewIndex.empty())):
        numbers, rows = index.locate(_keys([bytes(16)]))
        assert (numbers.tolist(), rows.tolist()) == ([-1], [-1])
        assert index.locate(_keys([]))[0].shape == (0,)
    assert len(SortedKeys.empty()) == 0


@pytest.mark.parametrize("shards", [[], [[]], [[b"k" * 16], [], [b"j" * 16, b"l" * 16]]])
def test_saved_index_is_mapped_as_it_was(tmp_path: Path, shards: list[list[bytes]]) -> None:
    index, where = _index(shards)
    path = tmp_path / "index" / "view.index"
    _merged(index).save(path, tmp_folder=tmp_path / "tmp")
    loaded = ViewIndex.load(path)
    assert loaded.shards == index.shards
    assert not loaded.needs_merge
    numbers, rows = loaded.locate(_keys([*where, bytes(16)]))
    expected = [places[0] for places in where.values()]
    assert list(zip(numbers.tolist(), rows.tolist(), strict=True)) == [*expected, (-1, -1)]


def _saved(folder: Path) -> tuple[Path, bytes]:
    index, _ = _index([[number.to_bytes(16, "little") for number in range(40)], [b"x" * 16]])
    path = folder / "view.index"
    _merged(index).save(path, tmp_folder=folder / "tmp")
    return path, path.read_bytes()


def _is_empty(path: Path) -> bool:
    return ViewIndex.load(path).shards == ()


def test_index_cut_short_or_longer_is_empty(tmp_path: Path) -> None:
    path, content = _saved(tmp_path)
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        assert _is_empty(path)
    path.write_bytes(content + b"\0")
    assert _is_empty(path)
    path.unlink()
    assert _is_empty(path)
    path.mkdir()
    assert _is_empty(path)


def test_index_with_any_flipped_byte_is_empty_or_the_same(tmp_path: Path) -> None:
    path, content = _saved(tmp_path)
    whole = ViewIndex.load(path)
    bits = np.random.default_rng(0).integers(0, 8, len(content)).tolist()
    num_same = 0
    for position, bit in enumerate(bits):
        damaged = bytearray(content)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        loaded = ViewIndex.load(path)
        if loaded.shards:
            num_same += 1
            assert loaded.shards == whole.shards
            assert bytes(loaded.parts[0].high) == bytes(whole.parts[0].high)
            assert bytes(loaded.parts[0].rows) == bytes(whole.parts[0].rows)
    assert num_same < 10, "only in the header's padding and names"


def test_flipped_bytes_would_be_used_if_the_checksum_were_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_checksum", lambda *_: 0)
    path, content = _saved(tmp_path)
    path.write_bytes(content[:-1] + b"\xff")
    assert not _is_empty(path)


def test_random_bytes_for_an_index_are_empty(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "view.index"
    for number in range(NUM_RANDOM_DAMAGES):
        content = rng.bytes(int(rng.integers(0, 200)))
        if number % 2:
            content = (
                len(content).to_bytes(8, "little") + b'{"format": "embedcache-index-1"}' + content
            )
        path.write_bytes(content)
        assert _is_empty(path)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{}",
        b'{"format":"embedcache-index-1","count":-1,"shards":[],"checksum":0}',
        b'{"format":"embedcache-index-1","count":1e999,"shards":[],"checksum":0}',
        b'{"format":"embedcache-index-1","count":0,"shards":5,"checksum":0}',
        b'{"format":"embedcache-index-9","count":0,"shards":[],"checksum":0}',
        b"[" * 100_000,
    ],
)
def test_odd_header_is_empty(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "view.index"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert _is_empty(path)


def test_index_that_cannot_be_saved_is_no_error_for_a_reader(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "view.index"
    with pytest.raises(StoreError):
        _merged(ViewIndex.empty()).save(path, tmp_folder=tmp_path)
    save_quietly(_merged(ViewIndex.empty()), path, tmp_folder=tmp_path)


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
        part = SortedKeys.of_shard(wrong[sort_order(wrong)], 0)
        rows = np.argsort(sort_order(wrong)).astype(np.uint32)
        index = ViewIndex(
            (record.digest,), (SortedKeys(part.high, part.low, part.shards, rows),), 1
        )
        index.save(path, tmp_folder=store.layout.tmp)
        with _reopened(store) as again:
            reader = again.reader(programs.VIEW)
            with pytest.raises(CorruptShardError, match="index is damaged; delete this file"):
                reader.locate(wrong)
