"""Batch: texts padded to one length; and the lengths that they are padded to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.keys import Keys

LENGTH_STEP = 8
"""Batches are padded to a multiple of this: few shapes for the backend to compile, and on
SST-2 at batch 64 about 4 % more rows than padding to the longest text."""


def _no_rows() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Batch:
    """B texts, padded to one length.

    Attributes:
        values: Shape (B, L, dim), float16 or float32 (the value dtype); zeros from each text's
            length on. L is a multiple of 8.
        lengths: Tokens of each text, (B,) int32.
        labels: Class of each text, (B,) int32, a place in `FeatureStream.label_names`; -1 where
            the text has none. Of a stream with ``multilabel=True`` (B, C) uint8: 1 for each
            class that the text has, else 0.
        keys: Key of each text, (B, 16) uint8.
        token_numbers: Number of each token in the stream's `TokenTable`, (B, L) int32, 0 from
            each text's length on and for tokens that are not in the table; None of a stream
            that has no table.
        rows: Position of each text in the stream, (B,) int64.
    """

    values: NDArray[Any]
    lengths: NDArray[np.int32]
    labels: NDArray[Any]
    keys: Keys
    token_numbers: NDArray[np.int32] | None = None
    rows: NDArray[np.int64] = field(default_factory=_no_rows)

    def __len__(self) -> int:
        return len(self.lengths)


def padded_length(num_tokens: int) -> int:
    """The length that a batch whose longest text has so many tokens is padded to."""
    return max(LENGTH_STEP, -(-num_tokens // LENGTH_STEP) * LENGTH_STEP)


def padded_lengths(lengths: NDArray[Any]) -> NDArray[Any]:
    """`padded_length` of each of n numbers of tokens, (n,) of the same dtype."""
    padded: NDArray[Any] = np.maximum(LENGTH_STEP, -(-lengths // LENGTH_STEP) * LENGTH_STEP)
    return padded


def widen_batch(batch: Batch) -> Batch:
    """The batch padded on to the next of few lengths, for a backend that compiles each.

    The lengths are 8, 16, 24, 32, 48, 64, 96, 128, …: twelve up to 512 instead of 64, for a
    third more rows at most.
    """
    length = batch.values.shape[1]
    wide = ladder_length(length)
    if wide == length:
        return batch
    values: NDArray[Any] = np.zeros((len(batch), wide, batch.values.shape[2]), batch.values.dtype)
    values[:, :length] = batch.values
    numbers = batch.token_numbers
    if numbers is not None:
        numbers = np.pad(numbers, ((0, 0), (0, wide - length)))
    return replace(batch, values=values, token_numbers=numbers)


def ladder_length(length: int) -> int:
    """The least of the lengths 2ⁿ and 1.5·2ⁿ, from 8 on, multiples of 8, that is enough."""
    rung = LENGTH_STEP
    while rung < length:
        half = rung + rung // 2
        if half % LENGTH_STEP == 0 and half >= length:
            return half
        rung *= 2
    return rung
