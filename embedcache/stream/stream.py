"""FeatureStream: a dataset's features as shuffled, padded batches."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import KeyNotFoundError, UnknownNameError
from embedcache.keys import Keys
from embedcache.store.database.records import ViewRecord
from embedcache.store.dataset import Dataset
from embedcache.store.refs import FeatureRefs
from embedcache.store.store import FeatureStore
from embedcache.stream.buffers import BatchBuffers

LENGTH_STEP = 8
"""Batches are padded to a multiple of this: few shapes for the backend to compile, and on
SST-2 at batch 64 about 4 % more rows than padding to the longest text."""

_TEXTS_AHEAD = 4096
"""Texts whose places are looked up at once: some 60 bytes each."""

# Words of views (see `embedcache.modules.splitting`, `embedcache.modules.layers`), by which the
# kind of a module is told without loading it.
_IMPORTED_SIGNATURE = "imported"
"""Of views whose features come from other programs (`embedcache import`)."""
_LAYERS_APART = "all"
_PARTS_TOKENIZERS = ("sentences-1", "words-1")
_PIECES_TOKENIZERS = ("preprocessor", "pieces")
_ELMO_TOKENIZER = "space-nonempty"  # some bags of words have it too
_ELMO_OUTPUTS = ("elmo", "lstm_outputs", "word_emb")


@dataclass(frozen=True, slots=True)
class Batch:
    """B texts, padded to one length.

    Attributes:
        values: Shape (B, L, dim), float16 or float32 (the value dtype); zeros from each text's
            length on. L is a multiple of 8.
        lengths: Tokens of each text, (B,) int32.
        labels: Class of each text, (B,) int32, a place in `FeatureStream.label_names`;
            -1 where the text has none.
        keys: Key of each text, (B, 16) uint8.
    """

    values: NDArray[Any]
    lengths: NDArray[np.int32]
    labels: NDArray[np.int32]
    keys: Keys

    def __len__(self) -> int:
        return len(self.lengths)


class FeatureStream:
    """Batches of a dataset's features, read from the shards as they are needed.

    Iterating gives one epoch after the other's order: ``stream.epoch(3)`` gives the fourth
    epoch's batches, the same ones each time for the same seed. A batch's arrays belong to
    whoever took it; their memory is used again once nobody refers to them any more.

    The shards are held open: they stay readable if another process replaces them meanwhile.
    Several threads may iterate at once, each an epoch of its own.

    Args:
        store: An open store.
        dataset: Name, ``NAME@VERSION``, or a loaded dataset; None is the newest.
        view: Fingerprint or its beginning; None: the view the dataset was last built under.
        split: Only this split's documents; None: all.
        rows: Only these documents, by position in the dataset; instead of ``split``.
        batch_size: Texts in a batch; the last of an epoch may have fewer.
        shuffle: Whether each epoch has an order of its own; else corpus order.
        seed: What the orders depend on, with the epoch's number.

    Raises:
        UnknownNameError: if there is no such dataset, view or split.
        KeyNotFoundError: if the view lacks some of the texts; says how many, and the
            command that mends it.
    """

    def __init__(
        self,
        store: FeatureStore,
        dataset: str | Dataset | None = None,
        *,
        view: str | None = None,
        split: str | None = None,
        rows: NDArray[np.int64] | None = None,
        batch_size: int = 64,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1: got {batch_size}")
        loaded = dataset if isinstance(dataset, Dataset) else store.load_dataset(dataset)
        self._view = store.view_of_dataset(loaded, view)
        # For `gc`, which drops what was used longest ago first.
        store.catalog.record_use(self._view.fingerprint, loaded.version)
        self._reader = store.reader(self._view)
        if rows is None:
            rows = _rows_of_split(loaded, split)
        self.label_names = loaded.label_names
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self._labels = loaded.first_labels(rows)
        self._buffers = BatchBuffers()
        self._refs: FeatureRefs = self._reader.locate(loaded.keys[rows])
        missing = int(np.count_nonzero(self._refs.shards < 0))
        if missing:
            raise KeyNotFoundError(
                f"view {self._view.fingerprint[:12]} lacks {missing} of {len(rows)} texts of"
                f" dataset {loaded.name!r}; compute them with"
                f" `{_build_command(loaded.name, self._view)}`"
            )
        self._held_shards = self._reader.open_shards(self._refs)

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
    def num_texts(self) -> int:
        """Texts in an epoch."""
        return len(self._refs)

    @property
    def num_batches(self) -> int:
        """Batches in an epoch."""
        return -(-self.num_texts // self.batch_size)

    @property
    def max_length(self) -> int:
        """Tokens of the longest text."""
        return int(self._refs.lengths.max(initial=0))

    @property
    def labels(self) -> NDArray[np.int32]:
        """Class of each text in the stream's own, unshuffled order, (n,) int32."""
        return self._labels

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch.

        Raises:
            CorruptShardError: if bytes that are needed are not what was written.
        """
        order = self.order(number)
        num_texts = max(1, _TEXTS_AHEAD // self.batch_size) * self.batch_size
        for start in range(0, len(order), num_texts):
            yield from self._batches(order[start : start + num_texts])

    def order(self, number: int) -> NDArray[np.int64]:
        """The order of an epoch: positions in the stream, (n,) int64."""
        if not self.shuffle:
            return np.arange(self.num_texts, dtype=np.int64)
        return np.random.default_rng((self.seed, number)).permutation(self.num_texts)

    def _batches(self, rows: NDArray[np.int64]) -> Iterator[Batch]:
        """The batches of some texts. What is the same work for all is done for all at once."""
        refs, labels = self._refs.take(rows), self._labels[rows]
        lengths = refs.lengths.astype(np.int32)
        firsts = range(0, len(rows), self.batch_size)
        longest = np.maximum.reduceat(lengths, firsts).tolist()
        for first, num_tokens in zip(firsts, longest, strict=True):
            chosen = slice(first, first + self.batch_size)
            keys = refs.keys[chosen]
            shape = (len(keys), padded_length(num_tokens), self.dim)
            values = self._buffers.array(shape, self._reader.dtype)
            self._reader.gather_padded(refs, values, texts=chosen)
            yield Batch(values, lengths[chosen], labels[chosen], keys)
            # Else the memory would not be free before the next batch has some of its own.
            del values


def padded_length(num_tokens: int) -> int:
    """The length that a batch whose longest text has so many tokens is padded to."""
    return max(LENGTH_STEP, -(-num_tokens // LENGTH_STEP) * LENGTH_STEP)


def _rows_of_split(dataset: Dataset, split: str | None) -> NDArray[np.int64]:
    rows = dataset.rows_of_split(split)
    if split is not None and split not in dataset.split_names:
        names = ", ".join(name for name in dataset.split_names if name) or "none"
        raise UnknownNameError(
            f"dataset {dataset.name!r} has no split {split!r}; its splits: {names}"
        )
    return rows


def _build_command(dataset: str, record: ViewRecord) -> str:
    """The command that computes what a view lacks of a dataset, as a shell takes it.

    The handle of a view whose catalog was lost is for the user to fill in, as the corpus is.
    """
    view = record.view
    if view.signature == _IMPORTED_SIGNATURE:
        name = record.handle.partition(":")[2] or "NAME"
        return f"embedcache import FILE --texts CORPUS --as {shlex.quote(name)}"
    options = {
        "--module": record.handle or "HANDLE",
        "--preprocess": record.preprocess,
        "--dataset": dataset,
        "--granularity": view.granularity if view.tokenizer in _PARTS_TOKENIZERS else "",
        "--layer": view.output if _names_layers(record) else "",
        "--context-words": str(view.context_words) if view.granularity == "window" else "",
        "--max-tokens": str(view.max_tokens),
        "--overflow": view.overflow,
        "--dtype": view.dtype,
    }
    words = [word for name, value in options.items() if value for word in (name, value)]
    if view.keep_special_tokens:
        words.append("--keep-special-tokens")
    return f"embedcache build CORPUS {shlex.join(words)}"


def _names_layers(record: ViewRecord) -> bool:
    """Whether a view's output is what ``--layer`` takes, not the one vector of a text."""
    output, tokenizer = record.view.output, record.view.tokenizer
    if not output or tokenizer in _PARTS_TOKENIZERS:
        return False
    is_elmo = tokenizer == _ELMO_TOKENIZER and output.startswith(_ELMO_OUTPUTS)
    is_choice = output.isdecimal() or "," in output or ":" in output
    return tokenizer in _PIECES_TOKENIZERS or is_elmo or is_choice
