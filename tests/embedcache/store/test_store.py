"""The store as a dict of text → matrix, and the writer that fills it."""

from __future__ import annotations

import resource
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import embedcache.store.reader as reader_module
import embedcache.store.shards.ordering as ordering_module
import embedcache.store.writer as writer_module
from embedcache.errors import (
    CorpusError,
    CorruptShardError,
    EncodingError,
    KeyNotFoundError,
    UnknownNameError,
)
from embedcache.keys import keys_of_texts
from embedcache.store.database.catalog import Catalog
from embedcache.store.database.records import DatasetRecord
from embedcache.store.reader import ViewReader
from embedcache.store.refs import FeatureRefs
from embedcache.store.shards.codec import BadRowError, to_storage
from embedcache.store.store import FeatureStore, open_store
from embedcache.store.upkeep.maintain import verify_store
from embedcache.store.writer import WriterLimits
from embedcache.view import FeatureView

NUM_EXAMPLES = 12


def _add(
    writer: Any, texts: list[str], lengths: list[int], values: Any, flags: Any = None, **tokens: Any
) -> None:
    writer.add_values(
        keys_of_texts(texts),
        np.array(lengths, np.int64),
        np.zeros(len(texts), np.bool_) if flags is None else flags,
        values=values,
        **tokens,
    )


# Reading what was written


def test_features_come_in_the_order_asked_with_repetitions(
    store: FeatureStore, programs: ModuleType
) -> None:
    texts = [str(number) for number in range(200)]
    programs.put(store, texts)
    asked = ["7", "199", "7", "0", "42", "7"]
    programs.assert_served(store, asked)
    programs.assert_served(store, texts[::-1])
    assert store.get(programs.VIEW, []).values.shape == (0, 4)
    assert store.contains(programs.VIEW, ["7", "x", "7"]).tolist() == [True, False, True]


def test_returned_arrays_are_the_callers(store: FeatureStore, programs: ModuleType) -> None:
    programs.put(store, ["a", "b", "c"])
    features = store.get(programs.VIEW, ["a", "b", "c"])
    assert features.values.dtype == np.float16
    features.values[:] = 99
    programs.assert_served(store, ["a", "b", "c"])


@pytest.mark.parametrize("encoding", ["dense", "dictionary"])
def test_texts_without_tokens_are_served(
    store: FeatureStore, programs: ModuleType, encoding: str
) -> None:
    texts = [str(number) for number in range(60)]
    empty = [text for text in texts if len(programs.matrix_of(text)) == 0]
    assert empty
    programs.put(store, texts, encoding=encoding)
    programs.put(store, [text + "!" for text in empty[:1]], encoding=encoding)
    programs.assert_served(store, empty)
    programs.assert_served(store, [empty[0] + "!", *texts])


def test_shard_of_texts_without_any_token_is_served(store: FeatureStore) -> None:
    view = FeatureView(module_digest="", signature="", tokenizer="module", dim=3)
    store.catalog.add_view(view, "x")
    writer = store.writer(view)
    _add(writer, ["", " "], [0, 0], np.zeros((0, 3), np.float16))
    writer.flush()
    with open_store(store.path) as again:
        assert again.get(view, [" ", "", " "]).values.shape == (0, 3)


def test_view_of_one_token_and_one_number(store: FeatureStore) -> None:
    view = FeatureView(
        module_digest="", signature="", tokenizer="module", dim=1, max_tokens=1, dtype="float32"
    )
    store.catalog.add_view(view, "x")
    writer = store.writer(view)
    _add(writer, ["a", "b"], [1, 1], np.array([[1.5], [2.5]], np.float32))
    writer.flush()
    features = store.get(view, ["b", "a"])
    assert features.values.tolist() == [[2.5], [1.5]]
    assert features.values.dtype == np.float32


def test_miss_names_the_first_text_by_its_place_and_what_computes_it(
    store: FeatureStore, programs: ModuleType
) -> None:
    programs.put(store, ["a", "b"])
    with pytest.raises(KeyNotFoundError) as caught:
        store.get(programs.VIEW, ["a", "secret", "b", "another"])
    message = str(caught.value)
    assert message.startswith("2 of 4 texts have no features under view ")
    assert programs.VIEW.fingerprint[:12] in message
    assert "text 2" in message
    assert "`embedcache build`" in message
    assert "secret" not in message, "nothing of a text in messages"
    assert "\n" not in message
    with pytest.raises(KeyError):
        store.get(programs.VIEW, ["secret"])


def test_view_is_named_by_itself_its_fingerprint_or_its_record(
    store: FeatureStore, programs: ModuleType
) -> None:
    programs.put(store, ["a"])
    expected = programs.matrix_of("a")
    fingerprint = programs.VIEW.fingerprint
    for view in (programs.VIEW, fingerprint, fingerprint[:6]):
        np.testing.assert_array_equal(store.get(view, ["a"])[0], expected)
    assert store.reader(store.catalog.find_view(fingerprint)).view == programs.VIEW
    with pytest.raises(UnknownNameError, match="no view 'nothing'"):
        store.get("nothing", ["a"])


def test_text_that_is_no_unicode_is_refused(store: FeatureStore, programs: ModuleType) -> None:
    programs.put(store, ["a"])
    with pytest.raises(CorpusError, match="lone surrogate"):
        store.get(programs.VIEW, ["a", "\ud800"])


def test_views_stand_side_by_side(store: FeatureStore, programs: ModuleType) -> None:
    wide = replace(programs.VIEW, dim=7)
    programs.put(store, ["a", "b"])
    programs.put(store, ["b", "c"], view=wide)
    programs.assert_served(store, ["a", "b"])
    programs.assert_served(store, ["c", "b"], wide)
    assert store.contains(wide, ["a", "b", "c"]).tolist() == [False, True, True]
    assert store.contains(programs.VIEW, ["a", "b", "c"]).tolist() == [True, True, False]
    stats = store.stats()
    assert [(view["texts"], view["shards"]) for view in stats["views"]] == [(2, 1), (2, 1)]
    sizes = [path.stat().st_size for path in store.layout.shards.glob("*/*.h5")]
    assert stats["bytes"] == sum(sizes)
    assert (stats["path"], stats["datasets"], stats["runs"]) == (str(store.path), 0, 0)


def test_unknown_view_has_no_features(store: FeatureStore, programs: ModuleType) -> None:
    assert store.contains(programs.VIEW, ["a"]).tolist() == [False]
    with pytest.raises(KeyNotFoundError):
        store.get(programs.VIEW, ["a"])


def test_same_text_in_two_shards_is_served_from_either(
    store: FeatureStore, programs: ModuleType
) -> None:
    """Two builders that meet the same new text both embed it."""
    programs.put(store, ["a", "b"])
    programs.put(store, ["b", "c"], encoding="dictionary")
    programs.assert_served(store, ["a", "b", "c"])
    store.reader(programs.VIEW).save_index()
    with open_store(store.path) as again:
        programs.assert_served(again, ["c", "b", "a", "b"])
        assert again.stats()["views"][0]["texts"] == 4


def test_shards_of_other_writers_are_seen_at_the_next_use(
    store: FeatureStore, programs: ModuleType
) -> None:
    programs.put(store, ["a"])
    with open_store(store.path) as other:
        programs.assert_served(other, ["a"])
        programs.put(store, ["b"])
        programs.assert_served(other, ["a", "b"])
        programs.put(other, ["c"])
        programs.assert_served(store, ["c"])


@settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["dense", "dictionary", "reopen", "save", "lose index"]),
            st.lists(
                st.sampled_from([f"t{number}" for number in range(25)]), unique=True, max_size=8
            ),
        ),
        max_size=8,
    )
)
def test_store_behaves_as_a_dict(
    tmp_path_factory: pytest.TempPathFactory,
    programs: ModuleType,
    steps: list[tuple[str, list[str]]],
) -> None:
    store = open_store(tmp_path_factory.mktemp("dict") / "store")
    known: set[str] = set()
    everything = [f"t{number}" for number in range(25)]
    for step, texts in steps:
        if step in ("dense", "dictionary"):
            programs.put(store, texts, encoding=step)
            known |= set(texts)
        elif step == "reopen":
            store.close()
            store = open_store(store.path)
        elif step == "save":
            store.reader(programs.VIEW).save_index()
        else:
            store.layout.index_path(programs.VIEW.fingerprint).unlink(missing_ok=True)
        present = store.contains(programs.VIEW, everything)
        assert {
            text for text, is_there in zip(everything, present, strict=True) if is_there
        } == known
        programs.assert_served(store, sorted(known))
    store.close()


def test_many_texts_are_put_in_key_order_some_at_a_time(
    store: FeatureStore, programs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_PIECE_BYTES", "_PARTS_PIECE_BYTES"):
        monkeypatch.setattr(ordering_module, name, 7 * 3 * 8)
    texts = [str(number) for number in range(100)]
    programs.put(store, texts[:50])
    programs.put(store, texts[50:], encoding="dictionary")
    programs.assert_served(store, texts)


# Acknowledging


def test_what_was_not_flushed_is_not_there(store: FeatureStore, programs: ModuleType) -> None:
    programs.put(store, ["a"])
    writer = store.writer(programs.VIEW)
    programs.add_texts(writer, ["b", "c"])
    assert len(writer.pending) == 2
    assert all(bytes(key) in writer.pending for key in keys_of_texts(["b", "c"]))
    assert not store.contains(programs.VIEW, ["b", "c"]).any()
    with open_store(store.path) as again:
        assert again.contains(programs.VIEW, ["a", "b", "c"]).tolist() == [True, False, False]
    assert list(store.layout.tmp.iterdir()) == []


def test_flush_acknowledges(store: FeatureStore, programs: ModuleType) -> None:
    store.catalog.add_view(programs.VIEW, "x")
    writer = store.writer(programs.VIEW)
    writer.flush()
    assert writer.published == []
    for texts in (["a", "b"], ["c"]):
        programs.add_texts(writer, texts)
        writer.flush()
        assert len(writer.pending) == 0
        programs.assert_served(store, texts)
        with open_store(store.path) as again:
            programs.assert_served(again, texts)
    assert [record.num_texts for record in writer.published] == [2, 1]
    assert writer.published == store.catalog.shards()
    for record in writer.published:
        path = store.layout.shard_path(record.view, record.digest)
        assert record.num_bytes == path.stat().st_size
    assert verify_store(store).is_well


def test_flag_of_a_cut_text_is_kept(store: FeatureStore, programs: ModuleType) -> None:
    store.catalog.add_view(programs.VIEW, "x")
    writer = store.writer(programs.VIEW)
    texts = ["a", "b", "c"]
    writer.add_values(
        keys_of_texts(texts),
        np.ones(3, np.int64),
        np.array([True, False, True]),
        values=np.ones((3, 4), np.float16),
    )
    writer.flush()
    refs, _ = store.locate(programs.VIEW, ["c", "b", "a"])
    assert refs.truncated.tolist() == [True, False, True]


@pytest.mark.parametrize("flags", [[0, 1, 2, 3], [False, True, False, True]])
def test_flags_are_bits_or_tell_what_was_cut(
    store: FeatureStore, programs: ModuleType, flags: list[Any]
) -> None:
    store.catalog.add_view(programs.VIEW, "x")
    writer = store.writer(programs.VIEW)
    texts = ["a", "b", "c", "d"]
    given = np.array(flags, np.bool_ if flags[0] is False else np.uint8)
    _add(writer, texts[:3], [1, 1, 1], np.ones((3, 4), np.float16), given[:3])
    _add(writer, texts[3:], [1], np.ones((1, 4), np.float16), given[3:])
    writer.flush()
    refs, _ = store.locate(programs.VIEW, texts[::-1])
    assert refs.truncated.tolist() == [True, False, True, False]
    assert refs.windowed.tolist() == [flag in (2, 3) for flag in flags[::-1]]
    assert refs.take(np.array([0, 3])).windowed.tolist() == [flags[3] == 3, False]


def _tokens_of(texts: list[str], lengths: list[int], names: list[str]) -> dict[str, Any]:
    """Token ids and spans made from the texts' keys, so that every text has its own."""
    starts = [int(key[:2].view(np.uint16)[0]) for key in keys_of_texts(texts)]
    numbers = np.concatenate(
        [np.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)]
    ).astype(np.uint32)
    arrays = {"token_ids": numbers, "spans": np.stack([numbers, numbers + numbers % 3], axis=1)}
    return {name: arrays[name] for name in names}


@pytest.mark.parametrize("encoding", ["dense", "dictionary"])
@pytest.mark.parametrize("names", [[], ["token_ids"], ["spans"], ["token_ids", "spans"]])
def test_tokens_follow_their_rows_into_key_order(
    store: FeatureStore,
    programs: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    encoding: str,
) -> None:
    for name in ("_PIECE_BYTES", "_PARTS_PIECE_BYTES"):
        monkeypatch.setattr(ordering_module, name, 7 * 3 * 8)
    store.catalog.add_view(programs.VIEW, "x")
    writer = store.writer(programs.VIEW, limits=WriterLimits(encoding=encoding))
    table = np.arange(2000, dtype=np.float16).reshape(500, 4)
    texts = [str(number) for number in range(100)]
    lengths = [number % 6 for number in range(100)]
    codes = np.arange(sum(lengths), dtype=np.uint32)
    splits = np.cumsum([0, *lengths])
    # Parts smaller and larger than what is put in its place at a time; one shard of them all.
    for first, last in ((0, 1), (1, 4), (4, 50), (50, 50), (50, 100)):
        part = codes[splits[first] : splits[last]]
        tokens = _tokens_of(texts[first:last] or [""], lengths[first:last] or [0], names)
        more = (np.array(lengths[first:last], np.int64), np.zeros(last - first, np.uint8))
        keys = keys_of_texts(texts[first:last])
        if encoding == "dense":
            writer.add_values(keys, *more, values=table[part], **tokens)
        else:
            writer.add_codes(keys, *more, codes=part, table=table, **tokens)
    writer.flush()
    asked = texts[::-1]
    refs, reader = store.locate(programs.VIEW, asked)
    records, features = reader.token_records(refs), reader.gather(refs)
    for place, text in enumerate(asked):
        number = int(text)
        expected = table[splits[number] : splits[number + 1]]
        np.testing.assert_array_equal(features[place], expected)
        tokens = _tokens_of([text], [lengths[number]], names)
        for name in ("token_ids", "spans"):
            found = getattr(records[place], name)
            if name in names:
                np.testing.assert_array_equal(found, tokens[name], strict=True)
            else:
                assert found is None
    assert verify_store(store).is_well


def test_rows_that_are_not_contiguous_are_stored_as_they_are(
    store: FeatureStore, programs: ModuleType
) -> None:
    store.catalog.add_view(programs.VIEW, "x")
    writer = store.writer(programs.VIEW)
    wide = np.arange(48, dtype=np.float16).reshape(6, 8)
    numbers = np.arange(12, dtype=np.uint32)
    tokens = {"token_ids": numbers[::2], "spans": np.array([numbers[:6], numbers[6:]]).T}
    _add(writer, ["a", "b"], [2, 4], wide[:, ::2], **tokens)
    writer.flush()
    refs, reader = store.locate(programs.VIEW, ["a", "b"])
    np.testing.assert_array_equal(reader.gather(refs).values, wide[:, ::2])
    first, second = reader.token_records(refs)
    assert first.token_ids is not None
    assert second.spans is not None
    assert first.token_ids.tolist() == [0, 2]
    assert second.spans.tolist() == [[2, 8], [3, 9], [4, 10], [5, 11]]


def test_token_records_of_several_shards_and_of_texts_that_are_missing(
    store: FeatureStore, programs: ModuleType
) -> None:
    store.catalog.add_view(programs.VIEW, "x")
    for text, names in (("a", ["spans"]), ("b", []), ("c", ["token_ids"])):
        writer = store.writer(programs.VIEW)
        _add(writer, [text], [2], np.ones((2, 4), np.float16), **_tokens_of([text], [2], names))
        writer.flush()
    reader = store.reader(programs.VIEW)
    refs = reader.locate(keys_of_texts(["c", "x", "b", "a", "c"]))
    records = reader.token_records(refs)
    has_spans = [record.spans is not None for record in records]
    has_token_ids = [record.token_ids is not None for record in records]
    assert has_spans == [False, False, False, True, False]
    assert has_token_ids == [True, False, False, False, True]
    for place in (0, 4):
        expected = _tokens_of(["c"], [2], ["token_ids"])["token_ids"]
        np.testing.assert_array_equal(records[place].token_ids, expected)
    assert reader.token_records(refs.take(np.zeros(0, np.int64))) == []


def test_flush_holds_two_copies_of_the_rows_at_most(
    store: FeatureStore, programs: ModuleType
) -> None:
    """One in key order and the file's image: with what was added, three times the rows."""
    view = replace(programs.VIEW, dim=256)
    store.catalog.add_view(view, "x")
    writer = store.writer(view, limits=WriterLimits(encoding="dense"))
    num_bytes = 0
    for part in range(400):
        texts = [f"{part} {number}" for number in range(10)]
        values = np.full((40, 256), part, np.float16)
        num_bytes += values.nbytes
        _add(writer, texts, [4] * 10, values)
    tracemalloc.start()
    try:
        writer.flush()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_bytes < peak < 2.3 * num_bytes
    assert (store.get(view, ["399 9"]).values == 399).all()


def test_shard_is_due_by_bytes_of_tokens_too(store: FeatureStore, programs: ModuleType) -> None:
    for tokens, is_due in (
        ({}, False),
        ({"token_ids": np.zeros(10, np.uint32)}, False),
        ({"spans": np.zeros((10, 2), np.uint32)}, True),
    ):
        for kind in ("codes", "values"):
            limits = WriterLimits(max_shard_bytes=160, encoding="dense")
            writer = store.writer(programs.VIEW, limits=limits)
            text = (keys_of_texts(["a"]), np.array([10]), np.zeros(1, np.uint8))
            if kind == "codes":
                codes = np.zeros(10, np.uint32)
                writer.add_codes(*text, codes=codes, table=np.ones((1, 4), np.float16), **tokens)
            else:
                writer.add_values(*text, values=np.ones((10, 4), np.float16), **tokens)
            assert writer.is_due is is_due


def test_shard_is_due_by_bytes_by_texts_and_by_age(
    store: FeatureStore, programs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for limits in (
        WriterLimits(max_shard_bytes=100),
        WriterLimits(max_texts=3),
        WriterLimits(max_age_s=5),
    ):
        writer = store.writer(programs.VIEW, limits=limits)
        assert not writer.is_due
        _add(writer, ["a", "b"], [5, 5], np.zeros((10, 4), np.float16))
        assert not writer.is_due
        now += 4.9
        assert not writer.is_due
        _add(writer, ["c"], [5], np.zeros((5, 4), np.float16))
        now += 0.2
        assert writer.is_due
        writer.flush()
        assert not writer.is_due
    with pytest.raises(ValueError, match="encoding must be auto or dense or dictionary"):
        WriterLimits(encoding="zip")


@pytest.mark.parametrize(
    ("encoding", "num_distinct", "expected"),
    [
        ("dense", 2, {"values"}),
        ("dictionary", 40, {"codes", "dictionary"}),
        ("auto", 2, {"codes", "dictionary"}),
        ("auto", 40, {"values"}),
    ],
)
def test_rows_of_a_table_are_laid_out_as_asked_or_the_smaller_way(
    store: FeatureStore, programs: ModuleType, encoding: str, num_distinct: int, expected: set[str]
) -> None:
    store.catalog.add_view(programs.VIEW, "x")
    writer = store.writer(programs.VIEW, limits=WriterLimits(encoding=encoding))
    table = np.arange(400, dtype=np.float16).reshape(100, 4)
    codes = (np.arange(40) % num_distinct * 2 + 1).astype(np.uint32)
    for half in (0, 20):
        # The table grows between calls; what stands in it stays.
        writer.add_codes(
            keys_of_texts([str(half), str(half + 1)]),
            np.array([20, 0]),
            np.zeros(2, np.bool_),
            codes=codes[half : half + 20],
            table=table if half else table[:99],
        )
    writer.flush()
    assert set(store.reader(programs.VIEW)._shard(0)._arrays) == {
        "keys", "row_splits", "flags", *expected
    }  # fmt: skip
    for half in (0, 20):
        np.testing.assert_array_equal(
            store.get(programs.VIEW, [str(half)])[0], table[codes[half : half + 20]]
        )


UNFIT: dict[str, dict[str, Any]] = {
    "too few rows": {"values": np.zeros((2, 4), np.float16)},
    "too many rows": {"values": np.zeros((4, 4), np.float16)},
    "another width": {"values": np.zeros((3, 5), np.float16)},
    "another dtype": {"values": np.zeros((3, 4), np.float32)},
    "one axis": {"values": np.zeros(12, np.float16)},
    "negative length": {"lengths": [4, -1]},
    "too few lengths": {"lengths": [3]},
    "a key twice": {"texts": ["a", "a"]},
    "a pending key": {"texts": ["a", "pending"]},
    "too few flags": {"flags": np.zeros(1, np.uint8)},
    "flags in two axes": {"flags": np.zeros((2, 1), np.bool_)},
    "wide flags": {"flags": np.zeros(2, np.int64)},
    "an unknown flag": {"flags": np.array([0, 4], np.uint8)},
    "ids where there are none": {"token_ids": np.zeros(3, np.uint32)},
    "spans where there are none": {"spans": np.zeros((3, 2), np.uint32)},
}
UNFIT_TOKENS: dict[str, dict[str, Any]] = {
    "too few ids": {"token_ids": np.zeros(2, np.uint32)},
    "ids in two axes": {"token_ids": np.zeros((3, 1), np.uint32)},
    "signed ids": {"token_ids": np.zeros(3, np.int32)},
    "no ids": {"token_ids": None},
    "too many spans": {"spans": np.zeros((4, 2), np.uint32)},
    "flat spans": {"spans": np.zeros(6, np.uint32)},
    "wide spans": {"spans": np.zeros((3, 2), np.int64)},
    "a span that ends before it starts": {"spans": np.array([[0, 1], [5, 4], [7, 7]], np.uint32)},
    "no spans": {"spans": None},
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_would_make_an_unreadable_shard_is_refused_before_it_is_taken(
    store: FeatureStore, programs: ModuleType, case: str
) -> None:
    store.catalog.add_view(programs.VIEW, "x")
    writer = store.writer(programs.VIEW)
    _add(writer, ["pending"], [1], np.ones((1, 4), np.float16))
    arguments: dict[str, Any] = {
        "texts": ["a", "b"],
        "lengths": [1, 2],
        "values": np.zeros((3, 4), np.float16),
    }
    with pytest.raises(EncodingError) as caught:
        _add(writer, **(arguments | UNFIT[case]))
    assert "\n" not in str(caught.value)
    _add(writer, **arguments)
    writer.flush()
    assert store.contains(programs.VIEW, ["a", "b", "pending"]).all()
    assert verify_store(store).rows == 3


@pytest.mark.parametrize("kind", ["codes", "values"])
@pytest.mark.parametrize("case", UNFIT_TOKENS)
def test_tokens_that_do_not_fit_are_refused_before_they_are_taken(
    store: FeatureStore, programs: ModuleType, case: str, kind: str
) -> None:
    store.catalog.add_view(programs.VIEW, "x")
    writer = store.writer(programs.VIEW)
    table = np.ones((3, 4), np.float16)
    rows = {
        "codes": {"codes": np.arange(3, dtype=np.uint32), "table": table},
        "values": {"values": table},
    }
    add = {"codes": writer.add_codes, "values": writer.add_values}[kind]
    lengths, flags = np.array([1, 2]), np.zeros(2, np.uint8)
    tokens: dict[str, Any] = {
        "token_ids": np.arange(3, dtype=np.uint32),
        "spans": np.array([[0, 1], [4, 4], [4, 7]], np.uint32),
    }
    add(keys_of_texts(["p", "q"]), lengths, flags, **rows[kind], **tokens)
    with pytest.raises(EncodingError) as caught:
        add(keys_of_texts(["a", "b"]), lengths, flags, **rows[kind], **tokens | UNFIT_TOKENS[case])
    assert "\n" not in str(caught.value)
    add(keys_of_texts(["a", "b"]), lengths, flags, **rows[kind], **tokens)
    writer.flush()
    refs, reader = store.locate(programs.VIEW, ["b", "q"])
    for record in reader.token_records(refs):
        assert record.spans is not None
        assert record.spans.tolist() == [[4, 4], [4, 7]]
    assert verify_store(store).rows == 4


@pytest.mark.parametrize(
    ("codes", "table"),
    [
        (np.array([0, 3], np.uint32), np.zeros((3, 4), np.float16)),
        (np.array([0, 0], np.uint32), np.zeros((0, 4), np.float16)),
        (np.array([0, 1], np.int64), np.zeros((3, 4), np.float16)),
        (np.array([[0], [1]], np.uint32), np.zeros((3, 4), np.float16)),
        (np.array([0, 1], np.uint32), np.zeros((3, 4), np.float64)),
        (np.array([0], np.uint32), np.zeros((3, 4), np.float16)),
    ],
)
def test_codes_that_do_not_fit_are_refused(
    store: FeatureStore, programs: ModuleType, codes: Any, table: Any
) -> None:
    writer = store.writer(programs.VIEW)
    with pytest.raises(EncodingError):
        writer.add_codes(
            keys_of_texts(["a"]), np.array([2]), np.zeros(1, np.bool_), codes=codes, table=table
        )
    assert len(writer.pending) == 0


def test_one_shard_does_not_mix_codes_and_values(store: FeatureStore, programs: ModuleType) -> None:
    writer = store.writer(programs.VIEW)
    table = np.ones((1, 4), np.float16)

    def add_codes(text: str) -> None:
        codes = np.zeros(1, np.uint32)
        cut = np.zeros(1, np.bool_)
        writer.add_codes(keys_of_texts([text]), np.array([1]), cut, codes=codes, table=table)

    _add(writer, ["a"], [1], table)
    with pytest.raises(EncodingError, match="not both"):
        add_codes("b")
    writer.flush()
    add_codes("b")
    with pytest.raises(EncodingError, match="not both"):
        _add(writer, ["c"], [1], table)
    writer.flush()
    assert store.contains(programs.VIEW, ["a", "b", "c"]).tolist() == [True, True, False]


@pytest.mark.parametrize("names", [["token_ids"], ["spans"], ["token_ids", "spans"]])
def test_one_shard_has_the_tokens_of_all_its_texts_or_of_none(
    store: FeatureStore, programs: ModuleType, names: list[str]
) -> None:
    store.catalog.add_view(programs.VIEW, "x")
    writer = store.writer(programs.VIEW)
    rows = np.ones((1, 4), np.float16)
    kinds: list[dict[str, Any]] = [{}, _tokens_of(["a"], [1], names)]
    for number, (first, second) in enumerate((kinds, kinds[::-1])):
        _add(writer, [f"{number} a"], [1], rows, **first)
        with pytest.raises(EncodingError, match=f"{names[-1]} of all|{names[0]} of all"):
            _add(writer, [f"{number} b"], [1], rows, **second)
        writer.flush()
        _add(writer, [f"{number} b"], [1], rows, **second)
        writer.flush()
    assert store.contains(programs.VIEW, ["0 a", "0 b", "1 a", "1 b"]).all()


def test_catalog_that_is_locked_acknowledges_nothing(
    store: FeatureStore, programs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.put(store, ["a"])
    writer = store.writer(programs.VIEW)
    programs.add_texts(writer, ["b"])

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Catalog, "add_shard", fail)
        with pytest.raises(KeyboardInterrupt):
            writer.flush()
    assert not store.contains(programs.VIEW, ["b"]).any()
    assert len(verify_store(store).orphans) == 1
    writer.flush()
    programs.assert_served(store, ["a", "b"])
    assert verify_store(store).orphans == [], "the same bytes have the same name"


# Storage dtypes


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_storable_rows_are_rounded_to_nearest(dtype: str) -> None:
    rows = np.array([[1.0, 65504.0], [0.1, -1e-9]], np.float32)
    stored = to_storage(rows, dtype)
    assert stored.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(stored, rows.astype(dtype))
    assert to_storage(np.zeros((0, 3), np.float32), dtype).shape == (0, 3)


@pytest.mark.parametrize(
    ("value", "dtype", "reason"),
    [
        (np.nan, "float32", "NaN or infinity"),
        (np.inf, "float32", "NaN or infinity"),
        (-np.inf, "float16", "NaN or infinity"),
        (1e5, "float16", "100000 is too large for float16; use --dtype float32"),
        (-65520.0, "float16", "65520 is too large for float16"),
    ],
)
def test_row_that_cannot_be_stored_is_named(value: float, dtype: str, reason: str) -> None:
    rows = np.ones((4, 3), np.float32)
    rows[2, 1] = value
    with pytest.raises(BadRowError, match=reason) as caught:
        to_storage(rows, dtype)
    assert caught.value.row == 2


# Many shards, many threads


def _interrupt_at(number: int, file: str) -> Any:
    """A trace function that raises, as Ctrl-C does, before the given line of a file runs."""
    left = [number]

    def trace(frame: Any, event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename != file:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
        return trace

    return trace


@pytest.mark.parametrize("names", [[], ["token_ids", "spans"]])
@pytest.mark.parametrize("encoding", ["dense", "dictionary"])
def test_writer_interrupted_at_any_line_writes_nothing_wrong(
    store: FeatureStore, programs: ModuleType, encoding: str, names: list[str]
) -> None:
    view = programs.VIEW
    table = np.arange(8 * view.dim, dtype=view.dtype).reshape(8, view.dim)
    store.catalog.add_view(view, "builtin:x")
    limits = WriterLimits(encoding=encoding)
    file = writer_module.__file__
    num_interrupted = 0
    for number in range(1, 200):
        writer = store.writer(view, limits=limits)
        texts = [f"{encoding} {number} first", f"{encoding} {number} second"]
        codes = [np.array([1, 2, 3], np.uint32), np.array([4, 5], np.uint32)]
        expected = dict(zip(texts, codes, strict=True))
        sys.settrace(_interrupt_at(number, str(file)))
        try:
            for text, rows in expected.items():
                writer.add_codes(
                    keys_of_texts([text]),
                    np.array([len(rows)]),
                    np.zeros(1, np.bool_),
                    codes=rows,
                    table=table,
                    **_tokens_of([text], [len(rows)], names),
                )
        except KeyboardInterrupt:
            num_interrupted += 1
        else:
            break
        finally:
            sys.settrace(None)
        writer.flush()
        for text in np.array(texts)[store.contains(view, texts)]:
            np.testing.assert_array_equal(store.get(view, [text])[0], table[expected[text]])
            refs, reader = store.locate(view, [text])
            for name, array in _tokens_of([text], [len(expected[text])], names).items():
                found = getattr(reader.token_records(refs)[0], name)
                np.testing.assert_array_equal(found, array)
    assert num_interrupted > 20
    assert verify_store(store).is_well


def _many_shards(store: FeatureStore, programs: ModuleType, count: int) -> list[str]:
    for number in range(count):
        programs.put(store, [f"{number}-{text}" for text in range(3)])
    return [f"{number}-{text}" for text in range(3) for number in range(count)]


def test_open_shards_are_bounded_and_the_least_recently_used_is_closed(
    store: FeatureStore, programs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = _many_shards(store, programs, 12)
    monkeypatch.setattr(reader_module, "_max_open_shards", lambda: 4)
    with open_store(store.path) as again:
        reader = again.reader(programs.VIEW)
        programs.assert_served(again, texts)
        assert len(reader._shards) == 4
        numbers = list(reader._shards)
        reader._shard(numbers[0])
        reader._shard(next(number for number in range(12) if number not in numbers))
        assert numbers[0] in reader._shards
        assert numbers[1] not in reader._shards


def test_limit_of_open_shards_follows_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, expected in ((1024, 512), (10, 8), (resource.RLIM_INFINITY, 1 << 16)):
        monkeypatch.setattr(resource, "getrlimit", lambda _kind, limit=limit: (limit, limit))
        assert reader_module._max_open_shards() == expected


def test_threads_read_one_store_at_once(store: FeatureStore, programs: ModuleType) -> None:
    texts = _many_shards(store, programs, 8)
    with open_store(store.path) as again:
        barrier = threading.Barrier(4)

        def read(seed: int) -> None:
            order = np.random.default_rng(seed).permutation(len(texts))
            barrier.wait()
            for start in range(0, len(texts), 6):
                programs.assert_served(again, [texts[place] for place in order[start : start + 6]])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(read, range(4)))


def test_threads_meet_new_shards_at_once(store: FeatureStore, programs: ModuleType) -> None:
    """Each thread's reader finds other shards to cover; none may get another's number."""
    with open_store(store.path) as again:
        for round_ in range(4):
            texts = [f"{round_}-{number}" for number in range(6)]
            for text in texts:
                programs.put(store, [text])
            barrier = threading.Barrier(3)

            def read(
                _seed: int, texts: list[str] = texts, barrier: threading.Barrier = barrier
            ) -> None:
                barrier.wait()
                programs.assert_served(again, texts)

            with ThreadPoolExecutor(3) as pool:
                list(pool.map(read, range(3)))


def test_places_stay_good_when_the_index_is_made_anew(
    store: FeatureStore, programs: ModuleType
) -> None:
    """A stream holds places for hours; another shard's removal renumbers the index."""
    texts = ["aa", "bb", "cc", "dd"]
    for text in texts:
        programs.put(store, [text])
    lengths = {len(programs.matrix_of(text)) for text in texts}
    with open_store(store.path) as reading:
        refs, reader = reading.locate(programs.VIEW, texts)
        first = store.catalog.shards()[0]
        store.catalog.remove_shard(first.digest)
        gone = next(text for text in texts if not store.contains(programs.VIEW, [text]).all())
        kept = [text for text in texts if text != gone]
        programs.assert_served(reading, kept)
        features = reader.gather(refs)
        for text, matrix in zip(texts, features, strict=True):
            np.testing.assert_array_equal(matrix, programs.matrix_of(text))
    assert lengths


def test_padded_batch_has_zeros_after_each_text(store: FeatureStore, programs: ModuleType) -> None:
    texts = _many_shards(store, programs, 3)
    refs, reader = store.locate(programs.VIEW, texts)
    out = np.full((len(texts), 8, 4), 77, np.float16)
    reader.gather_padded(refs, out)
    for text, rows in zip(texts, out, strict=True):
        expected = programs.matrix_of(text)
        np.testing.assert_array_equal(rows[: len(expected)], expected)
        assert not rows[len(expected) :].any()


def test_missing_texts_have_no_rows(store: FeatureStore, programs: ModuleType) -> None:
    programs.put(store, ["a"])
    reader: ViewReader = store.reader(programs.VIEW)
    refs: FeatureRefs = reader.locate(keys_of_texts(["x", "a", "y"]))
    assert refs.shards.tolist() == [-1, 0, -1]
    assert refs.lengths.tolist()[::2] == [0, 0]
    assert len(refs.take(np.array([1]))) == 1
    assert len(reader.gather(refs)) == 3


def test_damaged_shard_does_not_keep_the_others_from_being_served(
    store: FeatureStore, programs: ModuleType
) -> None:
    programs.put(store, ["a", "b"])
    programs.put(store, ["c", "d", "e", "f"])
    record = store.catalog.shards()[1]
    path = store.layout.shard_path(record.view, record.digest)
    store.reader(programs.VIEW).save_index()
    store.close()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with open_store(store.path) as again:
        programs.assert_served(again, ["a", "b"])
        with pytest.raises(CorruptShardError, match=f"{record.digest}.*verify --fix"):
            again.get(programs.VIEW, ["a", "c", "d", "e", "f"])


def test_newest_view_is_the_one_last_built(store: FeatureStore, programs: ModuleType) -> None:
    with pytest.raises(UnknownNameError, match="holds no features yet"):
        store.newest_view()
    other = replace(programs.VIEW, max_tokens=3)
    programs.put(store, ["a"])
    programs.put(store, ["a"], view=other)
    assert store.newest_view() == other.fingerprint
    record = DatasetRecord("name", "0" * 32, 1, 1, [], 0.0)
    store.catalog.add_dataset(record, view=programs.VIEW.fingerprint, report={})
    assert store.newest_view() == programs.VIEW.fingerprint
