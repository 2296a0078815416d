"""Modules made of NumPy whose rows can be told by hand, and the texts they take.

A text is decimal numbers between spaces, and a number is its token's vocabulary id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from embedcache.compute.missing import MissingTexts
from embedcache.encoder import TokenizedTexts
from embedcache.errors import ModuleMemoryError
from embedcache.keys import keys_of_utf8
from embedcache.modules.splitting import split_texts
from embedcache.view import FeatureView

DIM = 4
NOTHING = -1
START_IDS, END_IDS = (2001, 2002, 2003), (3001, 3002, 3003)


def text_of(ids: Sequence[int]) -> bytes:
    return " ".join(map(str, ids)).encode()


def missing_texts(texts: Sequence[bytes]) -> MissingTexts:
    return MissingTexts(keys_of_utf8(texts), texts, lambda text: f"corpus.txt:{text + 1}")


def make_view(**fields: object) -> FeatureView:
    given = {"module_digest": "0" * 32, "signature": "fake", "tokenizer": "space", "dim": DIM}
    return FeatureView(**{**given, "dtype": "float32", **fields})  # type: ignore[arg-type]


class FakeSequenceEncoder:
    """A row is the token's id, its position in the sequence, and the ids on either side.

    What lies after a sequence and its special tokens is NaN: it must never be kept.

    Args:
        special: How many special tokens stand before and after.
        max_length: As `SequenceEncoder` has it.
        max_batch_tokens: A batch of more, padding and special ones included, is out of memory.
        tells: Whether it tells spans and ids.
        cut_texts: Texts that the tokenizer says it has cut; None: it does not say.
    """

    dim = DIM
    num_traces = 0

    def __init__(
        self,
        special: tuple[int, int] = (1, 1),
        *,
        max_length: int | None = None,
        max_batch_tokens: int | None = None,
        tells: bool = True,
        cut_texts: frozenset[bytes] | None = None,
        twist: Callable[[NDArray[np.float32]], None] = lambda _rows: None,
    ) -> None:
        self.num_special = special
        self.special_ids = (*START_IDS[: special[0]], *END_IDS[: special[1]])
        self.max_length = max_length
        self.fixed_length: int | None = None
        self.max_batch_tokens = max_batch_tokens
        self._tells = tells
        self._cut_texts = cut_texts
        self._twist = twist
        self.batches: list[list[tuple[int, ...]]] = []
        self.num_failed = 0
        self.sizes: list[int] = []

    def tokenize_texts(self, texts: Sequence[bytes]) -> TokenizedTexts:
        split = split_texts(texts, "space-nonempty")
        ids = np.array([int(token) for token in split.tokens], np.int32)
        known = {"spans": split.spans, "token_ids": ids.astype(np.uint32)} if self._tells else {}
        cut = None
        if self._cut_texts is not None:
            cut = np.array([text in self._cut_texts for text in texts], np.bool_)
        return TokenizedTexts(ids, split.row_splits, **known, cut=cut)

    def encode_batch(
        self, tokens: NDArray[np.int32], lengths: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        assert (lengths <= tokens.shape[1]).all()
        width = tokens.shape[1] + sum(self.num_special)
        assert self.max_length is None or width <= self.max_length
        if self.max_batch_tokens is not None and len(tokens) * width > self.max_batch_tokens:
            self.num_failed += 1
            raise ModuleMemoryError("fake: out of memory; give a smaller --batch-tokens")
        self.sizes.append(len(tokens) * width)
        ids = [tuple(row[:n].tolist()) for row, n in zip(tokens, lengths, strict=True)]
        self.batches.append(ids)
        rows = np.full((len(tokens), width + 1, DIM), np.nan, np.float32)
        for place, sequence in enumerate(ids):
            alone = self.rows_alone(sequence)
            rows[place, : len(alone)] = alone
        self._twist(rows)
        return rows

    def rows_alone(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The rows of one sequence, those of special tokens among them."""
        before = self.num_special[0]
        around = [*self.special_ids[:before], *ids, *self.special_ids[before:]]
        left, right = [NOTHING, *around[:-1]], [*around[1:], NOTHING]
        rows = list(zip(around, range(len(around)), left, right, strict=False))
        return np.array(rows, np.float32).reshape(-1, DIM)

    def content_rows(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The same without those of special tokens."""
        rows = self.rows_alone(ids)
        return rows[self.num_special[0] : len(rows) - self.num_special[1]]


class FakeTokenEncoder:
    """A row is made of the token's bytes alone.

    Args:
        max_tokens: A call with more is out of memory.
        difference: What `text_difference` says.
        tells: Whether it tells ids.
    """

    dim = DIM
    num_traces = 0

    def __init__(
        self,
        *,
        max_tokens: int | None = None,
        difference: float | None = 0.0,
        tells: bool = False,
        twist: Callable[[Sequence[bytes], NDArray[np.float32]], None] = lambda _tokens, _rows: None,
    ) -> None:
        self.max_tokens = max_tokens
        self.difference = difference
        self._tells = tells
        self._twist = twist
        self.calls: list[list[bytes]] = []
        self.compared: list[bytes] = []

    def tokenize_texts(self, texts: Sequence[bytes]) -> TokenizedTexts:
        split = split_texts(texts, "space")
        ids = np.array([len(token) for token in split.tokens], np.uint32) if self._tells else None
        return TokenizedTexts(split.tokens, split.row_splits, split.spans, ids)

    def token_lengths(self, tokens: Sequence[bytes]) -> NDArray[np.int64]:
        return np.array([1 + len(token) // 4 for token in tokens], np.int64)

    def embed_tokens(self, tokens: Sequence[bytes]) -> NDArray[np.float32]:
        if self.max_tokens is not None and len(tokens) > self.max_tokens:
            raise ModuleMemoryError("fake: out of memory; give a smaller --batch-tokens")
        self.calls.append(list(tokens))
        rows = self.rows_alone(tokens)
        self._twist(tokens, rows)
        return rows

    def text_difference(self, text: bytes, rows: NDArray[np.float32]) -> float | None:
        self.compared.append(text)
        return self.difference

    @staticmethod
    def rows_alone(tokens: Sequence[bytes]) -> NDArray[np.float32]:
        rows = [[len(token), sum(token), token[0] if token else 0, 7] for token in tokens]
        return np.array(rows, np.float32).reshape(-1, DIM)
