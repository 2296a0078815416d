"""Contextual modules: texts of like length go through the module together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.compute.batches import TokenBudget, padded_lengths
from embedcache.compute.behind import OneBehind
from embedcache.compute.buffer import SequenceBuffer
from embedcache.compute.fidelity import Fidelity
from embedcache.compute.missing import ComputeCounts, MissingTexts
from embedcache.encoder import SequenceEncoder, TokenizedTexts
from embedcache.errors import EncodingError, ModuleMemoryError
from embedcache.ragged import splits_of_lengths
from embedcache.store.shards.codec import BadRowError, ReconstructionError, to_storage
from embedcache.store.writer import ShardWriter
from embedcache.view import FeatureView

BUFFER_TEXTS = 8192
BUFFER_BYTES = 1 << 22
"""Texts sorted by length at a time: so many that most batches are full."""

_TOKENIZE_BYTES = 1 << 18


class SequenceComputer:
    """A `Computer` over a contextual module."""

    buffer_texts = BUFFER_TEXTS
    buffer_bytes = BUFFER_BYTES

    def __init__(
        self,
        encoder: SequenceEncoder,
        writer: ShardWriter,
        view: FeatureView,
        *,
        fidelity: Fidelity,
        batch_tokens: int,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self._encoder = encoder
        self._writer = writer
        self._view = view
        self._budget = TokenBudget(batch_tokens)
        self._on_batch = on_batch
        self.fidelity = fidelity
        self.counts = ComputeCounts()
        self.reconstruction = ReconstructionError()

    def compute(self, missing: MissingTexts) -> None:
        """Compute some texts; see `Computer`.

        Each batch's texts are added to the open shard, in a thread of its own, while the
        next batch is in the module.
        """
        buffer = SequenceBuffer(missing, self._tokenize(missing.texts), self._encoder, self._view)
        sampled = _Sample(self.fidelity.sample_size(len(missing.texts)))
        empty = np.flatnonzero(buffer.num_rows == 0)
        full = np.flatnonzero(buffer.num_rows)
        lengths, extra = buffer.lengths[full], sum(self._encoder.num_special)
        if self._encoder.fixed_length is not None:
            lengths = np.full(len(full), self._encoder.fixed_length - extra)
        with OneBehind() as behind:

            def run(places: NDArray[np.int64]) -> None:
                batch = full[places]
                try:
                    rows = self._encode(buffer, batch)
                    if sampled.takes_next():
                        self._check(buffer, batch, rows)
                except ModuleMemoryError as error:
                    # Told if it is of one window; else a smaller batch is tried.
                    raise ModuleMemoryError(f"{buffer.place(int(batch[0]))}: {error}") from error
                behind.submit(lambda: self._add(buffer, batch, rows))
                self._on_batch()

            nothing = np.zeros((len(empty), 0, self._view.dim), np.float32)
            behind.submit(lambda: self._add(buffer, empty, nothing))
            self._budget.run_batches(lengths, run, extra=extra, first=sampled.plan)

    def _tokenize(self, texts: Sequence[bytes]) -> TokenizedTexts:
        """Tokenise in pieces that the processor's caches hold."""
        parts: list[TokenizedTexts] = []
        start, size = 0, 0
        for stop, text in enumerate(texts, start=1):
            size += len(text)
            if size >= _TOKENIZE_BYTES or stop == len(texts):
                parts.append(self._encoder.tokenize_texts(texts[start:stop]))
                start, size = stop, 0
        return _joined(parts)

    def _encode(self, buffer: SequenceBuffer, batch: NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows of a batch of windows, padding among them: (B, M, dim)."""
        lengths = buffer.lengths[batch]
        width = int(padded_lengths(lengths).max())
        tokens = buffer.tokens_of(batch, min(width, buffer.limit))
        return self._encoder.encode_batch(tokens, lengths)

    def _check(
        self, buffer: SequenceBuffer, batch: NDArray[np.int64], rows: NDArray[np.float32]
    ) -> None:
        """Compute the window that the batch pads most once more, alone and unpadded."""
        place = int(np.argmin(buffer.lengths[batch]))
        window = batch[place : place + 1]
        try:
            stored = to_storage(buffer.kept_rows(window, rows[place : place + 1]), self._view.dtype)
        except BadRowError:
            return  # told with the token's place when the rows are added
        live = self._encode_alone(buffer, window)
        self.fidelity.compare(stored, live, buffer.place(int(window[0])))

    def _encode_alone(
        self, buffer: SequenceBuffer, window: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        lengths = buffer.lengths[window]
        tokens = buffer.tokens_of(window, int(lengths[0]))
        return buffer.kept_rows(window, self._encoder.encode_batch(tokens, lengths))

    def _add(
        self, buffer: SequenceBuffer, batch: NDArray[np.int64], rows: NDArray[np.float32]
    ) -> None:
        """Hand the texts over that are whole with this batch; closes the shard when it is due."""
        kept, dtype = buffer.kept_rows(batch, rows), self._view.dtype
        try:
            stored = to_storage(kept, dtype)
        except BadRowError as error:
            ends = np.cumsum(buffer.num_rows[batch])
            window = batch[int(np.searchsorted(ends, error.row, side="right"))]
            raise EncodingError(f"{buffer.place(int(window))}: {error}") from None
        self.reconstruction.add(kept, stored, dtype)
        for part in buffer.take_whole(batch, stored):
            self._writer.add_values(
                part.keys,
                part.lengths,
                part.flags,
                values=part.values,
                spans=part.spans,
                token_ids=part.token_ids,
            )
            self.counts.add(part.flags, len(part.values))
        self._writer.close_if_due()


def _joined(parts: Sequence[TokenizedTexts]) -> TokenizedTexts:
    """Several tokenizings, one after the other."""
    if len(parts) == 1:
        return parts[0]

    def joined(name: str) -> NDArray[Any] | None:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    tokens = np.concatenate([np.asarray(part.tokens) for part in parts])
    lengths = np.concatenate([np.diff(part.row_splits) for part in parts])
    spans, token_ids, cut = joined("spans"), joined("token_ids"), joined("cut")
    return TokenizedTexts(tokens, splits_of_lengths(lengths), spans, token_ids, cut)


class _Sample:
    """Which batches of a buffer have a window computed once more: some, evenly spaced.

    Args:
        size: How many of them.
    """

    def __init__(self, size: int) -> None:
        self._wanted = size
        self._planned = 0

    def plan(self, batches: list[NDArray[np.int64]]) -> None:
        """Choose, and put the chosen ones first: what fails should fail early.

        Called again with what is left where memory ran out: what was not taken is chosen anew.
        """
        # From the longest down, which is the one if there is to be one: short batches have
        # no padding that a module could let in.
        places = np.unique(np.linspace(len(batches) - 1, 0, self._wanted).astype(np.int64))
        chosen = [batches[place] for place in places[::-1]]
        others = np.setdiff1d(np.arange(len(batches)), places)
        batches[:] = chosen + [batches[place] for place in others]
        self._planned = len(chosen)

    def takes_next(self) -> bool:
        """Whether the next batch, in the planned order, is one."""
        if not self._planned:
            return False
        self._planned -= 1
        self._wanted -= 1
        return True
