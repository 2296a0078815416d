"""B1's own variants: several shards, two threads, the first epoch; and what checksums cost."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import embedcache
from benchmarks.report import Table, Target
from embedcache import FeatureStore, FeatureStream
from embedcache.store.shards.shard import Shard
from embedcache.store.writer import ShardWriter
from embedcache.stream.batch import Batch

NUM_SHARDS = 8
NUM_THREADS = 2


def split_store(stack: ExitStack, store: FeatureStore, path: Path, dataset: str) -> FeatureStore:
    """The same dataset with its features in eight shards, of the same encoding."""
    record = store.view_of_dataset(store.load_dataset(dataset))
    parts: FeatureStore = stack.enter_context(embedcache.open_store(path))
    parts.catalog.add_view(record.view, record.handle)
    writer = parts.writer(record.view)
    for known in store.catalog.shards(record.fingerprint):
        shard = Shard(store.layout.shard_path(record.fingerprint, known.digest))
        for rows in np.array_split(np.arange(len(shard)), NUM_SHARDS):
            _add_texts(writer, shard, rows)
            writer.flush()
    registered = store.catalog.find_dataset(dataset)
    version = registered.version
    shutil.copytree(store.layout.dataset_path(version), parts.layout.dataset_path(version))
    parts.catalog.add_dataset(registered, view=record.fingerprint, report={})
    return parts


def _add_texts(writer: ShardWriter, shard: Shard, rows: NDArray[np.int64]) -> None:
    """Texts of a shard, those of neighbouring rows, as they lie there."""
    keys, flags, lengths = shard.keys[rows], shard.flags[rows], np.diff(shard.row_splits)[rows]
    start, stop = int(shard.row_splits[rows[0]]), int(shard.row_splits[rows[-1] + 1])
    ids, spans = (shard.read_tokens(name, start, stop) for name in ("token_ids", "spans"))
    places = np.arange(start, stop)
    if shard.is_dictionary:
        codes, table = shard.codes(places), shard.stored_dictionary()
        writer.add_codes(keys, lengths, flags, codes=codes, table=table, token_ids=ids, spans=spans)
    else:
        values = shard.take_stored(places)
        writer.add_values(keys, lengths, flags, values=values, token_ids=ids, spans=spans)


class FirstEpoch:
    """An epoch of a stream that was just opened: every block is compared with its checksum."""

    def __init__(self, path: Path, make: Callable[[FeatureStore], FeatureStream]) -> None:
        self._path = path
        self._make = make
        self._store: FeatureStore | None = None
        self._stream: FeatureStream | None = None

    def before(self, _number: int) -> None:
        """Open store and stream; not timed."""
        self.close()
        self._store = embedcache.open_store(self._path)
        self._stream = self._make(self._store)

    def batches(self, number: int) -> Iterator[Batch]:
        """The epoch; of a stream of its own where none is open."""
        if self._stream is None:
            self.before(number)
        stream, self._stream = self._stream, None
        if stream is not None:
            yield from stream.epoch(number)

    def close(self) -> None:
        """Close the store."""
        if self._store is not None:
            self._store.close()


def run_threads(stream: FeatureStream, number: int) -> int:
    """Two threads, an epoch each; the texts of both."""

    def consume(epoch: int) -> int:
        return sum(len(batch) for batch in stream.epoch(epoch))

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return sum(pool.map(consume, range(number, number + NUM_THREADS)))


@dataclass(frozen=True, slots=True)
class ChecksumCost:
    """What comparing every block of a store with its checksum takes.

    Attributes:
        encoding: Of its shards.
        num_bytes: Of its shards.
        check_s: Seconds that it takes, the median of several times.
        train_s: Seconds of an epoch of training on the same features.
    """

    encoding: str
    num_bytes: int
    check_s: float
    train_s: float


def measure_checksums(
    store: FeatureStore, dataset: str, encoding: str, *, rounds: int
) -> ChecksumCost:
    """Check all shards anew, some times over, and train for one epoch."""
    # Late: it brings Keras, which nothing else here needs.
    import cnn

    view = store.view_of_dataset(store.load_dataset(dataset)).fingerprint
    records = store.catalog.shards(view)
    seconds = []
    for _ in range(rounds):
        shards = [Shard(store.layout.shard_path(view, record.digest)) for record in records]
        started = time.perf_counter()
        for shard in shards:
            shard.verify_all()
        seconds.append(time.perf_counter() - started)
    run = cnn.train(store, dataset, cnn.TrainConfig(preset="kim", epochs=1, seed=0))
    num_bytes = sum(record.num_bytes for record in records)
    train_s = float(run.record["seconds_per_epoch"])
    return ChecksumCost(encoding, num_bytes, float(np.median(seconds)), train_s)


def checksum_table(costs: list[ChecksumCost]) -> Table:
    """The costs as a table."""
    return Table(
        title="Comparing every block with its checksum, once in a process",
        header=("shard", "MB", "ms", "an epoch of training, s", "share of it, %"),
        rows=tuple(
            (
                cost.encoding,
                cost.num_bytes / 1e6,
                cost.check_s * 1e3,
                cost.train_s,
                100 * cost.check_s / cost.train_s,
            )
            for cost in costs
        ),
    )


def padding_table(streams: Mapping[str, FeatureStream]) -> Table:
    """How much of the batches of an epoch is padding."""
    rows = []
    for kind, stream in streams.items():
        lengths = [(batch.values.shape[:2], batch.lengths.sum()) for batch in stream.epoch(0)]
        padded = sum(size * length for (size, length), _ in lengths)
        num_tokens = int(sum(tokens for _, tokens in lengths))
        rows.append((kind, padded, 100 * (1 - num_tokens / padded)))
    return Table(
        title=f"Padding of an epoch of {num_tokens:,} tokens",
        header=("order", "rows in batches", "padding, %"),
        rows=tuple(rows),
    )


def checksum_targets(costs: list[ChecksumCost]) -> list[Target]:
    """At most 3 % of an epoch of training."""
    return [
        Target(
            what=f"{cost.encoding}: checksums ≤ 3 % of the first epoch of training",
            value=cost.check_s / cost.train_s,
            wanted=0.03,
            at_most=True,
            unit="%",
        )
        for cost in costs
    ]
