"""B1: shuffled ragged features → padded float16 batches, texts/s."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import embedcache
from benchmarks.corpora import sst2_sources
from benchmarks.feature_peers import Corpus, PaddedBatch, Peer, TfRecord, digest_batches, open_peers
from benchmarks.measure import Contender, Role, Series, WrongAnswerError, measure, ratio
from benchmarks.report import Report, Target, best_peer, named
from benchmarks.scale import Scale
from benchmarks.stream_variants import (
    NUM_SHARDS,
    NUM_THREADS,
    FirstEpoch,
    checksum_table,
    checksum_targets,
    measure_checksums,
    padding_table,
    run_threads,
    split_store,
)
from embedcache import FeatureStore, FeatureStream
from embedcache.precompute import BuildOptions
from embedcache.store.writer import WriterLimits
from embedcache.stream.batch import padded_length
from embedcache.stream.config import StreamConfig

BATCH_SIZE = 64
ENCODINGS = ("dictionary", "dense")
CONFIGS = {
    "length buckets": StreamConfig(batch_size=BATCH_SIZE, length_buckets=True),
    # Of a sixth of SST-2: the default's would hold all of it.
    "block shuffle": StreamConfig(batch_size=BATCH_SIZE, shuffle="block", window_texts=1600),
    "both": StreamConfig(
        batch_size=BATCH_SIZE, shuffle="block", window_texts=1600, length_buckets=True
    ),
}
"""Other orders than that of a full shuffle."""
Batches = Callable[[int], Iterator[PaddedBatch]]


def run(scale: Scale, work: Path) -> Report:
    """Measure it."""
    sources, what = sst2_sources(scale, work, scale.stream_texts)
    with ExitStack() as stack:
        stores = {
            encoding: _build_store(stack, work / encoding, sources, encoding)
            for encoding in ENCODINGS
        }
        streams = {
            name: FeatureStream(store, "b1", batch_size=BATCH_SIZE)
            for name, store in stores.items()
        }
        corpus = read_corpus(stores["dense"], streams["dense"], "b1")
        peers, skipped = open_peers(corpus, work / "peers")
        for peer in peers:
            stack.callback(peer.close)
        contenders = _contenders(streams, peers, corpus)
        contenders += _variants(stack, stores, streams, work)
        series = measure(contenders, rounds=scale.rounds, min_seconds=scale.min_seconds)
        costs = [
            measure_checksums(store, "b1", encoding, rounds=scale.rounds)
            for encoding, store in stores.items()
        ]
        paddings = {"full shuffle": streams["dense"], **_other_orders(stores["dense"])}
        padding = padding_table(paddings)
    return Report(
        number="B1",
        title="shuffled ragged features → padded float16 batches",
        unit="texts/s",
        cache="warm, all files are in the page cache",
        binds="copying rows: the limit is one pass of NumPy's `take` into one reused batch"
        " buffer, padding included; it takes no keys, checks nothing and writes over the batch"
        " that it handed out before",
        series=series,
        targets=[*_targets(series), *checksum_targets(costs)],
        tables=[checksum_table(costs), padding],
        notes=[
            f"{what}, `builtin:en-words-128`, 128 dimensions, batches of {BATCH_SIZE}, another"
            " order each round. One thread, except for TFRecord, which has TensorFlow's.",
            "All but TFRecord take the same order and give the same batches, compared by"
            " digest. TFRecord shuffles through a buffer of all texts, so that its order is as"
            " good, and pads to the longest text, not on to a multiple of 8: fewer bytes.",
            "First epoch: of a store and a stream just opened, which is not timed; every block is"
            " compared with its checksum when it is first touched. Two threads: an epoch of the"
            " same stream each, the texts of both together. Length buckets and block shuffle have"
            " other orders; the same texts come out, compared by digest.",
        ],
        skipped=skipped,
    )


def _contenders(
    streams: Mapping[str, FeatureStream], peers: Sequence[Peer | TfRecord], corpus: Corpus
) -> list[Contender]:
    contenders = [
        _contender(f"FeatureStream, {name} shard", "ours", partial(_stream_batches, stream))
        for name, stream in streams.items()
    ]
    contenders += [
        _contender(peer.name, "peer", peer.batches, in_order=not isinstance(peer, TfRecord))
        for peer in peers
    ]
    return [
        *contenders,
        _contender("the same gather from RAM, dictionary", "limit", DictionaryGather(corpus)),
        _contender("the same gather from RAM, dense", "limit", DenseGather(corpus)),
    ]


def _variants(
    stack: ExitStack,
    stores: Mapping[str, FeatureStore],
    streams: Mapping[str, FeatureStream],
    work: Path,
) -> list[Contender]:
    """FeatureStream otherwise than from one shard in one thread, checked before."""
    found = []
    for encoding, store in stores.items():
        name = f"FeatureStream, {encoding}"
        parts = split_store(stack, store, work / f"{encoding}-parts", "b1")
        several = FeatureStream(parts, "b1", batch_size=BATCH_SIZE)
        first = FirstEpoch(store.path, partial(FeatureStream, dataset="b1", batch_size=BATCH_SIZE))
        stack.callback(first.close)
        one = _contender(f"{name}, first epoch", "ours", partial(_first_batches, first))
        found += [
            _contender(f"{name}, {NUM_SHARDS} shards", "ours", partial(_stream_batches, several)),
            Contender(
                name=f"{name}, {NUM_THREADS} threads",
                role="ours",
                run=partial(run_threads, streams[encoding]),
            ),
            replace(one, before=first.before),
        ]
        found += [
            _contender(f"{name}, {kind}", "ours", partial(_stream_batches, stream), in_order=False)
            for kind, stream in _other_orders(store).items()
        ]
    return found


def _other_orders(store: FeatureStore) -> dict[str, FeatureStream]:
    return {kind: FeatureStream(store, "b1", config=config) for kind, config in CONFIGS.items()}


def _first_batches(first: FirstEpoch, number: int) -> Iterator[PaddedBatch]:
    for batch in first.batches(number):
        yield batch.values, batch.lengths, batch.labels


def _build_store(
    stack: ExitStack, path: Path, sources: dict[str, Path], encoding: str
) -> FeatureStore:
    store: FeatureStore = stack.enter_context(embedcache.open_store(path))
    options = BuildOptions(limits=WriterLimits(encoding=encoding))
    embedcache.build(store, sources, dataset="b1", options=options)
    return store


def read_corpus(store: FeatureStore, stream: FeatureStream, dataset: str) -> Corpus:
    """The stream's features as one packed array, in its own unshuffled order."""
    (batch,) = FeatureStream(store, dataset, shuffle=False, batch_size=stream.num_texts)
    matrices = [row[:length] for row, length in zip(batch.values, batch.lengths, strict=True)]
    features = embedcache.RaggedArray.from_matrices(matrices, dim=stream.dim)
    return Corpus(features, stream.labels, stream.order, stream.batch_size)


def _stream_batches(stream: FeatureStream, number: int) -> Iterator[PaddedBatch]:
    for batch in stream.epoch(number):
        yield batch.values, batch.lengths, batch.labels


class DenseGather:
    """The limit: packed values in RAM, one pass of `take` into one buffer that is used again.

    A position past a text's end is that of a row of zeros, so that padding is no second pass.
    """

    def __init__(self, corpus: Corpus) -> None:
        features = corpus.features
        self.corpus = corpus
        self._lengths = features.lengths
        self._starts = features.row_splits[:-1]
        self._table, self._codes = self._make_table(features.values)
        self._zero_position = len(features.values)
        longest = padded_length(int(self._lengths.max()))
        self._offsets = np.arange(longest)
        shape = (corpus.batch_size * longest, features.dim)
        self._buffer = np.empty(shape, features.values.dtype)

    def _make_table(self, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        return np.concatenate([values, np.zeros_like(values[:1])]), None

    def __call__(self, number: int) -> Iterator[PaddedBatch]:
        for rows in self.corpus.batch_rows(number):
            lengths = self._lengths[rows]
            offsets = self._offsets[: padded_length(int(lengths.max()))]
            positions = self._starts[rows][:, None] + offsets
            positions[offsets >= lengths[:, None]] = self._zero_position
            flat = positions.reshape(-1)
            if self._codes is not None:
                flat = self._codes[flat]
            values = self._buffer[: len(flat)]
            self._table.take(flat, axis=0, out=values, mode="clip")
            shape = (*positions.shape, values.shape[1])
            yield values.reshape(shape), lengths.astype(np.int32), self.corpus.labels[rows]


class DictionaryGather(DenseGather):
    """The same with each distinct row once and a code a token."""

    def _make_table(self, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        row_bytes = values.dtype.itemsize * values.shape[1]
        rows = np.ascontiguousarray(values).view(f"V{row_bytes}").reshape(-1)
        _, first, codes = np.unique(rows, return_index=True, return_inverse=True)
        table = np.concatenate([values[first], np.zeros_like(values[:1])])
        return table, np.append(codes.reshape(-1), len(first)).astype(np.int64)


def _contender(name: str, role: Role, batches: Batches, *, in_order: bool = True) -> Contender:
    return Contender(
        name=name,
        role=role,
        run=lambda number: _consume(batches(number)),
        inspect=lambda: digest_batches(batches(0), in_order=in_order),
    )


def _consume(batches: Iterator[PaddedBatch]) -> int:
    num_texts = 0
    for values, lengths, labels in batches:
        if not len(values) == len(lengths) == len(labels):
            raise WrongAnswerError("values, lengths and labels do not fit together")
        num_texts += len(lengths)
    return num_texts


def _targets(series: list[Series]) -> list[Target]:
    targets = []
    best = best_peer(series)
    for encoding in ENCODINGS:
        ours = named(series, f"FeatureStream, {encoding} shard")
        wanted = (
            (20.0, named(series, "one HDF5 dataset per text")),
            (5.0, named(series, "h5py slices of one packed dataset")),
            (1.15, best),
        )
        for bound, other in wanted:
            what = f"{encoding}: ≥ {bound:g} × {other.name}"
            what += " (the best other)" if other is best else ""
            targets.append(Target(what=what, value=ratio(ours, other), wanted=bound))
        limit = named(series, f"the same gather from RAM, {encoding}")
        what = f"{encoding}: ≥ 90 % of the limit"
        targets.append(Target(what=what, value=ratio(ours, limit), wanted=0.9, unit="%"))
        variants = (f"{NUM_SHARDS} shards", f"{NUM_THREADS} threads", "first epoch", *CONFIGS)
        for variant in variants:
            other = named(series, f"FeatureStream, {encoding}, {variant}")
            what = f"{encoding}: {variant} ÷ one shard, one thread, later epoch"
            targets.append(Target(what=what, value=ratio(other, ours)))
    return targets
