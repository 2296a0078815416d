"""Texts on their way through a contextual module: cut into windows, and put together again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.compute.missing import MissingTexts
from embedcache.compute.windows import check_lengths, plan_windows
from embedcache.encoder import SequenceEncoder, TokenizedTexts
from embedcache.errors import EncodingError, ModuleError
from embedcache.keys import Keys
from embedcache.ragged import expand_ranges, splits_of_lengths
from embedcache.store.shards.format import FLAG_TRUNCATED
from embedcache.view import FeatureView


@dataclass(frozen=True, slots=True)
class WholeTexts:
    """Texts whose rows are all there, as `ShardWriter.add_values` takes them.

    Attributes:
        keys: Shape (n, 16).
        lengths: Rows of each, (n,).
        flags: Bits of each, (n,) uint8.
        values: All rows, (T, dim), storage dtype.
        spans: (T, 2) uint32, or None.
        token_ids: (T,) uint32, or None.
    """

    keys: Keys
    lengths: NDArray[np.int64]
    flags: NDArray[np.uint8]
    values: NDArray[Any]
    spans: NDArray[np.uint32] | None
    token_ids: NDArray[np.uint32] | None


class SequenceBuffer:
    """Some texts as windows, each a sequence for the module.

    Args:
        missing: The texts.
        tokenized: Their tokens.
        encoder: Says how long a sequence may be, and what is put around it.
        view: Says how long a text may be, and what becomes of a longer one.

    Attributes:
        lengths: Tokens of each window, special ones left out, (w,).
        num_rows: Rows of each that are kept, (w,).
        row_starts: The first of them among the rows that `encode_batch` gives, (w,).
        limit: Tokens of the longest window, special ones left out.

    Raises:
        EncodingError: if a text is too long and the view says ``overflow="error"``.
    """

    def __init__(
        self,
        missing: MissingTexts,
        tokenized: TokenizedTexts,
        encoder: SequenceEncoder,
        view: FeatureView,
    ) -> None:
        self._missing = missing
        self._tokenized = tokenized
        self._special_ids = encoder.special_ids
        self._special = encoder.num_special if view.keep_special_tokens else (0, 0)
        self.limit = longest_window(encoder, view)
        text_lengths = np.diff(tokenized.row_splits)
        self._check(text_lengths, view)
        self._windows = plan_windows(
            text_lengths,
            limit=self.limit,
            overlap=view.overlap_tokens,
            stitch=view.overflow == "window",
        )
        windows = self._windows
        self._flags = windows.flags
        if tokenized.cut is not None:
            self._flags = self._flags | np.where(tokenized.cut, FLAG_TRUNCATED, 0).astype(np.uint8)
        self._counts = np.bincount(windows.texts, minlength=len(missing.texts))
        self._firsts = splits_of_lengths(self._counts)
        places = np.arange(len(windows))
        before, after = self._special
        self._leading = np.where(places == self._firsts[windows.texts], before, 0)
        self._trailing = np.where(places == self._firsts[windows.texts + 1] - 1, after, 0)
        self.lengths = windows.stops - windows.starts
        self._kept = windows.keep_stops - windows.keep_starts
        self.num_rows = self._kept + self._leading + self._trailing
        self.row_starts = (
            encoder.num_special[0] + windows.keep_starts - windows.starts - self._leading
        )
        self._parts: dict[int, NDArray[Any]] = {}

    def _check(self, text_lengths: NDArray[np.int64], view: FeatureView) -> None:
        check_lengths(text_lengths, self.limit, view.overflow, self._missing.places)
        cut = self._tokenized.cut
        if cut is None or not cut.any() or view.overflow == "truncate":
            return
        raise EncodingError(
            f"{self._missing.places(int(np.argmax(cut)))}: longer than the preprocessor's own"
            f" length, which cannot be changed; use --overflow truncate, or a preprocessor with"
            " `tokenize`"
        )

    def place(self, window: int) -> str:
        """Where a window's text stands in the corpus."""
        return self._missing.places(int(self._windows.texts[window]))

    def tokens_of(self, windows: NDArray[np.int64], width: int) -> NDArray[Any]:
        """The tokens of some windows, side by side: (B, width); what pads them is arbitrary."""
        lengths = self.lengths[windows]
        tokens = np.asarray(self._tokenized.tokens)
        padded = np.zeros((len(windows), width), tokens.dtype)
        texts = self._windows.texts[windows]
        firsts = self._tokenized.row_splits[texts] + self._windows.starts[windows]
        padded[np.arange(width) < lengths[:, np.newaxis]] = tokens[expand_ranges(firsts, lengths)]
        return padded

    def kept_rows(
        self, windows: NDArray[np.int64], rows: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Of what `encode_batch` gave for some windows, (B, M, dim), the rows kept, (R, dim)."""
        firsts = self.row_starts[windows] + np.arange(len(windows)) * rows.shape[1]
        positions = expand_ranges(firsts, self.num_rows[windows])
        kept: NDArray[np.float32] = rows.reshape(-1, rows.shape[2]).take(positions, axis=0)
        return kept

    def take_whole(self, windows: NDArray[np.int64], rows: NDArray[Any]) -> Iterator[WholeTexts]:
        """The texts that are whole now that these windows' rows, (R, dim), are there."""
        texts = self._windows.texts[windows]
        is_only = self._counts[texts] == 1
        if is_only.all():
            if len(windows):
                yield self._whole(windows, rows)
            return
        ends = splits_of_lengths(self.num_rows[windows])
        for place, window in enumerate(windows.tolist()):
            self._parts[window] = rows[ends[place] : ends[place + 1]].copy()
        for text in np.unique(texts).tolist():
            group = np.arange(self._firsts[text], self._firsts[text + 1])
            if all(window in self._parts for window in group.tolist()):
                parts = [self._parts.pop(window) for window in group.tolist()]
                yield self._whole(group, np.concatenate(parts))

    def _whole(self, windows: NDArray[np.int64], rows: NDArray[Any]) -> WholeTexts:
        """Windows that hold all there is of their texts."""
        texts, starts = np.unique(self._windows.texts[windows], return_index=True)
        # Texts in the order of the windows, which need not be that of the corpus.
        texts = texts[np.argsort(starts)]
        lengths = np.add.reduceat(self.num_rows[windows], np.sort(starts))
        return WholeTexts(
            keys=self._missing.keys[texts],
            lengths=lengths,
            flags=self._flags[texts],
            values=rows,
            spans=self._spans_of(windows),
            token_ids=self._ids_of(windows),
        )

    def _spans_of(self, windows: NDArray[np.int64]) -> NDArray[np.uint32] | None:
        """The span of each kept row; a special token's is empty, at its end of the text."""
        known = self._tokenized.spans
        if known is None:
            return None
        spans = np.zeros((int(self.num_rows[windows].sum()), 2), np.uint32)
        places, tokens = self._content(windows)
        spans[places] = known[tokens]
        rows = splits_of_lengths(self.num_rows[windows])
        for place in np.flatnonzero(self._trailing[windows]).tolist():
            first = rows[place + 1] - self._trailing[windows[place]]
            # An empty text may have no row before it: that is another text's then.
            spans[first : rows[place + 1]] = spans[first - 1, 1] if first > rows[place] else 0
        return spans

    def _ids_of(self, windows: NDArray[np.int64]) -> NDArray[np.uint32] | None:
        """The vocabulary id of each kept row."""
        known = self._tokenized.token_ids
        if known is None:
            return None
        ids = np.zeros(int(self.num_rows[windows].sum()), np.uint32)
        places, tokens = self._content(windows)
        ids[places] = known[tokens]
        rows = splits_of_lengths(self.num_rows[windows])
        before, _ = self._special
        for number, special in enumerate(self._special_ids[:before]):
            ids[rows[:-1][self._leading[windows] > 0] + number] = special
        ends = rows[1:][self._trailing[windows] > 0]
        for number, special in enumerate(reversed(self._special_ids[before:]), start=1):
            ids[ends - number] = special
        return ids

    def _content(self, windows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which rows are a text's own tokens, and which tokens these are."""
        kept = self._kept[windows]
        rows = splits_of_lengths(self.num_rows[windows])[:-1] + self._leading[windows]
        texts = self._windows.texts[windows]
        firsts = self._tokenized.row_splits[texts] + self._windows.keep_starts[windows]
        return expand_ranges(rows, kept), expand_ranges(firsts, kept)


def longest_window(encoder: SequenceEncoder, view: FeatureView) -> int:
    """Tokens of the longest window, special ones left out.

    Raises:
        ModuleError: if none would be left.
    """
    num_special = sum(encoder.num_special)
    limit = view.max_tokens - (num_special if view.keep_special_tokens else 0)
    if encoder.max_length is not None:
        limit = min(limit, encoder.max_length - num_special)
    if limit < 1:
        raise ModuleError(
            f"--max-tokens {view.max_tokens}: the {num_special} special tokens leave no room for a"
            f" text; give at least {num_special + 1}"
        )
    return limit
