"""Encoders of both protocols in plain NumPy: what the contract asks for needs no module."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.encoder import TokenizedTexts
from embedcache.errors import ModuleError
from embedcache.modules.settings import ViewSettings
from embedcache.modules.splitting import split_texts
from embedcache.view import FeatureView
from tests.embedcache.modules.computed import AnyEncoder
from tests.embedcache.modules.encoder_contract import Subject

DIM = 6
VOCAB_SIZE = 101
_START_ID, _END_ID, _FIRST_WORD_ID = 1, 2, 3
# Less than the fidelity check of a build allows, more than the contract does.
_FAULT_SIZE = 5e-5


def fake_token_subject() -> Subject:
    """A `TokenEncoder` with vocabulary ids."""
    return Subject(source=_Source("token"), vocab_size=VOCAB_SIZE, stands_for=_stands_for_word)


def fake_sequence_subject(*, special: tuple[int, int] = (1, 1), fault: str = "") -> Subject:
    """A `SequenceEncoder`.

    Args:
        special: How many special tokens it puts before and after a text.
        fault: What is wrong with it. Its rows depend on its earlier calls ("state"), the
            size of the batch ("batch"), the padding ("padding"), the place in the batch
            ("place"), or on which load it is ("load"), or are the same for all texts
            ("same"); or it traces at each call ("trace"), tells spans one byte too late
            ("shift") or an id beyond the vocabulary ("id"), or finds a word in every text
            ("surplus").
    """
    return Subject(
        source=_Source("sequence", special, fault),
        special=special,
        vocab_size=VOCAB_SIZE,
        stands_for=_stands_for_word,
    )


def _stands_for_word(piece_id: Any, surface: str) -> bool:
    return int(piece_id) == _word_id(surface.encode())


def _word_id(word: bytes) -> int:
    number = int.from_bytes(hashlib.blake2b(word, digest_size=4).digest())
    return _FIRST_WORD_ID + number % (VOCAB_SIZE - _FIRST_WORD_ID)


def _rows_of(ids: Sequence[int]) -> NDArray[np.float32]:
    """A row for each id, (n, DIM)."""
    table = np.random.default_rng(0).normal(size=(VOCAB_SIZE + 1, DIM)).astype(np.float32)
    return table[list(ids)]


def _split(texts: Sequence[bytes]) -> TokenizedTexts:
    """Words between white space, with ids."""
    words = split_texts(texts, "whitespace")
    ids = np.array([_word_id(word) for word in words.tokens], np.uint32)
    return TokenizedTexts(words.tokens, words.row_splits, words.spans, ids)


@dataclass(slots=True)
class _Source:
    """Makes views and encoders, as a pinned module does."""

    kind: str
    special: tuple[int, int] = (0, 0)
    fault: str = ""
    num_loads: int = field(default=0)

    def view(self, settings: ViewSettings) -> FeatureView:
        if settings.keep_special_tokens and not sum(self.special):
            raise ModuleError("fake: has no special tokens; leave --keep-special-tokens out")
        return FeatureView(
            module_digest=hashlib.blake2b(repr(self).encode(), digest_size=16).hexdigest(),
            signature="__call__",
            tokenizer="whitespace",
            dim=DIM,
            max_tokens=settings.max_tokens,
            overflow=settings.overflow,
            dtype=settings.dtype,
            keep_special_tokens=settings.keep_special_tokens,
            overlap_tokens=settings.max_tokens // 4 if settings.overflow == "window" else 0,
        )

    def load_encoder(self, view: FeatureView) -> AnyEncoder:
        if self.kind == "token":
            return FakeTokenEncoder()
        self.num_loads += 1
        return FakeSequenceEncoder(self.special, self.fault, self.num_loads)


class FakeTokenEncoder:
    """A word's row is that of its id."""

    dim = DIM
    num_traces = 0

    def tokenize_texts(self, texts: Sequence[bytes]) -> TokenizedTexts:
        return _split(texts)

    def token_lengths(self, tokens: Sequence[bytes]) -> NDArray[np.int64]:
        return np.ones(len(tokens), np.int64)

    def embed_tokens(self, tokens: Sequence[bytes]) -> NDArray[np.float32]:
        return _rows_of([_word_id(token) for token in tokens])

    def text_difference(self, text: bytes, rows: NDArray[np.float32]) -> float | None:
        return None


class FakeSequenceEncoder:
    """A word's row is that of its id and the mean of all of its text's."""

    dim = DIM
    max_length = 40
    fixed_length = None

    def __init__(self, special: tuple[int, int], fault: str, number: int) -> None:
        self._fault = fault
        self._number = number
        self._num_calls = 0
        self.num_special = special
        self.special_ids = (*[_START_ID] * special[0], *[_END_ID] * special[1])

    @property
    def num_traces(self) -> int:
        return self._num_calls if self._fault == "trace" else 1

    def tokenize_texts(self, texts: Sequence[bytes]) -> TokenizedTexts:
        found = _split(
            [text or b"surplus" for text in texts] if self._fault == "surplus" else texts
        )
        ids, spans = found.token_ids, found.spans
        assert ids is not None
        assert spans is not None
        if self._fault == "id":
            ids[-1:] = VOCAB_SIZE
        if self._fault == "shift":
            spans[spans[:, 0] > 0] += 1
        return TokenizedTexts(ids.astype(np.int32), found.row_splits, spans, ids)

    def encode_batch(
        self, tokens: NDArray[np.int32], lengths: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        self._num_calls += 1
        before, after = self.num_special
        rows = np.zeros((len(tokens), tokens.shape[1] + before + after, DIM), np.float32)
        for place, (ids, length) in enumerate(zip(tokens.tolist(), lengths.tolist(), strict=True)):
            own = _rows_of([*[_START_ID] * before, *ids[:length], *[_END_ID] * after])
            if self._fault == "same":
                own[:] = 1
            faults = {
                "state": self._num_calls % 5,
                "batch": len(tokens) % 7,
                "padding": tokens.shape[1] - length,
                "place": place % 5,
                "load": self._number,
            }
            own += own.mean(axis=0) + _FAULT_SIZE * faults.get(self._fault, 0)
            rows[place, : len(own)] = own
        return rows
