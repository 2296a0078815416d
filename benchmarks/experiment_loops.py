"""One epoch of an experiment, its features coming from the cache or from the module: B8's loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contextual_peers import BATCH_TEXTS, MASK, HubModule
from benchmarks.machine import import_tensorflow
from benchmarks.measure import WrongAnswerError
from cnn.backend import import_keras
from cnn.config import TrainConfig
from cnn.feed import BatchFeed
from cnn.model import build_model, compile_model, train_step
from cnn.spec import ModelSpec
from embedcache import FeatureStream

STEPS_COMPARED = 8
"""First steps of an epoch whose losses must be the same from every source."""
LOSS_TOLERANCE = 2e-3
"""What float16 in the store may change of a loss; the module's own rows are float32."""


@dataclass(frozen=True, slots=True)
class Step:
    """A batch as the model takes it.

    Attributes:
        values: (B, L, dim), an array or a tensor; zeros from each text's length on.
        lengths: (B,).
        labels: (B,).
    """

    values: Any
    lengths: Any
    labels: Any


Epoch = Callable[[int], Iterator[Step]]
"""The number of an epoch → its batches."""


class Experiment:
    """A ``kim`` network that is trained for an epoch from its beginning, again and again.

    Args:
        dim: The embedding width.
        num_classes: Labels to tell apart.
        dtype: Of the values.
    """

    def __init__(self, dim: int, num_classes: int, dtype: str) -> None:
        self.config = TrainConfig(preset="kim").resolved()
        spec = ModelSpec(dim, num_classes, dtype)
        self._model = build_model(self.config, spec)
        compile_model(self._model, self.config, spec)
        self._model.optimizer.build(self._model.trainable_variables)
        keras = import_keras()
        variables = [*self._model.variables, *self._model.optimizer.variables]
        self._beginning = [
            (variable, keras.ops.convert_to_numpy(variable)) for variable in variables
        ]

    def renew(self, _number: int = 0) -> None:
        """Give all weights, the dropout's seeds and the optimizer's state their first values."""
        for variable, first in self._beginning:
            variable.assign(first)

    def train(self, batches: Iterator[Step]) -> list[float]:
        """One step a batch; the losses."""
        return [self.train_once(batch) for batch in batches]

    def train_once(self, batch: Step) -> float:
        """One step; the loss."""
        return train_step(self._model, [batch.values, batch.lengths], batch.labels)[0]


class TrainedEpochs:
    """A contender: an epoch of an experiment, always the same one.

    Args:
        name: Of the contender.
        experiment: What is trained.
        epoch: Where its batches come from.
        num_texts: Texts in an epoch.
    """

    def __init__(self, name: str, experiment: Experiment, epoch: Epoch, num_texts: int) -> None:
        self.name = name
        self._experiment = experiment
        self._epoch = epoch
        self._num_texts = num_texts
        self.losses: list[float] = []

    def renew(self, number: int) -> None:
        """Begin the experiment anew."""
        self._experiment.renew(number)

    def run(self, _number: int) -> float:
        """Train for one epoch; the texts."""
        self.losses = self._experiment.train(self._epoch(0))
        return self._num_texts

    def check(self, _number: int, expected: Sequence[float] | None = None) -> None:
        """Compare the losses of the last run.

        Args:
            expected: Those of the same batches from elsewhere; None: another order, of which
                only the number of steps must be right.

        Raises:
            WrongAnswerError: if they are others.
        """
        num_steps = math.ceil(self._num_texts / self._experiment.config.batch_size)
        if len(self.losses) != num_steps or not np.isfinite(self.losses).all():
            raise WrongAnswerError(f"{self.name!r} has made {len(self.losses)} steps")
        if expected is not None:
            first = slice(STEPS_COMPARED)
            worst = np.abs(np.subtract(self.losses[first], expected[first])).max()
            if not worst <= LOSS_TOLERANCE:
                raise WrongAnswerError(f"{self.name!r} has losses that differ by {worst:.3g}")


def cached_epoch(stream: FeatureStream) -> Epoch:
    """Batches as `cnn.train` has them: from the shards, by a `BatchFeed`."""

    def batches(number: int) -> Iterator[Step]:
        with BatchFeed(stream.epoch(number)) as feed:
            for batch in feed:
                yield Step(batch.values, batch.lengths, batch.labels)

    return batches


def resident_epoch(stream: FeatureStream) -> Epoch:
    """The limit: the batches of epoch 0 are all in memory."""
    held = [Step(batch.values, batch.lengths, batch.labels) for batch in stream.epoch(0)]
    return lambda _number: iter(held)


class LiveModule:
    """The module in the loop, called as its pages on TF Hub say.

    Args:
        module: Encoder and preprocessor.
        texts: n texts, UTF-8.
        labels: (n,).
        batch_size: Texts in a step.
    """

    def __init__(
        self, module: HubModule, texts: Sequence[bytes], labels: NDArray[np.int32], batch_size: int
    ) -> None:
        tf = import_tensorflow()
        self._module = module
        self._texts = np.array(texts, object)
        self._labels = labels
        self._batch_size = batch_size
        self._embed = tf.function(self._rows, input_signature=[tf.TensorSpec([None], tf.string)])

    def _rows(self, texts: Any) -> tuple[Any, Any]:
        """Texts (B,) → rows without special tokens, (B, L, dim), and lengths, (B,)."""
        tf = import_tensorflow()
        packed = self._module.pack_to_longest(texts)
        lengths = tf.reduce_sum(packed[MASK], axis=1) - 2
        rows = self._module.encode(packed)[:, 1:-1]
        is_token = tf.sequence_mask(lengths, tf.shape(rows)[1], rows.dtype)
        return rows * is_token[:, :, tf.newaxis], lengths

    def epoch(self, order: Callable[[int], NDArray[np.int64]]) -> Epoch:
        """Each batch's texts go through the module, in the order of an epoch."""
        tf = import_tensorflow()

        def batches(number: int) -> Iterator[Step]:
            rows = order(number)
            for start in range(0, len(rows), self._batch_size):
                chosen = rows[start : start + self._batch_size]
                values, lengths = self._embed(tf.constant(self._texts[chosen], tf.string))
                yield Step(values, lengths, self._labels[chosen])

        return batches

    def cached_dataset(self) -> Any:
        """``Dataset.cache()`` behind the module, a text an element; shuffled and padded after."""
        tf = import_tensorflow()
        source = tf.data.Dataset.from_tensor_slices((list(self._texts), self._labels))

        def embed(texts: Any, labels: Any) -> Any:
            values, lengths = self._embed(texts)
            return tf.RaggedTensor.from_tensor(values, lengths=lengths), lengths, labels

        return (
            source.batch(BATCH_TEXTS)
            .map(embed)
            .unbatch()
            .map(lambda rows, length, label: (tf.convert_to_tensor(rows), length, label))
            .cache()
            .shuffle(len(self._texts), seed=0)
            .padded_batch(self._batch_size)
            .prefetch(2)
        )


def dataset_epoch(dataset: Any) -> Epoch:
    """The batches of a ``tf.data`` pipeline."""
    return lambda _number: (Step(*batch) for batch in dataset)
