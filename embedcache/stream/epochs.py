"""Several epochs of a stream as plain dictionaries of arrays: what the adapters are made of."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from embedcache.stream.batch import Batch, widen_batch
from embedcache.stream.prefetch import DEPTH, Prefetcher
from embedcache.stream.resuming import check_state
from embedcache.stream.state import StreamState
from embedcache.stream.stream import FeatureStream

Arrays = dict[str, Any]
"""Arrays by name: ``values``, ``lengths`` and so on, as the attributes of `Batch`."""


def iter_epochs(
    stream: FeatureStream, *, epochs: int | None = 1, state: StreamState | None = None
) -> Iterator[Batch]:
    """The batches of some epochs, one after the other.

    Args:
        stream: The stream.
        epochs: How many, the one that is resumed counted; None: without end.
        state: Where to begin; None: at the first batch of the first epoch.

    Raises:
        ValueError: if ``epochs`` is below 1.
        TrainingError: as `embedcache.stream.resuming.check_state`.
    """
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be at least 1, or None: got {epochs}")
    start = state or StreamState(stream.seed, 0, 0)
    check_state(stream, start)
    return _epochs_from(stream, start, epochs)


def _epochs_from(stream: FeatureStream, state: StreamState, epochs: int | None) -> Iterator[Batch]:
    for done in itertools.count() if epochs is None else range(epochs):
        first_step = 0 if done else state.step
        yield from stream.epoch(state.epoch + done, first_step=first_step)


def inputs_of(batch: Batch) -> Arrays:
    """What a model is fed with: ``values``, ``lengths``, and ``token_numbers`` where there are."""
    inputs: Arrays = {"values": batch.values, "lengths": batch.lengths}
    if batch.token_numbers is not None:
        inputs["token_numbers"] = batch.token_numbers
    return inputs


def as_jax_batches(
    stream: FeatureStream, *, epochs: int | None = 1, state: StreamState | None = None
) -> Iterator[Arrays]:
    """Batches for a function that is compiled for each shape, as JAX's ``jit`` does.

    Nothing of JAX is imported: its functions take NumPy arrays. A thread reads ahead.

    Args:
        stream: The stream.
        epochs: How many epochs; None: without end.
        state: Where to begin; None: at the first batch of the first epoch.

    Yields:
        Dictionaries of ``values`` (B, L, dim), ``lengths`` (B,), ``labels`` (B,) or (B, C),
        ``rows`` (B,), and ``token_numbers`` (B, L) where the stream has a table. L is one of 8, 16,
        24, 32, 48, 64, 96, 128, …: twelve lengths up to 512.
    """
    batches = map(widen_batch, iter_epochs(stream, epochs=epochs, state=state))
    with Prefetcher(batches, depth=DEPTH) as ahead:
        for batch in ahead:
            yield {**inputs_of(batch), "labels": batch.labels, "rows": batch.rows}
