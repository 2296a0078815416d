"""B2: what getting the batches adds to the time of training steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import embedcache
from benchmarks.b01_stream import DenseGather, read_corpus
from benchmarks.corpora import sst2_sources
from benchmarks.experiment_loops import (
    Epoch,
    Experiment,
    Step,
    TrainedEpochs,
    cached_epoch,
    dataset_epoch,
    resident_epoch,
)
from benchmarks.feature_peers import Corpus
from benchmarks.machine import import_tensorflow
from benchmarks.measure import Contender, Series, elapsed, measure, ratio
from benchmarks.paired_steps import PairedOverheads, measure_paired
from benchmarks.report import Report, Table, Target, named
from benchmarks.scale import Scale
from cnn.config import TrainConfig
from embedcache import FeatureStream
from embedcache.stream.batch import padded_length
from embedcache.stream.tensorflow_dataset import as_tensorflow_dataset

DATASET = "b2"
OURS = "FeatureStream, as cnn.train reads it"
OURS_TENSORFLOW = "FeatureStream as a tf.data.Dataset of whole batches"
RAM = "everything in RAM, padded in the loop"
GENERATOR = "tf.data from_generator, a text an element"
PY_DATASET = "Keras PyDataset"
LIMIT = "the same steps on batches that are in memory"
MAX_OVERHEAD = 0.02


def run(scale: Scale, work: Path) -> Report:
    """Measure it."""
    sources, what = sst2_sources(scale, work, scale.overhead_texts)
    batch_size = TrainConfig(preset="kim").resolved().batch_size
    with embedcache.open_store(work / "store") as store:
        embedcache.build(store, sources, dataset=DATASET)
        stream = FeatureStream(store, DATASET, batch_size=batch_size, seed=0)
        corpus = read_corpus(store, stream, DATASET)
        experiment = Experiment(stream.dim, len(stream.label_names), stream.dtype)
        resident = resident_epoch(stream)
        held = list(resident(0))
        experiment.train(iter(held))
        # First, as the others leave threads behind that a training does not have.
        paired = measure_paired(experiment, stream, held, rounds=scale.overhead_rounds)
        contenders = _trained(experiment, stream, corpus, resident)
        series = measure(contenders, rounds=scale.overhead_rounds, value=elapsed)
    return Report(
        number="B2",
        title="input overhead of training",
        unit="s",
        cache="warm, all files are in the page cache",
        binds="the training steps: the limit is an epoch of the very same steps, on batches that"
        " were all made before",
        series=series,
        targets=_targets(series, paired),
        tables=[
            Table(
                title=f"Input overhead of {OURS}, told step by step, %",
                header=("", "median", "quartiles", "rounds"),
                rows=(
                    (
                        "fetched and in memory, in turn",
                        round(100 * paired.series.median, 2),
                        " – ".join(f"{100 * each:.2f}" for each in paired.series.quartiles),
                        len(paired.series.values),
                    ),
                ),
            )
        ],
        notes=[
            f"{what}, `builtin:en-words-128`, 128 dimensions, float16; `kim`, batch {batch_size}."
            " Seconds of an epoch, which always begins with the same weights. Input overhead is"
            " this ÷ the limit of the same round - 1.",
            "What is to be reached is told step by step, as whole epochs swing by 5 % from one"
            " to the next: each batch is trained on twice in turn, as it is fetched and as it lies"
            f" in memory. In {paired.num_ahead} of"
            f" {len(paired.series.values)} rounds a thread began to fetch ahead.",
            "All train on the same batches in the same order; their first losses agree. tf.data's"
            " own `padded_batch` pads to the longest text, not on to a multiple of 8, and the"
            " PyDataset to the longest text of all: on TensorFlow, Keras takes a PyDataset's"
            " shapes from its first batches and fails where a later one is longer.",
            "All but ours have the features packed in memory before. PyDataset has a thread of"
            " Keras's; its steps are Keras's own, by way of an iterator of its first epoch.",
        ],
    )


def _trained(
    experiment: Experiment, stream: FeatureStream, corpus: Corpus, resident: Epoch
) -> list[Contender]:
    loops: dict[str, Epoch] = {
        OURS: cached_epoch(stream),
        OURS_TENSORFLOW: _tensorflow_epoch(stream),
        RAM: _ram_epoch(corpus),
        GENERATOR: dataset_epoch(_generator_dataset(corpus)),
        PY_DATASET: _py_dataset_epoch(corpus),
        LIMIT: resident,
    }
    trained = {
        name: TrainedEpochs(name, experiment, epoch, stream.num_texts)
        for name, epoch in loops.items()
    }
    for each in trained.values():  # every function is traced
        each.renew(0)
        each.run(0)
    expected = trained[LIMIT].losses
    roles = {OURS: "ours", OURS_TENSORFLOW: "ours", LIMIT: "limit"}
    return [
        Contender(
            name=name,
            role=roles.get(name, "peer"),
            run=each.run,
            before=each.renew,
            check=partial(each.check, expected=expected),
        )
        for name, each in trained.items()
    ]


def _tensorflow_epoch(stream: FeatureStream) -> Epoch:
    dataset = as_tensorflow_dataset(stream)

    def batches(_number: int) -> Iterator[Step]:
        for inputs, labels in dataset:
            yield Step(inputs["values"], inputs["lengths"], labels)

    return batches


def _ram_epoch(corpus: Corpus) -> Epoch:
    gather = DenseGather(corpus)
    return lambda number: (Step(*batch) for batch in gather(number))


def _generator_dataset(corpus: Corpus) -> Any:
    """A text an element, padded by TensorFlow; always the first epoch's order."""
    tf = import_tensorflow()
    features, labels = corpus.features, corpus.labels
    signature = (
        tf.TensorSpec((None, features.dim), tf.float16),
        tf.TensorSpec((), tf.int32),
        tf.TensorSpec((), tf.int32),
    )

    def texts() -> Iterator[tuple[NDArray[Any], int, int]]:
        for row in corpus.order_of(0).tolist():
            matrix = features[row]
            yield matrix, len(matrix), int(labels[row])

    return (
        tf.data.Dataset.from_generator(texts, output_signature=signature)
        .padded_batch(corpus.batch_size)
        .prefetch(2)
    )


def _py_dataset_epoch(corpus: Corpus) -> Epoch:
    """As Keras reads a PyDataset on the TensorFlow backend: a thread, and tf.data."""
    import keras
    from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

    class Batches(keras.utils.PyDataset):  # type: ignore[misc]
        """The first epoch's batches."""

        def __init__(self) -> None:
            super().__init__(workers=1, max_queue_size=2)
            self._rows = list(corpus.batch_rows(0))
            self._length = padded_length(int(corpus.features.lengths.max()))

        def __len__(self) -> int:
            return len(self._rows)

        def __getitem__(self, number: int) -> Any:
            return _pad_rows(corpus, self._rows[number], self._length)

    def batches(_number: int) -> Iterator[Step]:
        adapter = PyDatasetAdapter(Batches(), shuffle=False)
        adapter.on_epoch_begin()
        for (values, lengths), labels in adapter.get_tf_dataset():
            yield Step(values, lengths, labels)
        adapter.on_epoch_end()

    return batches


def _pad_rows(corpus: Corpus, rows: NDArray[np.int64], length: int) -> Any:
    features = corpus.features
    values = np.zeros((len(rows), length, features.dim), features.values.dtype)
    for matrix, row in zip(values, rows.tolist(), strict=True):
        found = features[row]
        matrix[: len(found)] = found
    return (values, features.lengths[rows].astype(np.int32)), corpus.labels[rows]


def _targets(series: list[Series], paired: PairedOverheads) -> list[Target]:
    limit = named(series, LIMIT)
    overhead: Callable[[Series], float] = lambda one: ratio(one, limit) - 1  # noqa: E731
    targets = [
        Target(
            what=f"input overhead, step by step, ≤ {MAX_OVERHEAD:.0%}: {OURS}",
            value=paired.series.median,
            wanted=MAX_OVERHEAD,
            at_most=True,
            unit="%",
        )
    ]
    for one in series:
        if one.role == "limit":
            continue
        wanted = MAX_OVERHEAD if one.name == OURS_TENSORFLOW else None
        bound = f" ≤ {MAX_OVERHEAD:.0%}" if wanted else ""
        targets.append(
            Target(
                what=f"input overhead{bound}: {one.name}",
                value=overhead(one),
                wanted=wanted,
                at_most=True,
                unit="%",
            )
        )
    return targets
