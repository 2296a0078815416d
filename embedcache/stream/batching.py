"""An epoch's order, cut into steps: in a step each worker takes one batch.

Work goes window by window, so that one can begin in the middle. A window's texts may be
sorted by length; they are cut into *steps*, and a step's texts are dealt out to the workers
in contiguous parts, as equal as can be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import TrainingError
from embedcache.ragged import expand_ranges, splits_of_lengths
from embedcache.stream.batch import padded_lengths
from embedcache.stream.config import StreamConfig
from embedcache.stream.orders import EpochOrder

TEXTS_AHEAD = 4096
"""Texts of a worker whose places are looked up at once: some 60 bytes each."""
BUCKET_BATCHES = 64
"""Batches of a window that is sorted by length."""

# What tells the draws of an epoch apart (see `embedcache.stream.orders`).
_STEP_DRAW = 2


@dataclass(frozen=True, slots=True)
class Cut:
    """Texts of a window, cut into steps or into one worker's batches.

    Attributes:
        rows: Positions in the stream, (n,) int64.
        splits: Step i is ``rows[splits[i]:splits[i + 1]]``.
    """

    rows: NDArray[np.int64]
    splits: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.splits) - 1

    def skip(self, num_steps: int) -> Cut:
        """All but the first steps."""
        first = self.splits[num_steps]
        return Cut(self.rows[first:], self.splits[num_steps:] - first)

    def part(self, worker: int, num_workers: int) -> Cut:
        """One worker's batches of the steps; one that is empty is left out."""
        if num_workers == 1:
            return self
        sizes, more = np.divmod(np.diff(self.splits), num_workers)
        starts = self.splits[:-1] + worker * sizes + np.minimum(worker, more)
        sizes += worker < more
        sizes, starts = sizes[sizes > 0], starts[sizes > 0]
        return Cut(self.rows[expand_ranges(starts, sizes)], splits_of_lengths(sizes))


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """One epoch's steps.

    Attributes:
        config: How to cut.
        order: The epoch's order.
        lengths: Tokens of each text of the stream, (n,) int64.
        number: Number of the epoch.
    """

    config: StreamConfig
    order: EpochOrder
    lengths: NDArray[np.int64]
    number: int

    def cuts(self, first_step: int = 0) -> Iterator[Cut]:
        """The steps from one on, window by window; nothing of those before but their lengths.

        Raises:
            TrainingError: if the epoch has fewer steps.
        """
        window, skipped = 0, first_step
        if self.config.batch_tokens is None:
            steps = self._window_texts // self._step_texts
            # The last one may have a step more.
            window = max(0, min(first_step // steps, self._num_windows - 1))
            skipped = first_step - window * steps
        for number in range(window, self._num_windows):
            cut = self._cut(number)
            if skipped < len(cut):
                yield cut.skip(skipped) if skipped else cut
            skipped -= min(skipped, len(cut))
        if skipped:
            raise TrainingError(
                f"epoch {self.number} has no step {first_step}: it has {first_step - skipped};"
                " resume with the same dataset and configuration, or start anew"
            )

    def batches(self, first_step: int = 0) -> Iterator[Cut]:
        """The worker's own batches of `cuts`."""
        for cut in self.cuts(first_step):
            yield cut.part(self.config.worker, self.config.num_workers)

    def count_batches(self) -> int:
        """The worker's batches."""
        if self.config.batch_tokens is not None:
            return sum(map(len, self.batches()))
        if not self._num_windows:
            return 0
        last = self._num_windows - 1
        # Which texts they are does not matter without a budget.
        rows = np.zeros(self._size(last), np.int64)
        own = Cut(rows, self._split(rows)).part(self.config.worker, self.config.num_workers)
        return last * (self._window_texts // self._step_texts) + len(own)

    @property
    def _step_texts(self) -> int:
        return self.config.batch_size * self.config.num_workers

    @property
    def _window_texts(self) -> int:
        """A multiple of a step's texts, so that only an epoch's end leaves a step part-filled."""
        config = self.config
        num_batches = max(1, TEXTS_AHEAD // config.batch_size)
        if config.length_buckets:
            num_batches = BUCKET_BATCHES
            if config.window_texts is not None:
                asked = max(1, config.window_texts // self._step_texts)
                num_batches = min(asked, num_batches) if config.shuffle == "block" else asked
        return num_batches * self._step_texts

    @property
    def _num_windows(self) -> int:
        """Texts too few for a step of their own go with the window before them."""
        num_windows, rest = divmod(len(self.lengths), self._window_texts)
        return num_windows + (rest >= self._step_texts or (rest > 0 and num_windows == 0))

    def _size(self, window: int) -> int:
        is_last = window == self._num_windows - 1
        rest = len(self.lengths) - window * self._window_texts
        return rest if is_last else self._window_texts

    def _cut(self, window: int) -> Cut:
        start = window * self._window_texts
        rows = self.order.take(start, start + self._size(window))
        if not self.config.length_buckets:
            return Cut(rows, self._split(rows))
        # The longest first, so that the step that is not full is one of short texts. The sort
        # is stable and the texts are shuffled: ties are random.
        rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
        return self._shuffle_steps(Cut(rows, self._split(rows)), window)

    def _shuffle_steps(self, cut: Cut, window: int) -> Cut:
        draw = np.random.default_rng((self.config.seed, self.number, _STEP_DRAW, window))
        drawn = draw.permutation(len(cut))
        sizes = np.diff(cut.splits)
        if sizes[-1] < self.config.num_workers:
            # Some worker has no batch in it: no step may come after it.
            last = len(cut) - 1
            drawn = np.append(drawn[drawn != last], last)
        rows = cut.rows[expand_ranges(cut.splits[:-1][drawn], sizes[drawn])]
        return Cut(rows, splits_of_lengths(sizes[drawn]))

    def _split(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where steps begin and end among the texts of a window."""
        budget, num_workers = self.config.batch_tokens, self.config.num_workers
        if budget is None:
            splits = np.append(np.arange(0, len(rows), self._step_texts), len(rows))
        else:
            lengths = padded_lengths(self.lengths[rows])
            splits = split_by_tokens(lengths, budget, self._step_texts, num_workers)
        return fill_last_step(splits, num_workers)


def split_by_tokens(
    lengths: NDArray[np.int64], budget: int, step_texts: int, num_workers: int
) -> NDArray[np.int64]:
    """Steps of as many texts as each worker's part of them, padded, keeps to the budget.

    Args:
        lengths: Padded length of each text alone, (n,).
        budget: Tokens of a worker's part at most.
        step_texts: Texts of a step at most.
        num_workers: All steps but the last are multiples of it.
    """
    shares = -(-np.arange(1, step_texts + 1) // num_workers)
    splits = [0]
    while splits[-1] < len(lengths):
        longest = np.maximum.accumulate(lengths[splits[-1] : splits[-1] + step_texts])
        tokens = longest * shares[: len(longest)]
        size = int(np.searchsorted(tokens, budget, side="right"))
        size = max(size, min(num_workers, len(longest)))
        if splits[-1] + size < len(lengths):
            size -= size % num_workers
        splits.append(splits[-1] + size)
    return np.array(splits, np.int64)


def fill_last_step(splits: NDArray[np.int64], num_workers: int) -> NDArray[np.int64]:
    """Move texts into a last step that has fewer than there are workers, if that can be.

    Each step that gains texts ends with one text a worker, so that no part grows.
    """
    splits = splits.astype(np.int64)
    if len(splits) < 2 or splits[-1] - splits[-2] >= num_workers:
        return splits
    filled = splits.copy()
    for step in range(len(splits) - 2, 0, -1):
        if filled[step] <= filled[step + 1] - num_workers:
            break
        filled[step] = filled[step + 1] - num_workers
    return filled if filled[1] >= num_workers else splits
