"""What every encoder must do, whatever module is behind it: `EncoderContract`.

A class of tests for some implementations derives from it and gives them in a fixture. Rows
are had as a build has them: from the product's own compute stage, by way of a shard of a
real store.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pytest

import embedcache
from embedcache.encoder import SequenceEncoder
from embedcache.errors import EncodingError, ModuleError
from embedcache.modules.settings import ViewSettings
from embedcache.store.store import FeatureStore
from embedcache.view import FeatureView
from tests.embedcache.modules.computed import (
    LONG,
    PLAIN,
    TEXTS,
    AnyEncoder,
    Computed,
    assert_same_rows,
    compute_texts,
)

WINDOW_TOKENS = 24
"""The longest window of a long text here: less than any module's own limit."""


class EncoderSource(Protocol):
    """What makes views and encoders: a `PinnedModule`, or a fake."""

    def view(self, settings: ViewSettings) -> FeatureView:
        """The view of these settings."""
        ...

    def load_encoder(self, view: FeatureView) -> AnyEncoder:
        """A new encoder for one of its views."""
        ...


def is_the_token(token: Any, surface: str) -> bool:
    """Whether a token is a piece of text as it stands there."""
    return bytes(token) == surface.encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An implementation, and what is known of it.

    Attributes:
        source: Makes its encoders.
        settings: What all of its views have, such as a granularity.
        special: Special tokens around a text, those before and those after; None where the
            module has none.
        counts_empty: Whether tokens end at each space, so that there are empty ones.
        window_error: What asking for windows is refused with; empty where it is not.
        vocab_size: Entries of the vocabulary; 0 where tokens have no ids.
        stands_for: Whether a token (its id where it has one, else what `tokenize_texts`
            gave) can be what the module makes of a piece of text, which is not empty.
    """

    source: EncoderSource
    settings: Mapping[str, Any] = field(default_factory=dict)
    special: tuple[int, int] | None = None
    counts_empty: bool = False
    window_error: str = ""
    vocab_size: int = 0
    stands_for: Callable[[Any, str], bool] = is_the_token

    def view(self, **settings: Any) -> FeatureView:
        """A view of float32 rows."""
        return self.source.view(ViewSettings(dtype="float32", **self.settings, **settings))


class EncoderContract:
    """The tests. A class that derives from it gives the class-scoped fixture ``subject``."""

    @pytest.fixture(scope="class")
    @classmethod
    def new_store(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
        """Opens stores, which are closed in the end."""
        opened: list[FeatureStore] = []

        def open_new() -> FeatureStore:
            opened.append(embedcache.open_store(tmp_path_factory.mktemp("contract") / "store"))
            return opened[-1]

        yield open_new
        for store in opened:
            store.close()

    @pytest.fixture(scope="class")
    @classmethod
    def encoder(cls, subject: Subject) -> AnyEncoder:
        return subject.source.load_encoder(subject.view())

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, new_store: Callable[[], FeatureStore]) -> FeatureStore:
        """Has `TEXTS` under the plain view; each test puts other views beside it."""
        return new_store()

    @pytest.fixture(scope="class")
    @classmethod
    def computed(cls, store: FeatureStore, encoder: AnyEncoder, subject: Subject) -> Computed:
        """`TEXTS`, computed together in their order."""
        return compute_texts(store, encoder, subject.view())

    def test_rows_are_finite_and_as_wide_as_the_view_says(
        self, computed: Computed, encoder: AnyEncoder, subject: Subject
    ) -> None:
        dim = subject.view().dim
        assert encoder.dim == dim
        for text, matrix in computed.matrices.items():
            assert (matrix.ndim, matrix.shape[1], matrix.dtype) == (2, dim, np.float32), text
            assert np.isfinite(matrix).all(), text
        rows = np.concatenate([computed.matrices[text] for text in PLAIN[:4]])
        assert len(np.unique(rows, axis=0)) >= 4, "different texts have the same rows"
        counts = computed.counts
        assert (counts.texts, counts.windowed) == (len(TEXTS), 0)
        assert counts.tokens == sum(map(len, computed.matrices.values()))
        assert counts.truncated == len(computed.truncated)

    def test_each_text_has_a_row_for_each_of_its_tokens(
        self, computed: Computed, encoder: AnyEncoder
    ) -> None:
        tokenized = encoder.tokenize_texts([text.encode() for text in TEXTS])
        assert tokenized.row_splits.dtype == np.int64
        assert tokenized.row_splits[0] == 0
        assert tokenized.row_splits[-1] == len(tokenized.tokens)
        for text, length in zip(TEXTS, np.diff(tokenized.row_splits).tolist(), strict=True):
            num_rows = len(computed.matrices[text])
            assert num_rows < length if text in computed.truncated else num_rows == length, text

    def test_rows_of_a_text_alone_are_those_among_others(
        self, computed: Computed, encoder: AnyEncoder, subject: Subject, new_store: Any
    ) -> None:
        alone = compute_texts(new_store(), encoder, subject.view(), one_by_one=True)
        assert_same_rows(alone, computed)

    def test_order_of_the_texts_and_size_of_the_batches_do_not_matter(
        self, computed: Computed, encoder: AnyEncoder, subject: Subject, new_store: Any
    ) -> None:
        store, view = new_store(), subject.view()
        other = compute_texts(store, encoder, view, texts=TEXTS[::-1], batch_tokens=96)
        assert_same_rows(other, computed)

    def test_same_text_twice_has_the_same_tokens_twice(self, encoder: AnyEncoder) -> None:
        text, other = PLAIN[2].encode(), PLAIN[0].encode()
        tokenized = encoder.tokenize_texts([text, other, text])
        first, second, _ = tokenized.row_splits[1:].tolist()
        tokens = list(tokenized.tokens)
        assert first > 0
        assert tokens[:first] == tokens[second:]

    def test_texts_of_spaces_have_rows_only_where_empty_tokens_count(
        self, computed: Computed, subject: Subject
    ) -> None:
        for text in ("", " ", "    "):
            expected = len(text) + 1 if subject.counts_empty else 0
            assert len(computed.matrices[text]) == expected, text

    def test_spans_ascend_within_the_text_and_are_what_the_tokens_stand_for(
        self, computed: Computed, encoder: AnyEncoder, subject: Subject
    ) -> None:
        for text, spans in computed.spans.items():
            encoded, ids = text.encode(), computed.token_ids[text]
            assert spans is not None, "spans are not recorded"
            assert (spans[:, 0] <= spans[:, 1]).all(), text
            assert (spans[1:, 0] >= spans[:-1, 1]).all(), f"spans of {text!r} do not ascend"
            assert spans.max(initial=0) <= len(encoded), text
            tokens = encoder.tokenize_texts([encoded]).tokens if ids is None else ids
            for token, (start, end) in zip(tokens, spans.tolist(), strict=False):
                surface = encoded[start:end].decode()  # fails at half a character
                if surface:
                    assert subject.stands_for(token, surface), (text, token, surface)
                else:
                    assert subject.counts_empty, (text, token)
                    assert bytes(token) == b"", text

    def test_token_ids_are_entries_of_the_vocabulary(
        self, computed: Computed, subject: Subject
    ) -> None:
        for text, ids in computed.token_ids.items():
            assert (ids is not None) == bool(subject.vocab_size)
            if ids is not None:
                assert len(ids) == len(computed.matrices[text])
                assert ids.max(initial=0) < subject.vocab_size, text

    def test_long_text_is_cut_to_its_first_rows(
        self, encoder: AnyEncoder, subject: Subject, store: FeatureStore
    ) -> None:
        view = subject.view(max_tokens=WINDOW_TOKENS - 1)
        cut = compute_texts(store, encoder, view, texts=["dog", LONG])
        assert cut.truncated == {LONG}
        assert (cut.counts.truncated, cut.counts.windowed) == (1, 0)
        tokenized = encoder.tokenize_texts([LONG.encode()])
        assert len(cut.matrices[LONG]) == WINDOW_TOKENS - 1
        for recorded, whole in _told(cut, LONG, tokenized):
            np.testing.assert_array_equal(recorded, whole[: WINDOW_TOKENS - 1])

    def test_long_text_can_be_refused_by_its_place(
        self, encoder: AnyEncoder, subject: Subject, store: FeatureStore
    ) -> None:
        view = subject.view(max_tokens=WINDOW_TOKENS, overflow="error")
        with pytest.raises(EncodingError, match=f"^text 2: .*the limit is {WINDOW_TOKENS}"):
            compute_texts(store, encoder, view, texts=["dog", LONG])

    def test_stitched_windows_hold_each_token_once(
        self, encoder: AnyEncoder, subject: Subject, store: FeatureStore
    ) -> None:
        if subject.window_error:
            with pytest.raises(ModuleError, match=subject.window_error):
                subject.view(overflow="window")
            return
        view = subject.view(max_tokens=WINDOW_TOKENS, overflow="window")
        stitched = compute_texts(store, encoder, view, texts=[LONG, *TEXTS])
        tokenized = encoder.tokenize_texts([LONG.encode()])
        assert LONG in stitched.windowed
        assert not stitched.truncated
        assert len(stitched.matrices[LONG]) == len(tokenized.tokens) > 10 * WINDOW_TOKENS
        for recorded, whole in _told(stitched, LONG, tokenized):
            np.testing.assert_array_equal(recorded, whole)
        # Up to the middle of the overlap the rows are those of the first window alone.
        cut = compute_texts(store, encoder, subject.view(max_tokens=WINDOW_TOKENS), texts=[LONG])
        edge = WINDOW_TOKENS - view.overlap_tokens // 2
        first = [part.matrices[LONG][:edge] for part in (stitched, cut)]
        np.testing.assert_allclose(*first, rtol=0, atol=1e-5)

    def test_windows_leave_texts_of_one_window_as_they_are(
        self, computed: Computed, encoder: AnyEncoder, subject: Subject, store: FeatureStore
    ) -> None:
        if subject.window_error:
            return
        stitched = compute_texts(store, encoder, subject.view(overflow="window"))
        whole = [text for text in TEXTS if text not in stitched.windowed]
        assert set(TEXTS) - set(whole) == computed.truncated
        assert_same_rows(stitched, computed, texts=whole)

    def test_special_tokens_are_kept_around_each_text_if_asked_for(
        self, computed: Computed, encoder: AnyEncoder, subject: Subject, store: FeatureStore
    ) -> None:
        if subject.special is None:
            with pytest.raises(ModuleError, match="has no special tokens"):
                subject.view(keep_special_tokens=True)
            return
        assert isinstance(encoder, SequenceEncoder)
        before, after = subject.special
        assert encoder.num_special == (before, after)
        kept = compute_texts(store, encoder, subject.view(keep_special_tokens=True))
        assert len(kept.matrices[""]) == before + after
        for text, matrix in kept.matrices.items():
            ids, spans, end = kept.token_ids[text], kept.spans[text], len(matrix) - after
            assert ids is not None
            assert spans is not None
            assert (*ids[:before], *ids[end:]) == encoder.special_ids, text
            last = spans[end - 1, 1] if end else 0
            assert spans[:before].max(initial=0) == 0, text
            assert (spans[end:] == last).all(), text
            if text not in kept.truncated:
                own = computed.matrices[text]
                np.testing.assert_allclose(matrix[before:end], own, rtol=0, atol=1e-5)

    def test_what_lies_after_a_sequence_does_not_change_its_rows(self, encoder: AnyEncoder) -> None:
        if not isinstance(encoder, SequenceEncoder):
            return
        tokenized = encoder.tokenize_texts([PLAIN[0].encode(), PLAIN[1].encode()])
        splits, tokens = tokenized.row_splits, np.asarray(tokenized.tokens)
        lengths = np.diff(splits)
        # Tokens of the longer text lie where the shorter one has padding.
        batch = np.stack([tokens[splits[1] :], tokens[splits[1] :]])
        batch[0, : lengths[0]] = tokens[: splits[1]]
        alone = encoder.encode_batch(batch[:1, : lengths[0]], lengths[:1])[0]
        among = encoder.encode_batch(batch, lengths)[0]
        kept = lengths[0] + sum(encoder.num_special)
        np.testing.assert_allclose(among[:kept], alone[:kept], rtol=0, atol=1e-5)

    def test_batches_of_many_shapes_are_traced_once(
        self, computed: Computed, encoder: AnyEncoder
    ) -> None:
        if isinstance(encoder, SequenceEncoder):
            tokens = np.asarray(encoder.tokenize_texts([PLAIN[0].encode()]).tokens)
            for size, length in itertools.product((1, 2, 5), (1, 3, 6)):
                batch = np.tile(tokens[:length], (size, 1))
                encoder.encode_batch(batch, np.full(size, length, np.int64))
        else:
            for size in (1, 2, 7, 63):
                assert encoder.token_lengths([b"cat"] * size).tolist() == [1] * size
                assert encoder.embed_tokens([b"cat"] * size).shape == (size, encoder.dim)
        assert encoder.num_traces <= 1

    def test_a_sample_computed_again_shows_no_difference(self, computed: Computed) -> None:
        assert computed.fidelity.texts > 0
        assert computed.fidelity.max_difference <= 1e-5


class ReloadContract(EncoderContract):
    """The contract, and what takes a second encoder; for modules that load fast."""

    def test_two_fresh_loads_agree(
        self, computed: Computed, subject: Subject, new_store: Any
    ) -> None:
        view = subject.view()
        again = compute_texts(new_store(), subject.source.load_encoder(view), view)
        assert_same_rows(again, computed, tolerance=1e-6)


def _told(computed: Computed, text: str, tokenized: Any) -> list[tuple[Any, Any]]:
    """What the store tells of a text's tokens, each with what the tokenizer told."""
    pairs = [
        (computed.spans[text], tokenized.spans),
        (computed.token_ids[text], tokenized.token_ids),
    ]
    return [pair for pair in pairs if pair[1] is not None]
