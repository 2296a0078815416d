"""FeatureStream: a dataset's features as shuffled, padded batches."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import KeyNotFoundError, UnknownNameError
from embedcache.ragged import expand_ranges
from embedcache.store.dataset import Dataset
from embedcache.store.refs import FeatureRefs
from embedcache.stream.batch import LENGTH_STEP, Batch, padded_length, padded_lengths
from embedcache.stream.batching import Cut, EpochPlan
from embedcache.stream.buffers import BatchBuffers
from embedcache.stream.config import StreamConfig
from embedcache.stream.missing import build_command
from embedcache.stream.orders import (
    BlockOrder,
    CorpusOrder,
    EpochOrder,
    FullOrder,
    Order,
    WholeOrder,
    choose_shuffle,
)
from embedcache.stream.resuming import StreamIterator
from embedcache.stream.source import FeatureReader, FeatureSource
from embedcache.stream.state import StreamState
from embedcache.stream.token_table import TokenNumbers, TokenTable

__all__ = ["LENGTH_STEP", "Batch", "FeatureStream", "padded_length"]

_LAYERS_APART = "all"
"""What the output of a view whose layers are kept apart begins with."""


@dataclass(frozen=True, slots=True)
class _Source:
    """What a stream is opened from; pickling it drops what is open."""

    store: FeatureSource
    dataset: str | Dataset
    view: str
    split: str | None
    rows: NDArray[np.int64] | None
    config: StreamConfig
    token_table: TokenTable | None
    multilabel: bool

    def open(self) -> FeatureStream:
        return FeatureStream(
            self.store,
            self.dataset,
            view=self.view,
            split=self.split,
            rows=self.rows,
            config=self.config,
            token_table=self.token_table,
            multilabel=self.multilabel,
        )


class FeatureStream:
    """Batches of a dataset's features, read from the shards as they are needed.

    Iterating gives one epoch after the other's order: ``stream.epoch(3)`` gives the fourth
    epoch's batches, the same ones each time for the same seed. A batch's arrays belong to
    whoever took it; their memory is used again once nobody refers to them any more.

    The shards are held open: they stay readable if another process replaces them meanwhile.
    Several threads may iterate at once, each an epoch of its own. Pickling keeps what the
    stream was opened from, and opens it anew; after a fork the child takes `for_worker`.

    Of several workers, each opens the stream with its ``worker`` number. Every text comes once
    an epoch among them all. Step by step their batches are dealt out of one batch: without a
    token budget, of the one that a single stream would give whose ``batch_size`` is
    ``num_workers`` times as large, in contiguous parts that differ by one text at most. Each
    worker has the same number of batches. Where an epoch's last step would have fewer texts
    than workers, it takes some of the steps before; only if those have none to spare (fewer
    texts than workers, or one text a batch) the last step lacks the last workers' batches.

    Args:
        store: An open store, or a service (`embedcache.connect`).
        dataset: Name, ``NAME@VERSION``, or a loaded dataset; None is the newest.
        view: Fingerprint or its beginning; None: the view the dataset was last built under.
        split: Only this split's documents; None: all.
        rows: Only these documents, by position in the dataset; instead of ``split``.
        config: How to shuffle and to cut into batches; None: `StreamConfig`'s defaults.
        token_table: Numbers the tokens of each batch; None: they are not numbered.
        multilabel: Whether a batch's labels are all of each text's, not the first only.
        batch_size: Texts in a batch; the last of an epoch may have fewer. Like the two below,
            short for a field of ``config``.
        shuffle: Whether each epoch has an order of its own; else corpus order.
        seed: What the orders depend on, with the epoch's number.

    Raises:
        UnknownNameError: if there is no such dataset, view or split.
        KeyNotFoundError: if the view lacks some of the texts; says how many, and the
            command that mends it.
        TrainingError: if the token table is not of this view.
        ValueError: if ``config`` and a field of it are given.
    """

    def __init__(
        self,
        store: FeatureSource,
        dataset: str | Dataset | None = None,
        *,
        view: str | None = None,
        split: str | None = None,
        rows: NDArray[np.int64] | None = None,
        config: StreamConfig | None = None,
        token_table: TokenTable | None = None,
        multilabel: bool = False,
        batch_size: int | None = None,
        shuffle: bool | None = None,
        seed: int | None = None,
    ) -> None:
        short = {"batch_size": batch_size, "shuffle": shuffle, "seed": seed}
        config = _merge_config(config, {k: v for k, v in short.items() if v is not None})
        loaded = dataset if isinstance(dataset, Dataset) else store.load_dataset(dataset)
        self._view = store.view_of_dataset(loaded, view)
        # For `gc`, which drops what was used longest ago first.
        store.record_use(self._view.fingerprint, loaded.version)
        self._reader: FeatureReader = store.reader(self._view)
        self._dataset = loaded
        self._rows = _rows_of_split(loaded, split) if rows is None else rows
        self.label_names = loaded.label_names
        self._multilabel = multilabel
        self._buffers = BatchBuffers()
        self._refs: FeatureRefs = self._reader.locate(loaded.keys[self._rows])
        missing = int(np.count_nonzero(self._refs.shards < 0))
        if missing:
            raise KeyNotFoundError(
                f"view {self._view.fingerprint[:12]} lacks {missing} of {len(self._rows)} texts of"
                f" dataset {loaded.name!r}; compute them with"
                f" `{build_command(loaded.name, self._view)}`"
            )
        self._held_shards = self._reader.open_shards(self._refs)
        if config.shuffle == "auto":
            config = replace(config, shuffle=self._choose_shuffle())
        self._config = config
        self._numbers = TokenNumbers(self._reader, token_table) if token_table else None
        named = loaded if isinstance(dataset, Dataset) else f"{loaded.name}@{loaded.version}"
        self._source = _Source(
            store, named, self.view, split, rows, config, token_table, multilabel
        )
        self._process = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Source.open, (self._source,)

    @property
    def config(self) -> StreamConfig:
        """How it shuffles and cuts; ``"auto"`` has become ``"full"`` or ``"block"``."""
        return self._config

    @property
    def batch_size(self) -> int:
        """Texts in a batch, at most."""
        return self._config.batch_size

    @property
    def shuffle(self) -> bool:
        """Whether each epoch has an order of its own."""
        return self._config.shuffle != "none"

    @property
    def seed(self) -> int:
        """What the orders depend on, with the epoch's number."""
        return self._config.seed

    @property
    def view(self) -> str:
        """The fingerprint of the view."""
        return self._view.fingerprint

    @property
    def dim(self) -> int:
        """The embedding width, all layers together."""
        return self._view.view.dim

    @property
    def num_layers(self) -> int:
        """Layers of equal width that lie side by side in a row; 1 where nothing is to be mixed."""
        return self._view.view.num_layers

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The names of layers that are kept apart, as they lie in a row; () for other views."""
        mode, _, names = self._view.view.output.partition(":")
        return tuple(names.split(",")) if mode == _LAYERS_APART else ()

    @property
    def dtype(self) -> str:
        """The dtype of the values: ``"float16"`` or ``"float32"``."""
        return self._reader.dtype.name

    @property
    def row_bytes(self) -> int:
        """Bytes of a token's values in a batch."""
        return self.dim * self._reader.dtype.itemsize

    @property
    def token_table(self) -> TokenTable | None:
        """What numbers the tokens; None: nothing does."""
        return self._source.token_table

    @property
    def is_multilabel(self) -> bool:
        """Whether a batch's labels are all of each text's."""
        return self._multilabel

    @property
    def num_texts(self) -> int:
        """Texts in an epoch, of all workers."""
        return len(self._refs)

    @cached_property
    def num_batches(self) -> int:
        """Batches of this worker in an epoch; with a token budget in the first one."""
        return self.count_batches(0)

    @property
    def max_length(self) -> int:
        """Tokens of the longest text."""
        return int(self._refs.lengths.max(initial=0))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text in the stream's own, unshuffled order, (n,) int64."""
        return self._refs.lengths

    @property
    def labels(self) -> NDArray[Any]:
        """Class of each text in the stream's own, unshuffled order, (n,) int32.

        Of a stream with ``multilabel=True`` (n, C) uint8, as in a batch.
        """
        return self._labels_of(np.arange(self.num_texts)) if self._multilabel else self._labels

    @cached_property
    def order_digest(self) -> str:
        """What the order of the texts rests on, in a word: how it is shuffled, and a digest.

        Equal ones mean the same texts in the same steps. With block shuffle the order rests on
        the shards too, so that another machine or a compacted store may have another.
        """
        config = self._config
        cut = (config.batch_size, config.batch_tokens, config.length_buckets, config.window_texts)
        digest = blake2b(repr((cut, config.seed, config.num_workers)).encode(), digest_size=8)
        digest.update(np.ascontiguousarray(self._refs.keys).data)
        if config.length_buckets or config.batch_tokens is not None:
            digest.update(self._refs.lengths.data)
        if isinstance(self._order, BlockOrder):
            digest.update(self._order.positions.data)
            digest.update(self._order.splits.data)
        return f"{config.shuffle}-{digest.hexdigest()}"

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def count_batches(self, number: int) -> int:
        """Batches of this worker in one epoch; with a token budget it differs from epoch to epoch.

        No features are read. With a token budget the texts are cut once over.
        """
        needs_order = self._config.batch_tokens is not None
        order = self._order.epoch(number) if needs_order else WholeOrder(np.zeros(0, np.int64))
        return self._plan(number, order).count_batches()

    def epoch(self, number: int, *, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch.

        Args:
            number: From 0 on.
            first_step: The batch to begin with. Nothing is read of those before it, but with a
                token budget the texts' lengths.

        Raises:
            CorruptShardError: if bytes that are needed are not what was written.
            TrainingError: if the epoch has not so many batches.
        """
        plan = self._plan(number, self._order.epoch(number))
        for cut in plan.batches(first_step):
            if len(cut):
                yield from self._read(cut)

    def iterate(self, state: StreamState | None = None) -> StreamIterator:
        """The batches of one epoch after the other, without end.

        Args:
            state: Where to begin; None: at the first batch of the first epoch.

        Raises:
            TrainingError: as `embedcache.stream.resuming.check_state`.
        """
        return StreamIterator(self, state or StreamState(self.seed, 0, 0))

    def order(self, number: int) -> NDArray[np.int64]:
        """The order of an epoch, of all workers: positions in the stream, (n,) int64."""
        plan = self._plan(number, self._order.epoch(number))
        return np.concatenate([np.zeros(0, np.int64), *(cut.rows for cut in plan.cuts())])

    def for_worker(self, worker: int, num_workers: int) -> FeatureStream:
        """The same stream for one of several workers, with handles of its own after a fork.

        The workers share what this stream has: if it is itself one of several, as in a
        process of data-parallel training, its worker i is worker ``config.worker × num_workers
        + i`` of ``config.num_workers × num_workers``.
        """
        config = self._config
        config = replace(
            config,
            worker=config.worker * num_workers + worker,
            num_workers=config.num_workers * num_workers,
        )
        is_forked = self._process != os.getpid()
        store = copy.copy(self._source.store) if is_forked else self._source.store
        return replace(self._source, store=store, config=config).open()

    def _choose_shuffle(self) -> str:
        # What a service sends costs the same in any order, and its shards are not here.
        uses = self._reader.shard_uses(self._refs) if self._held_shards else []
        return choose_shuffle(uses) if uses else "full"

    @cached_property
    def _order(self) -> Order:
        config = self._config
        if config.shuffle == "none":
            return CorpusOrder(self.num_texts)
        if config.shuffle == "full":
            return FullOrder(self.num_texts, config.seed)
        uses = self._reader.shard_uses(self._refs)
        return BlockOrder.of_shards(uses, window_texts=config.window_texts, seed=config.seed)

    @cached_property
    def _labels(self) -> NDArray[np.int32]:
        return self._dataset.first_labels(self._rows)

    def _plan(self, number: int, order: EpochOrder) -> EpochPlan:
        return EpochPlan(self._config, order, self._refs.lengths, number)

    def _read(self, cut: Cut) -> Iterator[Batch]:
        """The batches of some texts. What is the same work for all is done for all at once."""
        refs, labels = self._refs.take(cut.rows), self._labels_of(cut.rows)
        sizes = np.diff(cut.splits)
        padded = padded_lengths(np.maximum.reduceat(refs.lengths, cut.splits[:-1]))
        self._buffers.reserve(int((padded * sizes).max()) * self.row_bytes)
        prepared = self._reader.prepare(refs, np.repeat(padded, sizes))
        lengths, numbers = refs.lengths.astype(np.int32), self._numbers
        chosen = [slice(*ends) for ends in itertools.pairwise(cut.splits.tolist())]
        # All at once: between two training steps each of these costs many times as much.
        parts = [(lengths[each], labels[each], refs.keys[each], cut.rows[each]) for each in chosen]
        dim, dtype = self.dim, self._reader.dtype
        for texts, length, part in zip(chosen, padded.tolist(), parts, strict=True):
            values = self._buffers.array((texts.stop - texts.start, length, dim), dtype)
            if prepared is None:
                self._reader.gather_padded(refs, values, texts=texts)
            else:
                prepared.gather_padded(texts, values)
            tokens = numbers.gather_padded(refs.take(texts), length) if numbers else None
            yield Batch(values, *part[:3], tokens, part[3])
            # Else the memory would not be free before the next batch has some of its own.
            del values

    def _labels_of(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        if not self._multilabel:
            return self._labels[rows]
        dataset, documents = self._dataset, self._rows[rows]
        labels = np.zeros((len(rows), len(self.label_names)), np.uint8)
        starts = dataset.label_splits[documents]
        counts = dataset.label_splits[documents + 1] - starts
        codes = dataset.label_codes[expand_ranges(starts, counts)]
        labels[np.repeat(np.arange(len(rows)), counts), codes] = 1
        return labels


def _merge_config(config: StreamConfig | None, short: dict[str, Any]) -> StreamConfig:
    if config is None:
        return StreamConfig(**short)
    if short:
        raise ValueError(f"give {' and '.join(short)} in config, or leave config out")
    return config


def _rows_of_split(dataset: Dataset, split: str | None) -> NDArray[np.int64]:
    rows = dataset.rows_of_split(split)
    if split is not None and split not in dataset.split_names:
        names = ", ".join(name for name in dataset.split_names if name) or "none"
        raise UnknownNameError(
            f"dataset {dataset.name!r} has no split {split!r}; its splits: {names}"
        )
    return rows
