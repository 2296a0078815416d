"""Context-free modules: each distinct token once, from texts to what a real store serves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embedcache
from embedcache.compute import tokens as tokens_module
from embedcache.compute.fidelity import FIRST_SAMPLE
from embedcache.compute.missing import ComputeCounts
from embedcache.compute.tokens import TokenTable
from embedcache.errors import EncodingError, FidelityError, ModuleMemoryError
from embedcache.keys import keys_of_utf8
from embedcache.store.shards.codec import ReconstructionError
from embedcache.store.shards.format import FLAG_TRUNCATED, FLAG_WINDOWED
from embedcache.store.shards.shard import Shard
from embedcache.store.writer import WriterLimits
from embedcache.view import FeatureView
from tests.embedcache.compute.conftest import MakeComputer
from tests.embedcache.compute.fakes import DIM, FakeTokenEncoder, make_view, missing_texts

Store = embedcache.FeatureStore
TEXTS = [b"a film . a good film .", b"", b"good", b"  two  spaces", "déjà vu 漢字".encode()]


def one_shard(store: Store, view: FeatureView) -> Shard:
    (record,) = store.catalog.shards(view.fingerprint)
    return Shard(store.layout.shard_path(view.fingerprint, record.digest))


def row_of(shard: Shard, text: bytes) -> int:
    return [bytes(key) for key in shard.keys].index(bytes(keys_of_utf8([text])[0]))


def test_rows_are_those_of_the_tokens_each_of_which_is_embedded_once(
    store: Store, make: MakeComputer
) -> None:
    encoder, view = FakeTokenEncoder(), make_view()
    computer, writer = make(encoder, view)
    computer.compute(missing_texts(TEXTS[:3]))
    computer.compute(missing_texts(TEXTS[3:]))
    writer.flush()
    found = store.get(view, [text.decode() for text in TEXTS])
    for text, rows in zip(TEXTS, found, strict=True):
        np.testing.assert_array_equal(rows, encoder.rows_alone(text.split(b" ")))
    num_tokens = sum(len(text.split(b" ")) for text in TEXTS)
    assert computer.counts == ComputeCounts(texts=5, tokens=num_tokens)
    # What the checks call again is whole texts; all else is a token that was not seen before.
    texts = [text.split(b" ") for text in TEXTS]
    embedded = [token for call in encoder.calls if call not in texts for token in call]
    assert sorted(embedded) == sorted(set(embedded))
    assert set(embedded) | {b"good"} == {token for tokens in texts for token in tokens}


def test_long_texts_are_cut_with_their_spans_and_ids(store: Store, make: MakeComputer) -> None:
    view = make_view(max_tokens=3)
    computer, writer = make(FakeTokenEncoder(tells=True), view)
    computer.compute(missing_texts(TEXTS))
    writer.flush()
    assert (computer.counts.truncated, computer.counts.windowed) == (2, 0)
    assert computer.counts.tokens == 3 + 1 + 1 + 3 + 3
    shard = one_shard(store, view)
    row = row_of(shard, TEXTS[0])
    spans, token_ids = shard.read_spans(row), shard.read_token_ids(row)
    assert spans is not None
    assert token_ids is not None
    assert shard.flags[row] == FLAG_TRUNCATED
    assert spans.tolist() == [[0, 1], [2, 6], [7, 8]]
    assert token_ids.tolist() == [1, 4, 1]
    row = row_of(shard, TEXTS[4])
    spans = shard.read_spans(row)
    assert spans is not None
    assert shard.flags[row] == 0
    assert spans.tolist() == [[0, 6], [7, 9], [10, 16]]


def test_windows_of_a_long_text_hold_the_rows_of_the_whole(
    store: Store, make: MakeComputer
) -> None:
    view = make_view(max_tokens=3, overflow="window")
    encoder = FakeTokenEncoder()
    computer, writer = make(encoder, view)
    computer.compute(missing_texts(TEXTS))
    writer.flush()
    assert (computer.counts.truncated, computer.counts.windowed) == (0, 2)
    rows = store.get(view, [TEXTS[0].decode()])[0]
    np.testing.assert_array_equal(rows, encoder.rows_alone(TEXTS[0].split(b" ")))
    shard = one_shard(store, view)
    assert shard.flags[row_of(shard, TEXTS[0])] == FLAG_WINDOWED
    assert shard.flags[row_of(shard, TEXTS[4])] == 0


def test_text_that_is_too_long_is_refused_where_the_view_says_so(make: MakeComputer) -> None:
    encoder = FakeTokenEncoder()
    computer, _ = make(encoder, make_view(max_tokens=3, overflow="error"))
    with pytest.raises(EncodingError, match=r"^corpus\.txt:2: 4 tokens, the limit is 3"):
        computer.compute(missing_texts([b"a b c", b"a b c d"]))
    assert encoder.calls == []


def test_calls_are_halved_until_they_fit_the_memory(store: Store, make: MakeComputer) -> None:
    texts = [" ".join(f"w{text}x{at}" for at in range(9)).encode() for text in range(20)]
    encoder, view = FakeTokenEncoder(max_tokens=11), make_view()
    computer, writer = make(encoder, view, batch_tokens=4096)
    computer.compute(missing_texts(texts))
    writer.flush()
    for text, rows in zip(texts, store.get(view, [t.decode() for t in texts]), strict=True):
        np.testing.assert_array_equal(rows, encoder.rows_alone(text.split(b" ")))


def test_token_that_does_not_fit_the_memory_is_an_error(make: MakeComputer) -> None:
    computer, writer = make(FakeTokenEncoder(max_tokens=0), make_view())
    with pytest.raises(ModuleMemoryError, match="out of memory; give"):
        computer.compute(missing_texts([b"a b"]))
    assert not writer.pending


@pytest.mark.parametrize(("bad", "reason"), [(np.nan, "NaN or infinity"), (1e6, "too large")])
def test_row_that_cannot_be_stored_is_told_with_its_token_and_place(
    make: MakeComputer, bad: float, reason: str
) -> None:
    def spoil(tokens: Sequence[bytes], rows: np.ndarray) -> None:
        rows[[place for place, token in enumerate(tokens) if token == b"bad"]] = bad

    computer, writer = make(FakeTokenEncoder(twist=spoil), make_view(dtype="float16"))
    with pytest.raises(EncodingError, match=rf"^corpus\.txt:3: token 'bad': .*{reason}"):
        computer.compute(missing_texts([b"good", b"also good", b"a bad bad one", b"bad"]))
    assert not writer.pending


@pytest.mark.parametrize("max_texts", [1, 3, 1000])
def test_table_that_is_full_is_begun_anew_and_nothing_changes(
    store: Store, make: MakeComputer, monkeypatch: pytest.MonkeyPatch, max_texts: int
) -> None:
    monkeypatch.setattr(tokens_module, "MAX_TABLE_ROWS", 10)
    texts = [" ".join(f"w{(text * 7 + at) % 40}" for at in range(6)).encode() for text in range(30)]
    encoder, view = FakeTokenEncoder(), make_view()
    computer, writer = make(encoder, view, limits=WriterLimits(max_texts=max_texts))
    for start in range(0, 30, 2):
        computer.compute(missing_texts(texts[start : start + 2]))
    writer.flush()
    assert len(store.catalog.shards()) > 1
    for text, rows in zip(texts, store.get(view, [t.decode() for t in texts]), strict=True):
        np.testing.assert_array_equal(rows, encoder.rows_alone(text.split(b" ")))


# Sampling


def test_sampled_texts_are_compared_alone_and_as_wholes(
    make: MakeComputer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedcache.compute.fidelity.TEXTS_A_SAMPLE", 7)
    encoder = FakeTokenEncoder()
    computer, _ = make(encoder, make_view(max_tokens=3))
    computer.compute(missing_texts(TEXTS))
    assert computer.fidelity.report.texts == len(TEXTS)
    # A text that was cut has other rows than the module's own vector is made of.
    assert encoder.compared == [TEXTS[1], TEXTS[2], TEXTS[4]]
    computer.compute(missing_texts([b"x y", b"z", b"q"]))
    # The first eight are, in however many pieces they come.
    assert computer.fidelity.report.texts == FIRST_SAMPLE == len(TEXTS) + 3
    computer.compute(missing_texts([b"x %d" % number for number in range(6)]))
    assert computer.fidelity.report.texts == FIRST_SAMPLE + 1


def test_module_that_is_no_bag_of_words_on_the_corpus_is_found_out(make: MakeComputer) -> None:
    computer, writer = make(FakeTokenEncoder(difference=0.5), make_view())
    with pytest.raises(FidelityError, match=r"^corpus\.txt:1: the rows of its tokens do not"):
        computer.compute(missing_texts([b"a b"]))
    assert not writer.pending
    unknown, _ = make(FakeTokenEncoder(difference=None), make_view())
    unknown.compute(missing_texts([b"a b"]))


def test_module_whose_rows_depend_on_the_call_is_found_out(make: MakeComputer) -> None:
    def by_size(tokens: Sequence[bytes], rows: np.ndarray) -> None:
        rows[:, 3] = len(tokens)

    computer, _ = make(FakeTokenEncoder(twist=by_size), make_view())
    with pytest.raises(FidelityError, match=r"^corpus\.txt:1: in a batch fake gives other"):
        computer.compute(missing_texts([b"a b", b"c"]))


# The table


@settings(derandomize=True, deadline=None, max_examples=50)
@given(parts=st.lists(st.lists(st.binary(max_size=3), max_size=400), max_size=6))
def test_table_finds_the_row_of_every_token_however_it_grew(parts: list[list[bytes]]) -> None:
    table = TokenTable(DIM, "float32", ReconstructionError())
    for part in parts:
        unknown = table.unknown(part)
        assert len(set(unknown)) == len(unknown)
        table.add(unknown, FakeTokenEncoder.rows_alone(unknown))
        rows = table.rows[table.codes(part)]
        np.testing.assert_array_equal(rows, FakeTokenEncoder.rows_alone(part))
        assert table.unknown(part) == []
    assert len(table) == len({token for part in parts for token in part})


def test_table_grows_past_its_first_rows() -> None:
    table = TokenTable(DIM, "float32", ReconstructionError())
    for start in (0, 700, 1400, 5000):
        tokens = table.unknown([b"%d" % number for number in range(start, start + 2000)])
        table.add(tokens, FakeTokenEncoder.rows_alone(tokens))
    everything = [b"%d" % number for number in range(3400)]
    rows = table.rows[table.codes(everything)]
    np.testing.assert_array_equal(rows, FakeTokenEncoder.rows_alone(everything))


def test_row_that_cannot_be_stored_leaves_the_table_as_it_was() -> None:
    table = TokenTable(1, "float16", ReconstructionError())
    with pytest.raises(EncodingError):
        table.add([b"a", b"b"], np.array([[1], [np.nan]], np.float32))
    assert len(table) == 0
    assert table.unknown([b"a"]) == [b"a"]
