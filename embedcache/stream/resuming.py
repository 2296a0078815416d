"""Going on with a stream in the middle of an epoch, at the very next batch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from embedcache.errors import TrainingError
from embedcache.stream.batch import Batch
from embedcache.stream.state import StreamState

if TYPE_CHECKING:
    from embedcache.stream.stream import FeatureStream


class StreamIterator:
    """The batches of a stream, epoch after epoch, without end. For one thread.

    Attributes:
        state: Names the next batch. After an epoch's last batch its step is the number of the
            epoch's batches: what comes next is the next epoch's first.
    """

    def __init__(self, stream: FeatureStream, state: StreamState) -> None:
        check_state(stream, state)
        self._stream = stream
        self._batches = stream.epoch(state.epoch, first_step=state.step)
        self.state = replace(state, order=stream.order_digest)

    def __iter__(self) -> StreamIterator:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches, None)
        while batch is None:
            self.state = replace(self.state, epoch=self.state.epoch + 1, step=0)
            self._batches = self._stream.epoch(self.state.epoch)
            batch = next(self._batches, None)
        self.state = replace(self.state, step=self.state.step + 1)
        return batch


def check_state(stream: FeatureStream, state: StreamState) -> None:
    """Refuse a state that a stream cannot go on from.

    Raises:
        TrainingError: if it is of a stream with another seed or order, or this stream has
            no batches.
    """
    if state.seed != stream.seed:
        raise TrainingError(
            f"the stream's state is of seed {state.seed}, the stream has seed {stream.seed};"
            " resume with the seed, or start anew"
        )
    if state.order and state.order != stream.order_digest:
        made, now = (name.partition("-")[0] for name in (state.order, stream.order_digest))
        why = "other texts, batches or shards"
        if made != now:
            why = f"shuffle={made!r}; the stream has {now!r}"
        raise TrainingError(
            f"the stream's state is of another order of texts ({why}); resume with the same"
            " dataset, view and configuration, or start anew"
        )
    if not stream.num_batches:
        raise TrainingError("the stream has no batches for this worker: give it more texts")
