"""TorchBatches: the one file of the stream that imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np

from embedcache.stream.batch import Batch
from embedcache.stream.epochs import Arrays, inputs_of
from embedcache.stream.stream import FeatureStream

torch: Any = import_module("torch")
torch_data: Any = import_module("torch.utils.data")


class TorchBatches(torch_data.IterableDataset):  # type: ignore[misc]
    """A stream's batches as tensors; see `embedcache.stream.torch_dataset.as_torch_dataset`.

    Of w loader workers each reads its own part of every step, and the loader takes from them in
    turn: without length buckets and token budget it gives the very batches that it gives
    without workers, but for the last w of an epoch.

    Args:
        stream: The stream.
    """

    def __init__(self, stream: FeatureStream) -> None:
        super().__init__()
        self._stream = stream
        # Shared, so that workers that outlive an epoch hear of the next one.
        self._start = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._opened: tuple[int, FeatureStream] | None = None

    def set_epoch(self, epoch: int, *, first_batch: int = 0) -> None:
        """Say which epoch the next pass is; to be called before each.

        Args:
            epoch: Its number, from 0 on.
            first_batch: How many of its batches the loader has handed over before, of a pass
                with the same number of workers: it goes on with the very next one.
        """
        self._start[0], self._start[1] = epoch, first_batch

    def __iter__(self) -> Iterator[Arrays]:
        epoch, first = self._start.tolist()
        worker = torch_data.get_worker_info()
        if worker is None:
            batches = self._stream.epoch(epoch, first_step=first)
        else:
            # The loader begins with worker 0, whichever one's turn it was.
            turn = first + worker.id
            stream = self._open(turn % worker.num_workers, worker.num_workers)
            batches = stream.epoch(epoch, first_step=turn // worker.num_workers)
        return map(_tensors_of, batches)

    def __getstate__(self) -> Arrays:
        return {**self.__dict__, "_opened": None}

    def _open(self, part: int, num_parts: int) -> FeatureStream:
        """A stream of this process, opened once."""
        if self._opened is None or self._opened[0] != part:
            self._opened = (part, self._stream.for_worker(part, num_parts))
        return self._opened[1]


def _tensors_of(batch: Batch) -> Arrays:
    labels = batch.labels.astype(np.float32 if batch.labels.ndim == 2 else np.int64)
    arrays = {**inputs_of(batch), "labels": labels, "rows": batch.rows}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
