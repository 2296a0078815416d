"""FeatureStream: whole epochs, reproducible order, padding, and what it refuses."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.build import command as build_command
from embedcache.errors import CorruptShardError, KeyNotFoundError, UnknownNameError
from embedcache.keys import keys_of_texts
from embedcache.modules.facts import Layer, ModuleFacts
from embedcache.modules.loading import ModuleFiles
from embedcache.modules.settings import ViewSettings, view_of_module
from embedcache.store.shards.codec import from_storage, to_storage
from embedcache.store.store import FeatureStore, open_store
from embedcache.stream import FeatureStream
from embedcache.stream.stream import Batch, padded_length
from embedcache.view import FeatureView

NUM_TEXTS = 90
TEXTS = [f"text {number}" for number in range(NUM_TEXTS)]
LABELS = [("b",) if number % 3 else ("a", "b") for number in range(NUM_TEXTS - 5)] + [()] * 5
SPLITS = ["train"] * 70 + ["test"] * 20

Register = Callable[..., None]


@pytest.fixture
def filled(store: FeatureStore, programs: ModuleType, register: Register) -> FeatureStore:
    """A labelled dataset in two splits, its texts in three shards of both encodings."""
    programs.put(store, TEXTS[:40])
    programs.put(store, TEXTS[40:60], encoding="dictionary")
    programs.put(store, TEXTS[60:])
    register("name", TEXTS, LABELS, SPLITS)
    return store


def _texts_of(batches: Sequence[Batch], texts: Sequence[str] = TEXTS) -> list[str]:
    text_of_key = dict(zip(map(bytes, keys_of_texts(texts)), texts, strict=True))
    return [text_of_key[bytes(key)] for batch in batches for key in batch.keys]


def _assert_equal(one: Sequence[Batch], other: Sequence[Batch]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        for name in ("values", "lengths", "labels", "keys"):
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name), strict=True)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 90, 1000])
def test_every_text_comes_exactly_once_an_epoch(
    filled: FeatureStore, batch_size: int, shuffle: bool
) -> None:
    stream = FeatureStream(filled, "name", batch_size=batch_size, shuffle=shuffle)
    for epoch in range(2):
        batches = list(stream.epoch(epoch))
        assert Counter(_texts_of(batches)) == Counter(TEXTS)
        assert len(batches) == len(stream) == stream.num_batches == -(-NUM_TEXTS // batch_size)
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)


def test_document_that_stands_twice_comes_twice(
    store: FeatureStore, programs: ModuleType, register: Register
) -> None:
    programs.put(store, ["a", "b"])
    register("twice", ["a", "b", "a"])
    stream = FeatureStream(store, "twice", batch_size=2)
    assert Counter(_texts_of(list(stream), ["a", "b"])) == {"a": 2, "b": 1}


def test_values_are_those_of_the_store_and_zeros_after(
    filled: FeatureStore, programs: ModuleType
) -> None:
    """Dense and dictionary shards are mixed in this view."""
    stream = FeatureStream(filled, "name", batch_size=16, seed=3)
    for batch in stream:
        texts = _texts_of([batch])
        stored = filled.get(programs.VIEW, texts)
        assert batch.values.dtype == stream.dtype == "float16"
        assert batch.values.shape == (len(texts), batch.values.shape[1], stream.dim)
        assert batch.values.shape[1] % 8 == 0
        assert batch.lengths.dtype == np.int32
        assert batch.lengths.tolist() == stored.lengths.tolist()
        for text, row, length, matrix in zip(
            texts, batch.values, batch.lengths, stored, strict=True
        ):
            np.testing.assert_array_equal(row[:length], matrix)
            np.testing.assert_array_equal(matrix, programs.matrix_of(text))
            assert not row[length:].any()


def test_labels_are_the_first_ones_and_minus_one_without(filled: FeatureStore) -> None:
    stream = FeatureStream(filled, "name", batch_size=13)
    assert stream.label_names == ("a", "b")
    expected = {
        text: stream.label_names.index(names[0]) if names else -1
        for text, names in zip(TEXTS, LABELS, strict=True)
    }
    assert stream.labels.tolist() == [expected[text] for text in TEXTS]
    for batch in stream:
        assert batch.labels.dtype == np.int32
        assert batch.labels.tolist() == [expected[text] for text in _texts_of([batch])]


def test_dataset_without_labels_has_minus_one_throughout(
    filled: FeatureStore, register: Register
) -> None:
    register("plain", TEXTS[:10])
    stream = FeatureStream(filled, "plain")
    assert stream.label_names == ()
    assert stream.labels.tolist() == [-1] * 10


def test_same_seed_gives_the_same_batches(filled: FeatureStore) -> None:
    first = FeatureStream(filled, "name", batch_size=16, seed=7)
    again = FeatureStream(filled, "name", batch_size=16, seed=7)
    _assert_equal(list(first.epoch(2)), list(again.epoch(2)))
    _assert_equal(list(first), list(again.epoch(0)))


def test_another_epoch_or_seed_has_another_order(filled: FeatureStore) -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(FeatureStream(filled, "name", seed=seed).order(epoch).tolist())

    orders = {order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(orders) == 6
    assert tuple(range(NUM_TEXTS)) not in orders


def test_without_shuffling_the_order_is_that_of_the_corpus(filled: FeatureStore) -> None:
    stream = FeatureStream(filled, "name", batch_size=16, shuffle=False)
    for epoch in (0, 5):
        assert _texts_of(list(stream.epoch(epoch))) == TEXTS


def test_split_gives_its_documents_only(filled: FeatureStore) -> None:
    for split, expected in (("train", TEXTS[:70]), ("test", TEXTS[70:]), (None, TEXTS)):
        stream = FeatureStream(filled, "name", split=split, shuffle=False)
        assert stream.num_texts == len(expected)
        assert _texts_of(list(stream)) == expected


def test_rows_give_these_documents_in_this_order(filled: FeatureStore) -> None:
    rows = np.array([80, 3, 41, 3])
    stream = FeatureStream(filled, "name", rows=rows, shuffle=False, batch_size=3)
    assert _texts_of(list(stream)) == [TEXTS[row] for row in rows]
    shuffled = FeatureStream(filled, "name", rows=rows, batch_size=3)
    assert sorted(_texts_of(list(shuffled))) == sorted(TEXTS[row] for row in rows)
    empty = FeatureStream(filled, "name", rows=np.zeros(0, np.int64))
    assert (len(empty), list(empty), empty.max_length) == (0, [], 0)


def test_unknown_split_lists_those_there_are(filled: FeatureStore, register: Register) -> None:
    with pytest.raises(UnknownNameError, match="has no split 'dev'; its splits: train, test"):
        FeatureStream(filled, "name", split="dev")
    register("plain", TEXTS[:10])
    with pytest.raises(UnknownNameError, match="has no split 'train'; its splits: none"):
        FeatureStream(filled, "plain", split="train")


def test_unknown_dataset_or_view_is_refused(filled: FeatureStore) -> None:
    with pytest.raises(UnknownNameError, match="no dataset 'other'"):
        FeatureStream(filled, "other")
    with pytest.raises(UnknownNameError, match="no view 'zz'"):
        FeatureStream(filled, "name", view="zz")
    with pytest.raises(ValueError, match="batch_size must be at least 1: got 0"):
        FeatureStream(filled, "name", batch_size=0)


def test_texts_that_the_view_lacks_are_counted_with_the_command_that_mends_it(
    filled: FeatureStore, register: Register
) -> None:
    register("larger", [*TEXTS, "new one", "new two", "new one"])
    with pytest.raises(KeyNotFoundError) as caught:
        FeatureStream(filled, "larger")
    message = str(caught.value)
    assert "lacks 3 of 93 texts of dataset 'larger'" in message
    assert "`embedcache build CORPUS --module builtin:nothing --dataset larger" in message
    assert "\n" not in message
    covered = FeatureStream(filled, "larger", rows=np.arange(90))
    assert covered.num_texts == 90


def test_imported_view_that_lacks_texts_says_how_to_import_more(
    filled: FeatureStore, programs: ModuleType, register: Register
) -> None:
    view = replace(programs.VIEW, signature="imported")
    programs.put(filled, TEXTS[:8], view=view)
    filled.catalog.add_view(view, "imported:old cache")
    register("more", [*TEXTS[:8], "new"])
    command = "`embedcache import FILE --texts CORPUS --as 'old cache'`"
    with pytest.raises(KeyNotFoundError, match="lacks 1 of 9 texts") as caught:
        FeatureStream(filled, "more", view=view.fingerprint)
    assert command in str(caught.value)


def test_layers_that_are_kept_apart_have_their_names(
    filled: FeatureStore, programs: ModuleType, register: Register
) -> None:
    apart = replace(programs.VIEW, dim=6, num_layers=3, output="all:1,2,sequence_output")
    side_by_side = replace(programs.VIEW, dim=6, output="1,2")
    for view, names in ((apart, ("1", "2", "sequence_output")), (side_by_side, ())):
        programs.put(filled, TEXTS[:8], view=view)
        register("few", TEXTS[:8])
        stream = FeatureStream(filled, "few", view=view.fingerprint)
        assert (stream.num_layers, stream.layer_names) == (max(1, len(names)), names)
        assert next(iter(stream)).values.shape[2] == stream.dim == 6


NUMBERED = tuple(Layer(name=name, dim=4) for name in ("1", "2", "3"))
SEQUENCE = (Layer(name="sequence_output", dim=4),)
ELMO_LAYERS = tuple(Layer(name=name, dim=4) for name in ("word_emb", "lstm_outputs1"))
WORDS_FACTS = ModuleFacts(
    kind="bag-of-words", signature="default", output="default", dim=4, tokenizer="space-nonempty"
)
SENTENCE_FACTS = ModuleFacts(
    kind="sentence-encoder", signature="__call__", output="outputs", dim=4, tokenizer="parts"
)
ENCODER_FACTS = ModuleFacts(
    kind="preprocessed-encoder", signature="__call__", output="sequence_output", dim=4,
    tokenizer="pieces", layers=NUMBERED, outputs=SEQUENCE,
)  # fmt: skip
BERT_FACTS = replace(ENCODER_FACTS, kind="tf1-bert", signature="tokens")
ELMO_FACTS = ModuleFacts(
    kind="elmo", signature="default", output="elmo", dim=4, tokenizer="space-nonempty",
    layers=ELMO_LAYERS, outputs=(Layer(name="elmo", dim=4),),
)  # fmt: skip
PREPROCESS_FACTS = ModuleFacts(kind="preprocessor", signature="__call__", dim=0, tokenizer="pieces")


@pytest.mark.parametrize(
    ("facts", "settings"),
    [
        (WORDS_FACTS, {}),
        (WORDS_FACTS, {"overflow": "window", "max_tokens": 40}),
        (WORDS_FACTS, {"granularity": "sentence"}),
        (WORDS_FACTS, {"granularity": "window", "context_words": 0}),
        (replace(WORDS_FACTS, output="", tokenizer="module"), {"dtype": "float32"}),
        (SENTENCE_FACTS, {}),
        (SENTENCE_FACTS, {"granularity": "token"}),
        (SENTENCE_FACTS, {"granularity": "window"}),
        (SENTENCE_FACTS, {"granularity": "window", "context_words": 5, "overflow": "error"}),
        (ENCODER_FACTS, {}),
        (ENCODER_FACTS, {"layer": "all"}),
        (ENCODER_FACTS, {"layer": "mean:1,3", "keep_special_tokens": True}),
        (ENCODER_FACTS, {"layer": "-1", "overflow": "window", "max_tokens": 128}),
        (BERT_FACTS, {}),
        (BERT_FACTS, {"layer": "2"}),
        (BERT_FACTS, {"layer": "1,last", "keep_special_tokens": True}),
        (ELMO_FACTS, {}),
        (ELMO_FACTS, {"layer": "word_emb"}),
        (ELMO_FACTS, {"layer": "all"}),
    ],
)
def test_command_that_mends_a_view_asks_for_that_view(
    store: FeatureStore,
    programs: ModuleType,
    register: Register,
    facts: ModuleFacts,
    settings: dict[str, Any],
) -> None:
    """The printed line, read by `embedcache build` itself, leads to the same fingerprint."""
    preprocess = "/with space/pre" if facts.kind == "preprocessed-encoder" else ""

    def view_of(chosen: ViewSettings) -> FeatureView:
        return view_of_module(
            ModuleFiles("/modules/one", Path("/modules/one"), facts),
            chosen,
            digest="1" * 32,
            preprocess_digest="2" * 32 if preprocess else "",
            preprocess=PREPROCESS_FACTS if preprocess else None,
        )

    view = view_of(ViewSettings(**settings))
    store.catalog.add_view(view, "/modules/one", preprocess=preprocess)
    register("a name", ["missing"])
    with pytest.raises(KeyNotFoundError) as caught:
        FeatureStream(store, "a name", view=view.fingerprint)
    (line,) = re.findall("`(embedcache build .*)`", str(caught.value))
    given = build_command.make_context("build", shlex.split(line)[2:]).params
    assert given["corpus"] == ("CORPUS",)
    assert (given["module"], given["dataset"]) == ("/modules/one", "a name")
    assert (given["preprocess"] or "") == preprocess
    names = [field.name for field in fields(ViewSettings)]
    assert view_of(ViewSettings(**{name: given[name] for name in names})) == view


def test_handle_that_was_lost_is_for_the_user_to_fill_in(
    store: FeatureStore, programs: ModuleType, register: Register
) -> None:
    store.catalog.add_view(programs.VIEW, "")
    register("name", ["missing"])
    with pytest.raises(KeyNotFoundError, match="build CORPUS --module HANDLE --dataset name"):
        FeatureStream(store, "name")


def test_newest_dataset_and_its_view_are_the_defaults(
    filled: FeatureStore, programs: ModuleType, register: Register
) -> None:
    wide = replace(programs.VIEW, dim=6)
    programs.put(filled, TEXTS, view=wide)
    register("newer", TEXTS[:8])
    stream = FeatureStream(filled)
    assert (stream.num_texts, stream.view, stream.dim) == (8, programs.VIEW.fingerprint, 4)
    other = FeatureStream(filled, view=wide.fingerprint)
    assert next(iter(other)).values.shape[2] == 6
    loaded = filled.load_dataset("name")
    assert FeatureStream(filled, loaded).num_texts == NUM_TEXTS


def test_batch_belongs_to_whoever_took_it(filled: FeatureStore, programs: ModuleType) -> None:
    stream = FeatureStream(filled, "name", batch_size=90)
    (batch,) = stream
    for array in (batch.values, batch.lengths, batch.labels, batch.keys):
        array[:] = 1
    (again,) = stream
    assert Counter(_texts_of([again])) == Counter(TEXTS)
    programs.assert_served(filled, TEXTS)


def test_batch_is_padded_to_its_longest_text(
    store: FeatureStore, programs: ModuleType, register: Register
) -> None:
    empty = next(text for text in TEXTS if len(programs.matrix_of(text)) == 0)
    programs.put(store, [empty])
    register("empty", [empty])
    stream = FeatureStream(store, "empty")
    (batch,) = stream
    assert (batch.values.shape, batch.lengths.tolist()) == ((1, 8, 4), [0])
    assert not batch.values.any()
    assert stream.max_length == 0


@given(st.integers(0, 10_000))
def test_padded_length_is_the_next_multiple_of_eight(num_tokens: int) -> None:
    length = padded_length(num_tokens)
    assert length % 8 == 0
    assert max(num_tokens, 8) <= length < max(num_tokens + 8, 9)


def test_longest_text_is_known_before_the_first_batch(
    filled: FeatureStore, programs: ModuleType
) -> None:
    stream = FeatureStream(filled, "name")
    assert stream.max_length == max(len(programs.matrix_of(text)) for text in TEXTS)


def test_stream_goes_on_while_others_write_and_the_index_is_renumbered(
    filled: FeatureStore, programs: ModuleType
) -> None:
    stream = FeatureStream(filled, "name", batch_size=10, shuffle=False)
    expected = list(stream)
    batches = stream.epoch(0)
    received = [next(batches)]
    programs.put(filled, ["new"])
    unused = filled.catalog.shards()[-1]
    filled.reader(programs.VIEW).save_index()
    filled.catalog.remove_shard(unused.digest)
    assert not filled.contains(programs.VIEW, ["new"]).any()
    received += batches
    _assert_equal(received, expected)


def test_damage_is_refused_when_it_is_met(filled: FeatureStore, programs: ModuleType) -> None:
    record = filled.catalog.shards()[2]
    filled.close()
    path = filled.layout.shard_path(record.view, record.digest)
    with h5py.File(path, "r+") as file:
        file["values"][-1, -1] += 1
    stream = FeatureStream(filled, "name", shuffle=False, batch_size=30)
    batches = iter(stream)
    assert _texts_of([next(batches), next(batches)]) == TEXTS[:60]
    with pytest.raises(CorruptShardError, match="is not what was written"):
        next(batches)
    assert programs.VIEW.fingerprint == stream.view


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float16", "float16"), ("float32", "float32"), ("bfloat16", "float32"), ("int8", "float32")],
)
def test_values_are_of_the_dtype_that_the_stream_names(
    store: FeatureStore,
    programs: ModuleType,
    register: Register,
    dtype: str,
    expected: str,
) -> None:
    view = replace(programs.VIEW, dtype=dtype)
    store.catalog.add_view(view, "x")
    writer = store.writer(view)
    rows = np.array([[1.0, -2.0, 0.5, 4.0], [0, 0, 0, 0], [127, 0, 1, -127]], np.float32)
    keys, flags = keys_of_texts(["a", "b"]), np.zeros(2, np.bool_)
    writer.add_values(keys, np.array([1, 2]), flags, values=to_storage(rows, dtype))
    writer.flush()
    register("name", ["a", "b"])
    stream = FeatureStream(store, "name", view=view.fingerprint, shuffle=False)
    assert stream.dtype == expected
    (batch,) = stream
    assert batch.values.dtype == np.dtype(expected)
    stored = from_storage(to_storage(rows, dtype), dtype)
    np.testing.assert_array_equal(batch.values[0, :1], stored[:1])
    np.testing.assert_array_equal(batch.values[1, :2], stored[1:])
    assert not batch.values[0, 1:].any()
    assert not batch.values[1, 2:].any()


def test_batches_that_are_kept_are_not_written_over(filled: FeatureStore) -> None:
    stream = FeatureStream(filled, "name", batch_size=7)
    kept = list(stream)
    copies = [
        Batch(*(array.copy() for array in (batch.values, batch.lengths, batch.labels, batch.keys)))
        for batch in kept
    ]
    parts = [batch.values[1:2, :3] for batch in stream.epoch(1)]
    part_copies = [part.copy() for part in parts]
    for _ in stream.epoch(2):
        pass
    _assert_equal(kept, copies)
    for part, copy in zip(parts, part_copies, strict=True):
        np.testing.assert_array_equal(part, copy)


def test_batches_that_are_dropped_take_no_new_memory(filled: FeatureStore) -> None:
    stream = FeatureStream(filled, "name", batch_size=10)
    for _ in stream:
        pass
    addresses = {batch.values.__array_interface__["data"][0] for batch in stream.epoch(1)}
    assert len(addresses) <= 2


def test_threads_iterate_over_one_stream_at_once(filled: FeatureStore) -> None:
    stream = FeatureStream(filled, "name", batch_size=7, seed=2)
    expected = [list(stream.epoch(number)) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: list(stream.epoch(number)), range(4)))
    for one, other in zip(found, expected, strict=True):
        _assert_equal(one, other)


@pytest.mark.parametrize("is_held", [True, False])
def test_stream_goes_on_when_its_shards_are_replaced_and_deleted(
    filled: FeatureStore, programs: ModuleType, is_held: bool
) -> None:
    stream = FeatureStream(filled, "name", batch_size=10, shuffle=False)
    expected = list(stream)
    batches = stream.epoch(0)
    received = [next(batches)]
    with open_store(filled.path) as other:
        old = other.catalog.shards()
        programs.put(other, TEXTS)
        for record in old:
            other.catalog.remove_shard(record.digest)
            other.layout.shard_path(record.view, record.digest).unlink()
    if is_held:
        # Another use of the same reader hears of it; the stream's own shards stay open.
        programs.assert_served(filled, TEXTS)
    else:
        stream._held_shards.clear()
        stream._reader._shards.clear()
    received += batches
    _assert_equal(received, expected)
    _assert_equal(list(stream), expected)
