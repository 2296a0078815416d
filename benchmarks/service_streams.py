"""B12: a training stream that reads from the service, beside one on the store's own machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import embedcache
from benchmarks.feature_peers import PaddedBatch, digest_batches
from benchmarks.measure import Contender, Role, Series, measure, ratio
from benchmarks.report import Target, named
from benchmarks.scale import Scale
from embedcache import FeatureStore, FeatureStream

LOCAL = "FeatureStream on the store"
FIRST = "FeatureStream on the service, first epoch"
LATER = "FeatureStream on the service, later epoch"
BATCH_SIZE = 64


class FirstEpochs:
    """A new connection and stream for each epoch, so that nothing has been fetched before.

    Args:
        url: The service's.
        dataset: What is read.
    """

    def __init__(self, url: str, dataset: str) -> None:
        self._url = url
        self._dataset = dataset
        self._opened = ExitStack()
        self._stream: FeatureStream | None = None

    def open(self, _number: int) -> None:
        """Connect anew, and find out what the data set is."""
        self.close()
        remote = self._opened.enter_context(embedcache.connect(self._url))
        self._stream = FeatureStream(remote, self._dataset, batch_size=BATCH_SIZE)

    def batches(self, number: int) -> Iterator[PaddedBatch]:
        """An epoch."""
        if self._stream is None:
            raise ValueError("open it first")
        yield from _batches(self._stream, number)

    def close(self) -> None:
        """Drop the connection and what was fetched."""
        self._opened.close()


def measure_streams(store: FeatureStore, dataset: str, port: int, scale: Scale) -> list[Series]:
    """Texts a second of an epoch; batches are compared by digest."""
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        remote = stack.enter_context(embedcache.connect(url))
        first = FirstEpochs(url, dataset)
        stack.callback(first.close)
        local = FeatureStream(store, dataset, batch_size=BATCH_SIZE)
        later = FeatureStream(remote, dataset, batch_size=BATCH_SIZE)
        contenders = [
            _contender(LOCAL, "limit", lambda number: _batches(local, number)),
            Contender(
                name=FIRST,
                role="ours",
                before=first.open,
                run=lambda number: _count(first.batches(number)),
                inspect=lambda: digest_batches(first.batches(0), in_order=True),
            ),
            _contender(LATER, "ours", lambda number: _batches(later, number)),
        ]
        return measure(contenders, rounds=scale.rounds, min_seconds=scale.min_seconds)


def stream_targets(series: list[Series]) -> list[Target]:
    """Beside the stream on the store; no bound was set."""
    local = named(series, LOCAL)
    return [
        Target(what=f"{name} ÷ {LOCAL}, texts/s", value=ratio(named(series, name), local))
        for name in (FIRST, LATER)
    ]


def _contender(name: str, role: Role, batches: Callable[[int], Iterator[PaddedBatch]]) -> Contender:
    return Contender(
        name=name,
        role=role,
        run=lambda number: _count(batches(number)),
        inspect=lambda: digest_batches(batches(0), in_order=True),
    )


def _batches(stream: FeatureStream, number: int) -> Iterator[PaddedBatch]:
    for batch in stream.epoch(number):
        yield batch.values, batch.lengths, batch.labels


def _count(batches: Iterator[PaddedBatch]) -> int:
    return sum(len(lengths) for _, lengths, _ in batches)
