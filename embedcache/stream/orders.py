"""Orders of an epoch: of the corpus, any order of all texts, or shuffled blocks.

An order gives any range of its texts without what lies before it, so that a stream can go on
in the middle of an epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embedcache.ragged import splits_of_lengths
from embedcache.store.ahead import ShardUse
from embedcache.stream.memory import available_bytes

BLOCK_BYTES = 4 << 20
"""Features of a block: long enough that a disk reads it at its full speed."""
WINDOW_BYTES = 256 << 20
"""Features of a window by default: 64 blocks."""
_MEMORY_SHARE = 0.5
"""Of the memory that is available, what features may take: the training needs the rest."""
_BLOCKS_A_WINDOW = 8
"""At least so many, where a window of few texts is asked for."""

# What tells the draws of an epoch apart; the epoch's own order has none (see `FullOrder`).
_WINDOW_DRAW = 1


class EpochOrder(Protocol):
    """The order of one epoch."""

    def take(self, start: int, stop: int) -> NDArray[np.int64]:
        """The texts in the places [start, stop), as positions in the stream."""


class Order(Protocol):
    """The orders of all epochs. Any threads."""

    def epoch(self, number: int) -> EpochOrder:
        """The order of an epoch, for one thread."""


@dataclass(frozen=True, slots=True)
class WholeOrder:
    """An epoch's order that is in memory as a whole.

    Attributes:
        positions: Positions in the stream, (n,) int64.
    """

    positions: NDArray[np.int64]

    def take(self, start: int, stop: int) -> NDArray[np.int64]:
        """The texts in the places [start, stop)."""
        return self.positions[start:stop]


@dataclass(frozen=True, slots=True)
class CorpusOrder:
    """Every epoch in the stream's own order.

    Attributes:
        num_texts: Texts of the stream.
    """

    num_texts: int

    def epoch(self, number: int) -> WholeOrder:
        """The order of an epoch: always the same."""
        del number
        return WholeOrder(np.arange(self.num_texts, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class FullOrder:
    """Each epoch any order of all texts: ``default_rng((seed, number)).permutation(n)``.

    Attributes:
        num_texts: Texts of the stream.
        seed: The stream's seed.
    """

    num_texts: int
    seed: int

    def epoch(self, number: int) -> WholeOrder:
        """The order of an epoch."""
        drawn = np.random.default_rng((self.seed, number)).permutation(self.num_texts)
        return WholeOrder(drawn)


@dataclass(frozen=True, slots=True)
class BlockOrder:
    """Blocks in random order, the texts of a window of several shuffled as one.

    No text moves further from its place among the drawn blocks than a window is long.

    Attributes:
        positions: The texts, block after block, each as they lie in its shard: (n,) int64.
        splits: Block i is ``positions[splits[i]:splits[i + 1]]``.
        window_texts: Texts of a window at most.
        seed: The stream's seed.
    """

    positions: NDArray[np.int64]
    splits: NDArray[np.int64]
    window_texts: int
    seed: int

    @classmethod
    def of_shards(
        cls, uses: Sequence[ShardUse], *, window_texts: int | None, seed: int
    ) -> BlockOrder:
        """Cut the texts of shards into blocks.

        The blocks depend on what lies in which shard, and not on the order of shards.
        """
        uses = sorted(uses, key=lambda use: use.digest)
        num_texts = sum(len(use.members) for use in uses)
        num_bytes = sum(use.num_bytes for use in uses)
        window = window_texts or max(1, num_texts * WINDOW_BYTES // max(1, num_bytes))
        most = max(1, window // _BLOCKS_A_WINDOW)
        ordered = [use.members[np.argsort(use.starts, kind="stable")] for use in uses]
        sizes: list[int] = []
        for use in uses:
            num_members = len(use.members)
            num_blocks = max(-(-use.num_bytes // BLOCK_BYTES), -(-num_members // most))
            num_blocks = min(num_blocks, num_members)
            fewest, more = divmod(num_members, num_blocks)
            sizes += [fewest + 1] * more + [fewest] * (num_blocks - more)
        positions = np.concatenate([np.zeros(0, np.int64), *ordered])
        return cls(positions, splits_of_lengths(sizes), window, seed)

    def epoch(self, number: int) -> BlockEpoch:
        """The order of an epoch."""
        drawn = np.random.default_rng((self.seed, number)).permutation(len(self.splits) - 1)
        sizes = np.diff(self.splits)
        # All of about one size: a last one of few blocks would hardly be shuffled. A window ends
        # with the last block that ends before its share does, and so has a block too many at most.
        num_texts, largest = len(self.positions), int(sizes.max(initial=0))
        num_windows = -(-num_texts // max(1, self.window_texts - largest))
        shares = np.arange(num_windows + 1) * num_texts // max(1, num_windows)
        firsts = np.searchsorted(np.cumsum(sizes[drawn]), shares, side="right")
        return BlockEpoch(self, number, drawn, np.unique(np.append(firsts, len(drawn))))


class BlockEpoch:
    """One epoch of a `BlockOrder`: windows are drawn as they are asked for, the last is kept."""

    def __init__(
        self,
        order: BlockOrder,
        number: int,
        drawn: NDArray[np.int64],
        firsts: NDArray[np.int64],
    ) -> None:
        self._order = order
        self._number = number
        self._drawn = drawn
        self._firsts = firsts
        splits = splits_of_lengths(np.diff(order.splits)[drawn])
        self.window_splits: NDArray[np.int64] = splits[firsts]
        """Window i has the places [window_splits[i], window_splits[i + 1])."""
        self._kept: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, np.int64))

    def take(self, start: int, stop: int) -> NDArray[np.int64]:
        """The texts in the places [start, stop)."""
        parts = [np.zeros(0, np.int64)]
        window = int(np.searchsorted(self.window_splits, start, side="right")) - 1
        while start < stop and window < len(self.window_splits) - 1:
            first, end = self.window_splits[window : window + 2].tolist()
            parts.append(self._window(window)[start - first : min(stop, end) - first])
            start, window = end, window + 1
        return np.concatenate(parts)

    def blocks_of_window(self, window: int) -> NDArray[np.int64]:
        """The texts of a window before they are shuffled, block after block."""
        chosen = self._drawn[self._firsts[window] : self._firsts[window + 1]]
        splits, positions = self._order.splits, self._order.positions
        return np.concatenate([positions[splits[block] : splits[block + 1]] for block in chosen])

    def _window(self, window: int) -> NDArray[np.int64]:
        if self._kept[0] != window:
            draw = np.random.default_rng((self._order.seed, self._number, _WINDOW_DRAW, window))
            self._kept = (window, draw.permutation(self.blocks_of_window(window)))
        return self._kept[1]


def choose_shuffle(uses: Sequence[ShardUse]) -> str:
    """``"full"`` where features fit into half of the memory that is available, else ``"block"``.

    ``"block"`` too where a shard is compressed and too large to be kept unpacked. The logger
    ``embedcache.stream`` says which, and why, at level INFO.
    """
    needed = sum(use.num_bytes + use.shared_bytes for use in uses)
    available = available_bytes()
    is_packed = not all(use.is_random_access for use in uses)
    fits = available is None or needed <= _MEMORY_SHARE * available
    shuffle = "full" if fits and not is_packed else "block"
    memory = "unknown" if available is None else f"{available / 1e6:,.0f} MB"
    why = ", in compressed shards that are not kept unpacked" if is_packed else ""
    logging.getLogger("embedcache.stream").info(
        "%s shuffle: the stream needs %s MB of features%s; memory available: %s",
        shuffle, f"{needed / 1e6:,.1f}", why, memory,
    )  # fmt: skip
    return shuffle
