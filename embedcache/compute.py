"""Computing what is missing: texts → tokens → rows → the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.encoder import TokenEncoder, TokenizedTexts
from embedcache.errors import EncodingError
from embedcache.keys import Keys
from embedcache.ragged import expand_ranges, splits_of_lengths
from embedcache.store.codec import STORAGE_DTYPES, BadRowError, to_storage
from embedcache.store.writer import ShardWriter
from embedcache.view import FeatureView

MAX_TABLE_ROWS = 1 << 18
"""Distinct tokens kept in memory; with 128 float16 numbers each, 64 MiB. A corpus with more
has its commonest tokens embedded again, once per table."""


@dataclass(frozen=True, slots=True)
class MissingTexts:
    """Texts to compute.

    Attributes:
        keys: Distinct keys, (n, 16).
        texts: Their UTF-8.
        places: Where each stands, for messages: ``corpus.txt:7``.
    """

    keys: Keys
    texts: Sequence[bytes]
    places: Callable[[int], str]


class TokenTable:
    """Distinct tokens and their rows: each token goes through the module once.

    Attributes:
        rows: Shape (capacity, dim), storage dtype; the first ``len(table)`` are in use.
    """

    def __init__(self, dim: int, dtype: str) -> None:
        self._codes: dict[bytes, int] = {}
        self._dtype = dtype
        self.rows: NDArray[Any] = np.empty((1024, dim), STORAGE_DTYPES[dtype])

    def __len__(self) -> int:
        return len(self._codes)

    def unknown(self, tokens: Sequence[bytes]) -> list[bytes]:
        """The distinct tokens that are not in the table, in order of appearance."""
        known = self._codes
        return [token for token in dict.fromkeys(tokens) if token not in known]

    def add(self, tokens: Sequence[bytes], rows: NDArray[np.float32]) -> None:
        """Add tokens that are not in the table.

        Raises:
            BadRowError: if a row cannot be stored; nothing is added then.
        """
        stored = to_storage(rows, self._dtype)
        size = len(self) + len(tokens)
        if size > len(self.rows):
            grown = np.empty((max(size, 2 * len(self.rows)), self.rows.shape[1]), self.rows.dtype)
            grown[: len(self)] = self.rows[: len(self)]
            self.rows = grown
        self.rows[len(self) : size] = stored
        for token in tokens:
            self._codes[token] = len(self._codes)

    def codes(self, tokens: Sequence[bytes]) -> NDArray[np.uint32]:
        """The place of each token in `rows`; all must be in the table."""
        return np.fromiter(map(self._codes.__getitem__, tokens), np.uint32, len(tokens))


class FeatureComputer:
    """Computes features of one view and hands them to a writer."""

    def __init__(self, encoder: TokenEncoder, writer: ShardWriter, view: FeatureView) -> None:
        self._encoder = encoder
        self._writer = writer
        self._view = view
        self._table = TokenTable(view.dim, view.dtype)
        self.num_tokens = 0
        self.num_truncated = 0

    def compute(self, missing: MissingTexts) -> None:
        """Compute some texts and add them to the open shard; closes it when it is due.

        Raises:
            EncodingError: if a text is too long and the view says ``overflow="error"``, or
                the module returned what cannot be stored; names the text's place.
            ModuleError: if the module fails.
            StoreError: if a shard cannot be written.
        """
        tokenized = self._encoder.tokenize_texts(missing.texts)
        tokens, lengths, truncated = self._cut(tokenized, missing)
        unknown = self._table.unknown(tokens)
        if self._table and len(self._table) + len(unknown) > MAX_TABLE_ROWS:
            # The open shard's codes are places in the table: they are written out first.
            self._writer.flush()
            self._table = TokenTable(self._view.dim, self._view.dtype)
            unknown = self._table.unknown(tokens)
        if unknown:
            self._embed(unknown, tokens, lengths, missing)
        codes = self._table.codes(tokens)
        self._writer.add_codes(
            missing.keys, lengths, truncated, codes=codes, table=self._table.rows
        )
        self.num_tokens += len(tokens)
        self.num_truncated += int(truncated.sum())
        if self._writer.is_due:
            self._writer.flush()

    def _cut(
        self, tokenized: TokenizedTexts, missing: MissingTexts
    ) -> tuple[Sequence[bytes], NDArray[np.int64], NDArray[np.bool_]]:
        """Apply the view's longest length: tokens left, their number per text, what was cut."""
        lengths = np.diff(tokenized.row_splits)
        limit = self._view.max_tokens
        truncated = lengths > limit
        if not truncated.any():
            return tokenized.tokens, lengths, truncated
        if self._view.overflow == "error":
            text = int(np.argmax(truncated))
            raise EncodingError(
                f"{missing.places(text)}: {lengths[text]} tokens, the limit is {limit}; raise"
                " --max-tokens or use --overflow truncate"
            )
        kept = np.minimum(lengths, limit)
        positions = expand_ranges(tokenized.row_splits[:-1], kept)
        return [tokenized.tokens[position] for position in positions], kept, truncated

    def _embed(
        self,
        unknown: list[bytes],
        tokens: Sequence[bytes],
        lengths: NDArray[np.int64],
        missing: MissingTexts,
    ) -> None:
        """Put the rows of unknown tokens into the table."""
        rows = self._encoder.embed_tokens(unknown)
        try:
            self._table.add(unknown, rows)
        except BadRowError as error:
            token = unknown[error.row]
            splits = splits_of_lengths(lengths)
            text = int(np.searchsorted(splits, list(tokens).index(token), side="right")) - 1
            raise EncodingError(
                f"{missing.places(text)}: token {token.decode(errors='replace')!r}: {error}"
            ) from None
