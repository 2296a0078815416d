"""Where the matrices of texts lie, and what is known of their tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.keys import Keys

SEVERAL = -2
"""Instead of a shard's number: texts lie in more than one, or some are missing."""

Members = slice | NDArray[np.int64]
"""Places among n texts."""


@dataclass(frozen=True, slots=True)
class FeatureRefs:
    """Where the matrices of n texts lie.

    Attributes:
        keys: Key of each text, (n, 16), by which it is found again where its shard was retired.
        shards: Number of the shard, (n,) int64; -1 where the text has no features. It is
            the reader's own and stays good whatever becomes of the index.
        starts: First token position in the shard, (n,) int64.
        lengths: Number of tokens, (n,) int64.
        truncated: Whether the text was cut, (n,) bool.
        windowed: Whether its rows were stitched from overlapping windows, (n,) bool.
        one_shard: The number of the shard in which all lie; negative if they lie in several.
    """

    keys: Keys
    shards: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    windowed: NDArray[np.bool_]
    one_shard: int = SEVERAL

    def __len__(self) -> int:
        return len(self.shards)

    def take(self, positions: NDArray[Any] | slice) -> FeatureRefs:
        """Some of them, in the order given; of a slice the arrays are not copied."""
        return FeatureRefs(
            self.keys[positions],
            self.shards[positions],
            self.starts[positions],
            self.lengths[positions],
            self.truncated[positions],
            self.windowed[positions],
            self.one_shard,
        )


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """What a shard tells of a text's tokens besides their rows; the arrays are the caller's.

    Attributes:
        spans: UTF-8 bytes [start, end) of the text that each token stands for, (num_tokens,
            2) uint32; start == end for none, as a special token. None if not recorded.
        token_ids: Vocabulary id of each token, (num_tokens,) uint32. None if not recorded.
    """

    spans: NDArray[np.uint32] | None
    token_ids: NDArray[np.uint32] | None


def by_shard(numbers: NDArray[np.int64], one_shard: int = SEVERAL) -> Iterator[tuple[int, Members]]:
    """Each shard's number with the places that it has in ``numbers``; missing ones left out.

    The places are a slice if they lie side by side in all shards.
    """
    if len(numbers) == 0:
        return
    if one_shard >= 0:
        yield one_shard, slice(None)
        return
    is_ascending = bool((numbers[1:] >= numbers[:-1]).all())
    order = np.argsort(numbers, kind="stable") if not is_ascending else None
    ordered = numbers if order is None else numbers[order]
    starts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    for start, stop in itertools.pairwise([0, *starts.tolist(), len(numbers)]):
        if ordered[start] >= 0:
            members = slice(start, stop)
            yield int(ordered[start]), members if order is None else order[members]
