"""Batches of sequences of like length, for as many tokens as the memory takes.

A batch costs what its longest sequence costs, times their number. So sequences are
sorted by length within a buffer, and a batch takes only those that are padded to the same
of few lengths: padding is below 1 % of the tokens on SST-2, 2 % on texts ten times as long.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import ModuleMemoryError
from embedcache.ragged import splits_of_lengths

BATCH_TOKENS_DEFAULT = 4096
"""Tokens of a batch, padding and special ones included."""

_STEPS_PER_OCTAVE = 16


def padded_lengths(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The length that each sequence is padded to: at least its own, (n,) int64.

    Up to 32 its own; above, one of sixteen an octave (34, 36 … 64, 68 … 128, 136 …): 96
    different ones up to 512, and no sequence grows by more than a sixteenth.
    """
    octave = np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    step = np.maximum((1 << octave) // (2 * _STEPS_PER_OCTAVE), 1)
    padded: NDArray[np.int64] = -(-lengths // step) * step
    return padded


def plan_batches(
    lengths: NDArray[np.int64], *, budget: int, extra: int = 0
) -> list[NDArray[np.int64]]:
    """Put sequences into batches.

    Args:
        lengths: Tokens of each, (n,).
        budget: Tokens that a batch may have, padding included; a sequence that has more
            gets a batch of its own.
        extra: Special tokens that each sequence gets.

    Returns:
        Positions of the sequences of each batch, shortest ones first; every sequence is in
        one batch. Those of a batch are all padded to one length.
    """
    padded = padded_lengths(lengths)
    order = np.lexsort((lengths, padded))
    batches: list[NDArray[np.int64]] = []
    _, counts = np.unique(padded, return_counts=True)
    ends = splits_of_lengths(counts)
    for start, stop in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        length = int(padded[order[start]]) + extra
        size = max(1, budget // max(1, length))
        # Equal parts, not full ones and a rest.
        num_batches = -(-(stop - start) // size)
        batches += np.array_split(order[start:stop], num_batches)
    return batches


class TokenBudget:
    """How many tokens a batch may have: half as many after each time that memory ran out.

    Attributes:
        tokens: The budget.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def run_batches(
        self,
        lengths: NDArray[np.int64],
        run: Callable[[NDArray[np.int64]], None],
        *,
        extra: int = 0,
        first: Callable[[list[NDArray[np.int64]]], None] = lambda _batches: None,
    ) -> None:
        """Run every sequence in one batch or another.

        Args:
            lengths: Tokens of each sequence, (n,).
            run: Takes the positions of a batch. If it raises `ModuleMemoryError`, these and
                all that are left are put into batches of half the tokens.
            extra: Special tokens that each sequence gets.
            first: May reorder the planned batches.

        Raises:
            ModuleMemoryError: if a batch of one sequence does not fit.
        """
        waiting = np.arange(len(lengths))
        while len(waiting):
            batches = plan_batches(lengths[waiting], budget=self.tokens, extra=extra)
            first(batches)
            done = self._run_until_full([waiting[batch] for batch in batches], run)
            waiting = waiting[~np.isin(waiting, done)]

    def _run_until_full(
        self, batches: list[NDArray[np.int64]], run: Callable[[NDArray[np.int64]], None]
    ) -> NDArray[np.int64]:
        """Run batches until memory runs out; the positions that are done."""
        done: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
        for batch in batches:
            try:
                run(batch)
            except ModuleMemoryError:
                if len(batch) == 1:
                    raise
                self.tokens = max(1, self.tokens // 2)
                break
            done.append(batch)
        return np.concatenate(done)
