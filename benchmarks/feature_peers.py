"""Other ways to keep ragged features on disk and make padded batches of them: B1's peers.

Each takes packed features and writes them its own way when it is made; ``batches(number)``
gives one epoch. All but TFRecord take the order that FeatureStream has for that epoch. Open
files and readers are kept from epoch to epoch, which is in the peers' favour.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from benchmarks.machine import import_tensorflow, installed_version
from benchmarks.measure import WrongAnswerError
from embedcache import RaggedArray
from embedcache.stream.batch import padded_length

Order = NDArray[np.int64]
PaddedBatch = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
"""Values (B, L, dim), lengths (B,), labels (B,)."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """What every peer is given.

    Attributes:
        features: Packed matrices, float16.
        labels: Class of each text, (n,) int32.
        order_of: Number of the epoch → its order, (n,).
        batch_size: Texts in a batch.
    """

    features: RaggedArray
    labels: NDArray[np.int32]
    order_of: Callable[[int], Order]
    batch_size: int

    def batch_rows(self, number: int) -> Iterator[Order]:
        """The texts of each batch of an epoch."""
        order = self.order_of(number)
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]


class Peer(ABC):
    """A peer that can read any text by its number: what differs is `read`."""

    name = ""

    def __init__(self, corpus: Corpus, folder: Path) -> None:
        self.corpus = corpus
        folder.mkdir(parents=True, exist_ok=True)
        self.write(folder)

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write the features and open what was written."""

    @abstractmethod
    def read(self, rows: Order) -> Sequence[NDArray[Any]]:
        """The matrices of some texts."""

    def batches(self, number: int) -> Iterator[PaddedBatch]:
        """One epoch."""
        for rows in self.corpus.batch_rows(number):
            yield (*pad(self.read(rows)), self.corpus.labels[rows])

    def close(self) -> None:  # noqa: B027 - most have nothing open
        """Close what is open."""


def pad(matrices: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Matrices as a batch, padded as FeatureStream pads."""
    lengths = np.fromiter(map(len, matrices), np.int32, len(matrices))
    shape = (len(matrices), padded_length(int(lengths.max(initial=0))), matrices[0].shape[1])
    values = np.zeros(shape, matrices[0].dtype)
    for row, matrix in zip(values, matrices, strict=True):
        row[: len(matrix)] = matrix
    return values, lengths


class Hdf5PerText(Peer):
    """AllenNLP, bilm-tf, Lhotse, biotrainer."""

    name = "one HDF5 dataset per text"

    def write(self, folder: Path) -> None:
        self._file = h5py.File(folder / "per-text.h5", "w")
        for number, matrix in enumerate(self.corpus.features):
            self._file[str(number)] = matrix

    def read(self, rows: Order) -> Sequence[NDArray[Any]]:
        return [self._file[str(row)][()] for row in rows.tolist()]

    def close(self) -> None:
        self._file.close()


class Hdf5Slices(Peer):
    """One packed dataset, read through h5py."""

    name = "h5py slices of one packed dataset"

    def write(self, folder: Path) -> None:
        self._file = h5py.File(folder / "packed.h5", "w")
        self._values = self._file.create_dataset("values", data=self.corpus.features.values)
        self._splits = self.corpus.features.row_splits.tolist()

    def read(self, rows: Order) -> Sequence[NDArray[Any]]:
        splits, values = self._splits, self._values
        return [values[splits[row] : splits[row + 1]] for row in rows.tolist()]

    def close(self) -> None:
        self._file.close()


class NpzPerText(Peer):
    """A file per text."""

    name = "one npz file per text"

    def write(self, folder: Path) -> None:
        self._folder = folder
        for number, matrix in enumerate(self.corpus.features):
            np.savez(folder / f"{number}.npz", values=matrix)

    def read(self, rows: Order) -> Sequence[NDArray[Any]]:
        matrices = []
        for row in rows.tolist():
            with np.load(self._folder / f"{row}.npz") as archive:
                matrices.append(archive["values"])
        return matrices


class Lmdb(Peer):
    """A value per text, read without a copy."""

    name = "LMDB, a value per text"

    def write(self, folder: Path) -> None:
        import lmdb

        features = self.corpus.features
        size = 2 * features.values.nbytes + (64 << 20)
        self._environment = lmdb.open(str(folder / "lmdb"), map_size=size)
        with self._environment.begin(write=True) as transaction:
            for number, matrix in enumerate(features):
                transaction.put(number.to_bytes(8, "big"), np.ascontiguousarray(matrix).tobytes())

    def read(self, rows: Order) -> Sequence[NDArray[Any]]:
        values = self.corpus.features.values
        # The buffers are the map's own and good for as long as it is open: nothing is written.
        with self._environment.begin(buffers=True) as transaction:
            cells: list[Any] = [transaction.get(row.to_bytes(8, "big")) for row in rows.tolist()]
            return [
                np.frombuffer(cell, values.dtype).reshape(-1, values.shape[1]) for cell in cells
            ]

    def close(self) -> None:
        self._environment.close()


class Arrow(Peer):
    """Hugging Face ``datasets``: a binary column, as its own formatter makes float16 float32."""

    name = "Arrow through datasets"

    def write(self, folder: Path) -> None:
        datasets = import_module("datasets")

        datasets.disable_progress_bars()
        raw = [np.ascontiguousarray(matrix).tobytes() for matrix in self.corpus.features]
        datasets.Dataset.from_dict({"values": raw}).save_to_disk(str(folder / "arrow"))
        self._table = datasets.load_from_disk(str(folder / "arrow")).with_format("arrow")

    def read(self, rows: Order) -> Sequence[NDArray[Any]]:
        values = self.corpus.features.values
        return [
            np.frombuffer(cell.as_buffer(), values.dtype).reshape(-1, values.shape[1])
            for cell in self._table[rows.tolist()]["values"]
        ]


class TfRecord:
    """A record per text; shuffled through a buffer of all texts, batched by TensorFlow's threads.

    The one peer that cannot take a given order. It pads to the longest text of a batch, not
    on to a multiple of 8: fewer bytes, in its favour.
    """

    name = "TFRecord + padded_batch"

    def __init__(self, corpus: Corpus, folder: Path) -> None:
        tf = import_tensorflow()
        folder.mkdir(parents=True, exist_ok=True)
        path = str(folder / "features.tfrecord")
        with tf.io.TFRecordWriter(path) as writer:
            for label, matrix in zip(corpus.labels.tolist(), corpus.features, strict=True):
                head = np.array([label], "<i4").tobytes()
                writer.write(head + np.ascontiguousarray(matrix).tobytes())
        dim = corpus.features.dim

        def parse(record: Any) -> tuple[Any, Any, Any]:
            label = tf.io.decode_raw(tf.strings.substr(record, 0, 4), tf.int32)[0]
            raw = tf.io.decode_raw(tf.strings.substr(record, 4, -1), tf.float16)
            values = tf.reshape(raw, (-1, dim))
            return values, tf.shape(values)[0], label

        self._dataset = (
            tf.data.TFRecordDataset(path)
            .shuffle(len(corpus.labels), seed=0, reshuffle_each_iteration=True)
            .map(parse, num_parallel_calls=tf.data.AUTOTUNE)
            .padded_batch(corpus.batch_size, padded_shapes=([None, dim], [], []))
            .prefetch(tf.data.AUTOTUNE)
        )

    def batches(self, _number: int) -> Iterator[PaddedBatch]:
        """One epoch, in an order of its own."""
        yield from self._dataset.as_numpy_iterator()

    def close(self) -> None:
        """Nothing is open between epochs."""


ALL_PEERS: Sequence[tuple[type[Peer] | type[TfRecord], str | None]] = (
    (Hdf5PerText, None),
    (Hdf5Slices, None),
    (NpzPerText, None),
    (TfRecord, "tensorflow"),
    (Lmdb, "lmdb"),
    (Arrow, "datasets"),
)
"""The peers, and the package that each needs."""


def open_peers(corpus: Corpus, folder: Path) -> tuple[list[Peer | TfRecord], list[str]]:
    """The peers whose packages are there, and the names of the others, with the reason."""
    opened: list[Peer | TfRecord] = []
    skipped: list[str] = []
    for peer, package in ALL_PEERS:
        if package is not None and installed_version(package) is None:
            skipped.append(f"{peer.name}: the package {package} is not installed")
        else:
            opened.append(peer(corpus, folder / peer.__name__))
    return opened, skipped


def digest_batches(batches: Iterator[PaddedBatch], *, in_order: bool) -> Mapping[str, str]:
    """Digests of an epoch: of its texts in whatever order, and of the order.

    Raises:
        WrongAnswerError: if padding is not zero.
    """
    total = num_texts = 0
    ordered = xxhash.xxh3_64()
    for values, lengths, labels in batches:
        for row, length, label in zip(values, lengths.tolist(), labels.tolist(), strict=True):
            digest = xxhash.xxh3_64_intdigest(row[:length].tobytes() + label.to_bytes(4, "little"))
            total = (total + digest) % (1 << 64)
            num_texts += 1
            ordered.update(digest.to_bytes(8, "little"))
            if row[length:].any():
                raise WrongAnswerError("the padding is not zero")
        ordered.update(len(lengths).to_bytes(8, "little"))
    digests = {"texts": f"{num_texts} texts, {total:016x}"}
    return digests | {"order": ordered.hexdigest()} if in_order else digests
