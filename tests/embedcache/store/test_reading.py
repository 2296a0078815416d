"""Reading on: padded batches from any shard, shards that others replace or mend meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

import embedcache.store.reader as reader_module
from embedcache.errors import CorruptShardError, DamagedIndexError, KeyNotFoundError
from embedcache.keys import keys_of_texts, sort_order
from embedcache.ragged import splits_of_lengths
from embedcache.store.keyindex.index import ViewIndex
from embedcache.store.refs import by_shard
from embedcache.store.shards.codec import VALUE_DTYPES, from_storage, split_scales, to_storage
from embedcache.store.shards.image import ShardContent
from embedcache.store.shards.padding import PaddedPositions
from embedcache.store.shards.shard import Shard
from embedcache.store.store import FeatureStore, open_store
from embedcache.store.upkeep.maintain import verify_store
from embedcache.view import FeatureView

DTYPES = tuple(VALUE_DTYPES)


# Numbers as they are read


def shard_of(
    path: Path, rows: NDArray[np.float32], lengths: Sequence[int], dtype: str, encoding: str
) -> tuple[Shard, NDArray[Any]]:
    """A shard of some texts, and their rows as they must be read."""
    view = FeatureView(
        module_digest="0" * 32,
        signature="__call__",
        tokenizer="module",
        dim=rows.shape[1],
        dtype=dtype,
    )
    stored = to_storage(rows, dtype)
    name, arrays, expected = "values", {}, from_storage(stored, dtype)
    if encoding == "dictionary":
        codes = np.random.default_rng(1).integers(0, max(1, len(rows)), sum(lengths))
        name, arrays["codes"], expected = "dictionary", codes.astype("<u4"), expected[codes]
    arrays[name] = stored
    if dtype == "int8":
        arrays[name], arrays["scales"] = split_scales(stored)
    keys = keys_of_texts([str(number) for number in range(len(lengths))])
    content = ShardContent(
        view=view,
        keys=keys[sort_order(keys)],
        row_splits=splits_of_lengths(lengths),
        flags=np.zeros(len(lengths), np.uint8),
        rows=arrays,
    )
    path.write_bytes(content.image())
    return Shard(path), expected


def test_int8_is_read_as_number_times_scale_and_bfloat16_as_float32(tmp_path: Path) -> None:
    # By hand: the largest of a row becomes 127, so the scales are 0.5, 0 and 2.
    rows = np.array([[63.5, -1.0, 0.5], [0, 0, 0], [-254, 254, 100]], np.float32)
    shard, _ = shard_of(tmp_path / "int8.h5", rows, [1, 2], "int8", "dense")
    found = shard.take(np.array([2, 0, 1]))
    expected = np.array([[-254, 254, 100], [63.5, -1.0, 0.5], [0, 0, 0]], np.float32)
    np.testing.assert_array_equal(found, expected, strict=True)
    numbers, scales = split_scales(shard.take_stored(np.array([2, 0, 1])))
    assert numbers.tolist() == [[-127, 127, 50], [127, -2, 1], [0, 0, 0]]
    assert scales.tolist() == [2.0, 0.5, 0.0]

    # The upper half of a float32: 7 bits of fraction, ties to even.
    rows = np.array([[1 + 2**-7, 1 + 2**-8, 1 + 3 * 2**-8, -3e38]], np.float32)
    shard, _ = shard_of(tmp_path / "bfloat16.h5", rows, [1], "bfloat16", "dense")
    found = shard.take(np.array([0]))
    assert found.dtype == np.float32
    assert found[0, :3].tolist() == [1.0078125, 1.0, 1.015625]
    assert shard.take_stored(np.array([0])).tolist() == [[0x3F81, 0x3F80, 0x3F82, 0xFF62]]


@pytest.mark.parametrize("encoding", ["dense", "dictionary"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dictionary_and_codes_say_what_the_rows_are(
    tmp_path: Path, dtype: str, encoding: str
) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    shard, expected = shard_of(tmp_path / "shard.h5", rows, [8] * 5, dtype, encoding)
    positions = np.array([39, 0, 7, 7])
    assert shard.is_dictionary == (encoding == "dictionary")
    np.testing.assert_array_equal(shard.take(positions), expected[positions], strict=True)
    out = np.full((4, 3), 7, expected.dtype)
    assert shard.take(positions, out=out) is out
    np.testing.assert_array_equal(out, expected[positions], strict=True)
    stored = shard.take_stored(positions)
    np.testing.assert_array_equal(from_storage(stored, dtype), expected[positions], strict=True)
    if shard.is_dictionary:
        spelled = shard.stored_dictionary()[shard.codes(positions)]
        np.testing.assert_array_equal(spelled, stored, strict=True)
    assert shard.digest == Shard(shard.path).digest


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, -np.inf])
def test_scale_that_is_no_scale_is_refused(tmp_path: Path, scale: float) -> None:
    rows = np.ones((3, 2), np.float32)
    shard, _ = shard_of(tmp_path / "shard.h5", rows, [3], "int8", "dense")
    numbers, scales = split_scales(shard.take_stored(np.arange(3)))
    scales[1] = scale
    forged = ShardContent(
        view=shard.view,
        keys=shard.keys,
        row_splits=shard.row_splits,
        flags=shard.flags,
        rows={"values": numbers, "scales": scales},
    )
    path = tmp_path / "forged.h5"
    path.write_bytes(forged.image())
    with pytest.raises(CorruptShardError, match="a scale is negative or no finite number"):
        Shard(path).take(np.array([0]))
    padded = np.empty((1, 8, 2), np.float32)
    with pytest.raises(CorruptShardError, match="a scale is negative or no finite number"):
        Shard(path).gather_padded(np.array([0]), np.array([3]), padded, positions=PaddedPositions())


# Padded batches


@pytest.mark.parametrize("encoding", ["dense", "dictionary"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_texts", "dim", "length"),
    [
        (5, 3, 8),  # all lies in the first page: there is no room for a row of zeros
        (700, 16, 24),
        (700, 17, 24),  # rows that lie at no multiple of their size
        (60, 1500, 24),  # wide rows, which are copied text by text
        (60, 16, 200),  # longer than the positions that are kept
    ],
)
def test_padded_batch_holds_the_rows_and_zeros(
    tmp_path: Path, num_texts: int, dim: int, length: int, dtype: str, encoding: str
) -> None:
    rng = np.random.default_rng(3)
    lengths = rng.integers(0, min(length, 20) + 1, num_texts)
    lengths[:3] = 0, min(length, 20), 1
    num_rows = int(lengths.sum()) if encoding == "dense" else 50
    rows = rng.normal(size=(num_rows, dim)).astype(np.float32)
    shard, rows_of_tokens = shard_of(tmp_path / "shard.h5", rows, lengths.tolist(), dtype, encoding)
    positions = PaddedPositions()
    for _ in range(3):
        texts = rng.permutation(num_texts)[:40]
        starts = shard.row_splits[texts]
        found = np.full((len(texts), length, dim), 7, VALUE_DTYPES[dtype])
        shard.gather_padded(starts, lengths[texts], found, positions=positions)
        expected = np.zeros_like(found)
        for matrix, start, count in zip(expected, starts, lengths[texts], strict=True):
            matrix[:count] = rows_of_tokens[start : start + count]
        np.testing.assert_array_equal(found, expected, strict=True)
        is_padding = np.arange(length) >= lengths[texts][:, np.newaxis]
        assert not np.signbit(found[is_padding]).any(), "zeros, not negative zeros"


@pytest.mark.parametrize("encoding", ["dense", "dictionary"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shard_without_any_token_gives_zeros(tmp_path: Path, dtype: str, encoding: str) -> None:
    shard, _ = shard_of(
        tmp_path / "shard.h5", np.zeros((0, 5), np.float32), [0, 0], dtype, encoding
    )
    found = np.ones((2, 8, 5), VALUE_DTYPES[dtype])
    zeros = np.zeros(2, np.int64)
    shard.gather_padded(zeros, zeros, found, positions=PaddedPositions())
    assert not found.any()


def test_positions_are_those_of_the_tokens_and_negative_after_them() -> None:
    positions = PaddedPositions()
    starts, lengths = np.array([10, 0, 5]), np.array([3, 0, 8])
    for length in (8, 16, 136, 8):
        found = positions.of(starts, lengths, length)
        for row, start, count in zip(found, starts.tolist(), lengths.tolist(), strict=True):
            assert row[:count].tolist() == list(range(start, start + count))
            assert (row[count:] < -(1 << 40)).all()
        found[...] = 0  # the caller's own


def test_groups_are_of_one_shard_each_and_leave_out_what_is_missing() -> None:
    def groups(numbers: list[int]) -> dict[int, list[int]]:
        places = np.arange(len(numbers))
        found = by_shard(np.array(numbers, np.int64))
        return {number: places[members].tolist() for number, members in found}

    assert groups([]) == {}
    assert groups([4, 4, 4]) == {4: [0, 1, 2]}
    assert groups([-1, -1]) == {}
    assert groups([-1, 0, 0, 7]) == {0: [1, 2], 7: [3]}
    assert groups([7, -1, 0, 7, 2]) == {0: [2], 2: [4], 7: [0, 3]}


# What others do meanwhile


TEXTS = [f"text {number}" for number in range(40)]


def fill(store: FeatureStore, programs: ModuleType) -> None:
    """Four shards of both encodings."""
    for first in range(0, 40, 10):
        encoding = "dictionary" if first == 20 else "dense"
        programs.put(store, TEXTS[first : first + 10], encoding=encoding)


def replace_shards(store: FeatureStore, programs: ModuleType, texts: Sequence[str]) -> None:
    """What compaction does: a new shard of some texts, the old ones retired and deleted."""
    old = store.catalog.shards()
    programs.put(store, texts)
    for record in old:
        store.catalog.remove_shard(record.digest)
        store.layout.shard_path(record.view, record.digest).unlink()


def assert_padded(reader: Any, refs: Any, texts: Sequence[str], programs: ModuleType) -> None:
    out = np.full((len(texts), 8, 4), 7, np.float16)
    reader.gather_padded(refs, out)
    for text, rows in zip(texts, out, strict=True):
        expected = programs.matrix_of(text)
        np.testing.assert_array_equal(rows[: len(expected)], expected)
        assert not rows[len(expected) :].any()


@pytest.mark.parametrize("texts", [[], TEXTS[:1], TEXTS[:10], TEXTS, TEXTS[::-3]])
def test_rows_are_gathered_into_an_array_that_is_given(
    store: FeatureStore, programs: ModuleType, texts: Sequence[str]
) -> None:
    fill(store, programs)
    with open_store(store.path) as reading:
        refs, reader = reading.locate(programs.VIEW, texts)
        expected = reader.gather(refs)
        for _ in range(2):
            out = np.full(expected.values.shape, 7, reader.dtype)
            features = reader.gather(refs, out=out)
            assert features.values is out
            np.testing.assert_array_equal(out, expected.values, strict=True)
            np.testing.assert_array_equal(features.row_splits, expected.row_splits, strict=True)
            for text, matrix in zip(texts, features, strict=True):
                np.testing.assert_array_equal(matrix, programs.matrix_of(text))
            # Then from elsewhere than where they were located.
            replace_shards(store, programs, TEXTS)
            reader._shards.clear()


def test_texts_are_found_again_when_another_process_has_replaced_their_shards(
    store: FeatureStore, programs: ModuleType
) -> None:
    fill(store, programs)
    with open_store(store.path) as reading:
        refs, reader = reading.locate(programs.VIEW, TEXTS)
        shards = list(reader._shards)
        replace_shards(store, programs, TEXTS[::-1])
        assert list(reader._shards) == shards, "it has not heard of it yet"
        for number in shards:
            reader._shards.pop(number)
        features = reader.gather(refs)
        for text, matrix in zip(TEXTS, features, strict=True):
            np.testing.assert_array_equal(matrix, programs.matrix_of(text))
        assert_padded(reader, refs, TEXTS, programs)
        assert_padded(reader, refs.take(np.arange(3)), TEXTS[:3], programs)
        assert len(reader.token_records(refs)) == 40
        programs.assert_served(reading, TEXTS)
        assert set(reader._covered.digests) == {store.catalog.shards()[0].digest}


def test_shards_that_are_open_are_read_on_without_asking(
    store: FeatureStore, programs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, programs)
    with open_store(store.path) as reading:
        refs, reader = reading.locate(programs.VIEW, TEXTS)
        held = reader.open_shards(refs)
        replace_shards(store, programs, TEXTS)
        programs.assert_served(reading, TEXTS)
        monkeypatch.setattr(reader, "_open", None)
        assert_padded(reader, refs, TEXTS, programs)
        assert len(held) == 4


def test_look_up_that_meets_a_shard_just_retired_asks_the_catalog_again(
    store: FeatureStore, programs: ModuleType
) -> None:
    fill(store, programs)
    store.reader(programs.VIEW).save_index()
    with open_store(store.path) as reading:
        reader = reading.reader(programs.VIEW)
        # Between asking the catalog and opening a shard.
        replace_shards(store, programs, TEXTS)
        refs = reader.locate(keys_of_texts(TEXTS))
        assert_padded(reader, refs, TEXTS, programs)


def test_catalog_is_asked_again_when_a_new_shard_is_retired_before_it_is_opened(
    store: FeatureStore, programs: ModuleType
) -> None:
    fill(store, programs)
    before = [record.digest for record in store.catalog.shards()]
    with open_store(store.path) as reading:
        reader = reading.reader(programs.VIEW)
        programs.put(store, ["short-lived"])
        stale = [record.digest for record in store.catalog.shards()]
        replace_shards(store, programs, TEXTS)
        reader.refresh(stale)
        assert not set(before) & reader._covered.digests
        assert reader.contains(keys_of_texts([*TEXTS, "short-lived"])).tolist() == [True] * 40 + [
            False
        ]


def test_text_that_was_removed_while_it_was_read_is_said_to_be(
    store: FeatureStore, programs: ModuleType
) -> None:
    fill(store, programs)
    with open_store(store.path) as reading:
        refs, reader = reading.locate(programs.VIEW, TEXTS)
        reader._shards.clear()
        replace_shards(store, programs, TEXTS[:-3])
        with pytest.raises(KeyNotFoundError, match="texts have been removed") as caught:
            reader.gather(refs)
        assert "\n" not in str(caught.value)
        assert_padded(reader, refs.take(np.arange(30)), TEXTS[:30], programs)


def test_shard_that_the_catalog_names_and_that_is_gone_is_missing(
    store: FeatureStore, programs: ModuleType
) -> None:
    fill(store, programs)
    with open_store(store.path) as reading:
        refs, reader = reading.locate(programs.VIEW, TEXTS)
        reader._shards.clear()
        record = store.catalog.shards()[1]
        store.layout.shard_path(record.view, record.digest).unlink()
        for use in (
            lambda: reader.gather(refs),
            lambda: reader.locate(keys_of_texts(TEXTS)),
            lambda: reading.get(programs.VIEW, TEXTS),
        ):
            with pytest.raises(CorruptShardError, match=r"is missing; run `embedcache verify"):
                use()
        programs.assert_served(reading, TEXTS[:10])


def test_what_has_mended_a_shard_is_found_without_opening_the_store_again(
    store: FeatureStore, programs: ModuleType
) -> None:
    programs.put(store, TEXTS[:10])
    (record,) = store.catalog.shards()
    path = store.layout.shard_path(record.view, record.digest)
    whole = path.read_bytes()
    with h5py.File(path, "r+") as file:
        file["values"][0, 0] += 1
    with open_store(store.path) as reading:
        for _ in range(2):
            with pytest.raises(CorruptShardError, match="not what was written"):
                reading.get(programs.VIEW, TEXTS[:10])
        with open_store(store.path) as other:
            assert verify_store(other, fix=True).corrupt
        assert not reading.contains(programs.VIEW, TEXTS[:10]).any()
        path.write_bytes(whole)
        store.catalog.add_shard(record)
        programs.assert_served(reading, TEXTS[:10])


def test_index_that_turns_out_to_be_damaged_is_made_anew_from_the_shards(
    store: FeatureStore, programs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, programs)
    store.reader(programs.VIEW).save_index()
    path = store.layout.index_path(programs.VIEW.fingerprint)
    real = ViewIndex.locate
    for use in ("contains", "locate"):
        with open_store(store.path) as reading:
            reader = reading.reader(programs.VIEW)
            damaged = [reader._covered.index]

            def locate(
                index: ViewIndex, keys: Any, damaged: list[ViewIndex] = damaged
            ) -> tuple[Any, Any]:
                if index is damaged[0]:
                    raise DamagedIndexError("a block is not what was written")
                return real(index, keys)

            with monkeypatch.context() as context:
                context.setattr(ViewIndex, "locate", locate)
                if use == "contains":
                    assert reader.contains(keys_of_texts([*TEXTS, "x"])).tolist() == (
                        [True] * 40 + [False]
                    )
                else:
                    programs.assert_served(reading, TEXTS)
            assert not path.exists()
            reader.save_index()
            assert path.exists()


def test_nothing_is_done_for_a_catalog_that_has_not_changed(
    store: FeatureStore, programs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, programs)
    reader = store.reader(programs.VIEW)
    covered = reader._covered
    monkeypatch.setattr(reader, "add_shard", None)
    assert store.reader(programs.VIEW) is reader
    assert reader._covered is covered


def test_more_shards_than_may_be_open_are_read_all_the_same(
    store: FeatureStore, programs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, programs)
    monkeypatch.setattr(reader_module, "_max_open_shards", lambda: 2)
    with open_store(store.path) as reading:
        refs, reader = reading.locate(programs.VIEW, TEXTS)
        held = reader.open_shards(refs)
        assert len(held) == 2
        rng = np.random.default_rng(0)
        for _ in range(5):
            order = rng.permutation(40)
            assert_padded(reader, refs.take(order), [TEXTS[at] for at in order], programs)
            assert len(reader._shards) == 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_shards", [1, 3])
def test_threads_gather_the_same_batches(
    store: FeatureStore, programs: ModuleType, dtype: str, num_shards: int
) -> None:
    view = replace(programs.VIEW, dim=6, dtype=dtype)
    store.catalog.add_view(view, "builtin:nothing")
    writer = store.writer(view)
    rng = np.random.default_rng(0)
    rows = to_storage(rng.normal(size=(40, 3, 6)).reshape(-1, 6).astype(np.float32), dtype)
    for part in np.array_split(np.arange(40), num_shards):
        values = rows.reshape(40, 3, -1)[part].reshape(-1, rows.shape[1])
        keys = keys_of_texts([TEXTS[at] for at in part])
        flags = np.zeros(len(part), np.bool_)
        writer.add_values(keys, np.full(len(part), 3), flags, values=values)
        writer.flush()
    expected = from_storage(rows, dtype).reshape(40, 3, 6)
    with open_store(store.path) as reading:
        refs, reader = reading.locate(view, TEXTS)
        assert reader.dtype == expected.dtype
        wrong: list[int] = []

        def gather(seed: int) -> None:
            order = np.random.default_rng(seed).permutation(40)
            mine = refs.take(order)
            out = np.empty((10, 8, 6), reader.dtype)
            for start in range(0, 40, 10):
                reader.gather_padded(mine, out, texts=slice(start, start + 10))
                same = np.array_equal(out[:, :3], expected[order[start : start + 10]])
                if not same or out[:, 3:].any():
                    wrong.append(seed)

        threads = [threading.Thread(target=gather, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_missing_texts_are_zeros_in_a_batch(store: FeatureStore, programs: ModuleType) -> None:
    fill(store, programs)
    reader = store.reader(programs.VIEW)
    texts = ["x", *TEXTS[5:15], "y"]
    refs = reader.locate(keys_of_texts(texts))
    out = np.full((12, 8, 4), 7, np.float16)
    reader.gather_padded(refs, out)
    assert not out[[0, 11]].any()
    assert_padded(reader, refs.take(np.arange(1, 11)), texts[1:11], programs)
