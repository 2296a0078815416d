"""Texts cut into windows and put together again, in whatever order the windows come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.compute.buffer import SequenceBuffer, WholeTexts, longest_window
from embedcache.errors import EncodingError, ModuleError
from embedcache.store.shards.format import FLAG_TRUNCATED, FLAG_WINDOWED
from embedcache.view import FeatureView
from tests.embedcache.compute.fakes import (
    DIM,
    END_IDS,
    START_IDS,
    FakeSequenceEncoder,
    make_view,
    missing_texts,
    text_of,
)

SOME = settings(derandomize=True, deadline=None)


@dataclass(frozen=True)
class Case:
    """Texts with distinct keys, and how they are to be encoded."""

    ids: list[list[int]]
    encoder: FakeSequenceEncoder
    view: FeatureView
    shuffle: int

    @property
    def texts(self) -> list[bytes]:
        return [text_of(ids) for ids in self.ids]

    def buffer(self) -> SequenceBuffer:
        tokenized = self.encoder.tokenize_texts(self.texts)
        return SequenceBuffer(missing_texts(self.texts), tokenized, self.encoder, self.view)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    lengths = draw(st.lists(st.integers(0, 30), min_size=1, max_size=7))
    # The first id is the text's number: no two texts are the same, but for empty ones.
    ids = [[text + 1, *range(100, 99 + length)] for text, length in enumerate(lengths) if length]
    ids += [[]] if 0 in lengths else []
    special = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    keep = draw(st.booleans())
    limit = draw(st.integers(1, 9))
    overlap = draw(st.integers(0, limit - 1))
    view = make_view(
        keep_special_tokens=keep,
        max_tokens=limit + (sum(special) if keep else 0),
        overlap_tokens=overlap,
        overflow=draw(st.sampled_from(["window", "truncate"])),
    )
    encoder = FakeSequenceEncoder(special, tells=draw(st.booleans()))
    return Case(draw(st.permutations(ids)), encoder, view, draw(st.integers(0, 2**32 - 1)))


def shuffled_batches(case: Case, buffer: SequenceBuffer) -> list[np.ndarray]:
    """All windows in random batches, as if their lengths had mixed them."""
    generator = np.random.default_rng(case.shuffle)
    order = generator.permutation(len(buffer.lengths))
    cuts = np.sort(generator.integers(0, len(order) + 1, generator.integers(0, len(order) + 1)))
    return np.split(order, cuts)


def encode(case: Case, buffer: SequenceBuffer, batch: np.ndarray) -> np.ndarray:
    """The kept rows of a batch of windows, as `SequenceComputer` picks them, but one by one."""
    kept = [np.zeros((0, DIM), np.float32)]
    for window in batch.tolist():
        one = np.array([window])
        lengths = buffer.lengths[one]
        rows = case.encoder.encode_batch(buffer.tokens_of(one, int(lengths[0]) + 3), lengths)[0]
        start = int(buffer.row_starts[window])
        kept.append(rows[start : start + int(buffer.num_rows[window])])
    return np.concatenate(kept)


def check_text(case: Case, part: WholeTexts, place: int, rows: slice) -> int:
    """Compare one text of a part with what must have become of it; returns the text."""
    before, after = case.encoder.num_special
    keys = missing_texts(case.texts).keys
    text = int(np.flatnonzero((keys == part.keys[place]).all(axis=1))[0])
    ids = case.ids[text]
    keep = case.view.keep_special_tokens
    limit = case.view.max_tokens - (before + after if keep else 0)
    stitched = case.view.overflow == "window"
    expected = ids if stitched else ids[:limit]
    flag = 0 if len(ids) <= limit else FLAG_WINDOWED if stitched else FLAG_TRUNCATED
    assert part.flags[place] == flag
    around = [*START_IDS[:before], *expected, *END_IDS[:after]] if keep else expected
    assert part.values[rows, 0].tolist() == around
    first = rows.start + (before if keep else 0)
    check_context(case, expected, part.values[first : first + len(expected)])
    if part.token_ids is None or part.spans is None:
        assert (part.token_ids, part.spans) == (None, None)
        return text
    assert part.token_ids[rows].tolist() == around
    assert part.spans[rows].tolist() == expected_spans(case, text, len(expected))
    return text


def expected_spans(case: Case, text: int, num_kept: int) -> list[list[int]]:
    spans, position = [], 0
    for word in case.texts[text].split(b" ")[:num_kept]:
        spans.append([position, position + len(word)])
        position += len(word) + 1
    if case.view.keep_special_tokens:
        before, after = case.encoder.num_special
        end = spans[-1][1] if spans else 0
        spans = [[0, 0]] * before + spans + [[end, end]] * after
    return spans


def check_context(case: Case, ids: Sequence[int], rows: np.ndarray) -> None:
    """Each row is that of its token in a window that holds enough of what is around it."""
    before, _ = case.encoder.num_special
    special = sum(case.encoder.num_special) if case.view.keep_special_tokens else 0
    limit = case.view.max_tokens - special
    shared = min(case.view.overlap_tokens, limit // 2)
    for place, row in enumerate(rows):
        start = place - (int(row[1]) - before)
        stop = min(start + limit, len(ids))
        assert 0 <= start <= place < stop
        assert start == 0 or place - start >= shared // 2
        assert stop == len(ids) or stop - place > shared // 2
        assert row.tolist() == case.encoder.content_rows(ids[start:stop])[place - start].tolist()


@settings(SOME, max_examples=200)
@given(case=cases())
def test_every_text_comes_once_and_whole_in_whatever_order_its_windows_come(case: Case) -> None:
    buffer = case.buffer()
    seen: list[int] = []
    for batch in shuffled_batches(case, buffer):
        for part in buffer.take_whole(batch, encode(case, buffer, batch)):
            splits = np.append(0, np.cumsum(part.lengths)).tolist()
            assert splits[-1] == len(part.values)
            seen += [
                check_text(case, part, place, slice(splits[place], splits[place + 1]))
                for place in range(len(part.keys))
            ]
    assert sorted(seen) == [*range(len(case.ids))]


@settings(SOME, max_examples=60)
@given(case=cases(), stop=st.integers(0, 6))
def test_text_comes_only_when_its_last_window_has_come(case: Case, stop: int) -> None:
    buffer = case.buffer()
    windows_of = [
        {window for window in range(len(buffer.lengths)) if buffer.place(window) == place}
        for place in map("corpus.txt:{}".format, range(1, len(case.ids) + 1))
    ]
    came: set[int] = set()
    given_out: set[bytes] = set()
    for batch in shuffled_batches(case, buffer)[:stop]:
        came |= set(batch.tolist())
        for part in buffer.take_whole(batch, encode(case, buffer, batch)):
            given_out |= set(map(bytes, part.keys))
    keys = missing_texts(case.texts).keys
    assert given_out == {
        bytes(key) for key, own in zip(keys, windows_of, strict=True) if own <= came
    }


def test_empty_text_after_another_has_the_spans_of_its_own_end() -> None:
    case = Case(
        [[1, 22], []],
        FakeSequenceEncoder((0, 1)),
        make_view(keep_special_tokens=True, max_tokens=9),
        shuffle=0,
    )
    buffer = case.buffer()
    batch = np.array([0, 1])
    (part,) = buffer.take_whole(batch, encode(case, buffer, batch))
    assert part.lengths.tolist() == [3, 1]
    assert part.spans is not None
    assert part.spans.tolist() == [[0, 1], [2, 4], [4, 4], [0, 0]]


def test_text_that_the_tokenizer_cut_is_flagged_or_refused() -> None:
    texts = [b"1 2", b"3 4", b"5"]
    encoder = FakeSequenceEncoder(cut_texts=frozenset([b"3 4"]))
    missing, tokenized = missing_texts(texts), encoder.tokenize_texts(texts)
    buffer = SequenceBuffer(missing, tokenized, encoder, make_view())
    batch = np.arange(3)
    (part,) = buffer.take_whole(batch, np.zeros((5, DIM), np.float32))
    assert part.flags.tolist() == [0, FLAG_TRUNCATED, 0]
    for overflow in ("error", "window"):
        with pytest.raises(EncodingError, match=r"^corpus\.txt:2: longer than the preproc") as got:
            SequenceBuffer(missing, tokenized, encoder, make_view(overflow=overflow))
        assert "\n" not in str(got.value)
    nothing_cut = replace(tokenized, cut=np.zeros(3, np.bool_))
    SequenceBuffer(missing, nothing_cut, encoder, make_view(overflow="error"))


@pytest.mark.parametrize(
    ("special", "max_length", "max_tokens", "keep", "limit"),
    [
        ((0, 0), None, 512, False, 512),
        ((1, 1), None, 512, False, 512),
        ((1, 1), None, 512, True, 510),
        ((1, 1), 128, 512, False, 126),
        ((1, 1), 128, 512, True, 126),
        ((1, 1), 128, 10, False, 10),
        ((1, 1), 128, 10, True, 8),
        ((1, 1), 3, 512, False, 1),
    ],
)
def test_window_is_what_the_view_and_the_module_leave(
    special: tuple[int, int], max_length: int | None, max_tokens: int, keep: bool, limit: int
) -> None:
    encoder = FakeSequenceEncoder(special, max_length=max_length)
    assert (
        longest_window(encoder, make_view(max_tokens=max_tokens, keep_special_tokens=keep)) == limit
    )


def test_special_tokens_that_leave_no_room_are_an_error() -> None:
    view = make_view(max_tokens=2, keep_special_tokens=True)
    with pytest.raises(ModuleError, match=r"--max-tokens 2: the 2 special tokens .* at least 3"):
        longest_window(FakeSequenceEncoder((1, 1)), view)
    assert longest_window(FakeSequenceEncoder((1, 1)), replace(view, max_tokens=3)) == 1
