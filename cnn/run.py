"""Run: a finished experiment, its figures and its model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cnn.backend import import_keras, without_tensorflow
from cnn.feed import ladder_length
from cnn.fitting import predict_batch
from cnn.fresh import without_tracing_warnings
from cnn.metrics import THRESHOLD
from cnn.predictions import PREDICTIONS_FILE, Predictions, load_predictions
from cnn.spec import MULTILABEL, SINGLE
from embedcache.errors import TrainingError
from embedcache.store.store import FeatureStore
from embedcache.stream.batch import Batch, padded_length
from embedcache.stream.token_table import TokenNumbers, TokenTable

if TYPE_CHECKING:
    from embedcache.embedder import Embedder

MODEL_FILE = "model.keras"
RUN_FILE = "run.json"
HISTORY_FILE = "history.json"
TABLE_FILE = "tokens.npy"

_BATCH_TEXTS = 64
_BATCH_BYTES = 1 << 26
"""Of features in a batch, longer texts alone excepted: 64 texts of 56 tokens where all twelve
layers of a BERT lie side by side in float16."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of a text.

    Attributes:
        label: The most probable label.
        probability: Its probability.
        probabilities: The probability of every label, in sorted order of the labels. Of a
            multilabel run each stands for itself; else they are 1 together.
        labels: The labels that the text gets: the most probable one; of a multilabel run
            those with a probability of at least one half, perhaps none.
    """

    label: str
    probability: float
    probabilities: Mapping[str, float]
    labels: tuple[str, ...] = ()


class Run:
    """A finished experiment. `train` makes one, `load_run` finds it again.

    Attributes:
        name: What it is called: date, time (UTC), dataset, preset and four random digits.
        path: Its folder in the store: ``model.keras``, ``run.json``, ``history.json``,
            ``predictions.npz``, and ``tokens.npy`` where the embedding is not static.
        record: What ``train --json`` prints.
    """

    def __init__(
        self,
        store: FeatureStore,
        path: Path,
        *,
        record: Mapping[str, Any],
        details: Mapping[str, Any],
        model: Any = None,
    ) -> None:
        self.name: str = record["run"]
        self.path = path
        self.record = dict(record)
        self._store = store
        self._details = details
        self._model = model
        # Keeps the module in memory, so that many calls of `predict` load it once.
        self._embedder: Embedder | None = None

    def __repr__(self) -> str:
        return f"Run({self.name!r})"

    @property
    def metrics(self) -> dict[str, Any]:
        """``{"dev": {…}, "test": {…} or None, "folds": […] or None}``.

        Scores are ``accuracy``, ``macro_f1`` and ``loss``; with folds, dev and test are
        the means over them.
        """
        return {part: self.record[part] for part in ("dev", "test", "folds")}

    @property
    def config(self) -> dict[str, Any]:
        """The fields of its `TrainConfig`, every default spelled out."""
        return dict(self._details["config"])

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that it tells apart, sorted."""
        return tuple(self._details["labels"])

    @property
    def layer_weights(self) -> dict[str, Any] | None:
        """How it mixes the layers of a view that keeps them apart; None for other views.

        ``{"names": […], "weights": […], "gamma": …}``: each layer's share of the mix,
        together 1, and the factor of the whole (see `cnn.layers.ScalarMix`).
        """
        weights: dict[str, Any] | None = self._details.get("layer_weights")
        return weights

    @property
    def evaluation(self) -> dict[str, Any]:
        """``{"dev": {…}, "test": {…} or None}``: each an `Evaluation`'s record.

        With folds the texts of all folds together. Empty of a run of an older version, as are
        the four below.
        """
        return dict(self._details.get("evaluation", {}))

    @property
    def cost(self) -> dict[str, Any]:
        """What its features cost, what it cost, and what it would have cost without them.

        See `cnn.cost.cost_ledger`.
        """
        return dict(self._details.get("cost", {}))

    @property
    def lineage(self) -> dict[str, Any]:
        """Corpus files → dataset version → view → module → run; see `cnn.lineage`."""
        return dict(self._details.get("lineage", {}))

    @property
    def leaks(self) -> list[dict[str, Any]]:
        """Texts that stand in two parts, as found before training; see `cnn.leaks`."""
        return list(self._details.get("leaks", []))

    @property
    def tags(self) -> dict[str, str]:
        """What `train` was given as ``tags``."""
        return dict(self._details.get("tags", {}))

    @property
    def task(self) -> str:
        """``"single"`` (one label a text) or ``"multilabel"``."""
        return str(self._details.get("task", SINGLE))

    @property
    def details(self) -> dict[str, Any]:
        """All of ``run.json``."""
        return dict(self._details)

    def load_predictions(self) -> Predictions:
        """What it said of the dev and the test texts (``predictions.npz``).

        Raises:
            TrainingError: if the file is missing or damaged.
        """
        return load_predictions(self.path / PREDICTIONS_FILE, self.name)

    @property
    def history(self) -> list[dict[str, Any]]:
        """Each epoch's figures (see `cnn.fitting.EpochReport`), of every fold if it has folds.

        Raises:
            TrainingError: if the file is missing or damaged.
        """
        history: list[dict[str, Any]] = _read_json(self.path / HISTORY_FILE, self.name)
        return history

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Label texts.

        Features that the store holds are used; only where one is missing is the module
        loaded, and what it computes is kept.

        Args:
            texts: Any number of texts.

        Returns:
            One prediction a text, in order.

        Raises:
            TrainingError: if the model's file is missing or damaged.
            UnknownNameError: if the store no longer knows the run's view.
            ModuleError: if the module is needed and cannot be loaded.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, not one string: put it in a list")
        self._embed_missing(texts)
        return self.predict_stored(texts)

    def predict_stored(self, texts: Sequence[str]) -> list[Prediction]:
        """Label texts whose features the store has; no module is ever loaded.

        Args:
            texts: Any number of texts.

        Returns:
            One prediction a text, in order.

        Raises:
            KeyNotFoundError: if a text has no features under the run's view.
            TrainingError: if the model's file is missing or damaged.
            UnknownNameError: if the store no longer knows the run's view.
        """
        with without_tracing_warnings():
            return self._predict(texts)

    def _predict(self, texts: Sequence[str]) -> list[Prediction]:
        return [self._prediction(row) for row in self._probabilities(texts)]

    def _embed_missing(self, texts: Sequence[str]) -> None:
        view = self.record["view"]
        is_stored = self._store.contains(view, texts)
        if not is_stored.all():
            # Late: it brings the room that loads TensorFlow.
            from embedcache.embedder import Embedder

            if self._embedder is None:
                self._embedder = Embedder(self._store, view)
            self._embedder.embed_texts([texts[at] for at in np.flatnonzero(~is_stored).tolist()])
            # Now, as nobody closes a run.
            self._embedder.finish()

    def _probabilities(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The probabilities of n texts: (n, C) float32. One batch's features are in memory."""
        refs, reader = self._store.locate(self.record["view"], texts)
        dim, dtype = reader.view.dim, reader.dtype
        table = self.load_table()
        numbers = None if table is None else TokenNumbers(reader, table)
        probabilities = np.empty((len(refs), len(self.labels)), np.float32)
        for chosen in _batches_by_length(refs.lengths, row_bytes=dim * dtype.itemsize):
            part = refs.take(chosen)
            lengths = part.lengths.astype(np.int32)
            length = ladder_length(padded_length(int(lengths.max())))
            values = np.empty((len(chosen), length, dim), dtype)
            reader.gather_padded(part, values)
            batch = Batch(
                values,
                lengths,
                np.full(len(chosen), -1, np.int32),
                part.keys,
                None if numbers is None else numbers.gather_padded(part, length),
            )
            probabilities[chosen] = predict_batch(self._load_model(), batch)
        return probabilities

    def load_model(self) -> Any:
        """Its Keras model, for predicting only; read when it is first asked for.

        Raises:
            TrainingError: if the file is missing or damaged.
        """
        if self._model is None:
            self._model = load_model(self.path / MODEL_FILE, self.name, self._details)
        return self._model

    def load_table(self) -> TokenTable | None:
        """The token table that its model was trained with; None where the embedding is static.

        Raises:
            TrainingError: if the file is missing or damaged.
        """
        known = self._details.get("token_table")
        if known is None:
            return None
        table = TokenTable.load(self.path / TABLE_FILE)
        if table.digest != known["digest"]:
            raise _damaged(self.path / TABLE_FILE, self.name, "it is not what was written")
        return table

    _load_model = load_model

    def _prediction(self, probabilities: NDArray[np.float32]) -> Prediction:
        best = int(probabilities.argmax())
        named = dict(zip(self.labels, probabilities.tolist(), strict=True))
        if self.task == MULTILABEL:
            labels = tuple(label for label, chance in named.items() if chance >= THRESHOLD)
        else:
            labels = (self.labels[best],)
        return Prediction(self.labels[best], float(probabilities[best]), named, labels)


def load_run(store: FeatureStore, name: str) -> Run:
    """A run of a store. Its model is read when it first predicts.

    Args:
        store: An open store.
        name: The run's name or the beginning of it, or ``last`` for the newest.

    Raises:
        UnknownNameError: if there is no such run, or several begin so.
        TrainingError: if the run's files are missing or damaged.
    """
    found = store.catalog.find_run(name)
    path = store.layout.runs / found.run
    details = _read_json(path / RUN_FILE, found.run)
    if not isinstance(details, dict) or not {"config", "labels", "model"} <= set(details):
        raise _damaged(path / RUN_FILE, found.run, "fields are missing")
    if not (path / MODEL_FILE).is_file():
        raise _damaged(path / MODEL_FILE, found.run, "no such file")
    return Run(store, path, record=found.record, details=details)


def load_model(path: Path, run: str, details: Mapping[str, Any]) -> Any:
    """The Keras model of a run, for predicting only.

    Raises:
        TrainingError: if the file is missing, or not what was written.
    """
    try:
        digest = blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        raise _damaged(path, run, error.strerror or str(error)) from error
    if digest != details["model"]["digest"]:
        raise _damaged(path, run, "its bytes are not what was written")
    keras = import_keras()
    import_module("cnn.layers")  # registers the layers that the file names
    try:
        with without_tensorflow():
            return keras.models.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"Keras {keras.__version__} cannot load it: {' '.join(str(error).split())[:200]}"
        raise _damaged(path, run, reason) from error


def _batches_by_length(
    lengths: NDArray[np.int64], *, row_bytes: int
) -> Iterator[NDArray[np.int64]]:
    """Cut n texts into batches of neighbours in length: little padding, few shapes."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        batch = order[start : start + _BATCH_TEXTS]
        # Ascending, as the lengths are: what the first, the first two, … take when padded.
        sizes = np.arange(1, len(batch) + 1) * lengths[batch] * row_bytes
        batch = batch[: max(1, int(np.count_nonzero(sizes <= _BATCH_BYTES)))]
        yield batch
        start += len(batch)


def _read_json(path: Path, run: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise _damaged(path, run, error.strerror or str(error)) from error
    except ValueError as error:
        raise _damaged(path, run, str(error)) from error


def _damaged(path: Path, run: str, reason: str) -> TrainingError:
    return TrainingError(
        f"{path}: the file of run {run} is missing or damaged ({reason}); train again with"
        " `embedcache train`"
    )
