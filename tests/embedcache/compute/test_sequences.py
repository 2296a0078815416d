"""Contextual modules, from texts to what a real store serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import embedcache
from embedcache.compute.batches import padded_lengths
from embedcache.compute.fidelity import FIRST_SAMPLE
from embedcache.compute.missing import ComputeCounts
from embedcache.compute.sequences import SequenceComputer
from embedcache.errors import DiskFullError, EncodingError, FidelityError, ModuleMemoryError
from embedcache.keys import keys_of_utf8
from embedcache.store.shards.format import FLAG_TRUNCATED, FLAG_WINDOWED
from embedcache.store.shards.shard import Shard
from embedcache.store.writer import WriterLimits
from embedcache.view import FeatureView
from tests.embedcache.compute.conftest import MakeComputer
from tests.embedcache.compute.fakes import (
    FakeSequenceEncoder,
    make_view,
    missing_texts,
    text_of,
)

Store = embedcache.FeatureStore


def words(*lengths: int) -> list[list[int]]:
    """Ids of texts of these lengths; no two have a token in common."""
    return [[1000 * text + at for at in range(length)] for text, length in enumerate(lengths, 1)]


def stored_rows(store: Store, view: FeatureView, ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
    return list(store.get(view, [text_of(own).decode() for own in ids]))


def stored_keys(store: Store, view: FeatureView) -> set[bytes]:
    digests = [record.digest for record in store.catalog.shards(view.fingerprint)]
    shards = [Shard(store.layout.shard_path(view.fingerprint, digest)) for digest in digests]
    keys = [bytes(key) for shard in shards for key in shard.keys]
    assert len(set(keys)) == len(keys)
    return set(keys)


def test_rows_are_those_of_each_text_alone(store: Store, make: MakeComputer) -> None:
    ids, encoder, view = words(3, 0, 7, 1, 40, 7, 7), FakeSequenceEncoder(), make_view()
    computer, writer = make(encoder, view)
    computer.compute(missing_texts([text_of(own) for own in ids]))
    writer.flush()
    for own, rows in zip(ids, stored_rows(store, view, ids), strict=True):
        np.testing.assert_array_equal(rows, encoder.content_rows(own))
    assert computer.counts == ComputeCounts(texts=7, tokens=65, truncated=0, windowed=0)


def test_batches_of_a_module_of_one_length_are_counted_by_that_length(
    store: Store, make: MakeComputer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    encode = FakeSequenceEncoder.encode_batch

    def counted(self: FakeSequenceEncoder, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        sizes.append(len(lengths))
        return encode(self, tokens, lengths)

    monkeypatch.setattr(FakeSequenceEncoder, "encode_batch", counted)
    encoder, view, ids = FakeSequenceEncoder(max_length=64), make_view(), words(*[2] * 40)
    encoder.fixed_length = 64
    computer, _ = make(encoder, view, batch_tokens=640)
    computer.compute(missing_texts([text_of(own) for own in ids]))
    assert max(sizes) == 10


def test_special_tokens_are_kept_where_the_view_says_so(store: Store, make: MakeComputer) -> None:
    ids, encoder = words(3, 0, 7), FakeSequenceEncoder((1, 2))
    view = make_view(keep_special_tokens=True)
    computer, writer = make(encoder, view)
    computer.compute(missing_texts([text_of(own) for own in ids]))
    writer.flush()
    for own, rows in zip(ids, stored_rows(store, view, ids), strict=True):
        np.testing.assert_array_equal(rows, encoder.rows_alone(own))
    assert computer.counts.tokens == 10 + 3 * 3


def test_long_texts_are_cut_or_stitched_and_counted(store: Store, make: MakeComputer) -> None:
    ids = words(4, 10, 11, 57, 0)
    texts = [text_of(own) for own in ids]
    encoder = FakeSequenceEncoder(max_length=12)
    view = make_view(max_tokens=100)
    computer, writer = make(encoder, view)
    computer.compute(missing_texts(texts))
    writer.flush()
    assert computer.counts == ComputeCounts(texts=5, tokens=34, truncated=2, windowed=0)
    for own, rows in zip(ids, stored_rows(store, view, ids), strict=True):
        np.testing.assert_array_equal(rows, encoder.content_rows(own[:10]))
    stitched = replace(view, overflow="window", overlap_tokens=4)
    computer, writer = make(encoder, stitched)
    computer.compute(missing_texts(texts))
    writer.flush()
    assert computer.counts == ComputeCounts(texts=5, tokens=82, truncated=0, windowed=2)
    for own, rows in zip(ids, stored_rows(store, stitched, ids), strict=True):
        assert rows[:, 0].tolist() == own
        # One row in the middle of each window at least has both neighbours.
        assert (rows[1:-1, 2] == own[:-2]).all()
        assert (rows[1:-1, 3] == own[2:]).all()


def test_no_sequence_is_padded_beyond_what_the_module_takes(
    store: Store, make: MakeComputer
) -> None:
    # 33 would be padded to 34.
    ids, encoder, view = words(33, 40, 33), FakeSequenceEncoder(max_length=35), make_view()
    computer, writer = make(encoder, view, batch_tokens=200)
    computer.compute(missing_texts([text_of(own) for own in ids]))
    writer.flush()
    assert max(map(len, encoder.batches)) == 3
    for own, rows in zip(ids, stored_rows(store, view, ids), strict=True):
        np.testing.assert_array_equal(rows, encoder.content_rows(own[:33]))


def test_flags_spans_and_ids_are_stored(store: Store, make: MakeComputer) -> None:
    ids = [[7, 123, 45], [1] * 9]
    view = make_view(max_tokens=5, overflow="window", overlap_tokens=2)
    computer, writer = make(FakeSequenceEncoder(), view)
    computer.compute(missing_texts([text_of(own) for own in ids]))
    writer.flush()
    (record,) = store.catalog.shards()
    shard = Shard(store.layout.shard_path(view.fingerprint, record.digest))
    texts = [text_of(own) for own in ids]
    place = [keys_of_utf8(texts)[text].tobytes() for text in (0, 1)]
    short, long = ([bytes(key) for key in shard.keys].index(key) for key in place)
    assert (shard.flags[short], shard.flags[long]) == (0, FLAG_WINDOWED)
    spans, token_ids = shard.read_spans(short), shard.read_token_ids(short)
    assert spans is not None
    assert token_ids is not None
    assert spans.tolist() == [[0, 1], [2, 5], [6, 8]]
    assert token_ids.tolist() == [7, 123, 45]
    spans = shard.read_spans(long)
    assert spans is not None
    assert spans.tolist() == [[at, at + 1] for at in range(0, 18, 2)]


_numbers = count()


@settings(
    derandomize=True,
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=25),
    special=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    keep=st.booleans(),
    batch_tokens=st.integers(1, 400),
    room=st.none() | st.integers(0, 200),
    max_texts=st.integers(1, 30),
)
def test_any_batches_shards_and_memory_give_the_same_rows(
    store: Store,
    make: MakeComputer,
    lengths: list[int],
    special: tuple[int, int],
    keep: bool,
    batch_tokens: int,
    room: int | None,
    max_texts: int,
) -> None:
    ids = words(*(length for length in lengths if length)) + ([[]] if 0 in lengths else [])
    longest = int(padded_lengths(np.array(lengths)).max()) + sum(special)
    encoder = FakeSequenceEncoder(
        special, max_batch_tokens=None if room is None else longest + room
    )
    # A view of its own for each example: the store is the same.
    view = make_view(keep_special_tokens=keep, signature=f"fake {next(_numbers)}")
    computer, writer = make(
        encoder, view, batch_tokens=batch_tokens, limits=WriterLimits(max_texts=max_texts)
    )
    computer.compute(missing_texts([text_of(own) for own in ids]))
    writer.flush()
    for own, rows in zip(ids, stored_rows(store, view, ids), strict=True):
        expected = encoder.rows_alone(own) if keep else encoder.content_rows(own)
        np.testing.assert_array_equal(rows, expected)
    assert len(stored_keys(store, view)) == len(ids) == computer.counts.texts
    for batch, size in zip(encoder.batches, encoder.sizes, strict=True):
        assert len(batch) == 1 or size <= batch_tokens


def test_shard_closes_in_the_middle_of_a_buffer(store: Store, make: MakeComputer) -> None:
    view = make_view()
    limits = WriterLimits(max_texts=2)
    computer, writer = make(FakeSequenceEncoder((0, 0)), view, batch_tokens=8, limits=limits)
    computer.compute(missing_texts([text_of(own) for own in words(4, 4, 4, 4, 4, 4)]))
    writer.flush()
    assert [record.num_texts for record in writer.published] == [2, 2, 2]
    assert len(stored_keys(store, view)) == 6


def test_full_disk_while_the_next_batch_computes_ends_the_build(
    store: Store, make: MakeComputer, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = WriterLimits(max_texts=2)
    computer, writer = make(FakeSequenceEncoder((0, 0)), make_view(), batch_tokens=8, limits=limits)

    def fail() -> None:
        raise DiskFullError("no space left")

    monkeypatch.setattr(writer, "close_if_due", fail)
    with pytest.raises(DiskFullError, match="no space left"):
        computer.compute(missing_texts([text_of(own) for own in words(4, 4, 4, 4, 4, 4)]))


def test_finished_texts_are_kept_when_a_build_is_interrupted(
    store: Store, make: MakeComputer
) -> None:
    ids, view = words(2, 30, 3, 50, 4, 30), make_view(overflow="window", max_tokens=10)
    num_batches = 0

    def interrupt() -> None:
        nonlocal num_batches
        num_batches += 1
        if num_batches == 7:
            raise KeyboardInterrupt

    encoder = FakeSequenceEncoder()
    computer, writer = make(encoder, view, batch_tokens=12, on_batch=interrupt)
    missing = missing_texts([text_of(own) for own in ids])
    with pytest.raises(KeyboardInterrupt):
        computer.compute(missing)
    writer.flush()
    kept = stored_keys(store, view)
    assert 0 < len(kept) < len(ids)
    assert computer.counts.texts == len(kept)
    finished = [own for own, key in zip(ids, missing.keys, strict=True) if bytes(key) in kept]
    for own, rows in zip(finished, stored_rows(store, view, finished), strict=True):
        assert rows[:, 0].tolist() == own


def test_row_that_is_no_number_is_told_with_its_place(store: Store, make: MakeComputer) -> None:
    def spoil(rows: np.ndarray) -> None:
        rows[rows[..., 0] == 3004] = np.nan

    view = make_view()
    computer, writer = make(FakeSequenceEncoder(twist=spoil), view, batch_tokens=1000)
    texts = [text_of(own) for own in words(5, 5, 9, 5)]
    with pytest.raises(EncodingError, match=r"^corpus\.txt:3: the module returned NaN") as caught:
        computer.compute(missing_texts(texts))
    assert not isinstance(caught.value, FidelityError)
    # What was finished before can be kept, the text itself is not.
    writer.flush()
    assert bytes(keys_of_utf8(texts)[2]) not in stored_keys(store, view)


def test_number_beyond_the_storage_dtype_is_told_with_its_place(make: MakeComputer) -> None:
    view = make_view(dtype="float16")
    computer, _ = make(FakeSequenceEncoder(), view)
    with pytest.raises(EncodingError, match=r"^corpus\.txt:2: .*70001.*--dtype float32"):
        computer.compute(missing_texts([b"1 2", b"3 70001", b"4"]))


def test_sequence_that_does_not_fit_the_memory_is_told_with_its_place(
    store: Store, make: MakeComputer
) -> None:
    view = make_view()
    encoder = FakeSequenceEncoder(max_batch_tokens=12)
    computer, writer = make(encoder, view, batch_tokens=1000)
    texts = [text_of(own) for own in words(3, 11, 4, 3)]
    with pytest.raises(ModuleMemoryError, match=r"^corpus\.txt:2: fake: out of memory; give"):
        computer.compute(missing_texts(texts))
    writer.flush()
    assert bytes(keys_of_utf8(texts)[1]) not in stored_keys(store, view)


def test_text_that_is_too_long_is_refused_before_anything_is_computed(make: MakeComputer) -> None:
    encoder = FakeSequenceEncoder()
    computer, _ = make(encoder, make_view(overflow="error", max_tokens=5))
    with pytest.raises(EncodingError, match=r"^corpus\.txt:2: 6 tokens, the limit is 5"):
        computer.compute(missing_texts([text_of(own) for own in words(5, 6)]))
    assert encoder.batches == []
    computer.compute(missing_texts([text_of(own) for own in words(5, 4)]))
    assert computer.counts.texts == 2


# Sampling


def alone(encoder: FakeSequenceEncoder) -> int:
    """How many batches had one sequence, where every batch of the buffer has several."""
    return sum(len(batch) == 1 for batch in encoder.batches)


def test_some_windows_are_computed_again_of_the_longest_texts_first(
    make: MakeComputer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedcache.compute.fidelity.TEXTS_A_SAMPLE", 72)
    encoder = FakeSequenceEncoder()
    computer, _ = make(encoder, make_view(), batch_tokens=40)
    first = words(*[length for length in range(3, 15) for _ in range(6)])
    computer.compute(missing_texts([text_of(own) for own in first]))
    assert computer.fidelity.report.texts == alone(encoder) == FIRST_SAMPLE
    later = [[*own, 9] for own in first]
    num_before = len(encoder.batches)
    computer.compute(missing_texts([text_of(own) for own in later]))
    assert computer.fidelity.report.texts == alone(encoder) == FIRST_SAMPLE + 1
    batch, again = encoder.batches[num_before : num_before + 2]
    assert len(again) == 1
    assert again[0] in batch
    assert len(again[0]) == max(map(len, later)), "short texts have no padding to let in"
    assert computer.fidelity.report.max_difference == 0.0


@pytest.mark.parametrize("longest", [[], [8, 8]], ids=["at once", "after a sample"])
def test_sample_is_as_large_where_memory_runs_out(make: MakeComputer, longest: list[int]) -> None:
    encoder = FakeSequenceEncoder(max_batch_tokens=30)
    computer, _ = make(encoder, make_view(), batch_tokens=1000)
    lengths = [4, 5, 6, 7] * 10 + longest
    computer.compute(missing_texts([text_of(own) for own in words(*lengths)]))
    assert encoder.num_failed > 0
    assert len(encoder.batches[0]) > 1
    assert computer.fidelity.report.texts == FIRST_SAMPLE


@pytest.mark.parametrize("padding_leaks", [True, False])
def test_module_whose_rows_depend_on_the_batch_is_found_out(
    store: Store, make: MakeComputer, padding_leaks: bool
) -> None:
    def leak(rows: np.ndarray) -> None:
        if padding_leaks:
            rows[..., 0] += 100 * rows.shape[1]
        elif len(rows) > 1:
            rows[..., 0] += 100

    view = make_view()
    computer, writer = make(FakeSequenceEncoder(twist=leak), view, batch_tokens=200)
    # 33 is padded to 34: up to 32 no text of a batch is padded.
    with pytest.raises(FidelityError, match=r"^corpus\.txt:[12]: in a batch fake gives other"):
        computer.compute(missing_texts([text_of(own) for own in words(33, 33, 34, 34)]))
    assert not writer.pending
    assert store.catalog.shards() == []


def test_texts_are_tokenised_in_pieces_that_add_up(
    store: Store, make: MakeComputer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = words(3, 0, 8, 2, 5)
    monkeypatch.setattr("embedcache.compute.sequences._TOKENIZE_BYTES", 12)
    encoder = FakeSequenceEncoder(cut_texts=frozenset([text_of(ids[3])]))
    view = make_view()
    computer, writer = make(encoder, view)
    assert isinstance(computer, SequenceComputer)
    computer.compute(missing_texts([text_of(own) for own in ids]))
    writer.flush()
    for own, rows in zip(ids, stored_rows(store, view, ids), strict=True):
        np.testing.assert_array_equal(rows, encoder.content_rows(own))
    assert computer.counts.truncated == 1
    (record,) = store.catalog.shards()
    shard = Shard(store.layout.shard_path(view.fingerprint, record.digest))
    assert sorted(np.asarray(shard.flags).tolist()) == [0, 0, 0, 0, FLAG_TRUNCATED]
