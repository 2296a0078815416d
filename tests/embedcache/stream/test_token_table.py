"""TokenTable: numbers that depend on the rows alone, and files that are what was written."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from embedcache.errors import KeyNotFoundError, TrainingError
from embedcache.keys import keys_of_texts
from embedcache.store.shards.codec import from_storage, to_storage
from embedcache.store.store import FeatureStore, open_store
from embedcache.stream import FeatureStream, TokenTable
from embedcache.stream.token_table import TokenNumbers

TEXTS = [f"text {number}" for number in range(60)]


def make_table(store: FeatureStore, programs: ModuleType, texts: Sequence[str]) -> TokenTable:
    return TokenTable.of_texts(store.reader(programs.VIEW), keys_of_texts(texts))


def test_each_distinct_row_is_numbered_once_and_zero_is_padding(
    store: FeatureStore, programs: ModuleType
) -> None:
    programs.put(store, TEXTS, encoding="dictionary")
    table = make_table(store, programs, TEXTS)
    rows = np.concatenate([programs.matrix_of(text) for text in TEXTS])
    assert (table.rows.dtype, table.rows.shape[1]) == (np.float16, 4)
    assert not table.rows[0].any()
    found = sorted(map(bytes, table.rows[1:]))
    assert found == sorted(set(map(bytes, rows)))
    assert len(table) == len(found) + 1
    assert not table.rows.flags.writeable


def test_numbers_depend_neither_on_the_shards_nor_on_the_order_of_texts(
    tmp_path: Path, programs: ModuleType
) -> None:
    tables = []
    layouts = [[TEXTS], [TEXTS[40:], TEXTS[:40]], [TEXTS[1::3], TEXTS[::3], TEXTS[2::3]]]
    for number, parts in enumerate(layouts):
        with open_store(tmp_path / str(number)) as store:
            for part in parts:
                programs.put(store, part, encoding="dictionary")
            tables.append(make_table(store, programs, TEXTS[:: -1 if number else 1]))
    assert {table.digest for table in tables} == {tables[0].digest}
    for table in tables:
        np.testing.assert_array_equal(table.rows, tables[0].rows)


def test_rows_of_other_texts_are_not_in_the_table(
    store: FeatureStore, programs: ModuleType
) -> None:
    programs.put(store, TEXTS, encoding="dictionary")
    few, all_of_them = (make_table(store, programs, texts) for texts in (TEXTS[:5], TEXTS))
    assert len(few) < len(all_of_them)
    rows = np.concatenate([programs.matrix_of(text) for text in TEXTS[:5]])
    assert sorted(set(map(bytes, rows))) == sorted(map(bytes, few.rows[1:]))


def test_numbers_lead_back_to_the_rows(store: FeatureStore, programs: ModuleType) -> None:
    """Of several shards, one of them without a dictionary, as a text added later may lie."""
    programs.put(store, TEXTS[:30], encoding="dictionary")
    programs.put(store, TEXTS[30:50], encoding="dictionary")
    programs.put(store, TEXTS[50:])
    table = make_table(store, programs, TEXTS[:20])
    known = set(map(bytes, table.rows[1:]))
    reader = store.reader(programs.VIEW)
    numbers = TokenNumbers(reader, table).gather_padded(reader.locate(keys_of_texts(TEXTS)), 8)
    assert (numbers.shape, numbers.dtype) == ((60, 8), np.int32)
    seen_unknown = 0
    for text, row in zip(TEXTS, numbers, strict=True):
        matrix = programs.matrix_of(text)
        assert not row[len(matrix) :].any()
        for number, vector in zip(row, matrix, strict=False):
            is_known = bytes(vector) in known
            assert (number > 0) == is_known
            seen_unknown += not is_known
            if is_known:
                np.testing.assert_array_equal(table.rows[number], vector)
    assert seen_unknown > 0


def test_stream_numbers_the_tokens_of_its_batches(numbered: FeatureStore) -> None:
    view = numbered.newest_view()
    keys = numbered.load_dataset("numbered").keys
    table = TokenTable.of_texts(numbered.reader(view), keys)
    for batch in FeatureStream(numbered, "numbered", token_table=table, batch_size=17):
        assert batch.token_numbers is not None
        assert batch.token_numbers.shape == batch.values.shape[:2]
        np.testing.assert_array_equal(table.rows[batch.token_numbers], batch.values)
    plain = FeatureStream(numbered, "numbered")
    assert next(iter(plain)).token_numbers is None


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float32"])
def test_rows_are_of_the_value_dtype(store: FeatureStore, programs: ModuleType, dtype: str) -> None:
    view = replace(programs.VIEW, dtype=dtype)
    store.catalog.add_view(view, "x")
    rows = np.array([[1.0, -2.0, 0.5, 4.0], [0, 0, 0, 0], [127, 0, 1, -127]], np.float32)
    writer = store.writer(view)
    writer.add_codes(
        keys_of_texts(["a", "b"]),
        np.array([40, 80]),
        np.zeros(2, np.bool_),
        codes=np.tile(np.arange(3, dtype=np.uint32), 40),
        table=to_storage(rows, dtype),
    )
    writer.flush()
    reader = store.reader(view)
    table = TokenTable.of_texts(reader, keys_of_texts(["a", "b"]))
    stored = from_storage(to_storage(rows, dtype), dtype)
    assert table.rows.dtype == stored.dtype
    assert sorted(map(bytes, table.rows[1:])) == sorted(map(bytes, stored))
    numbers = TokenNumbers(reader, table).gather_padded(reader.locate(keys_of_texts(["a"])), 40)
    np.testing.assert_array_equal(table.rows[numbers[0]], stored[np.arange(40) % 3])


def test_table_is_kept_as_a_file_and_read_back(
    store: FeatureStore, programs: ModuleType, tmp_path: Path
) -> None:
    programs.put(store, TEXTS, encoding="dictionary")
    table = make_table(store, programs, TEXTS)
    path = tmp_path / "tokens.npy"
    table.save(path)
    again = TokenTable.load(path)
    np.testing.assert_array_equal(again.rows, table.rows, strict=True)
    assert again.digest == table.digest
    assert not again.rows.flags.writeable
    np.testing.assert_array_equal(np.load(path), table.rows)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(table)).rows, table.rows)


def test_file_that_is_not_what_was_written_is_refused(
    store: FeatureStore, programs: ModuleType, tmp_path: Path
) -> None:
    programs.put(store, TEXTS, encoding="dictionary")
    path = tmp_path / "tokens.npy"
    make_table(store, programs, TEXTS).save(path)
    written = path.read_bytes()
    damaged = [
        written[:-1],
        b"",
        written[:200],
        written[:150] + bytes([written[150] ^ 1]) + written[151:],
        np.ones((2, 2)).tobytes(),
    ]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(TrainingError, match="table of tokens is missing or damaged") as caught:
            TokenTable.load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(TrainingError, match="No such file"):
        TokenTable.load(path)


def test_view_without_a_dictionary_is_one_clear_line(
    store: FeatureStore, programs: ModuleType
) -> None:
    programs.put(store, TEXTS)
    with pytest.raises(TrainingError, match="keeps no dictionary of tokens, and a table") as caught:
        make_table(store, programs, TEXTS)
    assert "\n" not in str(caught.value)


def test_texts_that_the_view_lacks_are_counted(store: FeatureStore, programs: ModuleType) -> None:
    programs.put(store, TEXTS, encoding="dictionary")
    with pytest.raises(KeyNotFoundError, match="lacks 2 of 62 texts; `embedcache build` computes"):
        make_table(store, programs, [*TEXTS, "new", "newer"])


def test_table_of_another_view_is_refused(numbered: FeatureStore) -> None:
    table = TokenTable(np.zeros((3, 6), np.float16))
    with pytest.raises(TrainingError, match=r"rows of 6 float16, view .* has 4 float16: take a"):
        FeatureStream(numbered, "numbered", token_table=table)
    with pytest.raises(TrainingError, match=r"rows of 4 float32, view .* has 4 float16"):
        FeatureStream(numbered, "numbered", token_table=TokenTable(np.zeros((3, 4), np.float32)))
