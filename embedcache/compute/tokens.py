"""Context-free modules: each distinct token goes through the module once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.compute.batches import TokenBudget
from embedcache.compute.fidelity import Fidelity
from embedcache.compute.missing import ComputeCounts, MissingTexts
from embedcache.compute.windows import check_lengths
from embedcache.encoder import TokenEncoder, TokenizedTexts
from embedcache.errors import EncodingError
from embedcache.ragged import expand_ranges, splits_of_lengths
from embedcache.store.shards.codec import (
    STORAGE_DTYPES,
    BadRowError,
    ReconstructionError,
    row_width,
    to_storage,
)
from embedcache.store.shards.format import FLAG_TRUNCATED, FLAG_WINDOWED
from embedcache.store.writer import ShardWriter
from embedcache.view import FeatureView

MAX_TABLE_ROWS = 1 << 18
"""Distinct tokens kept in memory; with 128 float16 numbers each, 64 MiB. A corpus with more
has its commonest tokens embedded again, once per table."""

BUFFER_TEXTS = 4096
BUFFER_BYTES = 1 << 18
"""Missing texts are computed so many at a time. On 61,000 texts of 420 bytes, batches of 256 KiB
took 16 s and 1.2 GB, batches of 4 MiB 33 s and 6.2 GB: TensorFlow's tokenising takes some
hundred bytes a character while it runs, and more of it than the processor's caches hold."""


class TokenTable:
    """Distinct tokens and their rows: each token goes through the module once.

    Attributes:
        rows: Shape (capacity, row_width), storage dtype; the first ``len(table)`` are in use.

    Args:
        dim: The width of a row.
        dtype: The storage dtype.
        reconstruction: Is told what storing costs.
    """

    def __init__(self, dim: int, dtype: str, reconstruction: ReconstructionError) -> None:
        self._codes: dict[bytes, int] = {}
        self._dtype = dtype
        self.reconstruction = reconstruction
        self.rows: NDArray[Any] = np.empty((1024, row_width(dim, dtype)), STORAGE_DTYPES[dtype])

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
        self.reconstruction.add(rows, stored, self._dtype)
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


class TokenComputer:
    """A `Computer` over a context-free module."""

    buffer_texts = BUFFER_TEXTS
    buffer_bytes = BUFFER_BYTES

    def __init__(
        self,
        encoder: TokenEncoder,
        writer: ShardWriter,
        view: FeatureView,
        *,
        fidelity: Fidelity,
        batch_tokens: int,
    ) -> None:
        self._encoder = encoder
        self._writer = writer
        self._view = view
        self.reconstruction = ReconstructionError()
        self._table = TokenTable(view.dim, view.dtype, self.reconstruction)
        self._budget = TokenBudget(batch_tokens)
        self.fidelity = fidelity
        self.counts = ComputeCounts()

    def compute(self, missing: MissingTexts) -> None:
        """Compute some texts; see `Computer`."""
        tokenized = self._encoder.tokenize_texts(missing.texts)
        tokenized, flags = self._cut(tokenized, missing)
        tokens, lengths = tokenized.tokens, np.diff(tokenized.row_splits)
        unknown = self._table.unknown(tokens)
        if self._table and len(self._table) + len(unknown) > MAX_TABLE_ROWS:
            # The open shard's codes are places in the table: no others may come to them.
            self._writer.close_shard()
            view = self._view
            self._table = TokenTable(view.dim, view.dtype, self.reconstruction)
            unknown = self._table.unknown(tokens)
        if unknown:
            self._embed(unknown, tokenized, missing)
        codes = self._table.codes(tokens)
        self._check_sample(tokenized, codes, flags, missing)
        self._writer.add_codes(
            missing.keys,
            lengths,
            flags,
            codes=codes,
            table=self._table.rows,
            spans=tokenized.spans,
            token_ids=tokenized.token_ids,
        )
        self.counts.add(flags, len(tokens))
        self._writer.close_if_due()

    def _cut(
        self, tokenized: TokenizedTexts, missing: MissingTexts
    ) -> tuple[TokenizedTexts, NDArray[np.uint8]]:
        """Apply the view's longest length; and the flags of each text.

        A row depends on its token alone, so the windows of a longer text hold the very rows
        that the whole of it has.
        """
        lengths = np.diff(tokenized.row_splits)
        limit = self._view.max_tokens
        check_lengths(lengths, limit, self._view.overflow, missing.places)
        is_long = lengths > limit
        if not is_long.any() or self._view.overflow == "window":
            return tokenized, np.where(is_long, FLAG_WINDOWED, 0).astype(np.uint8)
        kept = np.minimum(lengths, limit)
        positions = expand_ranges(tokenized.row_splits[:-1], kept)
        cut = replace(
            tokenized,
            tokens=[tokenized.tokens[position] for position in positions],
            row_splits=splits_of_lengths(kept),
            spans=None if tokenized.spans is None else tokenized.spans[positions],
            token_ids=None if tokenized.token_ids is None else tokenized.token_ids[positions],
        )
        return cut, np.where(is_long, FLAG_TRUNCATED, 0).astype(np.uint8)

    def _embed(
        self, unknown: list[bytes], tokenized: TokenizedTexts, missing: MissingTexts
    ) -> None:
        """Put the rows of unknown tokens into the table."""
        rows = np.empty((len(unknown), self._view.dim), np.float32)

        def run(batch: NDArray[np.int64]) -> None:
            rows[batch] = self._encoder.embed_tokens([unknown[place] for place in batch])

        self._budget.run_batches(self._encoder.token_lengths(unknown), run)
        try:
            self._table.add(unknown, rows)
        except BadRowError as error:
            token = unknown[error.row]
            place = list(tokenized.tokens).index(token)
            text = int(np.searchsorted(tokenized.row_splits, place, side="right")) - 1
            raise EncodingError(
                f"{missing.places(text)}: token {token.decode(errors='replace')!r}: {error}"
            ) from None

    def _check_sample(
        self,
        tokenized: TokenizedTexts,
        codes: NDArray[np.uint32],
        flags: NDArray[np.uint8],
        missing: MissingTexts,
    ) -> None:
        """Compute a few texts again, each alone."""
        size = self.fidelity.sample_size(len(flags))
        chosen = np.linspace(0, len(flags) - 1, size).astype(np.int64)
        for text in np.unique(chosen).tolist():
            start, stop = tokenized.row_splits[text : text + 2].tolist()
            if start == stop:
                continue
            place = missing.places(text)
            live = self._encoder.embed_tokens(list(tokenized.tokens[start:stop]))
            self.fidelity.compare(self._table.rows[codes[start:stop]], live, place)
            if not flags[text] & FLAG_TRUNCATED:
                difference = self._encoder.text_difference(missing.texts[text], live)
                self.fidelity.compare_text(difference, place)
