"""Batches: every sequence once, within the budget, with little padding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedcache.compute.batches import TokenBudget, padded_lengths, plan_batches
from embedcache.errors import ModuleMemoryError

Positions = NDArray[np.int64]

fixed = settings(derandomize=True, deadline=None)
some_lengths = st.lists(st.integers(0, 600), max_size=60).map(lambda n: np.array(n, np.int64))
budgets = st.integers(1, 5000)
extras = st.integers(0, 3)


def test_padding_is_a_sixteenth_at_most_and_few_lengths_are_left() -> None:
    lengths = np.arange(20_000)
    padded = padded_lengths(lengths)
    assert (padded >= lengths).all()
    assert (padded - lengths <= lengths / 16).all()
    assert (np.diff(padded) >= 0).all()
    assert len(np.unique(padded[1:513])) == 96
    assert (padded_lengths(padded) == padded).all(), "a length that is padded to is its own"


@pytest.mark.parametrize(
    ("length", "padded"),
    [(0, 0), (1, 1), (17, 17), (32, 32), (33, 34), (64, 64), (65, 68), (129, 136), (512, 512)],
)
def test_length_is_padded_to_one_of_sixteen_an_octave(length: int, padded: int) -> None:
    assert padded_lengths(np.array([length])).tolist() == [padded]


@fixed
@given(lengths=some_lengths, budget=budgets, extra=extras)
def test_every_sequence_is_in_one_batch_of_one_padded_length(
    lengths: Positions, budget: int, extra: int
) -> None:
    batches = plan_batches(lengths, budget=budget, extra=extra)
    assert sorted(place for batch in batches for place in batch.tolist()) == [*range(len(lengths))]
    widths = []
    for batch in batches:
        (width,) = set(padded_lengths(lengths[batch]).tolist())
        assert len(batch) == 1 or len(batch) * (width + extra) <= budget
        widths.append(width)
    assert widths == sorted(widths), "shortest first"


def test_sequences_of_one_length_are_spread_over_equal_batches() -> None:
    batches = plan_batches(np.full(10, 5), budget=40)
    assert [len(batch) for batch in batches] == [5, 5]
    assert [len(batch) for batch in plan_batches(np.full(10, 5), budget=40, extra=5)] == [4, 3, 3]


def padding_share(lengths: Positions, budget: int = 4096) -> float:
    """What part of the tokens of all batches is padding, of buffers of 8,192 texts."""
    buffers = [lengths[start : start + 8192] for start in range(0, len(lengths), 8192)]
    padded = sum(
        len(batch) * int(padded_lengths(buffer[batch]).max())
        for buffer in buffers
        for batch in plan_batches(buffer, budget=budget)
    )
    return 1 - int(lengths.sum()) / padded


@pytest.mark.parametrize("mean", [20, 100, 250])
def test_padding_is_little_on_texts_of_any_usual_length(mean: int) -> None:
    generator = np.random.default_rng(0)
    lengths = np.maximum(1, generator.gamma(4, mean / 4, 10_000).astype(np.int64))
    assert padding_share(lengths) <= 0.05


@pytest.mark.parametrize("name", ["mr", "sst2.train", "trec.train"])
def test_padding_is_below_a_hundredth_on_kims_data(kim_data: Path, name: str) -> None:
    lines = (kim_data / f"{name}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    # The text is the longest cell of its line; the others are a label and a split.
    lengths = np.array([max(len(cell.split()) for cell in line.split("\t")) for line in lines])
    assert lengths.mean() > 5
    assert padding_share(lengths) <= 0.01


class Device:
    """Takes batches of so many tokens, and keeps what it has taken."""

    def __init__(self, lengths: Positions, max_tokens: int, extra: int) -> None:
        self._lengths, self._max_tokens, self._extra = lengths, max_tokens, extra
        self.done: list[int] = []
        self.num_failed = 0

    def run(self, batch: Positions) -> None:
        width = int(padded_lengths(self._lengths[batch]).max()) + self._extra
        if len(batch) * width > self._max_tokens:
            self.num_failed += 1
            raise ModuleMemoryError("out of memory")
        self.done += batch.tolist()


@fixed
@given(lengths=some_lengths, budget=budgets, extra=extras, room=st.integers(0, 3000))
def test_what_ran_before_memory_ran_out_is_not_run_again(
    lengths: Positions, budget: int, extra: int, room: int
) -> None:
    longest = int(padded_lengths(lengths).max(initial=0)) + extra
    device = Device(lengths, longest + room, extra)
    tokens = TokenBudget(budget)
    tokens.run_batches(lengths, device.run, extra=extra)
    assert sorted(device.done) == [*range(len(lengths))]
    assert tokens.tokens == max(1, budget >> device.num_failed)


@fixed
@given(lengths=some_lengths.filter(lambda n: n.max(initial=0) > 0), budget=budgets)
def test_sequence_that_does_not_fit_alone_is_an_error(lengths: Positions, budget: int) -> None:
    longest = int(padded_lengths(lengths).max())
    device = Device(lengths, longest - 1, 0)
    with pytest.raises(ModuleMemoryError):
        TokenBudget(budget).run_batches(lengths, device.run)
    assert len(set(device.done)) == len(device.done)
    assert len(device.done) < len(lengths)


def test_smaller_budget_is_kept_for_what_comes_after() -> None:
    lengths = np.full(16, 4)
    device = Device(lengths, 16, 0)
    tokens = TokenBudget(64)
    tokens.run_batches(lengths, device.run)
    assert (tokens.tokens, device.num_failed) == (16, 2)
    tokens.run_batches(lengths, device.run)
    assert (device.num_failed, len(device.done)) == (2, 32)


def test_other_errors_end_the_run_at_once() -> None:
    ran: list[int] = []

    def run(batch: Positions) -> None:
        ran.append(len(batch))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TokenBudget(8).run_batches(np.full(16, 4), run)
    assert ran == [2]


def test_batches_may_be_reordered_before_each_attempt() -> None:
    lengths = np.array([1, 2, 3, 4])
    seen: list[int] = []
    reverse: Callable[[list[Positions]], None] = list.reverse
    tokens = TokenBudget(4)
    tokens.run_batches(lengths, lambda batch: seen.extend(lengths[batch].tolist()), first=reverse)
    assert seen == [4, 3, 2, 1]
