"""Steps and batches: each text once, budgets kept, workers alike, in every configuration."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedcache.errors import TrainingError
from embedcache.store.ahead import ShardUse
from embedcache.stream.batch import padded_length, padded_lengths
from embedcache.stream.batching import EpochPlan, fill_last_step, split_by_tokens
from embedcache.stream.config import StreamConfig
from embedcache.stream.orders import BlockOrder, CorpusOrder, FullOrder, Order


@st.composite
def plans(draw: st.DrawFn, **fixed: Any) -> EpochPlan:
    """Plans of worker 0 over texts of whatever lengths."""
    lengths = np.array(draw(st.lists(st.integers(0, 70), max_size=160)), np.int64)
    shuffle = fixed.get("shuffle") or draw(st.sampled_from(["full", "block", "none"]))
    buckets = shuffle != "none" and draw(st.booleans())
    may_have_window = buckets or shuffle == "block"
    fields: dict[str, Any] = {
        "batch_size": draw(st.integers(1, 24)),
        "batch_tokens": draw(st.none() | st.integers(8, 400)),
        "shuffle": shuffle,
        "length_buckets": buckets,
        "window_texts": draw(st.none() | st.integers(1, 90)) if may_have_window else None,
        "seed": draw(st.integers(0, 3)),
        "num_workers": draw(st.integers(1, 4)),
    }
    config = StreamConfig(**{**fields, **fixed})
    number = draw(st.integers(0, 2))
    return EpochPlan(config, make_order(config, lengths).epoch(number), lengths, number)


def make_order(config: StreamConfig, lengths: NDArray[np.int64]) -> Order:
    if config.shuffle == "none":
        return CorpusOrder(len(lengths))
    if config.shuffle == "full":
        return FullOrder(len(lengths), config.seed)
    return BlockOrder.of_shards(
        shard_uses(lengths), window_texts=config.window_texts, seed=config.seed
    )


def shard_uses(lengths: NDArray[np.int64], num_shards: int = 3) -> list[ShardUse]:
    """The texts dealt out to shards; in each they lie in another order than in the stream."""
    uses = []
    for number in range(min(num_shards, len(lengths))):
        members = np.arange(number, len(lengths), num_shards)
        starts = np.random.default_rng(number).permutation(len(members))
        num_bytes = int(lengths[members].sum()) * 256
        uses.append(ShardUse(f"{number}", members, starts, num_bytes, 0, True))
    return uses


def batches_of(plan: EpochPlan, worker: int = 0, first_step: int = 0) -> list[list[int]]:
    """A worker's batches."""
    own = replace(plan, config=replace(plan.config, worker=worker))
    found = []
    for cut in own.batches(first_step):
        bounds = itertools.pairwise(cut.splits.tolist())
        found += [cut.rows[first:stop].tolist() for first, stop in bounds]
    return found


def batches_of_all(plan: EpochPlan) -> list[list[list[int]]]:
    return [batches_of(plan, worker) for worker in range(plan.config.num_workers)]


@given(plans())
def test_every_text_comes_exactly_once_an_epoch_among_all_workers(plan: EpochPlan) -> None:
    found = [row for batches in batches_of_all(plan) for batch in batches for row in batch]
    assert sorted(found) == list(range(len(plan.lengths)))


@given(plans())
def test_no_batch_is_empty_or_too_large(plan: EpochPlan) -> None:
    for batches in batches_of_all(plan):
        for batch in batches:
            assert 1 <= len(batch) <= plan.config.batch_size


@given(plans())
def test_padded_tokens_keep_to_the_budget_but_for_a_text_alone(plan: EpochPlan) -> None:
    budget = plan.config.batch_tokens
    for batches in batches_of_all(plan):
        for batch in batches:
            padded = len(batch) * padded_length(int(plan.lengths[batch].max()))
            assert budget is None or padded <= budget or len(batch) == 1


@given(plans(batch_tokens=None))
def test_without_a_budget_batches_are_full_but_for_the_ends(plan: EpochPlan) -> None:
    sizes = [len(batch) for batches in batches_of_all(plan) for batch in batches]
    not_full = sum(size < plan.config.batch_size for size in sizes)
    # Of one step, or of two where the last had too few.
    assert not_full <= 2 * plan.config.num_workers
    if plan.config.num_workers == 1:
        assert not_full <= 1


@given(plans())
def test_workers_have_as_many_batches_if_that_can_be(plan: EpochPlan) -> None:
    config, counts = plan.config, [len(batches) for batches in batches_of_all(plan)]
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)
    is_enough = len(plan.lengths) >= config.num_workers
    if config.batch_tokens is None and config.batch_size > 1 and is_enough:
        assert max(counts) == min(counts)


@given(plans())
def test_only_an_epochs_last_step_may_lack_batches(plan: EpochPlan) -> None:
    sizes = [size for cut in plan.cuts() for size in np.diff(cut.splits).tolist()]
    assert all(size >= plan.config.num_workers for size in sizes[:-1])


@pytest.mark.parametrize("num_texts", [13, 14, 18, 19, 24, 25])
def test_rest_of_the_last_window_is_shared_out_too(num_texts: int) -> None:
    """Windows of six texts: a step of three workers with two each."""
    config = StreamConfig(
        batch_size=2, num_workers=3, shuffle="full", length_buckets=True, window_texts=6
    )
    order = FullOrder(num_texts, 0).epoch(0)
    plan = EpochPlan(config, order, np.arange(num_texts), 0)
    assert len({len(batches) for batches in batches_of_all(plan)}) == 1


@pytest.mark.parametrize("seed", range(6))
def test_step_that_lacks_batches_is_not_shuffled_among_the_others(seed: int) -> None:
    """One text a batch: none can be spared for the third worker."""
    config = StreamConfig(batch_size=1, num_workers=3, length_buckets=True, seed=seed)
    plan = EpochPlan(config, FullOrder(8, seed).epoch(0), np.arange(8), 0)
    (cut,) = plan.cuts()
    assert np.diff(cut.splits).tolist() == [3, 3, 2]


@example([1, 1, 1, 2, 1, 1], 16, 4, 2)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=60),
    st.integers(8, 200),
    st.integers(1, 8),
    st.integers(1, 4),
)
def test_steps_by_tokens_are_shared_out_evenly_but_for_the_last(
    eighths: list[int], budget: int, batch_size: int, num_workers: int
) -> None:
    lengths = 8 * np.array(eighths)
    splits = split_by_tokens(lengths, budget, batch_size * num_workers, num_workers)
    assert (splits[0], splits[-1]) == (0, len(lengths))
    sizes = np.diff(splits)
    assert (sizes > 0).all()
    assert not (sizes[:-1] % num_workers).any()


@given(plans())
def test_number_of_batches_is_known_before(plan: EpochPlan) -> None:
    for worker, batches in enumerate(batches_of_all(plan)):
        own = replace(plan, config=replace(plan.config, worker=worker))
        assert own.count_batches() == len(batches)


@given(plans(), st.data())
def test_any_step_can_be_begun_with(plan: EpochPlan, data: st.DataObject) -> None:
    for worker, batches in enumerate(batches_of_all(plan)):
        step = data.draw(st.integers(0, len(batches)))
        assert batches_of(plan, worker, first_step=step) == batches[step:]


@given(plans())
def test_step_after_the_last_is_refused(plan: EpochPlan) -> None:
    num_steps = len(batches_of(plan))
    with pytest.raises(TrainingError, match=f"has no step {num_steps + 1}: it has {num_steps};"):
        batches_of(plan, first_step=num_steps + 1)


@given(plans(batch_tokens=None))
def test_step_of_all_workers_is_a_batch_of_one_stream_that_is_as_large(plan: EpochPlan) -> None:
    """But for the last two steps, of which texts may have moved into the last."""
    config = plan.config
    single = replace(config, num_workers=1, batch_size=config.batch_size * config.num_workers)
    expected = batches_of(replace(plan, config=single))
    parts_of_steps = zip(*batches_of_all(plan), strict=False)
    steps = [list(itertools.chain(*parts)) for parts in parts_of_steps]
    if not config.length_buckets:
        assert steps[:-2] == expected[:-2]
    else:
        # The steps of a window have an order of its own; as sets they are the same.
        shared = {tuple(step) for step in steps} & {tuple(batch) for batch in expected}
        assert len(shared) >= len(expected) - 2


@given(plans(num_workers=1, batch_tokens=None, shuffle="full"))
def test_without_buckets_full_shuffle_is_the_generators_own_permutation(plan: EpochPlan) -> None:
    """Results of runs rest on this order, bit for bit."""
    plan = replace(plan, config=replace(plan.config, length_buckets=False, window_texts=None))
    config = plan.config
    generator = np.random.default_rng((config.seed, plan.number))
    order = generator.permutation(len(plan.lengths)).tolist()
    size = config.batch_size
    assert batches_of(plan) == [order[at : at + size] for at in range(0, len(order), size)]


@given(plans(shuffle="full"))
def test_no_text_moves_out_of_its_window_of_lengths(plan: EpochPlan) -> None:
    config = plan.config
    window = 64 * config.batch_size * config.num_workers
    if config.window_texts is not None:
        step = config.batch_size * config.num_workers
        window = max(1, config.window_texts // step) * step
    if not config.length_buckets:
        return
    before = plan.order.take(0, len(plan.lengths))
    rows = [cut.rows for cut in plan.cuts()]
    for number, found in enumerate(rows):
        start = number * window
        expected = before[start:] if number == len(rows) - 1 else before[start : start + window]
        assert sorted(found.tolist()) == sorted(expected.tolist())
    assert all(len(found) == window for found in rows[:-1])


def test_length_buckets_pad_less_and_shuffle_the_batches() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 2000)
    config = StreamConfig(shuffle="full", batch_size=16)
    padded: list[int] = []
    longest: list[int] = []
    for buckets in (False, True):
        chosen = replace(config, length_buckets=buckets)
        plan = EpochPlan(chosen, FullOrder(2000, 0).epoch(0), lengths, 0)
        batches = batches_of(plan)
        longest = [int(lengths[batch].max()) for batch in batches]
        padded.append(sum(len(b) * padded_length(int(lengths[b].max())) for b in batches))
    alone = int(padded_lengths(lengths).sum())
    assert padded[0] > 1.5 * alone
    assert padded[1] < 1.05 * alone
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


def test_batches_of_the_same_texts_come_in_another_order_each_epoch() -> None:
    """Of texts of 64 lengths in one window, each epoch has the same batches."""
    config = StreamConfig(shuffle="full", batch_size=4, length_buckets=True)
    plans = [EpochPlan(config, FullOrder(64, 0).epoch(n), np.arange(64), n) for n in (0, 1)]
    first, second = ([frozenset(batch) for batch in batches_of(plan)] for plan in plans)
    assert set(first) == set(second)
    assert first != second


def test_texts_of_one_length_are_in_random_batches() -> None:
    lengths = np.full(64, 5)
    config = StreamConfig(shuffle="full", batch_size=8, length_buckets=True)
    plans = [EpochPlan(config, FullOrder(64, 0).epoch(n), lengths, n) for n in (0, 1)]
    first, second = ({frozenset(batch) for batch in batches_of(plan)} for plan in plans)
    assert not first & second
    assert frozenset(range(8)) not in first


@pytest.mark.parametrize(
    ("splits", "num_workers", "expected"),
    [
        ([0, 8, 16, 17], 4, [0, 8, 13, 17]),
        ([0, 8, 16, 20], 4, [0, 8, 16, 20]),
        ([0, 4, 8, 9], 4, [0, 4, 8, 9]),  # none to spare
        ([0, 8, 12, 13], 4, [0, 5, 9, 13]),  # from the step before the one before
        ([0, 3], 4, [0, 3]),
        ([0], 4, [0]),
        ([0, 5, 6], 1, [0, 5, 6]),
    ],
)
def test_last_step_takes_from_those_before(
    splits: list[int], num_workers: int, expected: list[int]
) -> None:
    assert fill_last_step(np.array(splits), num_workers).tolist() == expected
